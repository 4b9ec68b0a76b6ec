"""The main job from the outside: Python interface and command line, on the embedded default."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from commands import cli

import hwnas
from hwnas import api, registry, report, running
from hwnas.cli import NOTHING_FEASIBLE, app
from hwnas.errors import (
    ExportFailed,
    InvalidBudget,
    InvalidSetting,
    RunExists,
    RunIncompatible,
    TablesNotFound,
    UnknownName,
)

FAST: dict[str, Any] = {"generator": "evolution", "queries": 60, "source": "surrogate"}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table of the machine that runs the tests may be found by chance, and runs/ lies in the test's own folder."""
    monkeypatch.delenv("HWNAS_TABLES", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def test_search_keeps_the_budget_and_the_count() -> None:
    result = hwnas.search(device="edgegpu", latency_budget=5, **FAST)
    assert result.best is not None
    assert result.best["latency_ms@edgegpu"] <= 5
    assert len(result.archive) == 60 == result.ledger.evaluations == result.ledger.error_queries
    assert len({found.arch for found in result.archive}) == 60
    assert all(found["latency_ms"] <= 5 for found in result.front)
    best = min(f["val_error_pct"] for f in result.archive if f["latency_ms"] <= 5)
    assert result.best["val_error_pct"] == best
    assert result.best.sources == {
        "val_error_pct": "surrogate",
        "test_error_pct": "surrogate",
        "latency_ms@edgegpu": "surrogate",
        "params_m": "counted",
        "macs_m": "counted",
    }


def test_same_seed_same_result_other_seed_other_result() -> None:
    one, two, three = (hwnas.search(device="fpga", seed=seed, **FAST) for seed in (1, 1, 2))
    assert [f.architecture for f in one.archive] == [f.architecture for f in two.archive]
    assert [f.architecture for f in one.archive] != [f.architecture for f in three.archive]


def test_result_in_notebook_and_pandas() -> None:
    result = hwnas.search(device="pixel3", latency_budget="10ms", **FAST)
    assert "<img" in result._repr_html_()
    frame = result.to_pandas()
    assert len(frame) == 60
    assert frame["recommended"].sum() == 1
    assert set(frame["source"]) == {"surrogate"}
    assert frame.loc[frame["front"], "feasible"].all()


def test_budgets_and_objectives_beside_latency() -> None:
    result = hwnas.search(
        device="eyeriss", objectives=("error", "latency", "energy", "macs"), budgets={"params": "500k"}, **FAST
    )
    assert result.state.losses.shape == (60, 4)
    assert all(found["params_m"] <= 0.5 for found in result.front)


SEVERAL = ("--device", "edgegpu,raspi4,fpga", "-n", "40", "-g", "evolution", "--source", "surrogate", "-q")


def test_several_devices_have_a_front_each_from_one_archive(tmp_path: Path) -> None:
    result = hwnas.search(device="edgegpu,raspi4,fpga", budgets={"latency@fpga": 3.5}, **FAST)
    # a network is paid for once, however many devices ask for its error
    assert (result.ledger.evaluations, result.ledger.error_queries, result.ledger.cost_queries) == (60, 60, 180)
    assert list(result.fronts) == ["edgegpu", "raspi4", "fpga"]
    for device, own in result.fronts.items():
        alone = own.state
        assert [o.name for o in alone.objectives] == ["val_error_pct", f"latency_ms@{device}"]
        assert [c.device for c in alone.constraints] == (["fpga"] if device == "fpga" else [])
        assert len(own.archive) == 60
        assert own.best is not None
        assert own.best.arch in {found.arch for found in own.front}
        assert {found.arch for found in own.front} <= {found.arch for found in result.front}
    assert all(found["latency_ms@fpga"] <= 3.5 for found in result.fronts["fpga"].front)
    shipped = result.portfolio
    assert shipped is not None
    assert shipped.admissible
    assert result.best is not None
    assert shipped.network.arch == result.best.arch
    assert set(shipped.regrets) == set(shipped.told) == set(result.fronts)
    with pytest.raises(KeyError, match="'nope' has no front of its own; there are edgegpu, raspi4, fpga"):
        result.fronts["nope"]
    best = result.fronts["fpga"].best
    assert repr(best).startswith(
        f"Found({best.architecture.key}, val_error_pct={best['val_error_pct']:.2f}, latency_ms@"
    )
    assert repr(shipped) == f"Shipped({shipped.network!r}: {'; '.join(shipped.told.values())})"
    frame = result.to_pandas()
    on_fpga = {found.arch for found in result.fronts["fpga"].front}
    assert set(frame.loc[frame["fronts"].str.contains("fpga"), "arch"]) == on_fpga
    assert frame.loc[frame["portfolio"], "arch"].tolist() == [shipped.network.arch]
    weighted = result.pick(weights={"error": 50})
    assert weighted is not None
    assert weighted["val_error_pct"] <= shipped.network["val_error_pct"]


def test_one_device_and_a_joint_front_have_no_portfolio() -> None:
    one = hwnas.search(device="edgegpu", **FAST)
    assert one.fronts == {"edgegpu": one}
    joint = hwnas.search(device="edgegpu,fpga", fronts="joint", **FAST)
    assert joint.fronts == {}
    with pytest.raises(KeyError, match="one front over several devices"):
        joint.fronts["fpga"]
    assert one.portfolio is None is joint.portfolio
    assert "fronts" not in one.to_json().keys() | joint.to_json().keys()
    assert joint.state.front().losses.shape[1] == 3


def test_a_run_for_several_devices_is_written_read_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("search", *SEVERAL, "--out", "run") == 0
    run = tmp_path / "run"
    told = json.loads((run / "front.json").read_text())
    assert tomllib.loads((run / "run.toml").read_text())["resolved"]["fronts"] == ["edgegpu", "raspi4", "fpga"]
    manifest = json.loads((run / "models" / "manifest.json").read_text())
    rows = list(csv.DictReader((run / "front.csv").open()))
    wanted = {key for each in told["fronts"].values() for key in (entry["key"] for entry in each["front"])}
    wanted.add(told["portfolio"]["key"])
    for listed in ([m["key"] for m in manifest["models"]], [row["key"] for row in rows]):
        assert len(listed) == len(set(listed)), "each once"
        assert set(listed) == wanted
    for model, row in zip(manifest["models"], rows, strict=True):
        on = [name for name, each in told["fronts"].items() if model["key"] in [e["key"] for e in each["front"]]]
        best = [name for name, each in told["fronts"].items() if model["key"] == each["recommended"]["key"]]
        common = model["key"] == told["portfolio"]["key"]
        assert (model["fronts"], model["recommended_on"], model["portfolio"]) == (on, best, common)
        assert (row["fronts"], row["recommended"], row["portfolio"]) == ("+".join(on), "+".join(best), "yes" * common)
    assert "●" in (run / "models" / "README.md").read_text()
    again = api.load(run)
    assert {name: [f.arch for f in each.front] for name, each in again.fronts.items()} == {
        name: [entry["arch"] for entry in each["front"]] for name, each in told["fronts"].items()
    }
    assert cli("report", "run") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"Front on {device}" in shown for device in told["fronts"])
    assert "one network for all devices" in shown
    assert cli("export", "run", "--best", "--out", "best") == 0
    best = {each["recommended"]["key"] for each in told["fronts"].values()} | {told["portfolio"]["key"]}
    assert {m["key"] for m in json.loads((tmp_path / "best" / "manifest.json").read_text())["models"]} == best


def test_nothing_feasible_on_one_device_is_an_answer_of_no() -> None:
    tight = ("--budget", "latency@fpga=1us", "--models", "none")
    assert cli("search", *SEVERAL, *tight, "--out", "tight") == NOTHING_FEASIBLE
    result = api.load(Path("tight"))
    assert result.fronts["edgegpu"].best is not None
    assert result.fronts["fpga"].best is None
    assert result.best is None
    assert result.portfolio is not None
    assert not result.portfolio.admissible
    assert "times the budget of fpga" in result.portfolio.told["fpga"]


def test_a_stopped_search_for_several_devices_goes_on_to_the_same_end(tmp_path: Path) -> None:
    given = {
        "devices": "edgegpu,fpga",
        "queries": 28,
        "source": "surrogate",
        "generator_settings": {"pretrain_steps": 1},
    }
    whole = api.open_run(given, out=tmp_path / "whole").finish(models="none")

    class Killed(BaseException):
        pass

    def kill(state: Any, ledger: Any) -> None:
        if len(state.archive) >= 16:
            raise Killed

    with pytest.raises(Killed):
        api.open_run(given, out=tmp_path / "cut").finish(on_step=kill, models="none")
    resumed = api.open_run({}, resume=tmp_path / "cut").finish(models="none")
    assert resumed.state.front_devices == ("edgegpu", "fpga")
    assert resumed.state.architectures == whole.state.architectures
    kept = ("front.csv", "archive.csv")
    assert [(tmp_path / "cut" / name).read_text() for name in kept] == [
        (tmp_path / "whole" / name).read_text() for name in kept
    ]
    with pytest.raises(RunIncompatible, match="fronts"):
        api.open_run({"fronts": "joint"}, resume=tmp_path / "cut")


def test_runs_that_do_not_say_what_fronts_they_have_had_one(tmp_path: Path) -> None:
    """As those of before several devices could have one each."""
    given = {"devices": "edgegpu,fpga", "fronts": "joint", "queries": 20, "generator": "random", "source": "surrogate"}
    whole = api.open_run(given, out=tmp_path / "run").finish(models="none")
    text = (tmp_path / "run" / "run.toml").read_text()
    earlier = text.replace('fronts = "joint"\n', "").replace("fronts = []\n", "")
    assert "fronts" not in earlier.replace("--fronts joint", "")
    (tmp_path / "run" / "run.toml").write_text(earlier)
    assert api.load(tmp_path / "run").state.front_devices == ()
    for again in ({}, {"queries": 20}):
        run = api.open_run(again, resume=tmp_path / "run")
        run.close()
        assert run.state.front_devices == ()
        assert run.state.architectures == whole.state.architectures


def test_the_stored_command_makes_the_same_search_again() -> None:
    from hwnas.config import SearchConfig

    config = SearchConfig(
        devices=("raspi4", "fpga"),
        objectives=("error", "latency@raspi4", "energy@fpga"),
        budgets={"latency@fpga": 4.123456789, "params": "1M", "params_m": 1.5},
        fronts="joint",
        weights={"error": 2, "energy@fpga": 0.25},
        generator="agnet",
        generator_settings={"surrogate": False, "reference": 0.75},
        dataset="cifar100",
        seed=3,
    )
    seen: dict[str, Any] = {}

    def catch(given: dict[str, Any], **_: Any) -> None:
        seen.update(given)
        raise UnknownName("search", "caught", [])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "open_run", catch)
        assert cli(*shlex.split(config.command())[1:]) == UnknownName.exit_code
    assert SearchConfig.from_toml(seen) == config


def test_the_command_names_the_source_that_was_found_by_chance(
    tables_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"device": "edgegpu", "queries": 5, "generator": "random"}
    assert "--source surrogate" in hwnas.search(**asked).view.command
    monkeypatch.setenv("HWNAS_TABLES", str(tables_dir))
    result = hwnas.search(**asked, out="run")
    told = result.view.command
    assert "--source table" in told
    run = tmp_path / "run"
    assert tomllib.loads((run / "run.toml").read_text())["resolved"]["command"] == told
    assert json.loads((run / "front.json").read_text())["command"] == told
    assert json.loads((run / "models" / "manifest.json").read_text())["run"]["command"] == told
    assert told.replace("&", "&amp;") in (run / "report.html").read_text()
    again = tmp_path / "again"
    assert cli(*shlex.split(told)[1:], "--out", str(again), "--models", "none", "-q") == 0
    assert (again / "archive.csv").read_text() == (run / "archive.csv").read_text()
    monkeypatch.delenv("HWNAS_TABLES")
    assert api.load("run").view.command == told
    assert cli(*shlex.split(told)[1:], "--out", str(tmp_path / "other")) == TablesNotFound.exit_code
    # a folder without one of the tables: the other numbers are the surrogates'
    part = tmp_path / "part"
    part.mkdir()
    (part / "nb201_accuracy.parquet").symlink_to(tables_dir / "nb201_accuracy.parquet")
    monkeypatch.setenv("HWNAS_TABLES", str(part))
    mixed = hwnas.search(**asked)
    assert set(mixed.front[0].sources.values()) == {"table", "surrogate", "counted"}
    assert f"--tables {part}" in mixed.view.command
    assert "--source" not in mixed.view.command


def test_weights_pick_where_no_budget_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = hwnas.search(device="edgegpu", **FAST)
    light, heavy = (plain.pick(weights={"error": weight, "latency": 1}) for weight in (0.001, 1000))
    assert light is not None
    assert heavy is not None
    assert light["latency_ms"] == min(found["latency_ms"] for found in plain.front)
    assert heavy["val_error_pct"] == min(found["val_error_pct"] for found in plain.front)
    assert plain.best is not None
    assert plain.best.architecture != light.architecture
    with pytest.raises(InvalidSetting, match="energy"):
        plain.pick(weights={"energy": 2})
    words = ["search", "-d", "edgegpu", "-g", "evolution", "-n", "60", "--source", "surrogate", "--models", "best"]
    assert cli(*words, "--weights", "error=1,latency=1000", "--out", str(tmp_path / "run")) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "best of the front by the weights validation error 1, latency 1000: validation error" in told
    run = api.load(tmp_path / "run")
    assert run.best is not None
    assert run.best.architecture == light.architecture
    assert run.to_json()["weights"] == {"val_error_pct": 1, "latency_ms@edgegpu": 1000}
    second = run.view.runner_up
    assert second is not None
    assert run.archive[second]["latency_ms"] == sorted(found["latency_ms"] for found in run.front)[1]
    manifest = json.loads((tmp_path / "run" / "models" / "manifest.json").read_text())
    assert [model["key"] for model in manifest["models"]] == [light.architecture.key]
    assert "--weights error=1.0,latency=1000.0" in manifest["run"]["command"]


def test_a_budget_decides_before_weights() -> None:
    plain = hwnas.search(device="edgegpu", latency_budget=5, **FAST)
    weighed = hwnas.search(device="edgegpu", latency_budget=5, weights={"latency": 1000}, **FAST)
    assert plain.best is not None
    assert weighed.best is not None
    assert weighed.best.architecture == plain.best.architecture
    told = " ".join(report.sentences(weighed.view))
    assert "A budget decides before weights; by the weights validation error 1, latency 1000 it would be " in told
    quickest = min(found["latency_ms"] for found in weighed.front)
    assert f"latency {quickest:.3f}" in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("error", "--weights wants WORD=NUMBER"),
        ("error=two", "--weights wants WORD=NUMBER"),
        ("error=2,", "--weights wants WORD=NUMBER"),
        ("error=2,error=3", "weight of error is given twice"),
        ("error=-1", "above 0"),
        ("energy=1", "belongs to none of the objectives"),
    ],
)
def test_weights_that_cannot_be_meant_make_no_run(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli("search", "-d", "edgegpu", "--weights", text, "--out", str(out)) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_metric_of_one_device_is_asked_of_that_device_only() -> None:
    result = hwnas.search(device=("edgegpu", "raspi4"), objectives=("error", "latency", "energy@edgegpu"), **FAST)
    assert [o.name for o in result.state.objectives] == [
        "val_error_pct",
        "latency_ms@edgegpu",
        "latency_ms@raspi4",
        "energy_mj@edgegpu",
    ]


def test_without_device_only_counted_objectives() -> None:
    result = hwnas.search(objectives=("error", "params"), **FAST)
    assert result.state.objectives[1].metric == "params_m"
    with pytest.raises(InvalidSetting, match="device"):
        hwnas.search(objectives=("error", "latency"), **FAST)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"device": "edgpu"}, UnknownName, "edgegpu"),
        ({"space": "nb202"}, UnknownName, "nb201"),
        ({"dataset": "cifar"}, UnknownName, "cifar10"),
        ({"generator": "agent"}, UnknownName, "agnet"),
        ({"objectives": ("eror", "latency")}, UnknownName, "error"),
        ({"latency_budget": "5kg"}, InvalidBudget, "kg"),
        ({"latency_budget": -1}, InvalidBudget, "above 0"),
        ({"budgets": {"params": "1"}}, InvalidBudget, "has none"),
        ({"source": "table"}, TablesNotFound, "HWNAS_TABLES"),
        ({"tables": "nowhere", "source": "auto"}, TablesNotFound, "nowhere"),
        ({"generator_settings": {"popsize": 3}}, InvalidSetting, "population"),
        ({"device": "cpu", "objectives": ["error", "macs@cpu"]}, InvalidSetting, "the same on every device"),
        ({"device": "fpga,edgegpu", "objectives": ["error", "latency@fpga"]}, InvalidSetting, "latency@edgegpu"),
        ({"device": "cpu", "preset": "hasty"}, UnknownName, "quick"),
        ({"device": "cpu", "wait": -1}, InvalidSetting, "seconds"),
        ({"queries": 0}, InvalidSetting, "queries"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    change: dict[str, Any], error: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        hwnas.search(**{"device": "edgegpu", **FAST, "out": tmp_path / "run", **change})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("generator", "settings", "told"),
    [
        ("agnet", {"initial": "x"}, "initial wants a whole number; got 'x'"),
        ("agnet", {"ranking": True}, "ranking wants a number; got True"),
        ("agnet", {"acquisition": "luck"}, "acquisition wants one of 'ehvi', 'mean', 'rank'; got 'luck'"),
        ("agnet", {"surrogate": 1}, "surrogate wants true or false; got 1"),
        ("evolution", {"population": 3.5}, "population wants a whole number; got 3.5"),
        ("nsga2", {"mutation": "much"}, "mutation wants a number or nothing; got 'much'"),
        ("pymoo:nsga3", {"population": []}, r"population wants a whole number; got \[\]"),
        ("evolution", {"population": 3, "sample": 5}, "sample <= population"),
    ],
)
def test_settings_of_a_wrong_type_are_refused_by_name(generator: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        registry.generator(generator, registry.space("nb201"), settings)


def test_whole_numbers_and_nothing_are_numbers_where_they_may_be() -> None:
    space = registry.space("nb201")
    assert registry.generator("agnet", space, {"ranking": 0, "reference": 1}).name == "agnet"
    assert registry.generator("nsga2", space, {"mutation": None}).name == "nsga2"


def test_registry_knows_what_it_names() -> None:
    space = registry.space("nb201")
    for name in registry.generators():
        assert registry.generator(name, space).name
    with pytest.raises(UnknownName):
        registry.generator("pymoo:nsga17", space)


def test_run_directory_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["search", "-d", "edgegpu", "--latency-budget", "5ms", "-g", "evolution", "-n", "60", "--out", str(out)]
    assert cli(*words) == 0
    told = capsys.readouterr().out
    assert "★" in told
    rows = list(csv.DictReader((out / "archive.csv").read_text().splitlines()))
    assert [row["order"] for row in rows] == [str(i) for i in range(1, 61)]
    assert {row["source"] for row in rows} == {"surrogate"}
    front = json.loads((out / "front.json").read_text())
    assert front["ledger"]["evaluations"] == 60
    recommended = [row for row in csv.DictReader((out / "front.csv").read_text().splitlines()) if row["recommended"]]
    assert [row["key"] for row in recommended] == [front["recommended"]["key"]]
    for name in ("run.toml", "hwnas.sqlite", "report.html", "front.png", "front.pdf", "models/manifest.json"):
        assert (out / name).stat().st_size > 100, name
    models = list((out / "models").glob("*.onnx"))
    assert len(models) == len(front["front"])
    session = onnxruntime.InferenceSession(models[0], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 32, 32]

    # a finished run: shown again, exported again, never overwritten
    (out / "report.html").unlink()
    assert cli("report", str(out), "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["recommended"] == front["recommended"]
    assert (out / "report.html").stat().st_size > 100  # --json is about what is printed, not about what is written
    for name in ("front.csv", "front.json"):
        whole = (out / name).read_bytes()
        (out / name).unlink()
        assert cli("report", str(out)) == 0
        capsys.readouterr()
        assert _undated((out / name).read_bytes()) == _undated(whole)
    assert cli("export", str(out), "--best", "--out", str(tmp_path / "best")) == 0
    assert len(list((tmp_path / "best").glob("*.onnx"))) == 1
    before = (out / "archive.csv").read_bytes()
    assert cli(*words) == RunExists.exit_code
    assert (out / "archive.csv").read_bytes() == before


def _undated(content: bytes) -> bytes:
    return b"\n".join(line for line in content.splitlines() if b'"created":' not in line)


def test_load_equals_what_search_returned(tmp_path: Path) -> None:
    result = hwnas.search(device="raspi4", latency_budget=20, out=tmp_path / "run", **FAST)
    again = hwnas.load(tmp_path / "run")
    assert again.to_json()["front"] == result.to_json()["front"]
    assert [f.values for f in again.archive] == [f.values for f in result.archive]
    assert again.ledger == result.ledger


def test_nothing_feasible_ends_normally_with_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["search", "-d", "edgegpu", "--latency-budget", "1us", "-g", "random", "-n", "20", "--out", str(out)]
    assert cli(*words) == NOTHING_FEASIBLE
    front = json.loads((out / "front.json").read_text())
    assert front["front"] == []
    assert front["nearest"]["key"].startswith("nb201:")
    assert "≈" in capsys.readouterr().out
    nearest = hwnas.load(out).nearest
    assert nearest is not None
    assert nearest.architecture.key == front["nearest"]["key"]
    # quiet means few words, not that nobody is told
    assert cli(*words[:-1], str(tmp_path / "quiet"), "--quiet") == NOTHING_FEASIBLE
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [f"nothing meets the budgets; see {tmp_path / 'quiet'}"]


def test_models_that_cannot_be_written_cost_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a disk that is full: the front was paid for, and the message says how the rest is had."""

    def full(*_: Any, **__: Any) -> None:
        raise ExportFailed("could not write models: no space left on device")

    out = tmp_path / "run"
    monkeypatch.setattr(running, "export", full)
    with pytest.raises(ExportFailed, match=rf"no space left.*hwnas search --resume {re.escape(str(out))}$"):
        hwnas.search(device="fpga", out=out, **FAST)
    assert (
        len((out / "front.csv").read_text().splitlines())
        == len(json.loads((out / "front.json").read_text())["front"]) + 1
    )
    monkeypatch.undo()
    assert cli("search", "--resume", str(out), "--quiet") == 0
    assert list((out / "models").glob("*.onnx"))


def test_json_is_all_there_is_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "-d", "fpga", "-g", "random", "-n", "20", "--out", str(tmp_path / "run"), "--json"]
    assert cli(*words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(tmp_path / "run")


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    hwnas.search(device="fpga", out=tmp_path / "run", **FAST)
    with pytest.raises(RunIncompatible, match="seed"):
        api.open_run({"seed": 7}, resume=tmp_path / "run")
    with pytest.raises(InvalidSetting, match="--resume"):
        api.open_run({}, resume=tmp_path / "run", out=tmp_path / "other")


@pytest.mark.parametrize(("generator", "queries"), [("evolution", 48), ("nsga2", 48), ("agnet", 28)])
def test_killed_and_resumed_equals_uninterrupted(generator: str, queries: int, tmp_path: Path) -> None:
    words = [
        "search",
        "-d",
        "edgegpu",
        "--latency-budget",
        "5",
        "-g",
        generator,
        "-n",
        str(queries),
        "--models",
        "none",
    ]
    run = [sys.executable, "-m", "hwnas", *words]
    subprocess.run([*run, "--out", "whole"], check=True, capture_output=True, cwd=tmp_path)
    for cut in (1, 2) if generator == "evolution" else (2,):
        # kill -9 as soon as a few evaluations are on disk; a fast search may already be over, which resumes as well
        child = subprocess.Popen([*run, "--out", f"cut{cut}"], cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=-3)
        archive = tmp_path / f"cut{cut}" / "archive.csv"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.poll() is None:
            if archive.exists() and archive.read_bytes().count(b"\n") > 8 * cut:
                break
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        resumed = [sys.executable, "-m", "hwnas", "search", "--resume", f"cut{cut}", "--models", "none"]
        subprocess.run(resumed, check=True, capture_output=True, cwd=tmp_path)
        assert archive.read_bytes() == (tmp_path / "whole" / "archive.csv").read_bytes()
        ledgers = [json.loads((tmp_path / d / "front.json").read_text())["ledger"] for d in ("whole", f"cut{cut}")]
        for ledger in ledgers:
            del ledger["cpu_s"], ledger["wall_s"]
        assert ledgers[0] == ledgers[1]


def _heed_interrupts() -> None:
    """Jobs in the background inherit that Ctrl-C is ignored; a user's terminal does not ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_interrupt_stops_cleanly_and_resumes(tmp_path: Path) -> None:
    words = ["search", "-d", "fpga", "-g", "random", "-n", "3000", "--batch", "1", "--out", "run", "--models", "none"]
    archive = tmp_path / "run" / "archive.csv"
    with subprocess.Popen(
        [sys.executable, "-m", "hwnas", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=_heed_interrupts,
    ) as child:
        try:
            while child.poll() is None and not (archive.exists() and archive.read_bytes().count(b"\n") > 5):
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            _, told = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 130, told
    assert "--resume run" in told
    assert len(hwnas.load(tmp_path / "run").archive) >= 5


def test_every_command_has_help_and_is_in_the_readme() -> None:
    import typer

    readme = (Path(api.__file__).resolve().parent.parent / "README.md").read_text()
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        assert f"hwnas {name}" in readme, name


def test_table_source_and_its_optimum(tables_dir: Path) -> None:
    os.environ.pop("HWNAS_TABLES", None)
    result = hwnas.search(
        device="edgegpu",
        latency_budget=5,
        dataset="ImageNet16-120",
        tables=tables_dir,
        generator="evolution",
        queries=60,
    )
    assert result.best is not None
    assert result.best.sources["test_error_pct"] == "table"
    # no cell within 5 ms is better than 46.05 % (computed from HW-NAS-Bench and NAS-Bench-201)
    assert result.best["test_error_pct"] >= 100 - 46.06
