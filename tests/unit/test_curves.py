"""Loss curves: which epoch is marked, what is said of overfitting, what is drawn."""

import re
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner
from rich.console import Console

from bitgate.cli import main
from bitgate.report.curves import HEIGHT, WIDTH, svg, table, verdict
from bitgate.sources.losses import Epoch, Losses, write_losses


def losses(*validation, kept=None):
    epochs = tuple(
        Epoch(n, 1.0 / n, 0.5 + 0.01 * n, loss, None if loss is None else 0.5)
        for n, loss in enumerate(validation, 1)
    )
    return Losses(epochs, kept or len(epochs))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (losses(0.9, 0.8, 0.7), "was still falling in the last epoch, 3; the weights are those"),
        (losses(0.9, 0.7, 0.77, kept=2), "has risen by 10.0 % since epoch 2 of 3 (0.7000)"),
        (losses(0.9, 0.7, 0.77, kept=2), "the weights are those of epoch 2"),
        (losses(0.9, 0.7, 0.703), "has been level since epoch 2 of 3 (0.7000): no overfitting"),
        (losses(None, None), "overfitting cannot be seen; give `validation_items`"),
    ],
)
def test_whether_it_overfits(found, said):
    assert said in verdict(found)


def text_of(found):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table("tiny", found))
    return capture.get()


def test_the_table_marks_the_best_epoch_and_the_one_kept():
    lines = text_of(losses(0.9, 0.7, 0.77, kept=3)).splitlines()
    assert re.search(r"2 +0\.5000 +0\.7000 +52\.0 +50\.0 +best", lines[3])
    assert re.search(r"kept", lines[4])
    assert "best, kept" in text_of(losses(0.9, 0.7, 0.8, kept=2))
    assert "–" in text_of(losses(None, None))


def test_the_drawing_has_both_lines_inside_of_it():
    found = losses(0.9, 0.7, 0.77)
    root = ET.fromstring(svg("a <model>", found))
    space = "{http://www.w3.org/2000/svg}"
    lines = root.findall(f"{space}polyline")
    assert len(lines) == 2
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert len(points) == 3
        assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in points)
        assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[1][1] > points[0][1]  # a lower loss is further down
    (dot,) = root.findall(f"{space}circle")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == points[1]
    assert "a <model>" in "".join(root.itertext())
    assert len(ET.fromstring(svg("flat", losses(None))).findall(f"{space}polyline")) == 1


def test_the_command(tmp_path, monkeypatch):
    from bitgate import sources

    found = losses(0.9, 0.7, 0.77, kept=2)
    write_losses(tmp_path, found.epochs, found.kept)
    monkeypatch.setattr(sources, "fetch_model", lambda model: tmp_path)
    run = CliRunner().invoke
    name = "llama-smollm2-135m-sentiment"
    catalog = ["--catalog", str(tmp_path)]  # nothing beside the default catalog
    result = run(main, ["curves", name, *catalog, "--svg", str(tmp_path / "c.svg")])
    assert result.exit_code == 0, result.output
    assert "has risen by 10.0 %" in result.output
    assert ET.parse(tmp_path / "c.svg").getroot().tag.endswith("svg")

    result = run(main, ["curves", "llama-smollm2-135m", *catalog])
    assert result.exit_code == 4
    assert f"is not trained here: models.toml; did you mean {name!r}?" in result.output
    assert run(main, ["curves", "nothing", *catalog]).exit_code == 4

    (tmp_path / "training.json").write_text("{")
    result = run(main, ["curves", name, *catalog])
    assert result.exit_code == 4
    assert "is damaged" in result.output
