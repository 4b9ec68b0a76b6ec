"""Stores: the contract, and what can happen to a database file."""

from __future__ import annotations

import json
import math
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.protocols import Store
from hwnas.errors import RunCorrupt, RunError, RunExists, RunIncompatible, RunLocked
from hwnas.stores import codec, sqlite
from hwnas.stores.files import replace_text
from hwnas.stores.memory import MemoryStore
from hwnas.stores.sqlite import SqliteStore
from hwnas.testing.stores import ERROR, StoreSuite, architecture, facts, plain, start

NAME = "hwnas.sqlite"


class TestMemoryStore(StoreSuite):
    persistent = False

    def make(self, folder: Path) -> Store:
        del folder
        return MemoryStore()


class TestSqliteStore(StoreSuite):
    def make(self, folder: Path) -> Store:
        path = folder / NAME
        return SqliteStore.open(path) if path.exists() else SqliteStore.create(path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore.create(tmp_path / NAME)
    yield made
    made.close()


def a_run(folder: Path, evaluations: int = 40) -> Path:
    """A closed database with `evaluations` one-architecture steps."""
    made, state = SqliteStore.create(folder / NAME), start()
    for number in range(evaluations):
        made.append(facts(number))
        state = state.tell(facts(number))
        made.commit_step(state, {"weights": np.arange(500.0)}, Ledger(evaluations=number))
    made.close()
    return made.path


# -- codec -------------------------------------------------------------------------------------------------------------


def identical(a: Any, b: Any) -> bool:
    """Equal in value, type and, for arrays, every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, float | complex):
        return repr(a) == repr(b)
    return bool(a == b)


ARRAYS = npst.arrays(
    st.one_of(
        npst.scalar_dtypes(),
        npst.unicode_string_dtypes(max_len=4),
        npst.byte_string_dtypes(max_len=4),
        npst.array_dtypes(npst.integer_dtypes() | npst.floating_dtypes(), max_size=3),
    ),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**5000), max_value=10**5000),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters()),
    st.binary(),
    ARRAYS,
    ARRAYS.filter(lambda array: array.ndim == 0).map(lambda array: array[()]),
)
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3) | st.just("$"), inner, max_size=4),
        st.dictionaries(
            st.integers() | st.booleans() | st.tuples(st.integers(), st.text(max_size=2)), inner, max_size=3
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(STATES)
def test_codec_gives_back_exactly_what_it_got(value: Any) -> None:
    text = codec.dumps(value)
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert identical(codec.loads(text), value)
    assert identical(codec.unpack(codec.pack(value)), value)


def test_codec_keeps_strides_apart_from_values_and_arrays_writable() -> None:
    array = np.arange(24, dtype=">i4").reshape(2, 3, 4)[:, ::2].T
    back = codec.unpack(codec.pack([array]))[0]
    assert back.dtype == np.dtype(">i4")
    np.testing.assert_array_equal(back, array)
    back[0] = 0


def test_codec_compresses_only_what_shrinks() -> None:
    noise, zeros = np.random.default_rng(0).bytes(100_000), np.zeros(100_000, np.uint8)
    assert len(codec.pack(zeros)) < 2_000
    assert len(codec.pack(np.frombuffer(noise, np.uint8))) < 100_200
    assert '"raw"' in codec.dumps(np.frombuffer(noise, np.uint8))
    assert '"zlib"' in codec.dumps(zeros)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"net": {"layers": [0, object()]}}, r"state\['net'\]\['layers'\]\[1\] is a builtins.object"),
        ([np.array([None])], r"state\[0\] has the dtype object"),
        ({"status": Status.OK}, r"state\['status'\] is a hwnas.core.measurement.Status"),
        ({"seen": {1, 2}}, r"state\['seen'\] is a builtins.set"),
    ],
)
def test_codec_refuses_what_it_could_not_restore(value: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        codec.pack(value)


@pytest.mark.parametrize("text", ["", "nonsense", '{"$": ["pickle", "x"]}', '{"$": 3}', '{"$": ["array", "<f8", [2]]}'])
def test_codec_refuses_foreign_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"saved state|Expecting"):
        codec.loads(text)


def test_codec_refuses_a_damaged_blob() -> None:
    blob = codec.pack({"weights": np.random.default_rng(0).random(50)})
    for damaged in (b"", b"nonsense", blob[:20], blob[:-1], blob + b"x"):
        with pytest.raises(ValueError, match="saved state"):
            codec.unpack(damaged)


# -- what a file holds -------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
CONTEXTS = st.builds(
    Context,
    st.sampled_from(Source),
    device=st.none() | NAMES,
    batch=st.none() | st.integers(1, 512),
    dataset=st.none() | NAMES,
    versions=st.lists(st.tuples(NAMES, NAMES), max_size=2).map(tuple),
)
MEASUREMENTS = st.one_of(
    st.builds(
        Measurement,
        st.integers(0, 99).map(architecture),
        st.sampled_from(["latency_ms", "val_error_pct"]),
        st.floats(allow_nan=False, allow_infinity=False),
        CONTEXTS,
        status=st.sampled_from([Status.OK, Status.NOISY]),
        message=NAMES | st.just(""),
    ),
    st.builds(
        Measurement.failed,
        st.integers(0, 99).map(architecture),
        st.just("energy_mj"),
        CONTEXTS,
        st.sampled_from([Status.CRASHED, Status.TIMEOUT]),
        NAMES,
    ),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(MEASUREMENTS, max_size=8))
def test_any_facts_survive_reopening(rows: list[Measurement]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = SqliteStore.create(Path(folder) / NAME)
        made.append(rows)
        made.close()
        again = SqliteStore.open(made.path)
        assert plain(again.rows()) == plain(rows)
        for row in rows:
            found = again.find(row.architecture, row.metric, row.context)
            assert found is not None
            assert found.context == row.context
        again.close()


def test_output_that_is_no_text_is_kept_readable(store: SqliteStore) -> None:
    message = b"bad \xff byte".decode("utf-8", "surrogateescape")
    store.append([Measurement.failed(architecture(0), "val_error_pct", ERROR, Status.CRASHED, message)])
    assert store.rows()[0].message == "bad \\udcff byte"


def test_the_file_is_a_plain_append_only_database_with_a_write_ahead_log(store: SqliteStore) -> None:
    store.append(facts(2))
    store.commit_step(start().tell(facts(2)), {}, Ledger())
    outside = sqlite3.connect(store.path)
    assert outside.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    columns = "architecture, metric, device, value, status, message"
    assert outside.execute(f"SELECT {columns} FROM measurements").fetchall() == [
        ("toy:0.2", "val_error_pct", None, 10 / 3, "ok", ""),
        ("toy:0.2", "latency_ms", "böard", None, "oom", "Speicher voll: 2 µs, 漢字"),
    ]
    store.note("topic", {"number": 1})
    for change in (
        "UPDATE measurements SET value = 0",
        "DELETE FROM measurements",
        "DELETE FROM steps",
        "UPDATE notes SET entry = ''",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            outside.execute(change)
    outside.close()


def test_only_the_newest_generator_state_is_kept(tmp_path: Path) -> None:
    noise, state = np.random.default_rng(0), start()
    made = SqliteStore.create(tmp_path / NAME)
    for number in range(20):
        made.append(facts(number))
        state = state.tell(facts(number))
        made.commit_step(state, {"weights": noise.random(20_000)}, Ledger())
    made.close()
    assert made.path.stat().st_size < 1_000_000, "twenty states of 160 kB are kept"


def test_a_search_of_200_queries_costs_less_than_a_cpu_second(tmp_path: Path) -> None:
    began, noise = time.process_time(), np.random.default_rng(0)
    made, state = SqliteStore.create(tmp_path / NAME), start()
    weights = {name: noise.random(100_000, np.float32) for name in ("weights", "momentum", "variance")}
    for step in range(50):
        rows = [row for number in range(4 * step, 4 * step + 4) for row in facts(number)]
        for row in rows:
            assert made.find(row.architecture, row.metric, row.context) is None
            made.append([row])
        state = state.tell(rows)
        made.commit_step(state, weights, Ledger())
    made.close()
    assert time.process_time() - began < 1.0


def test_an_interrupt_after_writing_leaves_the_store_usable(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: SqliteStore) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.append(facts(0))
    store.append(facts(1))
    assert plain(store.rows()) == plain([*facts(0), *facts(1)])


# -- one writer, many readers ------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_is_the_first(store: SqliteStore) -> None:
    with pytest.raises(RunLocked, match=rf"process {os.getpid()} on .+ since 20\d\d-"):
        SqliteStore.open(store.path)
    store.close()
    SqliteStore.open(store.path).close()


def test_a_second_process_is_told_who_is_the_first(store: SqliteStore) -> None:
    code = f"from hwnas.stores.sqlite import SqliteStore; SqliteStore.open({str(store.path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"RunLocked: {store.path.parent} is being written by process {os.getpid()}" in done.stderr


def test_a_lock_without_a_holder_file_is_still_a_lock(store: SqliteStore) -> None:
    (store.path.parent / ".lock.json").write_text("garbage")
    with pytest.raises(RunLocked, match="another process"):
        SqliteStore.open(store.path)


def test_reading_beside_a_writer_sees_what_it_adds(store: SqliteStore) -> None:
    store.append(facts(0))
    reader = SqliteStore.read(store.path)
    assert len(reader.rows()) == 2
    assert reader.last_step() is None
    store.append(facts(1))
    store.commit_step(start().tell([*facts(0), *facts(1)]), {"a": 1}, Ledger(evaluations=2))
    found = reader.last_step()
    assert found is not None
    assert found[3].evaluations == 2
    assert plain(reader.rows()) == plain([*facts(0), *facts(1)])
    with pytest.raises(RunError, match="opened for reading"):
        reader.append(facts(2))
    with pytest.raises(RunError, match="opened for reading"):
        reader.commit_step(start().tell([*facts(0), *facts(1)]).tell([]), {}, Ledger())
    reader.close()


def test_a_foreign_program_that_holds_the_database_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_S", 0.05)
    made = SqliteStore.create(tmp_path / NAME)
    foreign = sqlite3.connect(made.path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    with pytest.raises(RunLocked, match="another program"):
        made.append(facts(0))
    foreign.execute("ROLLBACK")
    made.append(facts(0))
    assert len(made.rows()) == 2
    foreign.close()
    made.close()


def test_a_write_protected_run_can_be_read() -> None:
    # not below tmp_path, whose parents only its owner may enter
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = a_run(folder, 3)
        path.chmod(0o444)
        folder.chmod(0o555)
        as_root = os.geteuid() == 0  # root may write everywhere
        if as_root:
            os.seteuid(65534)
        try:
            reader = SqliteStore.read(path)
            assert len(reader.rows()) == 6
            reader.close()
            with pytest.raises(RunError, match="could not write"):
                SqliteStore.open(path)
        finally:
            if as_root:
                os.seteuid(0)
            folder.chmod(0o755)


# -- damage ------------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    path.write_bytes(b"this was a database\n" * 1000)


def scramble_a_page(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 8192)


def drop_a_table(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE steps")
    connection.close()


def another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title)")
    connection.close()


def an_unknown_status(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO measurements VALUES (999, 'toy:0', 'latency_ms', 'a', 1, 'fine', 0, 0, '', '{}', '', NULL)"
        )
    connection.close()


@pytest.mark.parametrize("how", ["open", "read"])
@pytest.mark.parametrize(
    "harm", [truncate, empty, overwrite, scramble_a_page, drop_a_table, another_program, an_unknown_status, Path.unlink]
)
def test_damage_is_found_when_opening(tmp_path: Path, harm: Callable[[Path], None], how: str) -> None:
    path = a_run(tmp_path)
    harm(path)
    with pytest.raises(RunCorrupt) as caught:
        getattr(SqliteStore, how)(path)
    assert str(path) in str(caught.value)
    assert "recover" in str(caught.value) or "missing" in str(caught.value)
    (tmp_path / "other").mkdir()
    SqliteStore.create(tmp_path / "other" / NAME).close()  # no lock of the failed attempt is left in the process


def test_a_damaged_generator_state_is_found(tmp_path: Path) -> None:
    path = a_run(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE generator SET state = x'0102'")
    connection.close()
    opened = SqliteStore.open(path)
    with pytest.raises(RunCorrupt, match="cannot be read"):
        opened.last_step()
    opened.close()


@pytest.mark.parametrize(("version", "age"), [(0, "an older"), (sqlite.SCHEMA_VERSION + 1, "a newer")])
def test_another_schema_is_refused_by_name(tmp_path: Path, version: int, age: str) -> None:
    path = a_run(tmp_path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    for way in (SqliteStore.open, SqliteStore.read):
        with pytest.raises(RunIncompatible, match=f"schema {version}.*{age} hwnas"):
            way(path)


def as_of_schema_1(path: Path) -> None:
    """What the version before notes would have written."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE notes")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
        connection.execute("PRAGMA user_version = 1")


def test_a_run_of_schema_1_is_read_as_it_is_and_continued_with_notes(tmp_path: Path) -> None:
    path = a_run(tmp_path, 3)
    as_of_schema_1(path)
    with closing(SqliteStore.read(path)) as reader:
        assert (len(reader.rows()), list(reader.notes("topic"))) == (6, [])
        assert reader.meta["schema"] == "1"
        with closing(SqliteStore.open(path)) as store:
            assert (len(store.rows()), list(store.notes("topic"))) == (6, [])
            assert store.meta["schema"] == "2"
            store.note("topic", {"number": 1})
            assert list(reader.notes("topic")) == [{"number": 1}]
    with closing(SqliteStore.open(path)) as again:
        assert list(again.notes("topic")) == [{"number": 1}]
    with closing(sqlite3.connect(path)) as outside, pytest.raises(sqlite3.IntegrityError, match="never changed"):
        outside.execute("DELETE FROM notes")


def test_a_run_without_own_half_widths_is_read_as_it_is_and_continued_with_them(tmp_path: Path) -> None:
    path = tmp_path / NAME
    rows = [replace(row, own_half=None) for number in range(3) for row in facts(number)]
    with closing(SqliteStore.create(path)) as store:
        store.append(rows)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE measurements DROP COLUMN own_half")
    with closing(SqliteStore.read(path)) as reader:
        assert plain(reader.rows()) == plain(rows)
        with closing(SqliteStore.open(path)) as store:
            store.append(facts(3))
            assert plain(store.rows()) == plain([*rows, *facts(3)])
        assert any(row.own_half for row in facts(3))
        assert plain(reader.rows()) == plain([*rows, *facts(3)])  # was there before the run was continued


def test_a_creation_of_schema_1_that_was_killed_is_made_anew(tmp_path: Path) -> None:
    path = a_run(tmp_path, 0)
    as_of_schema_1(path)
    SqliteStore.create(path).close()


def test_a_database_is_never_overwritten(tmp_path: Path) -> None:
    path = a_run(tmp_path, 2)
    with pytest.raises(RunExists, match="never overwritten"):
        SqliteStore.create(path)
    reader = SqliteStore.read(path)
    assert len(reader.rows()) == 4
    reader.close()


def test_what_cannot_be_stored_is_the_callers_error_not_damage(store: SqliteStore) -> None:
    with pytest.raises(AttributeError):
        store.append([*facts(0), "no measurement"])  # type: ignore[list-item]
    assert store.rows() == (), "half of an append was stored"
    store.append(facts(0))


# -- full disk ---------------------------------------------------------------------------------------------------------


def test_a_full_database_loses_nothing_and_goes_on_when_there_is_space(store: SqliteStore) -> None:
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    acknowledged = 0

    def fill() -> None:
        nonlocal acknowledged
        state = start()
        for number in range(10_000):
            store.append(facts(number))
            acknowledged += 1
            state = state.tell(facts(number))
            store.commit_step(state, {}, Ledger())

    with pytest.raises(RunError, match=r"full.*Everything stored before is intact.*--resume"):
        fill()
    assert acknowledged > 5
    rows, found = store.rows(), store.last_step()
    assert found is not None
    assert len(rows) in (2 * acknowledged, 2 * acknowledged + 2)
    assert found[0] in (acknowledged, acknowledged - 1)
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.append(facts(5000))
    assert len(store.rows()) == len(rows) + 2


FILL = """
import resource, signal, sys
from hwnas.errors import RunError
from hwnas.stores.sqlite import SqliteStore
from hwnas.testing.stores import facts
store = SqliteStore.create(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
number = 0
try:
    while number < 10_000:
        store.append(facts(number))
        number += 1
except RunError as error:
    print(number, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.append(facts(number))
"""


def test_a_disk_that_refuses_to_write_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / NAME
    done = subprocess.run([sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, check=True)
    number, _, message = done.stdout.partition(" ")
    assert "could not write" in message
    assert "Everything stored before is intact" in message
    again = SqliteStore.open(path)
    assert plain(again.rows()) == plain([row for i in range(int(number) + 1) for row in facts(i)])
    again.close()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "archive.csv"
    replace_text(path, "old\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RunError, match="could not write"):
            replace_text(path, "new\n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["archive.csv"]


def test_facts_of_another_space_are_other_facts(store: SqliteStore) -> None:
    one, other = Architecture("a", (1,)), Architecture("b", (1,))
    store.append([Measurement(one, "val_error_pct", 1.0, ERROR)])
    assert store.find(other, "val_error_pct", ERROR) is None
    assert not math.isnan(store.rows()[0].value)
