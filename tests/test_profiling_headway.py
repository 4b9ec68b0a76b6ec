"""How far a measurement is: it moves within a batch, never back, and counts the networks that were asked for."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hwnas.profiling.bench import Bench, Candidate
from hwnas.profiling.headway import Headway
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.references import write_references
from hwnas.testing.profiling import simulated_bench, write_cell

CELLS = {"a": (3, 3, 1, 3, 2, 3), "b": (0, 1, 0, 2, 0, 1), "c": (3, 2, 3, 2, 3, 2)}
TWO = Protocol("two", rounds=6, most_rounds=6, within=0.5, processes=2, batch=2, retests=1, resamples=50)

Told = list[tuple[float, int, str]]


def told_of(folder: Path, protocol: Protocol, **settings: Any) -> tuple[Bench, list[Candidate], Told]:
    told: Told = []
    bench = simulated_bench(
        options={"seed": 0},
        protocol=protocol,
        references=write_references(folder),
        on_progress=lambda *now: told.append(now),
        **settings,
    )
    return bench, [Candidate(name, write_cell(folder / f"{name}.onnx", code)) for name, code in CELLS.items()], told


def test_it_moves_within_a_batch_and_ends_with_all_networks(tmp_path: Path) -> None:
    bench, networks, told = told_of(tmp_path, TWO)
    list(bench.measure(networks))
    done = [now for now, _, _ in told]
    assert {total for _, total, _ in told} == {3}
    assert all(a <= b for a, b in pairwise(done))
    assert done[0] == 0
    assert done[-1] == 3
    assert len({now for now in done if now < 2}) > 10  # while not one figure is there
    assert [now for now, _, text in told if not text] == [2, 3]  # nothing goes on: a batch is over


def test_it_names_batch_process_and_networks(tmp_path: Path) -> None:
    bench, networks, told = told_of(tmp_path, TWO)
    list(bench.measure(networks))
    texts = [text for _, _, text in told]
    assert texts[0] == "networks 1-2 of 3, process 1 of 2, loading network 1 of 2"
    assert "networks 1-2 of 3, process 2 of 2, round 6 of at most 6, 2 left" in texts
    assert "network 3 of 3, process 1 of 2, round 1 of at most 6, 1 left" in texts
    # neither the references nor a network of the first batch that is measured again are among them
    assert "network 3 of 3, process 1 of 2, loading networks of earlier batches" in texts
    counted = [int(number) for text in texts for number in re.findall(r"(\d+) left", text)]
    assert max(counted) == 2


def test_the_references_alone_are_no_networks(tmp_path: Path) -> None:
    bench, _, told = told_of(tmp_path, TWO)
    bench.find_level()
    assert {(done, total) for done, total, _ in told} == {(0, 0)}
    assert told[0][2] == "round 1 of at most 6, reference networks"


def test_what_is_measured_once_more_is_said_and_never_goes_back() -> None:
    told: Told = []
    headway = Headway(lambda *now: told.append(now))
    headway.begin(1)
    headway.batch(["a"])
    headway.round(9, 10, ["a"])
    headway.again("as it was noisy")
    headway.round(2, 10, ["a"])
    headway.finish()
    (first, _, _), (second, _, text), last = told
    assert text == "once more, as it was noisy, round 2 of at most 10, 1 of 1 networks left"
    assert 0 < first == second < 1
    assert last == (1, 1, "")


@pytest.mark.parametrize("energy", [True, False])
def test_energy_takes_its_part_of_the_time(energy: bool) -> None:
    told: Told = []
    headway = Headway(lambda *now: told.append(now), energy=energy)
    headway.begin(4)
    headway.batch("abcd")
    headway.round(10, 10, "abcd")
    for number in range(1, 5):
        headway.record("energy", number)
    done = [now for now, _, _ in told]
    assert done == sorted(done)
    assert (done[0] < 2) is energy
    assert (done[-1] == 3.5) is energy
