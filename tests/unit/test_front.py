"""The front of plans: beside every plan there is, on small examples."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitgate.measure.front import Option, front, hull

numbers = st.integers(0, 30).map(float)
options = st.lists(st.builds(Option, st.integers(1, 8), numbers, numbers), min_size=1, max_size=4)


def every(units):
    """(cost, harm) of all combinations."""
    return [
        (sum(o.cost for o in some), sum(o.harm for o in some)) for some in product(*units.values())
    ]


@given(st.dictionaries(st.sampled_from("abc"), options, min_size=1))
def test_no_plan_lies_below_the_front(units):
    """Each point is best for some price of cost in harm: no plan is below any line that joins two
    neighbours."""
    walked = front(units)
    known = every(units)
    assert all((point.cost, point.harm) in known for point in walked)
    least = min(harm for _, harm in known)
    assert walked[0].harm == least
    assert walked[0].cost == min(cost for cost, harm in known if harm == least)
    assert walked[-1].cost == min(cost for cost, _ in known)
    for before, after in pairwise(walked):
        assert after.cost < before.cost
        assert after.harm > before.harm
        slope = (after.harm - before.harm) / (before.cost - after.cost)
        line = before.harm + slope * before.cost
        assert all(harm + slope * cost >= line - 1e-9 for cost, harm in known)


def test_counted_by_hand():
    walked = front(
        {
            "a": [Option(8, 8, 0.0), Option(4, 4, 1.0), Option(2, 2, 5.0)],
            "b": [Option(8, 80, 0.1), Option(4, 40, 4.1)],
        }
    )
    # b saves at 0.1 a unit, a at 0.25 and then at 2
    assert [tuple(point.bits.values()) for point in walked] == [(8, 8), (8, 4), (4, 4), (2, 4)]
    assert [point.cost for point in walked] == [88, 48, 44, 42]
    assert [point.harm for point in walked] == pytest.approx([0.1, 4.1, 5.1, 9.1])


def test_an_option_above_the_line_of_its_neighbours_is_passed_over():
    found = hull([Option(8, 8, 0), Option(4, 4, 3), Option(2, 2, 4), Option(3, 8, 1)])
    assert [option.bits for option in found] == [8, 2]


def test_a_unit_without_options():
    with pytest.raises(ValueError, match="without options"):
        front({"a": []})
