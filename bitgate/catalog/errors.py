"""What is wrong in the catalog, and the nearest thing that would be right."""

from __future__ import annotations

from collections.abc import Iterable


class CatalogError(ValueError):
    """Something in the catalog is wrong; the message names file, entry, key and remedy."""


SHOWN = 12  #: names in an error before it says how many more there are


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?`, or what there is: the remedy in an error about a name."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:SHOWN]) or "none"
    return f"there is {shown}" + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
