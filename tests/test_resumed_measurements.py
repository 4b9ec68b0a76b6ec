"""A measured search that is killed at any moment and continued ends like one that was not.

On simulated devices. On one the machine is always as fast, and everything has to be the same in the end. On the other
it is slower or faster in every session: what the search measures stays on the level of its first batch, while the front
is what the clock showed when it was measured.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hwnas import finals
from hwnas.core.measurement import Source
from hwnas.rundir import DATABASE
from hwnas.stores.sqlite import SqliteStore

# A process of its own, without threads, whose children search, are killed, and go on. One import for all of them.
SEARCHES = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
import onnx.checker, scipy.stats, sklearn.linear_model
from hwnas import api, export, report
from hwnas.evaluators import meter
from hwnas.evaluators.measured import MeasuredEvaluator, Screening
from hwnas.predictors import latency
from hwnas.profiling import profiler
from hwnas.profiling.protocol import PROTOCOLS
from hwnas.rundir import DATABASE
from hwnas.stores.sqlite import SqliteStore
from hwnas.testing.profiling import DirectTransport

folder, device = Path(sys.argv[1]), sys.argv[2]
for name in ("quick", "final"):
    PROTOCOLS[name] = replace(PROTOCOLS[name], rounds=4, most_rounds=4, processes=1, resamples=20)
MeasuredEvaluator.__init__.__kwdefaults__["screening"] = Screening(first=6, audit=3, within=0.5)
report.write_figures = lambda *words: []  # half of the time, and nothing that is compared
GIVEN = dict(devices=[device], budgets={"latency": "50ms"}, queries=20, batch=4, generator="random", preset="quick",
             source="surrogate")
log = []

def watch(kill_at):
    def watched(name):
        method = getattr(SqliteStore, name)
        def call(self, *words):
            found = method(self, *words)
            what = words[1]["what"] if name == "note" else words[0][0].metric if name == "append" else "step"
            log.append(f"{name} {what}")
            if len(log) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return found
        setattr(SqliteStore, name, call)
    for name in ("note", "append", "commit_step"):
        watched(name)

def session(name, where, kill_at=0, resume=False):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.environ["HWNAS_CACHE"] = str(where / "cache")
    profiler._transport = lambda device: DirectTransport(name=name)
    watch(kill_at)
    try:
        path = where / "run"
        (api.open_run({}, resume=path) if resume else api.open_run(GIVEN, out=path)).finish()
        (where / "log.json").write_text(json.dumps(log))
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

for text in sys.argv[3:]:
    # "0": not killed; "7": killed after the 7th write; "7,2": and the continued one after its 2nd
    where = folder / text
    where.mkdir(exist_ok=True)
    kills = [int(word) for word in text.split(",")] + [0]
    for number, kill_at in enumerate(kills[: 1 if kills == [0, 0] else None]):
        code = session("abcdef"[number], where, kill_at, resume=number > 0)
        assert code == (-signal.SIGKILL if kill_at else 0), (text, number, code)
"""


def search(folder: Path, *kills: str, level: float = 0.0) -> None:
    folder.mkdir(exist_ok=True)
    device = folder / "simulated.toml"
    device.write_text(
        'name = "simulated"\ntitle = "A simulated device"\nkind = "cpu"\nruntimes = ["fake"]\nprecisions = ["fp32"]\n'
        'metrics = ["latency_ms"]\nmeasured_how = "Simulated."\nhost = "local"\n'
        f"options = {{ seed = 0, jitter = 0, spread = 0, level = {level} }}\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HWNAS_TABLES"}
    environment["XDG_DATA_HOME"] = str(folder / "data")
    command = [sys.executable, "-c", SEARCHES, str(folder), str(device), *kills]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search that was not killed, in `0`."""
    folder = tmp_path_factory.mktemp("whole")
    search(folder, "0")
    return folder


# what differs between two runs of the same search on the same machine
WHEN = {"started", "created", "date", "recorded", "run_id", "folder", "run", "command"}
HOW_FAST = {"conditions", "flags", "cpu_s", "wall_s", "first_run", "load_s", "build_s", "warm_runs", "samples", "level"}
# a session that is continued pays for what a killed one had not finished again
PAID_AGAIN = {"final_wall_s", "file_wall_s", "file_timings"}
UNCORRECTED = {"cpu_time", "cpu_low", "cpu_high"}
OF_EQUALS = {"relative", "tau", "retest_rel", "retest_tau"}  # of figures that are equal but for the last digit
COUNTED = (("networks", "measured"), ("networks", "kept"), ("final", "measurements"), ("final", "kept"))  # in a ledger
GONE = WHEN | HOW_FAST | PAID_AGAIN | UNCORRECTED | OF_EQUALS


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """What a file says, by place."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in GONE:
                yield from leaves(item, f"{where}/{key}")
    else:
        yield where, value


def found(where: Path) -> dict[str, Any]:
    run = where / "run"
    told = {path.name: json.loads(path.read_text()) for path in sorted(run.glob("models/*.certificate.json"))}
    told |= {name: json.loads((run / name).read_text()) for name in ("front.json", finals.FILE)}
    with open(run / "archive.csv", newline="") as file:
        told["archive.csv"] = [[number(cell) for cell in row] for row in csv.reader(file)]
    return dict(leaves(told))


def number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By place, to five digits: a predictor's fit, of figures that differ in the last one, differs in the seventh."""

    def same(one: Any, other: Any) -> bool:
        floats = isinstance(one, float) and isinstance(other, float)
        return math.isclose(one, other, rel_tol=1e-5) if floats else bool(one == other)

    pairs = {place: (a.get(place), b.get(place)) for place in {**a, **b} if not of_check(place)}
    return {place: pair for place, pair in pairs.items() if not same(*pair)}


def moments(whole: Path) -> dict[str, str]:
    """Writes after which a kill is worst, in words."""
    log = json.loads((whole / "0" / "log.json").read_text())
    last_step = len(log) - log[::-1].index("commit_step step")
    final = next(i for i in range(last_step, len(log)) if log[i] == "note batch") + 1
    screened = [i for i, what in enumerate(log) if what == "note screened"]
    first = log.index("note batch") + 1
    return {
        "a batch is measured, nothing of it stored": f"{first}",
        "half of the predictions are stored": f"{screened[-1] + 3}",
        "the search is over": f"{last_step}",
        "the front is measured, nothing of it stored": f"{final}",
        "half of a batch is stored, soon again, and again in the finals": f"{first + 3},3,{final - first - 3}",
    }


def test_a_killed_and_continued_search_ends_like_one_that_was_not(whole: Path) -> None:
    kills = moments(whole)
    search(whole, *kills.values())
    expected = found(whole / "0")
    device = f"/{finals.FILE}/devices/simulated"
    assert expected[f"{device}/retests/pairs"] > 0
    assert expected[f"{device}/audits/0"] > 0
    assert any(place.endswith(".certificate.json/simulated/latency/value") for place in expected)
    for name, at in kills.items():
        assert differences(found(whole / at), expected) == {}, name


def test_what_an_earlier_search_has_measured_is_kept_and_counted_the_same_after_a_kill(
    whole: Path, tmp_path: Path
) -> None:
    """Half of it, so that every batch of the search has kept figures and others."""

    def known(name: str) -> str:
        (tmp_path / name / "cache").mkdir(parents=True)
        paths = (folder / "cache" / "measurements.sqlite" for folder in (whole / "0", tmp_path / name))
        source, copy = map(sqlite3.connect, paths)
        with closing(source), closing(copy), copy:
            source.backup(copy)
            keys = copy.execute("SELECT key FROM results ORDER BY json_extract(record, '$.subject.id')").fetchall()
            copy.executemany("DELETE FROM results WHERE key = ?", keys[::2])
        return name

    search(tmp_path, known("0"))
    log = json.loads((tmp_path / "0" / "log.json").read_text())
    first, last = log.index("note kept"), len(log) - log[::-1].index("note kept")
    assert log[first - 1] == "note batch"  # which found the level
    kills = [known(str(at)) for at in (first, last)]
    search(tmp_path, *kills)
    expected = found(tmp_path / "0")
    paid = {place.rsplit("/", 1)[1]: value for place, value in expected.items() if "/ledger/" in place}
    assert min(paid[f"{kind}_{how}"] for kind, how in COUNTED) > 0
    for at in kills:
        assert differences(found(tmp_path / at), expected) == {}, at


def of_check(place: str) -> bool:
    """Whether a place tells the interval of a file's timing. It is wider where the front was measured in an earlier
    session: the references tell another process's level less surely."""
    return ("/exported/" in place or "/checked/" in place) and place.rsplit("/", 1)[1] in ("low", "high", "message")


def latencies(where: Path) -> dict[str, dict[str, float]]:
    """Of a run, by protocol and network: latencies on record."""
    with closing(SqliteStore.read(where / "run" / DATABASE)) as store:
        rows = [row for row in store.rows() if row.metric == "latency_ms" and row.context.source is Source.MEASURED]
    found: dict[str, dict[str, float]] = {"quick": {}, "final": {}}
    for row in rows:
        name = "final" if "final" in str(row.context.fidelity) else "quick"
        found[name][row.architecture.key] = row.value
    return found


def test_where_the_machine_is_at_another_pace_the_search_stays_on_its_level_and_the_front_is_on_the_clocks(
    whole: Path, tmp_path: Path
) -> None:
    at = moments(whole)
    early, late = at["half of the predictions are stored"], at["the front is measured, nothing of it stored"]
    search(tmp_path, "0", early, late, level=0.04)
    expected = latencies(tmp_path / "0")
    for kill in (early, late):
        found = latencies(tmp_path / kill)
        assert found["quick"] == pytest.approx(expected["quick"])
        assert found["final"].keys() >= expected["final"].keys()
        ratios = {found["final"][key] / value for key, value in expected["final"].items()}
        assert max(ratios) == pytest.approx(min(ratios))
        told = json.loads((tmp_path / kill / "run" / finals.FILE).read_text())
        (checks,) = zip(*(check.values() for check in told["exported"].values()), strict=True)
        drift = told["devices"]["simulated"]["drift"]
        if kill == early:  # the front was measured in the session that the check is of
            assert drift == pytest.approx(min(ratios) - 1)
            assert abs(drift) > 0.01
            assert {round(check["slower"], 9) for check in checks} == {0}
        else:  # it was measured before the kill, and the machine has changed since then
            assert (drift, min(ratios)) == (pytest.approx(0), pytest.approx(1))
            assert min(abs(check["slower"]) for check in checks) > 0.01
        assert all(check["agrees"] for check in checks)


@pytest.mark.slow
def test_it_may_be_killed_at_any_write(whole: Path) -> None:
    log = json.loads((whole / "0" / "log.json").read_text())
    # before the first batch there is no level yet: another session's machine is as fast as it is then
    kills = [str(at) for at in range(log.index("note batch") + 1, len(log), 3)]
    search(whole, *(at for at in kills if not (whole / at).exists()))
    for at in kills:
        assert differences(found(whole / at), found(whole / "0")) == {}, at
