"""`bitgate plot`: two metrics of each cell as an SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner

from bitgate.cli import main
from bitgate.history.cells import cells_of
from bitgate.history.saved import read_run
from bitgate.history.store import Reference
from bitgate.report.ablation import PlotError, ablation
from bitgate.report.scatter import Axis, Point, _log_ticks, _ticks, scatter

SVG = "{http://www.w3.org/2000/svg}"


def point(name, x, y, half=0.0, on_front=False):
    return Point(name, x, y, (x, x), (y - half, y + half), on_front)


def parsed(svg):
    root = ET.fromstring(svg)
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]
    texts = [t.text for t in root.iter(f"{SVG}text")]
    return root, circles, texts


def test_points_stand_in_proportion_and_bars_reach_their_ends():
    points = [point("one", 1, 10, 2), point("two", 2, 20), point("three", 4, 40, on_front=True)]
    root, circles, texts = parsed(scatter("t", points, Axis("x, MiB"), Axis("y")))
    (x1, y1), (x2, y2), (x3, y3) = circles
    assert x1 < x2 < x3
    assert y1 > y2 > y3  # up is more
    assert (x3 - x2) / (x2 - x1) == pytest.approx(2, rel=0.01)
    assert (y2 - y3) / (y1 - y2) == pytest.approx(2, rel=0.01)
    (bar,) = [p.get("d") for p in root.iter(f"{SVG}path") if p.get("class") == "e"]
    low, high = (float(end) for end in bar.partition(" ")[2].split("V"))
    assert (low - y1) == pytest.approx((y1 - y2) * 2 / 10, rel=0.02)
    assert (y1 - high) == pytest.approx((y1 - y2) * 2 / 10, rel=0.02)
    assert [c.get("class") for c in root.iter(f"{SVG}circle")] == ["p", "p", "f"]
    assert {"x, MiB", "y", "one", "two", "three", "t"} <= set(texts)


def test_a_logarithmic_axis_has_equal_ratios_equally_far():
    points = [point(str(y), 1, y) for y in (1, 10, 100)]
    _, circles, _ = parsed(scatter("t", points, Axis("x"), Axis("y", logarithmic=True)))
    ys = [y for _, y in circles]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)


def test_labels_do_not_cover_each_other():
    points = [point(f"cell-{n}", 5.0, 7.0 + n / 1000) for n in range(6)] + [point("far", 50, 70)]
    root, _, _ = parsed(scatter("t", points, Axis("x"), Axis("y")))
    texts = [t for t in root.iter(f"{SVG}text") if (t.text or "").startswith("cell-")]
    places = [(float(t.get("x")), float(t.get("y"))) for t in texts]
    assert len(places) == 6
    for n, (x, y) in enumerate(places):
        for other_x, other_y in places[n + 1 :]:
            assert abs(y - other_y) >= 12 or abs(x - other_x) >= 37


def test_names_are_escaped_and_one_point_is_enough():
    root, circles, texts = parsed(scatter("a<b", [point("<&>", 0, 0)], Axis("x"), Axis("y")))
    assert "<&>" in texts
    assert len(circles) == 1
    assert root.find(f"{SVG}title").text == "a<b"
    with pytest.raises(ValueError, match="no points"):
        scatter("t", [], Axis("x"), Axis("y"))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.913, 0.987), (-3, 1e4), (5e-7, 6e-7)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = _ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    assert [round(10**n, 6) for n in (0, 1)] == _log_ticks(-0.1, 1.1)[::3][:2]


# --- of a run ------------------------------------------------------------------------------


@pytest.fixture
def saved(runs):
    """Three cells with sizes and perplexities, and one that has only its size."""

    def cell(recipe, mib, worse):
        said = {"name": recipe, "method": "hqq"}
        record, columns = runs.sizes(f"quantize[m-{recipe}]", size_mib=mib, base_size_mib=400.0)
        quantize = {"kind": "quantize", "name": ""}
        found = [({**record, "model": "m", "recipe": said, "workload": quantize}, columns)]
        if worse is not None:
            base = [300.0 + number % 3 for number in range(32)]
            nll = [value + 100 * worse for value in base]
            record, columns = runs.quality(
                nll, f"perplexity[m-{recipe}-text]", base=base, kl=[1.0] * 32
            )
            workload = {"kind": "perplexity", "name": "text"}
            found.append(({**record, "model": "m", "recipe": said, "workload": workload}, columns))
        return found

    cells = [("hqq-w8g64", 200, 0.0), ("hqq-w4g64", 100, 0.2), ("hqq-w5", 150, 0.4)]
    made = [one for name, mib, worse in cells for one in cell(name, mib, worse)]
    return runs.save(*made, *cell("hqq-w1", 30, None))


def test_the_front_and_what_is_missing(saved):
    cells = cells_of(Reference("x", [read_run(saved)]), lambda case: True)
    svg, lacking = ablation(cells, "size_mib", "perplexity_ratio", log_y=True)
    root, circles, texts = parsed(svg)
    assert lacking == ["m-hqq-w1"]
    assert len(circles) == 3
    assert [c.get("class") for c in root.iter(f"{SVG}circle")] == ["f", "f", "p"]
    assert "perplexity_ratio on text" in texts
    assert "size_mib, MiB" in texts


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("size", "accuracy", "--x: no metric is called 'size'"),
        ("size_mib", "acuracy", "--y: no metric is called 'acuracy'; did you mean 'accuracy'"),
        ("size_mib", "accuracy", "no cell of it has both size_mib and accuracy; its cells have "),
    ],
)
def test_what_cannot_be_drawn_is_said(saved, x, y, message):
    cells = cells_of(Reference("x", [read_run(saved)]), lambda case: True)
    with pytest.raises(PlotError, match=message):
        ablation(cells, x, y)


def test_the_command_writes_a_file(saved, tmp_path):
    out = tmp_path / "a.svg"
    given = ["plot", str(saved), "--y", "perplexity_ratio", "--out", str(out), "--title", "Mine"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output
    assert "WARNING: left out, as one of the two is missing: m-hqq-w1" in result.output
    assert "Mine" in parsed(out.read_text())[2]
    refused = CliRunner().invoke(main, [*given[:3], "speedup", "--out", str(out)])
    assert refused.exit_code == 4
    assert "no cell of it has both size_mib and speedup" in refused.output
