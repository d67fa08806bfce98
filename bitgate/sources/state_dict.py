"""State dicts, read without ever running what they contain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitgate.sources.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor, nn

_PICKLED = (".pt", ".pth", ".bin")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a pickle that holds tensors and nothing else."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix not in (".safetensors", *_PICKLED):
        raise SourceError(
            f"{path.name}: state dicts are read from .safetensors, {', '.join(_PICKLED)} only"
        )
    try:
        if path.suffix == ".safetensors":
            # in memory of their own: in the file's they are not aligned, and convolutions and small
            # products then sum in another order than in a copy of the model
            return {name: tensor.clone() for name, tensor in load_file(path).items()}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise SourceError(f"{path.name} is no safetensors file: {error}") from error
    except Exception as error:  # UnpicklingError, or anything at all from a damaged file
        raise SourceError(
            f"{path.name} cannot be read with weights_only, and is not read in any other way: it "
            f"is damaged or holds more than tensors. Convert it to safetensors ({error})"
        ) from error
    return _tensors(state, path)


def fill(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Put the tensors into a model; every parameter must be met, but for tied ones."""
    tied = set(getattr(module, "all_tied_weights_keys", ()))
    try:
        missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:  # shapes differ
        raise SourceError(f"{path.name} does not fit the model's config: {error}") from error
    missing = [name for name in missing if name not in tied]
    if missing or unexpected:
        raise SourceError(
            f"{path.name} does not fit the model's config: {_some(missing)} missing, "
            f"{_some(unexpected)} unexpected"
        )
    if tied:
        module.tie_weights()


def in_order(module: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under the model's own names: the first one's is the first's, and so on.

    For an architecture that two libraries name differently. Both have to have as many, and every
    one its counterpart's shape.
    """
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if len(own) != len(state):
        raise SourceError(
            f"keys: {path.name} has {len(state)} tensors and the model's config {len(own)}: their "
            "order does not say which belongs where"
        )
    for (name, shape), (there, tensor) in zip(own.items(), state.items(), strict=True):
        if shape != tuple(tensor.shape):
            raise SourceError(
                f"keys: in the order of both, {there} of {path.name} would be {name}, but is "
                f"{list(tensor.shape)} and not {list(shape)}"
            )
    return dict(zip(own, state.values(), strict=True))


def _tensors(state: object, path: Path) -> dict[str, Tensor]:
    """The tensors themselves, where trainers wrap them in a checkpoint with other things."""
    from torch import Tensor

    for _ in range(2):
        if isinstance(state, dict):
            if state and all(isinstance(value, Tensor) for value in state.values()):
                return state
            state = state.get("state_dict", state.get("model"))
    raise SourceError(f"{path.name} holds no state dict: a dict of tensors by name")


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])})" if names else "none"
