"""Apache Otava's change points; run by `tools/choose_drift.py` in an environment of its own.

Reads {"series": [[...], ...], "methods": {name: [p, ...]}} from standard input; writes, by method,
for each p and each series the indices of the changes, or the error's name; and the seconds.
"""

import json
import sys
from time import perf_counter

from otava.analysis import compute_change_points, compute_change_points_orig


def hunter(values, p, window):
    return compute_change_points(list(values), window_len=window, max_pvalue=p)[0]


METHODS = {
    "Otava, window 2n": lambda values, p: hunter(values, p, 2 * len(values)),
    "Otava as it comes": lambda values, p: hunter(values, p, 50),
    "Otava, permutations": lambda values, p: compute_change_points_orig(values, p, seed=0)[0],
}


def found(method, values, p):
    try:
        return sorted(int(point.index) for point in METHODS[method](values, p))
    except Exception as error:  # crashes are counted
        return type(error).__name__


def main():
    given = json.load(sys.stdin)
    answer = {}
    for name, (levels, count) in given["methods"].items():
        start = perf_counter()
        chosen = [group[:count] for group in given["series"]]
        answer[name] = {
            "found": {str(p): [[found(name, x, p) for x in g] for g in chosen] for p in levels},
            "seconds": perf_counter() - start,
        }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
