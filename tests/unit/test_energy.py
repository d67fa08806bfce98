"""Energy of quantizing and evaluating: what is measured once, what follows, and what is gated."""

import numpy as np
import pytest

from bitgate.catalog import Dataset, EnergyWorkload
from bitgate.gates.decide import decide
from bitgate.gates.rules import Rule
from bitgate.gates.thresholds import Bound
from bitgate.measure.energy import energy, evaluating
from bitgate.measure.energy_meter import Used
from bitgate.measure.inputs import TOKENS, of_text
from bitgate.sources import SourceError, Windows

TEXT = {"kind": "local", "path": "none"}


def workload(**changes):
    dataset = Dataset(name="text", format="plain", source=TEXT, window=8)
    fields = {"kind": "energy", "name": "b2", "dataset": dataset, "batch": 2, "length": 4}
    return EnergyWorkload(**{**fields, "items": 4, **changes})


def text(count):
    import torch

    tokens = torch.arange(8 * count).reshape(count, 8)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Windows(tokens, zeros + 1, zeros, "")


def spent(kwh, seconds=2.0, modelled=False):
    return Used(seconds, kwh, kwh / 2, "by a meter", modelled)


def measurement(modelled=False):
    work = workload()
    parts = [spent(kwh, modelled=modelled) for kwh in (3e-6, 8e-6, 4e-6)]
    return energy(work, of_text(work, text(4)), *(lambda part=part: part for part in parts))


# --- what it is of -------------------------------------------------------------------------


def test_inputs_are_the_beginnings_of_windows():
    first, second = of_text(workload(), text(5))
    assert first[TOKENS].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert second[TOKENS].tolist() == [[16, 17, 18, 19], [24, 25, 26, 27]]


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(SourceError, match="energy b2: text has 3 windows of the 4 that it takes"):
        of_text(workload(), text(3))


class Model:
    """Remembers the shapes that it is given."""

    def __init__(self):
        self.seen = []

    def logits(self, tokens):
        self.seen.append(tuple(tokens.shape))


class Meter:
    def measure(self, work):
        self.before = list(model.seen)
        work()
        return spent(1e-6)


model = Model()


def test_what_happens_only_once_is_no_part_of_it():
    meter = Meter()
    evaluating(meter, model, of_text(workload(), text(4)))
    assert meter.before == [(1, 4)]  # warm before it counts
    assert model.seen[1:] == [(2, 4), (2, 4)]


# --- what follows --------------------------------------------------------------------------


def test_metrics_by_hand(items_of, metrics_of):
    measured = measurement()
    found = metrics_of(measured, items_of(measured, batches=1))
    assert found["quantize_kwh"].value == 3e-6
    assert found["evaluate_kwh"].value == 4e-6
    assert found["base_evaluate_kwh"].value == 8e-6
    assert found["evaluate_kg_co2eq"].value == 2e-6
    assert found["energy_ratio"].value == pytest.approx(0.5)
    assert found["joules_per_token"].value == pytest.approx(4e-6 * 3.6e6 / 16)
    assert found["evaluate_seconds"].value == 2
    assert found["evaluate_kwh"].by == "by a meter"
    assert "joules_per_item" not in found
    assert found["evaluate_kwh"].low < 4e-6 < found["evaluate_kwh"].high


def test_of_items_it_is_per_item(items_of, metrics_of):
    import torch

    images = [{"pixel_values": torch.zeros(2, 3, 4, 4)}] * 2
    measured = energy(workload(), images, *([lambda: spent(4e-6)] * 3))
    found = metrics_of(measured, items_of(measured, batches=1))
    assert found["joules_per_item"].value == pytest.approx(4e-6 * 3.6e6 / 4)
    assert "joules_per_token" not in found


# --- what is gated -------------------------------------------------------------------------

RULES = {
    "joules_per_token": Rule("joules_per_token", "g", "t.toml", Bound(max=0.001)),
    "evaluate_seconds": Rule("evaluate_seconds", "g", "t.toml", Bound(max=100)),
}


def outcomes(decision):
    return {verdict.metric: verdict.outcome for verdict in decision.verdicts}


def test_measured_energy_is_judged():
    found = outcomes(decide(measurement(), RULES))
    assert found == {"joules_per_token": "fail", "evaluate_seconds": "pass"}


def test_modelled_energy_is_shown_and_not_judged():
    decision = decide(measurement(modelled=True), RULES)
    assert outcomes(decision) == {"evaluate_seconds": "pass"}
    shown = {metric.name: metric for metric in decision.metrics}
    assert shown["joules_per_token"].record()["modelled"] is True
    assert "modelled" not in shown["evaluate_seconds"].record()
    assert decision.stopped == "decided"


def test_unless_asked_for():
    decision = decide(measurement(modelled=True), RULES, gate_modelled=True)
    assert outcomes(decision)["joules_per_token"] == "fail"


def test_modelled_energy_that_is_no_number_is_still_an_error():
    parts = [spent(np.nan, modelled=True)] * 3
    work = workload()
    broken = energy(work, of_text(work, text(4)), *([lambda: parts[0]] * 3))
    assert set(outcomes(decide(broken, {})).values()) == {"fail"}


# --- the table -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"items": 3}, "`items`: 3 do not fill batches of 2"),
        ({"length": 9}, "`length`: 9 is more than the window of text, 8"),
        ({"dataset": None}, "give either `dataset`, a text, or `labelled`"),
    ],
)
def test_a_workload_that_is_none(changes, said):
    with pytest.raises(ValueError, match=said):
        workload(**changes)


def test_what_a_gate_can_match_on():
    assert workload().fields() == {"dataset": "text", "batch": 2}
    assert workload().asked == ("causal-lm",)
