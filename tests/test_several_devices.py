"""benchmarks/several_devices.py: what is compared with what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import several_devices
from several_devices import DEVICES, WAYS


def record(dataset: str, way: str, seed: int, gap: float) -> dict[str, Any]:
    devices = DEVICES if "-" not in way else (way.partition("-")[2],)
    return {
        "dataset": dataset,
        "way": way,
        "seed": seed,
        "cpu_s": 5.0,
        "fronts": [100 if way == "joint" else 20],
        "gaps": {
            device: {"67": gap + 0.1 + DEVICES.index(device), "200": gap + DEVICES.index(device)} for device in devices
        },
        "versions": {"hwnas": "1"},
    }


def test_figures_are_means_over_what_every_way_has_run() -> None:
    gaps = {way: 0.2 if way == "shared" else 0.3 for way in WAYS}
    records = [record("cifar10", way, seed, gap + 0.01 * seed) for way, gap in gaps.items() for seed in (0, 2)]
    records += [record("cifar100", "shared", 0, 99.0)]  # has nothing to be compared with
    text = several_devices.page(records)
    assert "| one search, a front for each device, 200 | 0.210 | 1.210 | 2.210 | 1.210 |" in text
    assert "| one search, a joint front, 200 | 0.310 | 1.310 | 2.310 | 1.310 |" in text
    assert "| a search for each device, 67 each | 0.410 | 1.410 | 2.410 | 1.410 |" in text
    assert "- a search for each device, 67 each: -0.200 (standard error 0.000), smaller gap in 2 of 2" in text
    assert "evaluated 100 are on the joint front, 20 on one of a device" in text
    assert "2 pairs of data set and seed" in text
    with pytest.raises(SystemExit, match="no data set and seed"):
        several_devices.page(records[-1:])


def test_the_words_around_the_figures_stay(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    several_devices.write(path, "old\n")
    path.write_text("# Title\n" + path.read_text() + "Words.\n")
    several_devices.write(path, "new\n")
    text = path.read_text()
    assert (text.startswith("# Title\n"), text.endswith("Words.\n"), "old" in text, "new" in text) == (
        True,
        True,
        False,
        True,
    )
