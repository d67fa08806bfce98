"""The text that methods calibrate with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitgate.quantize.errors import QuantizeError
from bitgate.sources import SourceError, load_documents, windows

if TYPE_CHECKING:
    from torch import Tensor

    from bitgate.catalog import Dataset, Recipe
    from bitgate.sources import LoadedModel


def calibration_windows(model: LoadedModel, recipe: Recipe, text: Dataset) -> Tensor:
    """Tokens int64 [windows, window] on the model's device, as many as the dataset's `tokens` take.

    Raises:
        QuantizeError: if there are none; it names the recipe.
    """
    where = f"recipe {recipe.name}: calibration"
    if model.tokenizer is None:
        raise QuantizeError(f"{where}: the model has no tokenizer to read {text.name} with")
    try:
        found = windows(text, model.tokenizer, load_documents(text))
    except SourceError as error:
        raise QuantizeError(f"{where}: {error}") from error
    return found.tokens.to(next(model.module.parameters()).device)
