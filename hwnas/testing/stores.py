"""The contract of a store as tests: subclass `StoreSuite`, say how one is made, and run pytest.

    class TestMine(StoreSuite):
        def make(self, folder):
            return MyStore(folder / "mine.db")  # opens what is there, else begins anew

A store that ends with its process sets `persistent = False`.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.objective import Objective
from hwnas.core.protocols import Store
from hwnas.core.state import SearchState
from hwnas.core.stopping import Outlook

ERROR = Context(Source.TABLE, dataset="cifar10", split="val", seed="mean", origin="table", versions=(("a", "1"),))
LATENCY = Context(Source.MEASURED, device="böard", runtime="ort-cpu", precision="fp32", batch=1)


def architecture(number: int) -> Architecture:
    """The `number`-th architecture of an imagined space."""
    return Architecture("toy", (number // 10, number % 10))


def facts(number: int) -> list[Measurement]:
    """An error and a latency of one architecture; every third latency is a failure."""
    one = architecture(number)
    latency = Measurement(
        one, "latency_ms", 0.1 + number / 3, LATENCY, interval=(0.1, 0.2 + number), own_half=0.01 * number
    )
    if number % 3 == 2:
        latency = Measurement.failed(one, "latency_ms", LATENCY, Status.OUT_OF_MEMORY, "Speicher voll: 2 µs, 漢字")
    return [Measurement(one, "val_error_pct", 10 / (number + 1), ERROR), latency]


def start() -> SearchState:
    """A search for error and latency, before its first step."""
    return SearchState("toy", (Objective("val_error_pct"), Objective("latency_ms", "böard")))


def plain(rows: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Measurements in a form in which nan equals nan."""
    return [row.to_json() for row in rows]


class StoreSuite:
    """Every store passes these. Subclass, name it `Test...`, override `make`."""

    persistent = True  # whether a store of the same folder finds what an earlier one stored

    def make(self, folder: Path) -> Store:
        """A store in `folder`: the one that is there, else a new one."""
        raise NotImplementedError("a suite says how its store is made")

    def test_rows_come_back_in_order_and_unchanged(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        rows = [row for number in (4, 2, 9, 0) for row in facts(number)]
        store.append(rows[:3])
        store.append([])
        store.append(rows[3:])
        assert plain(store.rows()) == plain(rows)
        assert [type(row.value) for row in store.rows()] == [float] * len(rows)
        store.close()

    def test_find_wants_exactly_the_same_context(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        error, latency = facts(0)
        store.append([error, latency])
        assert store.find(error.architecture, "val_error_pct", ERROR) == error
        assert store.find(latency.architecture, "latency_ms", LATENCY) == latency
        assert store.find(architecture(1), "val_error_pct", ERROR) is None
        assert store.find(error.architecture, "test_error_pct", ERROR) is None
        for other in (
            replace(ERROR, split="test"),
            replace(ERROR, seed=None),
            replace(ERROR, batch=1),
            replace(ERROR, versions=(("a", "2"),)),
            replace(ERROR, source=Source.SURROGATE),
        ):
            assert store.find(error.architecture, "val_error_pct", other) is None
        store.close()

    def test_find_returns_the_newest(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        old = facts(0)[1]
        new = Measurement.failed(old.architecture, old.metric, old.context, Status.CRASHED, "signal 11")
        store.append([old])
        store.append([new])
        found = store.find(old.architecture, old.metric, old.context)
        assert found is not None
        assert found.status is Status.CRASHED
        assert len(store.rows()) == 2
        store.close()

    def test_failures_stay_failures(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        store.append(facts(2))
        found = store.find(architecture(2), "latency_ms", LATENCY)
        assert found is not None
        assert math.isnan(found.value)
        assert (found.status, found.message) == (Status.OUT_OF_MEMORY, "Speicher voll: 2 µs, 漢字")
        store.close()

    def test_a_step_comes_back(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        assert store.last_step() is None
        ledger = Ledger(evaluations=2, cpu_s=0.1 + 0.2)
        saved = {
            "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
            "best": math.nan,
            "asked": [["toy:0.1"], None],
        }
        state = self.advance(store, start(), [5, 2], saved, ledger)
        self.advance(store, state, [7], {**saved, "step": 2}, ledger.plus(ledger))
        found = store.last_step()
        assert found is not None
        step, keys, generator, paid = found
        assert (step, keys) == (2, [["toy:0.5", "toy:0.2"], ["toy:0.7"]])
        assert paid == Ledger(evaluations=4, cpu_s=2 * (0.1 + 0.2))
        assert generator["step"] == 2
        assert math.isnan(generator["best"])
        assert generator["asked"] == saved["asked"]
        assert generator["weights"].dtype == np.float32
        np.testing.assert_array_equal(generator["weights"], saved["weights"])
        store.close()

    def test_what_was_expected_comes_back(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        assert store.outlooks() == ()
        state = self.advance(store, start(), [5])
        store.append(facts(2))
        expected = Outlook(0.1 + 0.2, 0.5, 0.25, 2 / 3)
        state = state.tell(facts(2)).expect(expected)
        store.commit_step(state, {}, Ledger())
        assert store.outlooks() == (None, expected) == state.outlooks
        self.advance(store, state, [7])
        assert store.outlooks() == (None, expected, None)
        store.close()

    def test_what_was_saved_does_not_follow_the_generator(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        weights = np.zeros(3)
        self.advance(store, start(), [0], {"weights": weights})
        weights += 1
        first, second = store.last_step(), store.last_step()
        assert first is not None
        assert second is not None
        first[2]["weights"][:] = 7
        np.testing.assert_array_equal(second[2]["weights"], np.zeros(3))
        store.close()

    def test_a_step_without_evaluations_is_a_step(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        self.advance(store, self.advance(store, start(), []), [1])
        found = store.last_step()
        assert found is not None
        assert found[:2] == (2, [[], ["toy:0.1"]])
        store.close()

    def test_notes_come_back_by_topic_in_order_and_unchanged(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        entries: list[dict[str, Any]] = [
            {"figure": 0.1 + 0.2, "names": {"b": [1, None, True], "a": "2 µs, 漢字"}},
            {"list": [1]},
            {},
        ]
        store.note("böard", entries[0])
        store.note("other", {"figure": 7})
        for entry in entries[1:]:
            store.note("böard", entry)
        entries[1]["list"].append(2)  # what was noted does not follow
        assert list(store.notes("böard")) == [entries[0], {"list": [1]}, {}]
        assert list(store.notes("böard")[0]["names"]) == ["b", "a"]
        assert list(store.notes("other")) == [{"figure": 7}]
        assert list(store.notes("nothing")) == []
        assert list(store.rows()) == []
        assert store.last_step() is None
        store.close()

    @pytest.mark.parametrize(("wrong", "error"), [(math.nan, ValueError), (object(), TypeError)])
    def test_a_note_that_is_no_json_is_refused_whole(
        self, tmp_path: Path, wrong: object, error: type[Exception]
    ) -> None:
        store = self.make(tmp_path)
        with pytest.raises(error):
            store.note("topic", {"good": 1, "wrong": wrong})
        assert list(store.notes("topic")) == []
        store.close()

    def test_steps_follow_each_other(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        one = self.advance(store, start(), [0, 1])
        store.append([*facts(2), *facts(3)])
        two = one.tell(facts(2))
        for wrong in (start(), one, two.tell(facts(3)), start().tell(facts(2)).tell(facts(3))):
            with pytest.raises(ValueError, match="step"):
                store.commit_step(wrong, {}, Ledger())
        with pytest.raises(ValueError, match="never appended"):
            store.commit_step(one.tell(facts(4)), {}, Ledger())
        found = store.last_step()
        assert found is not None
        assert found[0] == 1
        store.commit_step(two, {}, Ledger())
        store.close()

    def test_a_step_is_stored_whole_or_not_at_all(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        one = self.advance(store, start(), [0], {"weights": np.ones(2)})
        store.append(facts(1))
        two = one.tell(facts(1))
        with pytest.raises(TypeError, match=r"'net'.*object"):
            store.commit_step(two, {"net": object()}, Ledger())
        found = store.last_step()
        assert found is not None
        assert found[:2] == (1, [["toy:0.0"]])
        assert list(found[2]) == ["weights"]
        store.commit_step(two, {}, Ledger())
        store.close()

    def test_reopening_finds_everything_and_continues(self, tmp_path: Path) -> None:
        if not self.persistent:
            pytest.skip("this store ends with its process")
        store = self.make(tmp_path)
        state = self.advance(store, start(), [0, 2], {"weights": np.ones(2)}, Ledger(evaluations=2))
        store.append(facts(3))  # paid in a step that was not committed any more
        store.note("topic", {"number": 1})
        before, step = plain(store.rows()), store.last_step()
        assert step is not None
        store.close()
        store = self.make(tmp_path)
        again = store.last_step()
        assert again is not None
        assert plain(store.rows()) == before
        assert (again[:2], again[3]) == (step[:2], step[3])
        np.testing.assert_array_equal(again[2]["weights"], step[2]["weights"])
        assert store.find(architecture(3), "val_error_pct", ERROR) == facts(3)[0]
        store.note("topic", {"number": 2})
        assert list(store.notes("topic")) == [{"number": 1}, {"number": 2}]
        store.commit_step(state.tell(facts(3)), {}, Ledger())
        store.close()

    def test_a_killed_process_loses_nothing_that_was_acknowledged(self, tmp_path: Path) -> None:
        if not self.persistent:
            pytest.skip("this store ends with its process")
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_append_for_ever, args=(type(self), tmp_path, there))
        child.start()
        there.close()
        acknowledged = 0
        try:
            while acknowledged < 25:
                assert here.poll(60), "the child process stores nothing"
                acknowledged = here.recv()
        finally:
            child.kill()
            child.join()
        try:
            while True:  # what it said between the last look and its death
                acknowledged = here.recv()
        except EOFError:
            here.close()
        store = self.make(tmp_path)
        rows, found = store.rows(), store.last_step()
        assert found is not None
        stored = [row for number in range(len(rows) // 2 + 1) for row in facts(number)]
        assert plain(rows) == plain(stored[: len(rows)])
        step, keys, generator, _ = found
        assert len(rows) >= 2 * acknowledged
        noted = [note["number"] for note in store.notes("steps")]
        assert noted == list(range(len(noted)))
        assert len(noted) >= max(acknowledged, len(rows) / 2), "a note is there before the rows that follow it"
        assert step >= acknowledged
        assert keys == [[architecture(number).key] for number in range(step)]
        assert generator["step"] == step, "the generator's state belongs to another step"
        np.testing.assert_array_equal(generator["weights"], np.full(5000, step))
        store.close()

    def advance(
        self,
        store: Store,
        state: SearchState,
        numbers: Sequence[int],
        generator: dict[str, Any] | None = None,
        ledger: Ledger | None = None,
    ) -> SearchState:
        """Append the facts of some architectures, tell and commit them."""
        rows = [row for number in numbers for row in facts(number)]
        store.append(rows)
        state = state.tell(rows)
        store.commit_step(state, generator or {}, ledger or Ledger())
        return state


def _append_for_ever(suite: type[StoreSuite], folder: Path, pipe: Connection) -> None:
    """In a child process: one step after another, each acknowledged when it is stored, until killed."""
    store, state, number = suite().make(folder), start(), 0
    while True:
        store.note("steps", {"number": number})
        for row in facts(number):
            store.append([row])
        state = state.tell(facts(number))
        number += 1
        store.commit_step(state, {"step": number, "weights": np.full(5000, number)}, Ledger())
        pipe.send(number)
