"""benchmarks/stopping.py: where a rule would have ended a search, and how its expectation is judged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import stopping

from hwnas.core.stopping import Outlook, StopRule

GAINS = (0.5, 0.004, 0.001, 0.003, 0.0005, 0.0005)


def _record(task: str, seed: int, gap: float) -> dict[str, Any]:
    outlooks = [None, *(Outlook(gain, 0.04 + 0.01 * seed, 0.02, 0.07).to_json() for gain in GAINS)]
    paid = [40 * (i + 1) for i in range(len(outlooks))]
    gaps = [gap / (i + 1) for i in range(len(outlooks))]
    return {"task": task, "seed": seed, "paid": paid, "outlooks": outlooks, "gaps": gaps, "cpu_s": 36.0,
            "versions": {"hwnas": "1"}}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "step"),
    [(StopRule(0.005), 4), (StopRule(0.002, patience=1), 3), (StopRule(0.002), 6), (StopRule(1e-9), 6)],
)
def test_a_search_ends_at_the_first_step_that_meets_the_rule(rule: StopRule, step: int) -> None:
    assert stopping.stop_of(_record("cifar10/fpga", 0, 0.2), rule) == step


def test_the_gap_is_held_against_the_interval() -> None:
    told = [next(iter(stopping.stops([_record("cifar10/fpga", 0, gap)], StopRule(0.005)))) for gap in (0.05, 0.2, 0.5)]
    assert [(t["below"], t["inside"], t["above"]) for t in told] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert [t["evaluations"] for t in told] == [200] * 3
    assert told[1]["gap"] == pytest.approx(0.04)
    assert told[1]["end"] == pytest.approx(0.2 / 7)


def test_the_page_counts_what_it_shows(tmp_path: Path) -> None:
    records = [_record("cifar10/fpga", seed, 0.2 + 0.1 * seed) for seed in range(3)]
    page = stopping.write_report(records, tmp_path).read_text()
    # gaps at the fifth step: 0.04, 0.06, 0.08, of which the last is above 0.07
    assert "| cifar10 | 0.5 % | 3 | 3 | 200 (200-200) | 0.060 (0.040-0.080) | 0.050 |" in page
    assert "| 66.7 % | 0 % | 33.3 % | 1.00 |" in page
    assert "| cifar10/fpga | 3 | 280 |" in page
    assert "3 searches, 0.03 CPU hours" in page
