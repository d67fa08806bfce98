"""Draw what a terminal shows as an SVG: the picture in the README.

pytest bench --color=yes | tee run.ansi
python tools/picture.py run.ansi docs/images/bench.svg --from '= bitgate ='
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console
from rich.text import Text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ansi", type=Path, help="what was printed, colours included")
    parser.add_argument("svg", type=Path)
    parser.add_argument("--from", dest="start", default="", help="begin after a line with this")
    parser.add_argument("--title", default="make bench")
    parser.add_argument("--width", type=int, default=150)
    options = parser.parse_args()
    lines = options.ansi.read_text("utf-8").splitlines()
    if options.start:
        first = next(n for n, line in enumerate(lines) if options.start in Text.from_ansi(line))
        lines = lines[first + 1 :]
    console = Console(record=True, width=options.width, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line.rstrip()), soft_wrap=True)
    options.svg.parent.mkdir(parents=True, exist_ok=True)
    options.svg.write_text(console.export_svg(title=options.title), "utf-8")


if __name__ == "__main__":
    main()
