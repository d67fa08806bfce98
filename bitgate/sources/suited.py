"""Whether a classifier takes a dataset's items, and means the same by its classes: asked where both
first meet, before anything is measured or learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitgate.catalog import LabelledDataset
from bitgate.sources.architecture import positions
from bitgate.sources.errors import SourceError, blaming
from bitgate.sources.labelled import LabelledItems

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 12  #: classes in a message


def refuse_unsuited(
    model: str, module: nn.Module, dataset: LabelledDataset, items: LabelledItems
) -> None:
    """`model` is what messages call it.

    Raises:
        SourceError: if the model has another number of classes, or the same ones in another order;
            does not take images like the first; or has fewer positions than texts have tokens.
    """
    with blaming(f"labelled {dataset.name}"):
        if dataset.classes:
            _refuse_other_classes(model, module.config, dataset.classes)
        if dataset.of == "images":
            refuse_images(model, module, dataset, items.inputs[0:1])
        else:
            _refuse_longer(model, module, dataset)


def refuse_images(model: str, module: nn.Module, dataset: LabelledDataset, images: Any) -> None:
    """Ask the model, in evaluation mode, for the classes of `images`, [n, channels, height, width]:
    some take any size whatever their configuration says, others only one.

    Raises:
        SourceError: if it does not take them.
    """
    import torch

    weight = next(module.parameters())
    try:
        with torch.inference_mode():
            module(pixel_values=images.to(weight.device, weight.dtype))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, AssertionError) as error:  # the last of timm's models
        rows = "shape" in dataset.options
        key = "shape" if rows else "size"
        remedy = "correct it" if rows else "correct it, or give `mean` and `std` of each channel"
        raise SourceError(
            f"options.{key}: {model} takes no images of {_sizes(images)}{_wanted(module)}: "
            f"{error}; {remedy}"
        ) from error


def _sizes(images: Tensor) -> str:
    return " x ".join(map(str, images.shape[1:])) + " (channels, height, width)"


def _wanted(module: Any) -> str:
    keys = ("num_channels", "image_size")
    there = [f"{key} {found}" for key in keys if (found := getattr(module.config, key, None))]
    return f", as it is made for {', '.join(there)}" if there else ""


def _refuse_other_classes(model: str, config: Any, classes: tuple[str, ...]) -> None:
    names = [str(config.id2label.get(number)) for number in range(config.num_labels)]
    shown = ", ".join(names[:SHOWN]) + (", ..." if names[SHOWN:] else "")
    if len(names) != len(classes):
        raise SourceError(
            f"classes: {model} tells {len(names)} apart, and {len(classes)} are named; name its "
            f"own, in its order: {shown}"
        )
    for fold in (str, str.casefold):
        own, given = [fold(name) for name in names], [fold(name) for name in classes]
        if own != given and sorted(own) == sorted(given):
            raise SourceError(
                f"classes: {model} has the same ones in another order; name them in its own, which "
                f"labels that are numbers have to follow: {shown}"
            )


def _refuse_longer(model: str, module: nn.Module, dataset: LabelledDataset) -> None:
    most = positions(module)
    if most is not None and dataset.longest > most:
        raise SourceError(
            f"longest: {dataset.longest} tokens of a text are more than the {most} positions "
            f"of {model}; give at most {most}"
        )
