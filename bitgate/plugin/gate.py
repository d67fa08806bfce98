"""The `gate` fixture: from a measurement to a record, a verdict, and one failure that says all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bitgate.catalog import Case, Execution
from bitgate.gates.decide import Decision, decide
from bitgate.gates.rules import matching, resolve
from bitgate.history.record import Result, not_measured
from bitgate.measure.measurement import Batch, Measurement, UnavailableError
from bitgate.plugin.benchmark import Rounds
from bitgate.plugin.session import RESULT, InconclusiveWarning, Session


class GateFixture:
    """Decides one case."""

    def __init__(
        self,
        session: Session,
        node: pytest.Item,
        case: Case,
        execution: Execution,
        prepared: Mapping[str, float],
    ) -> None:
        self.session = session
        self.node = node
        self.case = case
        self.execution = execution
        self.prepared = prepared

    def decide(self, benchmark: BenchmarkFixture, measurement: Measurement) -> None:
        """Pull batches until every rule is decided or this case's share of the budget is spent.

        Each batch becomes rounds of `benchmark`'s record, every metric goes into its
        `extra_info`, and what missed its bound fails the test, all of it at once.
        """
        rules = matching(self.session.thresholds, self.case, self.execution)
        observed = 0

        def keep(batch: Batch) -> None:
            nonlocal observed
            rounds.add(batch.seconds)
            observed += len(next(iter(batch.items.values()), ()))
            if observed >= measurement.least:
                self.session.budget.enough()

        try:
            with Rounds(benchmark) as rounds:
                decision = decide(
                    measurement,
                    resolve(rules),
                    deadline=self.session.budget.is_over,
                    on_batch=keep,
                    gate_modelled=self.session.options.gate_modelled_energy,
                )
        except UnavailableError as error:
            self.node.stash[RESULT] = not_measured(self.case, str(error))
            pytest.skip(str(error))
        result = Result(
            self.case,
            self.execution,
            decision.metrics,
            decision.verdicts,
            decision.items,
            decision.looks,
            self.session.budget.cost_so_far(),
            self.session.quiet.waited,
            tuple({rule.gate: None for rule in rules}),
            prepared=dict(self.prepared),
        )
        self.node.stash[RESULT] = result
        benchmark.extra_info["bitgate"] = result.record()
        self._tell(decision)

    def _tell(self, decision: Decision) -> None:
        """Every value first, then one failure."""
        for metric in decision.metrics:
            print(metric)  # noqa: T201  # captured, and shown with a failure
        for verdict in decision.verdicts:
            if verdict.outcome == "expected-fail":
                print(f"expected-fail: {verdict.text}")  # noqa: T201
        failed = [v.text for v in decision.verdicts if v.outcome == "fail"]
        undecided = [v.text for v in decision.verdicts if v.outcome == "inconclusive"]
        for text in undecided:
            warnings.warn(InconclusiveWarning(text), stacklevel=3)
        if self.session.options.fail_inconclusive:
            failed += [f"inconclusive: {text}" for text in undecided]
        if failed:
            pytest.fail("\n".join(failed), pytrace=False)
