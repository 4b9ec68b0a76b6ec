"""Run directories: what lies in them, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import subprocess
import sys
import tomllib
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import hwnas
from hwnas import rundir
from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.objective import Constraint, Objective
from hwnas.core.state import SearchState
from hwnas.errors import RunCorrupt, RunError, RunExists, RunIncompatible, RunLocked
from hwnas.rundir import RunDirectory
from hwnas.stores.sqlite import SqliteStore

CONFIG: dict[str, Any] = {
    "space": "toy",
    "devices": ["edgegpu"],
    "queries": 20,
    "seed": 3,
    "budgets": {"latency": "5ms"},
    "tables": "there",
}
ERROR = Context(Source.TABLE, dataset="cifar10", split="val", versions=(("table", "1"),))
LATENCY = Context(Source.MEASURED, device="edgegpu", runtime="tensorrt")
COUNT = Context(Source.MEASURED, runtime="count")


def notation(architecture: Architecture) -> str:
    return '|"{}"~0|, +'.format("".join(map(str, architecture.code)))


def begin(**changes: Any) -> SearchState:
    state = SearchState(
        "toy",
        (Objective("val_error_pct"), Objective("latency_ms", "edgegpu")),
        (Constraint("latency_ms", 5.0, "edgegpu"), Constraint("params_m", 1.5)),
        queries=20,
        seed=3,
    )
    return SearchState(**{**{name: getattr(state, name) for name in state.__dataclass_fields__}, **changes})


def facts(number: int) -> list[Measurement]:
    """Error falls and latency rises with the number; 3 fails, 4 is noisy."""
    one = Architecture("toy", (number,))
    latency = Measurement(one, "latency_ms", 1.1 + number, LATENCY, interval=(1.0 + number, 1.2 + number))
    if number == 3:
        latency = Measurement.failed(one, "latency_ms", LATENCY, Status.TIMEOUT, "gave up after 60 s")
    if number == 4:
        latency = Measurement(one, "latency_ms", 4.9, LATENCY, Status.NOISY, (4.0, 5.8), "load 7.1")
    return [
        Measurement(one, "val_error_pct", 30 - 0.1 * number, ERROR),
        latency,
        Measurement(one, "params_m", 1.0, COUNT),
    ]


def advance(run: RunDirectory, state: SearchState, *numbers: int, record: bool = True) -> SearchState:
    rows = [row for number in numbers for row in facts(number)]
    run.store.append(rows)
    state = state.tell(rows)
    run.store.commit_step(state, {"weights": [0.5]}, Ledger(evaluations=len(state.archive)))
    if record:
        run.record(state)
    return state


def table(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


# -- making ------------------------------------------------------------------------------------------------------------


def test_run_toml_says_what_was_asked_and_with_what(tmp_path: Path) -> None:
    resolved = {"objectives": ["val_error_pct", "latency_ms@edgegpu"], "tables": None, "best": {"a": None, "b": 1}}
    sources = {"latency_ms@edgegpu": "table hwnasbench_nb201"}
    with RunDirectory.create(tmp_path / "run", config=CONFIG, resolved=resolved, sources=sources) as run:
        info = tomllib.loads((run.path / "run.toml").read_text(encoding="utf-8"))
        assert info == run.info
        assert info["config"] == CONFIG == run.config
        assert info["resolved"] == {"objectives": resolved["objectives"], "best": {"b": 1}}
        assert info["sources"] == sources
        assert info["run"]["hwnas"] == info["versions"]["hwnas"] == hwnas.__version__
        assert info["run"]["seed"] == 3
        assert info["run"]["id"] == run.store.meta["run_id"]
        assert {"python", "numpy", "pymoo"} <= info["versions"].keys()
        assert run.changed_versions() == {}


def test_the_default_name_is_date_and_devices_and_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configs = (CONFIG, CONFIG, {"devices": ["my board/2", "fpga"]}, {"space": "nb201"}, CONFIG)
    made = []
    for config in configs:
        with RunDirectory.create(None, config=config) as run:
            made.append(run.path.as_posix())
    today = date.today().isoformat()
    names = ("edgegpu", "edgegpu-2", "my-board-2-fpga", "nb201", "edgegpu-3")
    assert made == [f"runs/{today}-{name}" for name in names]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_nothing_is_ever_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("precious")
    elif kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunExists, match=r"never overwritten.*--out") as refused:
        RunDirectory.create(path, config=CONFIG)
    assert "--resume" not in str(refused.value)  # there is nothing to continue
    if kind == "folder":
        assert [file.name for file in path.iterdir()] == ["mine.txt"]


def test_a_run_is_continued_not_overwritten(finished: Path) -> None:
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    with pytest.raises(RunExists, match=rf"never overwritten.*--resume {re.escape(str(finished))}"):
        RunDirectory.create(finished, config=CONFIG)
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before
    # without its run.toml it still is somebody's data
    (finished / "run.toml").unlink()
    with pytest.raises(RunExists, match=r"never overwritten.*--out") as refused:
        RunDirectory.create(finished, config=CONFIG)
    assert "--resume" not in str(refused.value)
    with pytest.raises(RunCorrupt, match=r"hwnas.sqlite is there. Restore run.toml from a copy"):
        RunDirectory.resume(finished)


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, config=CONFIG) as run:
        assert run.path == tmp_path


def test_a_run_that_could_not_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not TOML serializable"):
        RunDirectory.create(tmp_path / "run", config={**CONFIG, "space": object()})
    assert not (tmp_path / "run").exists()
    RunDirectory.create(tmp_path / "run", config=CONFIG).close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"could not write a run to .*file/run: .*Nothing was stored.*--out") as refused:
        RunDirectory.create(tmp_path / "file" / "run", config=CONFIG)
    assert "--resume" not in str(refused.value)


@pytest.mark.parametrize("place", ["runs", "runs is a file"])
def test_a_default_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "runs":

        def refuse(self: Path, *_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        (tmp_path / "runs").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"runs.*--out") as refused:
        RunDirectory.create(None, config=CONFIG)
    assert "--resume" not in str(refused.value)


def test_a_disk_too_full_for_a_run_is_said_so(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # enough for the lock's note
    try:
        with pytest.raises(RunError, match=r"could not write a run to .*Nothing was stored.*--out") as refused:
            RunDirectory.create(tmp_path / "run", config=CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "--resume" not in str(refused.value)
    RunDirectory.create(tmp_path / "run", config=CONFIG).close()


# A creation that kills itself at the n-th line it runs in one of hwnas's files, n = 1, 1 + step, ... until it is done.
DYING = """
import os, sys
sys.path.insert(0, sys.argv[2])
import test_rundir
from pathlib import Path
from test_rundir import CONFIG, RunDirectory, advance, begin
package = str(Path(test_rundir.hwnas.__file__).parent)
parts = tuple(os.path.join(package, name) for name in ("rundir.py", "stores", "locking.py", "atomic.py"))

def dying_at(n, path):
    left = n
    def line(frame, event, _):
        nonlocal left
        left -= event == "line"
        if left <= 0:
            os.kill(os.getpid(), 9)
        return line
    sys.settrace(lambda frame, *_: line if frame.f_code.co_filename.startswith(parts) else None)
    run = RunDirectory.create(path, config=CONFIG)
    sys.settrace(None)
    os._exit(0)

for n in range(1, 10_000, int(sys.argv[3])):
    child = os.fork()
    if not child:
        dying_at(n, Path(sys.argv[1]) / f"{n:05}")
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WIFSIGNALED(status), status
"""


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_creation_killed_at_any_line_is_a_run_or_can_be_made_again(tmp_path: Path, step: int) -> None:
    command = [sys.executable, "-c", DYING, str(tmp_path), str(Path(__file__).parent), str(step)]
    subprocess.run(command, check=True)
    outcomes = []
    for path in sorted(tmp_path.iterdir()):
        outcomes.append((path / "run.toml").exists())
        if outcomes[-1]:
            with RunDirectory.resume(path, config=CONFIG) as run:
                assert run.store.last_step() is None
            continue
        with pytest.raises(RunCorrupt, match=rf"holds no run.*--out {re.escape(str(path))}` takes this folder"):
            RunDirectory.resume(path)
        with RunDirectory.create(path, config=CONFIG) as run:
            advance(run, begin(), 0)
        with RunDirectory.resume(path, config=CONFIG) as run:
            assert run.info["run"]["id"] == run.store.meta["run_id"]
            assert len(run.store.rows()) == 3
    assert outcomes == sorted(outcomes)
    assert {True, False} == set(outcomes)


def test_a_folder_in_which_a_run_is_being_made_is_not_taken(tmp_path: Path) -> None:
    with (
        closing(SqliteStore.create(tmp_path / rundir.DATABASE)),
        pytest.raises(RunLocked, match=f"process {os.getpid()}"),
    ):
        RunDirectory.create(tmp_path, config=CONFIG)
    RunDirectory.create(tmp_path, config=CONFIG).close()


# -- archive -----------------------------------------------------------------------------------------------------------


def test_the_archive_holds_exactly_the_counted_evaluations_in_order(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", config=CONFIG, notation=notation) as run:
        state = advance(run, begin(), 2, 0)
        run.store.append(facts(9))  # paid, but its step never committed
        state = advance(run, state, 3, 4)
        lines = table(run.path / "archive.csv")
        assert lines == [
            ["order", "key", "arch", "val_error_pct", "latency_ms@edgegpu", "params_m", "status", "source"],
            ["1", "toy:2", '|"2"~0|, +', "29.8", "3.1", "1.0", "ok", "table+measured"],
            ["2", "toy:0", '|"0"~0|, +', "30.0", "1.1", "1.0", "ok", "table+measured"],
            ["3", "toy:3", '|"3"~0|, +', "29.7", "", "1.0", "timeout", "table+measured"],
            ["4", "toy:4", '|"4"~0|, +', "29.6", "4.9", "1.0", "noisy", "table+measured"],
        ]
        appended = (run.path / "archive.csv").read_bytes()
        run.write_archive(state)
        assert (run.path / "archive.csv").read_bytes() == appended


def test_the_archive_keeps_every_digit(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    with RunDirectory.create(tmp_path / "run", config=CONFIG) as run:
        rows = [Measurement(Architecture("toy", (0,)), "val_error_pct", value, ERROR)]
        run.store.append(rows)
        run.record(begin(objectives=(Objective("val_error_pct"),), constraints=()).tell(rows))
        assert float(table(run.path / "archive.csv")[1][3]) == value


def test_steps_are_appended_not_rewritten(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", config=CONFIG) as run:
        path = run.path / "archive.csv"
        state = advance(run, begin(), 0)
        inode, first = path.stat().st_ino, path.read_bytes()
        state = advance(run, state, 1)
        run.record(state)
        assert path.stat().st_ino == inode
        assert path.read_bytes().startswith(first)
        assert len(table(path)) == 3


@pytest.mark.parametrize("harm", ["behind", "cut", "ahead", "gone"])
def test_a_continued_run_writes_its_archive_from_the_database(tmp_path: Path, harm: str) -> None:
    with RunDirectory.create(tmp_path / "run", config=CONFIG) as run:
        state = advance(run, begin(), 0)
        state = advance(run, state, 1, record=harm != "behind")
        path = run.path / "archive.csv"
    with RunDirectory.create(tmp_path / "whole", config=CONFIG) as whole:
        advance(whole, advance(whole, advance(whole, begin(), 0), 1), 2)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif harm == "ahead":
        path.write_bytes(path.read_bytes() + b"3,toy:9,toy:9,1.0,1.0,1.0,ok,table\n")
    elif harm == "gone":
        path.unlink()
    with RunDirectory.resume(tmp_path / "run") as run:
        advance(run, state, 2)
    assert path.read_bytes() == (whole.path / "archive.csv").read_bytes()


def test_a_full_disk_while_recording_is_said_and_repaired(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", config=CONFIG) as run:
        state = advance(run, begin(), 0)
        path = run.path / "archive.csv"
        state = advance(run, state, 1, record=False)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
        try:
            with pytest.raises(RunError, match=r"could not write .*archive.csv.*intact.*--resume"):
                run.record(state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        run.write_archive(state)
        assert [line[1] for line in table(path)] == ["key", "toy:0", "toy:1"]


# -- front -------------------------------------------------------------------------------------------------------------


def strict(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_the_front_is_written_as_a_table_and_as_it_was_told(tmp_path: Path) -> None:
    test_error = Measurement(Architecture("toy", (1,)), "test_error_pct", 31.5, Context(Source.TABLE, split="test"))
    with RunDirectory.create(tmp_path / "run", config=CONFIG, notation=notation) as run:
        state = advance(run, begin(), 0, 1, 3, 8)  # 3 has no latency, 8 is too slow
        run.write_front(
            state,
            {"whole": [1, None]},
            marks={"recommended": {Architecture("toy", (1,)): "yes"}},
            reported=[test_error],
        )
        assert table(run.path / "front.csv") == [
            [
                *("order", "key", "arch", "val_error_pct", "latency_ms@edgegpu", "params_m", "test_error_pct"),
                *("recommended", "status", "source"),
            ],
            ["2", "toy:1", '|"1"~0|, +', "29.9", "2.1", "1.0", "31.5", "yes", "ok", "table+measured"],
            ["1", "toy:0", '|"0"~0|, +', "30.0", "1.1", "1.0", "", "", "ok", "table+measured"],
        ]
        found = strict(run.path / "front.json")
        assert found == {"whole": [1, None], "run_id": run.store.meta["run_id"]}


@pytest.mark.parametrize("numbers", [(), (3,)])
def test_a_front_of_nothing_is_still_a_file(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    with RunDirectory.create(tmp_path / "run", config=CONFIG) as run:
        state = advance(run, begin(), *numbers) if numbers else begin()
        run.write_archive(state)
        run.write_front(state, {"front": []}, marks={"recommended": {}})
        assert strict(run.path / "front.json")["front"] == []
        assert len(table(run.path / "front.csv")) == 1
        assert table(run.path / "archive.csv")[0][0] == "order"


# -- continuing --------------------------------------------------------------------------------------------------------


def edit(run: Path, old: str, new: str) -> None:
    text = (run / "run.toml").read_text(encoding="utf-8")
    assert old in text
    (run / "run.toml").write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    with RunDirectory.create(tmp_path / "run", config=CONFIG) as run:
        advance(run, begin(), 0, 1)
    return run.path


def test_another_version_is_refused_by_name_but_can_be_read(finished: Path) -> None:
    edit(finished, f'hwnas = "{hwnas.__version__}"', 'hwnas = "9.4.1"')
    with pytest.raises(RunIncompatible, match=rf"made by hwnas 9.4.1, this is hwnas {hwnas.__version__}"):
        RunDirectory.resume(finished)
    with RunDirectory.read(finished) as run:
        assert len(run.store.rows()) == 6
        assert run.changed_versions() == {"hwnas": ("9.4.1", hwnas.__version__)}


def test_another_patch_of_the_same_version_may_continue(finished: Path) -> None:
    major, minor, *_ = hwnas.__version__.split(".")
    edit(finished, f'hwnas = "{hwnas.__version__}"', f'hwnas = "{major}.{minor}.99"')
    RunDirectory.resume(finished).close()


def test_another_configuration_is_refused_with_what_differs(finished: Path) -> None:
    RunDirectory.resume(finished, config={**CONFIG, "tables": "elsewhere"}).close()
    with pytest.raises(
        RunIncompatible, match=r"batch \('unset' there, 4 asked for\); queries \(20 there, 30 asked for\)"
    ):
        RunDirectory.resume(finished, config={**CONFIG, "queries": 30, "batch": 4})
    with pytest.raises(RunIncompatible, match="budgets"):
        RunDirectory.resume(finished, config={**CONFIG, "budgets": {"latency": "6ms"}})


def test_a_run_being_written_can_be_read_but_not_continued(finished: Path) -> None:
    with RunDirectory.resume(finished):
        with pytest.raises(RunLocked, match=f"process {os.getpid()}"):
            RunDirectory.resume(finished)
        with RunDirectory.read(finished) as reader:
            found = reader.store.last_step()
            assert found is not None
            assert found[0] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no run"),
        ("[run\n", "is damaged"),
        ("", r"lacks \[run\]"),
        ("[run]\nid = 'x'\n[config]\n", r"lacks \[run\] hwnas"),
        ("run = 3\nconfig = 4\n", r"lacks \[run\]"),
    ],
)
@pytest.mark.parametrize("way", [RunDirectory.resume, RunDirectory.read])
def test_a_damaged_run_toml_is_named(finished: Path, content: str | None, said: str, way: Any) -> None:
    path = finished / "run.toml"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(RunCorrupt, match=said):
        way(finished)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunCorrupt, match="holds no run"):
            RunDirectory.resume(path)


def test_a_run_without_its_database_is_named(finished: Path) -> None:
    (finished / rundir.DATABASE).unlink()
    for way in (RunDirectory.resume, RunDirectory.read):
        with pytest.raises(RunCorrupt, match=r"hwnas.sqlite is missing"):
            way(finished)


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[2])
from test_rundir import CONFIG, RunDirectory, advance, begin
run = RunDirectory.create(sys.argv[1], config=CONFIG)
advance(run, advance(run, begin(), 0), 1, record=False)
os.kill(os.getpid(), 9)
"""


def test_a_killed_run_continues_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False).returncode == -9
    with RunDirectory.resume(tmp_path / "run", config=CONFIG) as run:
        found = run.store.last_step()
        assert found is not None
        assert found[1] == [["toy:0"], ["toy:1"]]
        run.write_archive(begin().tell(facts(0)).tell(facts(1)))
        assert [line[1] for line in table(run.path / "archive.csv")] == ["key", "toy:0", "toy:1"]
