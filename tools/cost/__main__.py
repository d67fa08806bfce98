"""What Bitgate itself costs.

tox -e cost                          all of it, on the default matrix: about half an hour
tox -e cost -- --part passes         scoring beside bare forward passes: three minutes
tox -e cost -- --record RUN.json     write fixtures/costs.toml from a saved run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matrix
import passes

COSTS = Path(__file__).parents[2] / "fixtures" / "costs.toml"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tox -e cost --",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--record", type=Path, metavar="RUN.json", help="write fixtures/costs.toml")
    parser.add_argument(
        "--part",
        choices=("passes", "matrix", "all"),
        default="all",
        help="passes: scoring beside bare forward passes\nmatrix: the whole matrix beside what "
        "cannot be avoided, with two workers,\nand beside one process per cell",
    )
    parser.add_argument(
        "--not-as-today", action="store_true", help="leave one process per cell out"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the passes")
    parser.add_argument(
        "--rounds", type=int, default=2, help="how often the passes are gone through"
    )
    options = parser.parse_args()
    if options.record:
        return record(options.record)
    failed = 0
    if options.part in ("passes", "all"):
        failed |= passes.measure(options.threads, options.rounds)
    if options.part in ("matrix", "all"):
        failed |= matrix.report(today=not options.not_as_today)
    return failed


def record(path: Path) -> int:
    """The seconds of each case of a saved run, its preparations included."""
    from bitgate.history.runs import records_of

    records = records_of(path)
    if not records:
        print(f"ERROR: {path}: no records of this version in it", file=sys.stderr)
        return 4
    lines = [
        "# What each case cost on two cores of a shared machine, preparations included; the budget",
        "# is divided by it. Written by `tox -e cost -- --record RUN.json`.",
        "[seconds]",
    ]
    lines += [f'"{key}" = {one["seconds"]:.1f}' for key, one in records.items()]
    COSTS.write_text("\n".join(lines) + "\n", "utf-8")
    total = sum(one["seconds"] for one in records.values())
    print(f"{COSTS.name}: {len(records)} cases, {total:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
