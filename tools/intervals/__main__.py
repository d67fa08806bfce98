"""How the intervals and the looks at them were chosen, and how often verdicts are wrong.

    tox -e intervals                          all of it
    tox -e intervals -- coverage --trials 500 a quick look at one of coverage, looks, verdicts
    python tools/intervals/record.py 640      scores the windows that the others draw from

Exits with 1 if more than 2 % of verdicts are wrong on either side for any metric. docs/verdicts.md
has the results.
"""

from __future__ import annotations

import argparse

import coverage
import looks
import verdicts


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/intervals", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", choices=["coverage", "looks", "verdicts"], default=[])
    parser.add_argument("--trials", type=int, default=2000, help="samples of each population")
    parser.add_argument("--subsets", type=int, default=1000, help="of windows, each judged")
    parser.add_argument("--only", nargs="+", default=[], metavar="INTERVAL", help="of coverage")
    options = parser.parse_args()
    what = options.what or ["coverage", "looks", "verdicts"]
    if "coverage" in what:
        coverage.report(options.trials, options.only)
    if "looks" in what:
        looks.report(50 * options.trials)
    return 0 if "verdicts" not in what or verdicts.report(options.subsets) else 1


if __name__ == "__main__":
    raise SystemExit(main())
