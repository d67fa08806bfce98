"""Options and output that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from rich.console import Console

CATALOG = click.option(
    "--catalog",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("fixtures"),
    show_default=True,
    help="Folder of matrix.toml.",
)
THRESHOLDS = click.option(
    "--thresholds",
    "thresholds_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("thresholds.toml"),
    show_default=True,
    help="The gates.",
)
RUNS = click.option(
    "--history",
    multiple=True,
    type=click.Path(path_type=Path),
    default=(Path(".benchmarks"),),
    show_default=True,
    help="Folder of saved runs, or one of them; may be given again.",
)
CASES = click.option(
    "-k", "cases", metavar="GLOB", help="Only cases whose id fits the glob, or has this in it."
)
METRICS = click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", help="Only this; may be given again."
)


def show(what: object) -> None:
    """Print a table or a text, wide where nobody's terminal says how wide."""
    from rich.console import Console

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=120)
    console.print(what, "")


HISTORY = click.option(
    "--history",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".benchmarks"),
    show_default=True,
    help="Folder of saved runs.",
)
PICK = click.option(
    "-k",
    "pattern",
    metavar="GLOB",
    help="Only cases with such an id or key: '*w4g64*', 'perplexity*'.",
)


def fits(case: str, pattern: str | None) -> bool:
    """Whether a case, by its key or by the id in it, is meant by a glob; any is without one."""
    inside = case.partition("[")[2].removesuffix("]")
    return pattern is None or fnmatchcase(case, pattern) or fnmatchcase(inside, pattern)


def console(output: Path | None, width: int) -> Console:
    """As wide as the terminal, or where none shows it so wide."""
    from rich.console import Console

    found = Console(highlight=False)
    if output is None and found.is_terminal:
        return found
    return Console(highlight=False, width=width)


def rendered(parts: Iterable[object], where: Console) -> str:
    """Tables and lines as text."""
    with where.capture() as capture:
        for part in parts:
            where.print(part)
    return capture.get().rstrip("\n")


def deliver(text: str, output: Path | None) -> None:
    """Print a text, or write it to a file."""
    if output is None:
        click.echo(text)
        return
    try:
        output.write_text(text + "\n", "utf-8")
    except OSError as error:
        refuse(f"{output} cannot be written: {error.strerror or error}")


def refuse(error: Exception | str, status: int = 4) -> NoReturn:
    """End as pytest does on wrong usage."""
    click.echo(f"ERROR: {error}", err=True)
    sys.exit(status)
