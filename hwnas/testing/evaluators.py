"""The contract of an evaluator as tests: subclass `EvaluatorSuite`, say how one is made, and run pytest.

    class TestMine(EvaluatorSuite):
        wanted = (("val_error_pct", None), ("latency_ms", "mybox"))

        def space(self):
            return MySpace()

        def evaluator(self):
            return Mine(...)

An evaluator that measures anew each time sets `repeats = False`. The suite draws its architectures at random from the
space; `architectures` may be replaced, for instance to be sure that some of them fail.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import pytest

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement
from hwnas.core.metrics import METRICS
from hwnas.core.protocols import Evaluator, SearchSpace
from hwnas.measure import Wanted
from hwnas.spaces.codes import sample

# robust error is that of attacked test images
_SPLITS = {"val_error_pct": "val", **{metric: "test" for metric in METRICS if metric.startswith(("test", "robust"))}}


class EvaluatorSuite:
    """Every evaluator: names what it answers, answers exactly what it is asked, and invents nothing.

    Attributes:
        wanted: All (metric, device) that the evaluator answers, device None where the metric has none.
        repeats: Whether the same question has the same answer.
        count: How many architectures are drawn.
    """

    wanted: tuple[Wanted, ...] = ()
    repeats = True
    count = 40

    def space(self) -> SearchSpace:
        """The search space of the evaluator."""
        raise NotImplementedError

    def evaluator(self) -> Evaluator:
        """A fresh evaluator."""
        raise NotImplementedError

    def architectures(self) -> list[Architecture]:
        """Distinct architectures to ask for."""
        rng = np.random.default_rng(0)
        drawn = sample(self.space(), self.count, rng=rng)
        return list(dict.fromkeys(drawn))

    @cached_property
    def _rows(self) -> list[Measurement]:
        return list(self.evaluator().evaluate(self.architectures(), self.wanted))

    def _context(self, wanted: Wanted) -> Context:
        context = self.evaluator().context(*wanted)
        assert context is not None, f"does not answer {wanted}"
        return context

    def test_is_an_evaluator(self) -> None:
        evaluator = self.evaluator()
        assert isinstance(evaluator, Evaluator)
        assert evaluator.name
        assert self.wanted, "the suite wants to know what the evaluator answers"

    def test_every_answer_has_a_context_that_makes_it_comparable(self) -> None:
        for metric, device in self.wanted:
            context = self._context((metric, device))
            assert metric in METRICS
            assert (device is not None) == METRICS[metric].per_device, (metric, device)
            assert context.device == device
            assert context.dataset in self.space().datasets
            assert context.split == _SPLITS.get(metric)
            assert Context.from_json(json.loads(json.dumps(context.to_json()))) == context

    def test_what_it_does_not_answer_has_no_context(self) -> None:
        evaluator = self.evaluator()
        assert evaluator.context("no_such_metric", None) is None
        for metric, device in self.wanted:
            if device is not None:
                assert evaluator.context(metric, None) is None, "a device's metric without its device"
                assert evaluator.context(metric, "no-such-device") is None
            else:
                assert evaluator.context(metric, "no-such-device") is None, "no such metric of a device"

    def test_what_it_does_not_answer_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no_such_metric"):
            list(self.evaluator().evaluate(self.architectures()[:1], [("no_such_metric", None)]))

    def test_one_row_for_each_architecture_and_wanted_metric(self) -> None:
        asked = sorted((a.key, metric, device or "") for a in self.architectures() for metric, device in self.wanted)
        assert sorted((row.architecture.key, row.metric, row.context.device or "") for row in self._rows) == asked

    def test_rows_carry_the_context_that_was_promised(self) -> None:
        evaluator = self.evaluator()
        promised = {wanted: [self._context(wanted)] for wanted in self.wanted}
        if hasattr(evaluator, "contexts"):  # some are measured and others predicted
            promised = {wanted: list(evaluator.contexts(*wanted)) for wanted in self.wanted}
        for row in self._rows:
            assert row.context in promised[row.metric, row.context.device]

    def test_values_can_be_true(self) -> None:
        for row in self._rows:
            if not row.status.has_value:
                assert math.isnan(row.value)
                assert row.message, f"{row.metric} of {row.architecture} failed without a word"
                continue
            assert row.value >= 0
            if row.metric.endswith("_pct"):
                assert row.value <= 100

    def test_something_is_answered(self) -> None:
        for metric, device in self.wanted:
            values = [r.value for r in self._rows if (r.metric, r.context.device) == (metric, device)]
            known = [value for value in values if not math.isnan(value)]
            assert len(set(known)) > 1, f"{metric} on {device} tells no two architectures apart"

    def test_same_question_same_answer(self) -> None:
        if not self.repeats:
            pytest.skip("measures anew each time")
        evaluator = self.evaluator()
        for _ in range(2):
            assert _told(evaluator.evaluate(self.architectures(), self.wanted)) == _told(self._rows)

    def test_answers_do_not_depend_on_the_company(self) -> None:
        if not self.repeats:
            pytest.skip("measures anew each time")
        evaluator = self.evaluator()
        together = _told(self._rows)
        alone: dict[tuple[str, ...], object] = {}
        for architecture in reversed(self.architectures()[:5]):
            for wanted in reversed(self.wanted):
                alone |= _told(evaluator.evaluate([architecture], [wanted]))
        assert alone == {key: together[key] for key in alone}
        assert len(alone) == 5 * len(self.wanted)

    def test_rows_survive_json(self) -> None:
        for row in self._rows:
            back = Measurement.from_json(json.loads(json.dumps(row.to_json())))
            assert back.to_json() == row.to_json()

    def test_nothing_asked_nothing_answered(self) -> None:
        assert list(self.evaluator().evaluate([], self.wanted)) == []
        assert list(self.evaluator().evaluate(self.architectures()[:1], [])) == []

    def test_leaves_global_random_state_alone(self) -> None:
        ours = np.random.get_state(legacy=False)  # noqa: NPY002 - it is what must not change
        theirs = random.getstate()
        list(self.evaluator().evaluate(self.architectures()[:3], self.wanted))
        assert repr(np.random.get_state(legacy=False)) == repr(ours)  # noqa: NPY002
        assert random.getstate() == theirs


def _told(rows: Iterable[Measurement]) -> dict[tuple[str, ...], object]:
    """Rows as comparable values (nan does not equal itself)."""
    return {(row.architecture.key, row.metric, row.context.device or ""): row.to_json() for row in rows}
