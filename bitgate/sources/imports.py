"""Importing torch and transformers without torch's compiler, and without garbage collection.

transformers imports hqq where that is installed, and hqq decorates three methods with
`torch.compile`, which imports the compiler: 4 of the 10 seconds that everything takes. Nothing here
calls these methods (Bitgate compiles whole steps itself, where that is asked for), so while these
packages are imported, compiling waits for the first call.

What an import makes, some 400,000 objects, stays until the end. Python's collector searches it all
the same: again and again while it grows, at each collection afterwards (0.2 s), and once more as
the process ends. That was a third of the time that `bitgate predict` took (6.2 s, 4.1 without). So
it rests meanwhile, and from then on leaves out what there is by then.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any


@cache
def import_transformers() -> None:
    """Once per process, before anything else of transformers or hqq is imported, and any model
    loaded."""
    with _kept():
        import torch

        at_once = torch.compile
        torch.compile = partial(_at_first_call, at_once)
        # torch warns its users of how torchao registers its enums
        trees = logging.getLogger("torch.utils._pytree")
        level = trees.level
        trees.setLevel(logging.ERROR)
        try:
            import transformers.cache_utils
            import transformers.modeling_utils
            import transformers.models.auto.modeling_auto
            import transformers.utils.type_validators  # noqa: F401
        finally:
            torch.compile = at_once
            trees.setLevel(level)


@contextmanager
def _kept() -> Iterator[None]:
    """Nothing made meanwhile is searched for cycles that can be freed; nor is what was in use
    before, which the collector cannot tell from it."""
    searched = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if searched:
            gc.enable()


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
