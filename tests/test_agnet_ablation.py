"""benchmarks/agnet_ablation.py: what is switched off, and how differences are taken."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import agnet_ablation

from hwnas import registry
from hwnas.generators.agnet import AgNet, Settings
from hwnas.testing.toy import ToySpace

EVERY = {**agnet_ablation.VARIANTS, **agnet_ablation.LIMIT_VARIANTS}


@pytest.mark.parametrize("name", EVERY)
def test_each_variant_is_a_search_that_a_user_could_start_and_differs_from_the_default(name: str) -> None:
    made = registry.generator("agnet", ToySpace(), EVERY[name].settings)
    assert isinstance(made, AgNet)
    assert (made.settings == Settings()) is (name == agnet_ablation.DEFAULT)


def _record(variant: str, seed: int, gap: float, task: str = "cifar10/fpga") -> dict[str, Any]:
    figures = {f"{what}_{n}": gap for what in ("gap", "regret") for n in (50, 100, 200)}
    return {"variant": variant, "task": task, "seed": seed, "cpu_s": 2.0, "versions": {"hwnas": "1"}, **figures}


def test_differences_are_taken_search_by_search_on_what_both_have(tmp_path: Path) -> None:
    gaps = {0: 0.10, 1: 0.20, 2: 0.90}
    records = [_record("default", seed, gap) for seed, gap in gaps.items()]
    records += [_record("decoder", seed, gaps[seed] + more) for seed, more in ((0, 0.01), (1, 0.03))]
    own, default = agnet_ablation.shared(records, "decoder", ("task", "seed"))
    assert [(r["seed"], d["seed"]) for r, d in zip(own, default, strict=True)] == [(0, 0), (1, 1)]
    # 0.01 and 0.03: mean 0.02, half width t(0.975, 1) = 12.706 times 0.01
    assert agnet_ablation.worse_by(own, default, "gap_200") == "+0.020 ± 0.127"
    text = agnet_ablation.write_report({"front": records, "limit": []}, tmp_path).read_text()
    (row,) = [line for line in text.splitlines() if "no decoder" in line]
    assert "`--set generator=false` | 1 x 2 | 0.170 (0.110-0.230)" in row
    # of the default only the seeds that have something beside them
    assert "| default | - | 1 x 2 | 0.150 (0.100-0.200)" in text


def test_what_found_nothing_feasible_is_counted_and_not_averaged(tmp_path: Path) -> None:
    def limited(variant: str, seed: int, best: float) -> dict[str, Any]:
        return _record(variant, seed, 0.1) | {"quantile": 0.05, "best_accuracy": best, "optimum": 90.0}

    records = [limited("default", 0, 90.0), limited("default", 1, 89.0), limited("default", 2, float("nan"))]
    records += [limited("first-only", 0, 89.5), limited("first-only", 1, 89.5), limited("first-only", 2, 89.0)]
    text = agnet_ablation.write_report({"front": [], "limit": records}, tmp_path).read_text()
    (default,) = [line for line in text.splitlines() if line.startswith("| default")]
    (other,) = [line for line in text.splitlines() if "all for the first" in line]
    assert "| 2 | 0.500 (0.000-1.000) |  | 1 of 2 | 1 |" in default
    assert "+0.000" in other
    assert "| 0 of 2 | 0 |" in other


def test_a_stopped_run_goes_on_and_the_default_is_shared_with_search_quality(
    tables_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agnet_ablation, "QUERIES", 20)
    monkeypatch.setattr(agnet_ablation, "QUICK_DEVICES", ("fpga",))
    words = ["agnet_ablation.py", "--out", str(tmp_path), "--tables", str(tables_dir), "--quick", "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", [*words, "--variants", "surrogate,first-only"])
    agnet_ablation.main()
    files = sorted(tmp_path.rglob("*.json"))
    assert {path.relative_to(tmp_path).as_posix() for path in files} == {
        "searches/front-cifar10_fpga-agnet-3-20.json",
        "ablation/front-cifar10_fpga-surrogate-3-20.json",
        *(
            f"ablation/limit-cifar10_fpga-{q}-{name}-3-20.json"
            for q in (0.05, 0.2, 0.5)
            for name in ("default", "first-only")
        ),
    }
    times = [path.stat().st_mtime_ns for path in files]
    agnet_ablation.main()
    assert [path.stat().st_mtime_ns for path in files] == times
    found = agnet_ablation.read(tmp_path)
    default, surrogate = (next(r for r in found["front"] if r["variant"] == v) for v in ("default", "surrogate"))
    uniform = Settings().initial
    assert default["rows"][:uniform] == surrogate["rows"][:uniform]
    assert default["rows"] != surrogate["rows"]
    assert len(found["limit"]) == 6
