"""Keeping libraries' own progress bars and banners out of the output, and their hands off the
process's environment; our progress is in `progress`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers inside; afterwards as before."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


@contextmanager
def without_reports() -> Iterator[None]:
    """Nothing from transformers but errors inside: not that a head is new which is about to be
    trained."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def untouched() -> Iterator[None]:
    """Nothing printed inside; afterwards the environment as before. gptqmodel, for one, moves the
    hub's cache to a temporary directory as soon as it is imported, by whomever."""
    before = dict(os.environ)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
