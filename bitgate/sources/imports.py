"""Importing transformers without torch's compiler.

transformers imports hqq where that is installed, and hqq decorates three methods with
`torch.compile`, which imports the compiler: 4 of the 10 seconds that everything takes. Nothing here
calls these methods (Bitgate compiles whole steps itself, where that is asked for), so while these
packages are imported, compiling waits for the first call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any


def import_transformers() -> None:
    """Once per process, before anything else of transformers or hqq is imported."""
    if "transformers.cache_utils" in sys.modules:
        return
    import torch

    at_once = torch.compile
    torch.compile = partial(_at_first_call, at_once)
    try:
        import transformers.cache_utils  # noqa: F401
    finally:
        torch.compile = at_once


def _at_first_call(
    compile_: Callable[..., Any], function: Callable[..., Any] | None = None, **options: Any
) -> Any:
    """What `torch.compile` gives, of which nothing is done until it is called."""
    if function is None:
        return partial(_at_first_call, compile_, **options)
    compiled: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if not compiled:
            compiled.append(compile_(function, **options))
        return compiled[0](*arguments, **keywords)

    return call
