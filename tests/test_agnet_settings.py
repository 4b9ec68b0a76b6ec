"""benchmarks/agnet_settings.py: what is compared, by which figures, and on which searches."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import agnet_settings
from quality_tasks import NOTHING_FEASIBLE, Task

from hwnas import registry
from hwnas.generators.agnet import AgNet, Settings
from hwnas.testing.toy import ToySpace


@pytest.mark.parametrize("name", agnet_settings.VARIANTS)
def test_each_variant_is_a_search_that_a_user_could_start_and_differs_from_the_default(name: str) -> None:
    made = registry.generator("agnet", ToySpace(), agnet_settings.VARIANTS[name].settings)
    assert isinstance(made, AgNet)
    assert (made.settings == Settings()) is (name == agnet_settings.DEFAULT)


def test_regret_is_told_limit_by_limit() -> None:
    task = Task("cifar10/fpga", np.array([50.0, 40.0, 30.0, 20.0, 10.0]), np.array([1.0, 2.0, 3.0, 4.0, np.nan]))
    limits = task.limits_at((0.0, 0.5, 1.0))
    assert limits == [(1.0, 50.0), (2.5, 40.0), (4.0, 20.0)]  # what cannot be measured is below no limit
    assert task.regrets([1, 2, 4], limits) == [NOTHING_FEASIBLE, 0.0, 10.0]
    assert task.regret([1, 2, 4]) == pytest.approx(np.mean(task.regrets([1, 2, 4], task.limits)))


def test_the_page_compares_whole_seeds_search_by_search_and_reports_apart(tmp_path: Path) -> None:
    def record(variant: str, task: str, seed: int, regret: float) -> dict[str, Any]:
        keys = ("gap_50", "gap_100", "gap_200", "regret_200", "regret_cheapest")
        return {"variant": variant, "task": task, "seed": seed, "cpu_s": 2.0, "versions": {"hwnas": "1"}} | {
            **dict.fromkeys(keys, 0.1),
            "regret_everywhere": regret,
        }

    chosen = [record("default", f"cifar10/{d}", s, 0.1 * (1 + s)) for d in ("fpga", "raspi4") for s in (0, 1)]
    chosen += [record("even", f"cifar10/{d}", 0, 0.4) for d in ("fpga", "raspi4")]
    chosen += [record("even", "cifar10/fpga", 1, 9.0)]  # a run that was stopped
    reported = [record(name, agnet_settings.FOUND_ON, 0, regret) for name, regret in (("default", 0.5), ("none", 2.5))]
    text = agnet_settings.write_report({"chosen": chosen, "reported": reported}, tmp_path).read_text()
    first, second = text.split("\n## ")[1:]
    (even,) = [line for line in first.splitlines() if "`--set spread=1.0`" in line]
    assert "| 2 x 1 |" in even
    assert "| 0.400 |" in even
    assert "| +0.300 ± 0.000 |" in even
    (none,) = [line for line in second.splitlines() if "`--set niches=0.0`" in line]
    assert "| 2.500 |" in none
    assert "spread" not in second


def test_a_stopped_run_goes_on(tables_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agnet_settings, "QUERIES", 16)
    monkeypatch.setattr(agnet_settings, "QUICK_DEVICES", ("fpga",))
    words = ["agnet_settings.py", "--out", str(tmp_path), "--tables", str(tables_dir), "--quick", "--seeds", "203"]
    monkeypatch.setattr(sys, "argv", [*words, "--variants", "even"])
    agnet_settings.main()
    files = sorted((tmp_path / "settings").iterdir())
    assert [path.name for path in files] == [
        f"{task}-{name}-203-16.json"
        for task in ("ImageNet16-120_raspi4", "cifar10_fpga")
        for name in ("default", "even")
    ]
    times = [path.stat().st_mtime_ns for path in files]
    agnet_settings.main()
    assert [path.stat().st_mtime_ns for path in files] == times
    asked = argparse.Namespace(out=tmp_path, quick=True, seeds="203", variants="even")
    default, even = agnet_settings.read(asked)["chosen"]
    assert default["rows"][: Settings().initial] == even["rows"][: Settings().initial]
    assert default["rows"] != even["rows"]
    assert len(default["regrets"]) == 20
    assert default["regret_everywhere"] == pytest.approx(np.mean(default["regrets"]))
