"""Tables: found, checked, imported and fetched; whatever is wrong with them is said, and nothing in them is run."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import pickle
import re
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from hwnas import listing
from hwnas.doctor import _data
from hwnas.errors import DataError, FetchFailed, InvalidTable, MissingExtra, TablesNotFound, UnknownName, UsageError
from hwnas.tables import accuracy, fetch, hwnasbench, safe_pickle
from hwnas.tables.catalogue import add, list_tables, write
from hwnas.tables.folder import Tables, default_folder, find_folder
from hwnas.tables.schema import (
    ACCURACY,
    DEVICES,
    FBNET,
    HARDWARE,
    PREFIXES,
    ROBUSTNESS,
    ROWS,
    Kind,
    accuracy_column,
    cells,
    columns_of,
    hardware_column,
)

NAMES: list[str] = np.random.default_rng(7).permutation(sorted(cells())).tolist()  # stands for the official order
VAL = "c10_val_200"
LATENCY = "c10_edgegpu_latency_ms"
ROBUST = "apgd-ce_linf_1.0"


def accuracies(**columns: Any) -> pa.Table:
    rng = np.random.default_rng(1)
    values = {name: rng.uniform(10, 95, ROWS) for name in (VAL, "c10_test_200", "c100_test_200", "in16_test_200")}
    return pa.table({"index": np.arange(ROWS, dtype=np.int32), "arch": NAMES, **values, **columns})


def costs(**columns: Any) -> pa.Table:
    rng = np.random.default_rng(2)
    values = {name: rng.uniform(0.1, 30, ROWS) for name in columns_of(HARDWARE)}
    return pa.table({"index": np.arange(ROWS, dtype=np.int32), **values, **columns})


def under_attack(**columns: Any) -> pa.Table:
    rng = np.random.default_rng(4)
    values = {name: rng.uniform(3, 70, ROWS) for name in columns_of(ROBUSTNESS)}
    return pa.table({"index": np.arange(ROWS, dtype=np.int32), **values, **columns})


def put(folder: Path, *tables: pa.Table) -> Path:
    for table in tables:
        names = table.column_names
        kind = HARDWARE if LATENCY in names else ROBUSTNESS if ROBUST in names else ACCURACY
        pq.write_table(table, folder / kind.file)
    return folder


@functools.cache
def official(arrays: bool) -> dict[str, Any]:
    """The official file's structure with made-up numbers: both forms in which numbers may stand."""
    rng = np.random.default_rng(3)
    metrics = [f"{device}_{key}" for device, names in DEVICES.items() for key in ("latency", "energy")[: len(names)]]

    def numbers(n: int) -> Any:
        drawn = rng.uniform(0.1, 30, n)
        return drawn if arrays else drawn.tolist()

    spaces: dict[str, Any] = {"nasbench201": {}, "fbnet": {}}
    for dataset, classes in (("cifar10", 10), ("cifar100", 100), ("ImageNet16-120", 120)):
        part: dict[str, Any] = {name: numbers(ROWS) for name in (*metrics, "eyeriss_arithmetic_intensity")}
        part["edgetpu_latency"][:100] = np.full(100, -1.0) if arrays else [-1] * 100
        part["config"] = [
            {"name": "infer.tiny", "C": 16, "N": 5, "arch_str": name, "num_classes": classes} for name in NAMES
        ]
        spaces["nasbench201"][dataset] = part
    operators = [f"Skip_H{h}_W{h}_Cin16_Cout16_stride1" for h in (4, 8, 16)]
    for name in metrics:
        if not name.startswith("edgetpu"):
            values = numbers(3)
            spaces["fbnet"][name] = dict(zip(operators, values, strict=True))  # numpy scalars in the array form
    return spaces


def pickled(folder: Path, content: Any, protocol: int = 4) -> Path:
    path = folder / "HW-NAS-Bench-v1_0.pickle"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


# --- finding a folder


def test_explicit_folder_before_environment_before_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("explicit", "environment", "own")]
    for folder in folders:
        folder.mkdir()
        put(folder, accuracies())
    monkeypatch.setattr("hwnas.tables.folder.default_folder", lambda: folders[2])
    monkeypatch.setenv("HWNAS_TABLES", str(folders[1]))
    assert find_folder(folders[0]) == folders[0]
    assert find_folder() == folders[1]
    monkeypatch.delenv("HWNAS_TABLES")
    assert find_folder() == folders[2]


def test_nobody_named_a_folder_and_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWNAS_TABLES", raising=False)
    monkeypatch.setattr("hwnas.tables.folder.default_folder", lambda: tmp_path / "none")
    assert find_folder() is None
    assert Tables.find() is None
    assert list_tables() == []


def test_a_named_folder_must_be_there_and_hold_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWNAS_TABLES", raising=False)
    there = rf"{re.escape(str(tmp_path))}/nowhere"
    fill = "'hwnas tables fetch hw-nas-bench{0}' or 'hwnas tables add PATH{0}' fill it"
    for ask in (find_folder, list_tables):
        with pytest.raises(
            TablesNotFound, match=r"nowhere' \(--tables\) does not exist. Name one that does"
        ) as refused:
            ask(tmp_path / "nowhere")
        assert re.search(fill.format(f" --tables {there}"), str(refused.value))
    nothing = r"holds none of nb201_accuracy.parquet, hwnasbench_nb201.parquet, nb201_robustness_c10.parquet; "
    with pytest.raises(TablesNotFound, match=nothing + fill.format(f" --tables {re.escape(str(tmp_path))}")):
        Tables.find(tmp_path)
    monkeypatch.setenv("HWNAS_TABLES", str(tmp_path / "gone"))
    for ask in (find_folder, list_tables):  # the commands fill the folder that the variable names
        with pytest.raises(TablesNotFound, match=r"gone' \(HWNAS_TABLES\) does not exist.*" + fill.format("")):
            ask()


def test_the_default_folder_belongs_to_the_user() -> None:
    assert default_folder().name == "tables"
    assert "hwnas" in default_folder().parts


# --- reading


def test_rows_are_found_by_official_string_in_any_order(tmp_path: Path) -> None:
    order = np.random.default_rng(5).permutation(ROWS)
    quality, latency = accuracies(), costs()
    tables = Tables(put(tmp_path, quality.take(order), latency.take(order[::-1])))
    asked = [3, 15_000, 77]
    names = [NAMES[i] for i in asked]
    assert tables.names == tuple(NAMES)
    np.testing.assert_array_equal(tables.lookup(ACCURACY, VAL, names), quality[VAL].to_numpy()[asked])
    np.testing.assert_array_equal(tables.lookup(HARDWARE, LATENCY, names), latency[LATENCY].to_numpy()[asked])
    np.testing.assert_array_equal(tables.column(HARDWARE, LATENCY), latency[LATENCY].to_numpy())


def test_a_whole_column_is_a_copy(tmp_path: Path) -> None:
    tables = Tables(put(tmp_path, accuracies()))
    tables.column(ACCURACY, VAL)[:] = 0
    assert tables.column(ACCURACY, VAL).min() > 0


def test_minus_one_and_null_are_not_measured(tmp_path: Path) -> None:
    values = [-1.0, None, float("nan"), *np.linspace(1, 2, ROWS - 3)]
    tables = Tables(put(tmp_path, accuracies(), costs(**{LATENCY: values})))
    got = tables.lookup(HARDWARE, LATENCY, NAMES[:4])
    assert np.isnan(got[:3]).all()
    assert got[3] == 1.0


def test_costs_alone_need_official_strings(tmp_path: Path) -> None:
    tables = Tables(put(tmp_path, costs()))
    with pytest.raises(InvalidTable, match="no table has the column 'arch'"):
        tables.lookup(HARDWARE, LATENCY, NAMES[:1])
    put(tmp_path, costs(arch=NAMES))
    assert len(Tables(tmp_path).lookup(HARDWARE, LATENCY, NAMES[:2])) == 2


def test_official_order_names_cells_where_no_table_does(tmp_path: Path) -> None:
    order = np.random.default_rng(5).permutation(ROWS)
    table = costs().take(order)
    tables = Tables(put(tmp_path, table, under_attack()), lambda: NAMES)
    asked = [3, 15_000, 77]
    names = [NAMES[i] for i in asked]
    np.testing.assert_array_equal(tables.lookup(HARDWARE, LATENCY, names), costs()[LATENCY].to_numpy()[asked])
    np.testing.assert_array_equal(tables.lookup(ROBUSTNESS, ROBUST, names), under_attack()[ROBUST].to_numpy()[asked])


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    damaged = costs(**{hardware_column("cifar100", "fpga", "energy_mj"): ["x"] * ROWS})
    tables = Tables(put(tmp_path, accuracies(), damaged))
    assert tables.lookup(HARDWARE, LATENCY, NAMES[:1]) > 0
    with pytest.raises(InvalidTable, match=r"hwnasbench_nb201.parquet.*'c100_fpga_energy_mJ' wants numbers"):
        tables.lookup(HARDWARE, "c100_fpga_energy_mJ", NAMES[:1])


def _truncate(folder: Path, kind: Kind) -> None:
    os.truncate(folder / kind.file, 100)


def _drop_column(folder: Path, kind: Kind) -> None:
    table = pq.read_table(folder / kind.file)
    pq.write_table(table.select(["index"]), folder / kind.file)


def _drop_row(folder: Path, kind: Kind) -> None:
    pq.write_table(pq.read_table(folder / kind.file).slice(1), folder / kind.file)


def _spoil_column(folder: Path, kind: Kind) -> None:
    table = pq.read_table(folder / kind.file)
    name = VAL if kind is ACCURACY else LATENCY
    pq.write_table(table.set_column(table.column_names.index(name), name, [["x"] * ROWS]), folder / kind.file)


def _repeat_cells(folder: Path, kind: Kind) -> None:
    table = pq.read_table(folder / kind.file)
    pq.write_table(table.take([0, *range(ROWS - 1)]), folder / kind.file)


@pytest.mark.parametrize("harm", [_truncate, _drop_column, _drop_row, _spoil_column, _repeat_cells])
@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (ACCURACY, "Replace it with 'hwnas tables add PATH --replace{0}'"),
        (
            HARDWARE,
            "Replace it with 'hwnas tables fetch hw-nas-bench --replace{0}' or 'hwnas tables add PATH --replace{0}'",
        ),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_damaged_table_says_how_it_is_replaced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path, Kind], None],
    kind: Kind,
    advice: str,
    named: bool,
) -> None:
    if named:
        monkeypatch.delenv("HWNAS_TABLES", raising=False)
    else:
        monkeypatch.setenv("HWNAS_TABLES", str(tmp_path))
    harm(put(tmp_path, accuracies(), costs()), kind)
    advice = advice.format(f" --tables {tmp_path}" if named else "")
    with pytest.raises(InvalidTable) as refused:
        Tables(tmp_path).lookup(kind, VAL if kind is ACCURACY else LATENCY, NAMES[:1])
    assert kind.file in str(refused.value)
    assert str(refused.value).endswith(f". {advice}")
    assert ".. Replace" not in str(refused.value)
    assert str(refused.value).count("Replace it") == 1
    row = next(row for row in listing.tables(tmp_path if named else None) if row["file"] == kind.file)
    assert (row["usable"], row["remedy"]) == (False, advice)
    told = {finding.name: finding.fix for finding in _data(tmp_path if named else None)}
    assert told[kind.file] == advice


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    path = put(tmp_path, accuracies()) / ACCURACY.file
    size = path.stat().st_size
    os.truncate(path, int(keep if keep > 1 else size * keep))
    with pytest.raises(InvalidTable, match=r"nb201_accuracy.parquet: truncated, or not a Parquet file"):
        Tables(tmp_path)
    assert "truncated" in list_tables(tmp_path)[0].problem


def test_damage_inside_a_column_is_found(tmp_path: Path) -> None:
    path = put(tmp_path, accuracies()) / ACCURACY.file
    place = pq.ParquetFile(path).metadata.row_group(0).column(2)
    content = bytearray(path.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    content[start : start + place.total_compressed_size] = b"\xff" * place.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(InvalidTable, match="damaged or truncated at column 'c10_val_200'"):
        Tables(tmp_path).column(ACCURACY, VAL)


def test_missing_column_is_named(tmp_path: Path) -> None:
    put(tmp_path, accuracies(), costs().drop_columns([hardware_column("cifar100", "raspi4", "latency_ms")]))
    put(tmp_path, accuracies())
    with pytest.raises(InvalidTable, match=r"hwnasbench_nb201.parquet: the column 'c100_raspi4_latency_ms' is missing"):
        Tables(tmp_path)


def test_a_table_of_accuracies_may_lack_columns_but_not_all(tmp_path: Path) -> None:
    put(tmp_path, accuracies().select(["arch", VAL]))
    assert Tables(tmp_path).column(ACCURACY, VAL).shape == (ROWS,)
    put(tmp_path, accuracies().select(["arch", "index"]))
    with pytest.raises(InvalidTable, match="no column of accuracies"):
        Tables(tmp_path)
    put(tmp_path, accuracies().select([VAL]))
    with pytest.raises(InvalidTable, match="neither a column 'arch'"):
        Tables(tmp_path)


def test_accuracies_under_attack_are_a_table_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    put(folder, accuracies())
    source = tmp_path / "mine.csv"
    pyarrow.csv.write_csv(under_attack().select(["index", ROBUST, "pgd_linf_1.0"]), source)
    (added,) = add(source, folder)
    assert (added.path.name, added.problem, added.columns) == (ROBUSTNESS.file, "", (ROBUST, "pgd_linf_1.0"))
    wanted = under_attack()[ROBUST].to_numpy()[[7, 70]]
    np.testing.assert_allclose(Tables(folder).lookup(ROBUSTNESS, ROBUST, [NAMES[7], NAMES[70]]), wanted, rtol=1e-12)
    with pytest.raises(UsageError, match=r"nb201_robustness_c10.parquet is already there"):
        add(source, folder)
    row = next(row for row in listing.tables(folder) if row["file"] == ROBUSTNESS.file)
    assert (row["usable"], row["title"]) == (True, "NAS-Bench-201 accuracies under attack, CIFAR-10")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({ROBUST: np.linspace(0.1, 0.9, ROWS)}, "'apgd-ce_linf_1.0' wants percent; its largest value is 0.9"),
        ({ROBUST: [101.0, *[50.0] * (ROWS - 1)]}, "'apgd-ce_linf_1.0' wants a percentage .* row 0 has 101"),
    ],
)
def test_accuracies_under_attack_that_cannot_be_true(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    table = under_attack().drop_columns([ROBUST]).append_column(ROBUST, pa.array(change[ROBUST]))
    path = tmp_path / "mine.parquet"
    pq.write_table(table, path)
    with pytest.raises(InvalidTable, match=message):
        add(path, tmp_path / "tables")
    assert not (tmp_path / "tables" / ROBUSTNESS.file).exists()


def test_wrong_row_count(tmp_path: Path) -> None:
    put(tmp_path, accuracies().slice(0, 15_000))
    with pytest.raises(InvalidTable, match="has 15,000 rows, wants the 15,625 cells"):
        Tables(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": [NAMES[1], *NAMES[1:]]}, "1 missing, e.g. .*1 more than once"),
        ({"arch": ["|conv~0|", *NAMES[1:]]}, r"1 are no official strings, e.g. '\|conv~0\|'"),
        ({"index": [1, *range(1, ROWS)]}, "1 indices missing, e.g. 0"),
        ({VAL: [101.0, *[50.0] * (ROWS - 1)]}, "'c10_val_200' wants a percentage .* row 0 has 101"),
        ({VAL: [-3.0, *[50.0] * (ROWS - 1)]}, "row 0 has -3"),
        ({VAL: [float("inf"), *[50.0] * (ROWS - 1)]}, "row 0 has inf"),
        ({VAL: np.linspace(0.1, 0.9, ROWS)}, "wants percent; its largest value is 0.9"),
    ],
)
def test_rows_and_numbers_that_cannot_be_true(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    table = accuracies()
    for name, values in change.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    put(tmp_path, table)
    with pytest.raises(InvalidTable, match=f"(?s)nb201_accuracy.parquet.*{message}"):
        Tables(tmp_path).column(ACCURACY, VAL)
    with pytest.raises(InvalidTable, match=f"(?s){message}"):
        add(tmp_path / ACCURACY.file, tmp_path / "other")
    assert not (tmp_path / "other" / ACCURACY.file).exists()


def test_two_tables_that_contradict_each_other(tmp_path: Path) -> None:
    put(tmp_path, accuracies(), costs(arch=NAMES[::-1]))
    with pytest.raises(InvalidTable, match=r"contradict those of nb201_accuracy.parquet"):
        Tables(tmp_path).lookup(HARDWARE, LATENCY, NAMES[:1])


# --- the official pickle


@pytest.mark.parametrize("arrays", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_official_pickle_becomes_the_tables(tmp_path: Path, arrays: bool, protocol: int) -> None:
    content = official(arrays)
    tables = hwnasbench.read(pickled(tmp_path, content, protocol))
    table = tables[HARDWARE]
    assert table.column("arch").to_pylist() == NAMES
    assert set(columns_of(HARDWARE)) <= set(table.column_names)
    for dataset, prefix in PREFIXES.items():
        part = content["nasbench201"][dataset]
        np.testing.assert_array_equal(table[f"{prefix}_eyeriss_energy_mJ"].to_numpy(), part["eyeriss_energy"])
        edgetpu = table[f"{prefix}_edgetpu_latency_ms"].to_numpy()
        assert np.isnan(edgetpu).sum() == 100
        np.testing.assert_array_equal(edgetpu[100:], part["edgetpu_latency"][100:])
    assert tables[FBNET].num_rows == 3
    assert tables[FBNET]["fpga_energy_mJ"].to_pylist() == list(content["fbnet"]["fpga_energy"].values())


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_homes_of_numpys_reconstruction(tmp_path: Path, protocol: int) -> None:
    new = pickle.dumps(official(True), protocol=protocol)
    assert b"numpy._core.multiarray" in new
    for content in (new, new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")):
        assert hwnasbench.read(pickled(tmp_path, content))[HARDWARE].num_rows == ROWS


def test_arrays_of_every_form_come_back_as_numpy_wrote_them(tmp_path: Path) -> None:
    arrays = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4, dtype=">i4"),
        np.array([True, False]),
        np.float32([1.5]),
        np.zeros((0, 3)),
    ]
    for protocol in range(2, 6):
        loaded = safe_pickle.load(pickled(tmp_path, arrays, protocol))
        for ours, theirs in zip(loaded, arrays, strict=True):
            np.testing.assert_array_equal(safe_pickle.array(ours, "here"), theirs)


def test_imported_pickle_serves_a_search_without_other_tables(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    added = add(pickled(tmp_path, official(True)), folder)
    assert [info.path.name for info in added] == [HARDWARE.file, FBNET.file]
    assert not any(info.problem for info in added)
    tables = Tables(folder)
    wanted = official(True)["nasbench201"]["cifar10"]["edgegpu_latency"][[5, 500]]
    np.testing.assert_array_equal(tables.lookup(HARDWARE, LATENCY, [NAMES[5], NAMES[500]]), wanted)


class _Run:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def _malicious(folder: Path) -> dict[str, tuple[bytes, str]]:
    trap = f"touch {folder / 'ran'}"
    python = f"open({str(folder / 'ran')!r}, 'w')"
    return {
        "os.system": (pickle.dumps(_Run(os.system, trap)), "(posix|nt).system"),
        "builtins.eval": (pickle.dumps(_Run(eval, python)), "builtins.eval"),
        "builtins.exec": (pickle.dumps(_Run(exec, python)), "builtins.exec"),
        "builtins.getattr": (pickle.dumps(_Run(getattr, "x", "upper")), "builtins.getattr"),
        "nested": (pickle.dumps({"nasbench201": {"cifar10": [1, {"x": _Run(_Run, eval, python)}]}}), "_Run"),
        "in an argument": (pickle.dumps({"a": _Run(complex, _Run(os.system, trap))}), "(posix|nt).system"),
        "protocol 0": (b"cos\nsystem\n(S'" + trap.encode() + b"'\ntR.", "os.system"),
        "INST": (b"(S'" + trap.encode() + b"'\nios\nsystem\n.", "os.system"),
        "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__call__\x93.", "numpy.dtype.__call__"),
        "extension code": (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        "persistent id": (b"Pos.system\n.", "persistent object"),
        "array of objects": (pickle.dumps(np.array([_Run(os.system, trap), None], dtype=object)), "refused"),
        "array of objects, plain": (pickle.dumps(np.array([{}, None], dtype=object)), "numpy dtype 'O8'"),
        "structured array": (pickle.dumps(np.zeros(2, dtype=[("a", "f8")])), "numpy dtype 'V8'"),
        "memory map": (pickle.dumps(_Run(np.memmap, str(folder / "ran"), "f8", "w+", 0, 1)), "numpy.*memmap"),
        "loads": (pickle.dumps(_Run(pickle.loads, b"N.")), "_pickle.loads"),
        "changing what is admitted": (
            b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",
            "changing an admitted name",
        ),
        "new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "the opcode NEWOBJ"),
        "calling ndarray": (b"\x80\x02cnumpy\nndarray\n)R.", "calling numpy.ndarray"),
        "codec": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "_codecs.encode"),
        # a key is hashed, and Python hashes tuples by recursion in C: without the check the process ends here
        "deep tuple": (b"\x80\x02)" + b"\x85" * 200_000 + b"q\x00}h\x00K\x01s.", "nested more than"),
        "deep tuple by memory": (
            b"\x80\x02)q\x00" + b"".join(b"h%c\x85q%c" % (i % 250, (i + 1) % 250) for i in range(100_000)) + b".",
            "nested more than",
        ),
        "size that is not there": (
            pickle.dumps(np.arange(3.0), protocol=2).replace(b"K\x03\x85", b"M\xff\xff\x85"),
            "numpy array of shape",
        ),
    }


@pytest.mark.parametrize("case", list(_malicious(Path("x"))))
def test_malicious_pickle_is_refused_by_name_and_not_run(tmp_path: Path, case: str) -> None:
    content, named = _malicious(tmp_path)[case]
    with pytest.raises(InvalidTable, match=named):
        hwnasbench.read(pickled(tmp_path, content))
    with pytest.raises(InvalidTable, match=named):
        add(tmp_path / "HW-NAS-Bench-v1_0.pickle", tmp_path / "tables")
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("tables/*"))


def _declaring_much() -> dict[str, bytes]:
    """Files of a few bytes that an unpickler would reserve gigabytes for, or copy the same bytes for without end."""
    much, text = (1 << 40).to_bytes(8, "little"), b"X\x00\x00\x10\x00" + b"a" * (1 << 20)
    twice = b"c_codecs\nencode\n(h\x01h\x00tR0"  # encode("aaa...", "latin1"), thrown away
    return {
        "bytes": b"\x80\x04\x8e" + much + b"abc.",
        "byte array": b"\x80\x05\x96" + much + b"abc.",
        "text": b"\x80\x04\x8d" + much + b"abc.",
        "short text": b"\x80\x04X\xff\xff\xff\x7fabc.",
        "frame": b"\x80\x04\x95" + much + b"N.",
        "place in the memory of objects": b"\x80\x02Nr\x00\x00\x00\x10.",
        "the same in digits": b"Np268435456\n.",
        "number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "same bytes many times": b"\x80\x02X\x06\x00\x00\x00latin1q\x000" + text + b"q\x010" + twice * 5000 + b"N.",
        "array without bytes": b"\x80\x03cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\n"
        b"X\x02\x00\x00\x00f8\x85R(K\x00\x8a\x07\x00\x00\x00\x00\x00\x00\x01ttR.",
    }


@pytest.mark.parametrize("case", list(_declaring_much()))
def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path, case: str) -> None:
    path = pickled(tmp_path, _declaring_much()[case])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidTable, match=r"HW-NAS-Bench-v1_0\.pickle: (truncated|refused|wants a dict)"):
        hwnasbench.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_what_is_refused_is_never_written_out(tmp_path: Path) -> None:
    nested: Any = ()
    for _ in range(60):  # as a text it would be 2^60 characters long
        nested = (nested, nested)
    for content in (_Run(np.dtype, nested), {"nasbench201": [nested]}):
        with pytest.raises(InvalidTable) as caught:
            hwnasbench.read(pickled(tmp_path, content))
        assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_the_trap_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(_malicious(tmp_path)["os.system"][0])
    assert (tmp_path / "ran").exists()


def test_truncated_pickle(tmp_path: Path) -> None:
    whole = pickle.dumps(official(True))
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(InvalidTable, match="truncated, or not a pickle"):
            hwnasbench.read(pickled(tmp_path, whole[:size]))
    with pytest.raises(InvalidTable, match="truncated, or not a pickle"):
        hwnasbench.read(pickled(tmp_path, b"<html>404: Not Found</html>"))


def _without(key: str, dataset: str | None = None) -> dict[str, Any]:
    spaces = {name: dict(part) for name, part in official(False).items()}
    if dataset is None:
        return {name: part for name, part in spaces.items() if name != key}
    spaces["nasbench201"][dataset] = {k: v for k, v in spaces["nasbench201"][dataset].items() if k != key}
    return spaces


def _with(key: str, value: Any, dataset: str = "cifar100") -> dict[str, Any]:
    spaces = _without(key, dataset)
    spaces["nasbench201"][dataset][key] = value
    return spaces


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 3], "wants a dict, got a list of int"),
        ({}, "has no 'nasbench201'; it has nothing"),
        (_without("nasbench201"), "has no 'nasbench201'; it has 'fbnet'"),
        (_without("raspi4_latency", "cifar100"), r"\['nasbench201'\]\['cifar100'\]: has no 'raspi4_latency'"),
        (_without("config", "cifar10"), "has no 'config'"),
        (_with("fpga_energy", [1.0, 2.0]), r"\['fpga_energy'\]: wants 15,625 numbers, has shape \(2,\)"),
        (_with("fpga_energy", np.ones((ROWS, 1))), r"has shape \(15625, 1\)"),
        (_with("fpga_energy", ["1"] * ROWS), "wants a list or array of numbers, got a list of str"),
        (_with("fpga_energy", {"a": 1}), "got dict"),
        (_with("fpga_energy", [-2.0] * ROWS), "row 0 has -2"),
        (_with("fpga_energy", np.full(ROWS, np.inf)), "row 0 has inf"),
        (_with("config", [1] * ROWS), "wants a list of dicts"),
        (_with("config", [{"arch_str": "x"}] * ROWS), "are no official strings"),
        (_with("config", [{"arch_str": name} for name in reversed(NAMES)]), "another order than those of cifar10"),
        ({**_without("fbnet"), "fbnet": {"edgegpu_latency": {"op": 1.0}}}, r"\['fbnet'\]: has no 'edgegpu_energy'"),
    ],
)
def test_pickle_of_another_form_says_where(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InvalidTable, match=message):
        hwnasbench.read(pickled(tmp_path, content))


def test_pickle_without_the_fbnet_part(tmp_path: Path) -> None:
    assert set(hwnasbench.read(pickled(tmp_path, _without("fbnet")))) == {HARDWARE}


# --- accuracies


def test_accuracies_from_csv_with_other_column_names(tmp_path: Path) -> None:
    order = np.random.default_rng(4).permutation(ROWS)
    table = accuracies().select(["arch", VAL, "c10_test_200"]).take(order)
    source = tmp_path / "mine.csv"
    pyarrow.csv.write_csv(table.rename_columns(["cell", "valid", "c10_test_200"]), source)
    with pytest.raises(InvalidTable, match=r"no table that hwnas knows.*it has cell, valid"):
        add(source, tmp_path / "tables")
    (info,) = add(source, tmp_path / "tables", columns={"arch": "cell", VAL: "valid"})
    assert info.columns == (VAL, "c10_test_200")
    assert info.source is not None
    assert info.source.startswith("mine.csv, imported ")
    tables = Tables(tmp_path / "tables")
    np.testing.assert_allclose(tables.lookup(ACCURACY, VAL, NAMES[:9]), accuracies()[VAL].to_numpy()[:9])


def test_column_mapping_is_checked(tmp_path: Path) -> None:
    source = tmp_path / "mine.csv"
    pyarrow.csv.write_csv(accuracies(), source)
    with pytest.raises(UsageError, match=r"no column 'c10_valid'.*Known: arch, index, c10_val_200"):
        add(source, tmp_path, columns={"c10_valid": VAL})
    with pytest.raises(InvalidTable, match="the column 'nothing' is missing; it has index, arch"):
        add(source, tmp_path, columns={VAL: "nothing"})


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"a,b\n1\n"])
def test_csv_that_is_none(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "mine.csv"
    source.write_bytes(content)
    with pytest.raises(InvalidTable, match=r"mine\.csv"):
        add(source, tmp_path / "tables")


class FakeNats:
    """Answers like nats-bench's API object: written by hand in its form, with the figures of cell 0."""

    def __len__(self) -> int:
        return ROWS

    def arch(self, index: int) -> str:
        return NAMES[index]

    def get_more_info(self, index: int, dataset: str, *, hp: str, is_random: bool) -> dict[str, float]:
        assert (hp, is_random) == ("200", False)
        base = {"train-loss": 0.4, "train-accuracy": 99.0, "train-per-time": 1.0, "train-all-time": 200.0}
        if dataset == "cifar10":  # trained on all of the training set: there is no validation split left
            return {**base, "test-accuracy": 90.0 + index / ROWS}
        return {**base, "valid-accuracy": 50.0 + index / ROWS, "test-accuracy": 40.0 + index / ROWS}


def test_accuracies_from_nats_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    class Package:
        @staticmethod
        def create(path: str, space: str, *, fast_mode: bool, verbose: bool) -> FakeNats:
            asked.append((path, space, fast_mode, verbose))
            return FakeNats()

    monkeypatch.setattr(accuracy.optional, "load", lambda module, extra, purpose: Package)
    source = tmp_path / "NATS-tss-v1_0-3ffb9-simple"
    source.mkdir()
    (info,) = add(source, tmp_path / "tables")
    assert asked == [(str(source), "tss", True, False)]
    assert info.columns == tuple(accuracy_column(d, m) for d in PREFIXES for m in ("val_error_pct", "test_error_pct"))
    tables = Tables(tmp_path / "tables")
    assert tables.lookup(ACCURACY, "c10_test_200", NAMES[:1]) == 90.0
    assert tables.lookup(ACCURACY, VAL, NAMES[:1]) == 50.0
    assert tables.lookup(ACCURACY, "in16_test_200", [NAMES[-1]]) == pytest.approx(40.0 + (ROWS - 1) / ROWS)


def test_nats_bench_files_that_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(FakeNats):
        def __len__(self) -> int:
            return 32_768  # the size search space

    class NoAccuracies(FakeNats):
        def get_more_info(self, index: int, dataset: str, *, hp: str, is_random: bool) -> dict[str, float]:
            return {}

    with pytest.raises(InvalidTable, match="knows 32,768 architectures"):
        accuracy.nats_table(Short(), "here")
    with pytest.raises(InvalidTable, match="no column of accuracies"):
        accuracy.nats_table(NoAccuracies(), "here")


def test_nats_bench_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nats_bench", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hwnas\[nats-bench\]'"):
        add(tmp_path, tmp_path / "tables")


# --- the catalogue


def test_listing_names_what_is_there_and_what_is_wrong(tmp_path: Path) -> None:
    put(tmp_path, accuracies())
    pq.write_table(costs().drop_columns([LATENCY]), tmp_path / HARDWARE.file)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "something.parquet")
    first, second, third = list_tables(tmp_path)
    assert (first.kind, first.rows, first.problem, first.source) == (ACCURACY, ROWS, "", None)
    assert VAL in first.columns
    assert "'c10_edgegpu_latency_ms' is missing" in second.problem
    assert (third.kind, third.title) == (None, "not read by hwnas")
    columns = listing.tables_table(listing.tables(tmp_path)).columns
    shown = [[str(cell) for cell in row] for row in zip(*(column.cells for column in columns), strict=True)]
    assert shown[0] == [ACCURACY.file, ACCURACY.title, "15625", str(len(first.columns)), "yes"]
    assert "is missing. Replace it with 'hwnas tables fetch" in shown[1][-1]
    assert shown[2] == ["something.parquet", "not read by hwnas", "-", "-", "-"]


def test_adding_never_replaces_unless_told(tmp_path: Path) -> None:
    source = tmp_path / "new.parquet"
    pq.write_table(accuracies(**{VAL: np.full(ROWS, 60.0)}), source)
    folder = tmp_path / "tables"
    folder.mkdir()
    before = (put(folder, accuracies()) / ACCURACY.file).read_bytes()
    with pytest.raises(UsageError, match=r"nb201_accuracy.parquet is already there; say --replace"):
        add(source, folder)
    assert (folder / ACCURACY.file).read_bytes() == before
    add(source, folder, replace=True)
    assert Tables(folder).column(ACCURACY, VAL).max() == 60.0


def test_a_bad_table_does_not_replace_a_good_one(tmp_path: Path) -> None:
    source = tmp_path / "bad.csv"
    pyarrow.csv.write_csv(accuracies().slice(1), source)
    folder = tmp_path / "tables"
    folder.mkdir()
    put(folder, accuracies())
    with pytest.raises(InvalidTable, match=r"has 15,624 rows.* It was not imported; correct the file or get it again"):
        add(source, folder, replace=True)
    assert Tables(folder).column(ACCURACY, VAL).shape == (ROWS,)
    assert [path.name for path in folder.iterdir()] == [ACCURACY.file]


def test_full_disk_leaves_the_old_table(tmp_path: Path) -> None:
    put(tmp_path, accuracies())
    before = (tmp_path / ACCURACY.file).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a write beyond that fails, as on a full disk
    try:
        with pytest.raises(DataError, match=r"nb201_accuracy.parquet could not be written .*unchanged"):
            write(accuracies(), ACCURACY, tmp_path, source="test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / ACCURACY.file).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [ACCURACY.file]


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    source = tmp_path / "new.parquet"
    pq.write_table(accuracies(), source)
    with pytest.raises(DataError, match=r"source/new' could not be made .*nothing was stored.*--tables") as refused:
        add(source, tmp_path / "new.parquet" / "source" / "new")
    assert "unchanged" not in str(refused.value)


def test_full_disk_without_an_old_table_does_not_speak_of_one(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError, match=r"could not be written .*; nothing was stored\. .*--tables"):
            write(accuracies(), ACCURACY, tmp_path, source="test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_adding_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*nothing.csv"):
        add(tmp_path / "nothing.csv", tmp_path)
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"wants a file ending in .pickle, .pkl, .csv, .parquet"):
        add(tmp_path / "model.pth", tmp_path)


def test_the_fbnet_table_is_checked(tmp_path: Path) -> None:
    table = hwnasbench.read(pickled(tmp_path, official(True)))[FBNET]
    with pytest.raises(InvalidTable, match="wants each operator once"):
        write(table.take([0, 0]), FBNET, tmp_path, source="test")


# --- fetching


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a local server of the folder `served`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/HW-NAS-Bench-v1_0.pickle"
        running.shutdown()
        thread.join()


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_git_blob_hash_is_gits(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"what is up, doc?")  # the example of the book Pro Git, chapter 10.2
    assert fetch.git_blob_hash(tmp_path / "a") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    (tmp_path / "b").write_bytes(b"")
    assert fetch.git_blob_hash(tmp_path / "b") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_fetched_file_is_verified_and_imported(tmp_path: Path, server: str) -> None:
    content = pickled(tmp_path / "served", official(True)).read_bytes()
    folder = tmp_path / "tables"
    infos = fetch.fetch("hw-nas-bench", folder, url=server, blob=blob(content))
    assert {info.path.name for info in infos} == {HARDWARE.file, FBNET.file} == {p.name for p in folder.iterdir()}
    assert infos[0].source is not None
    assert blob(content) in infos[0].source
    with pytest.raises(UsageError, match="already there"):
        fetch.fetch("hw-nas-bench", folder, url=server, blob=blob(content))
    fetch.fetch("hw-nas-bench", folder, url=server, blob=blob(content), replace=True)


def test_wrong_hash_is_refused_and_deleted(tmp_path: Path, server: str) -> None:
    content = pickled(tmp_path / "served", official(True)).read_bytes()
    folder = tmp_path / "tables"
    with pytest.raises(FetchFailed, match=f"wants the file with git blob hash {fetch.BLOB}, got .* {blob(content)}"):
        fetch.fetch("hw-nas-bench", folder, url=server)
    assert list(folder.iterdir()) == []


def test_verified_but_unsafe_content_is_refused_all_the_same(tmp_path: Path, server: str) -> None:
    content = pickled(tmp_path / "served", _malicious(tmp_path)["os.system"][0]).read_bytes()
    with pytest.raises(InvalidTable, match="refused"):
        fetch.fetch("hw-nas-bench", tmp_path / "tables", url=server, blob=blob(content))
    assert not (tmp_path / "ran").exists()


def test_no_network(tmp_path: Path, server: str) -> None:
    with pytest.raises(FetchFailed, match="404"):
        fetch.fetch("hw-nas-bench", tmp_path / "tables", url=server)
    with pytest.raises(FetchFailed, match=r"no answer from 127\.0\.0\.1: is there a network.*'hwnas tables add FILE'"):
        fetch.fetch("hw-nas-bench", tmp_path / "tables", url="http://127.0.0.1:1/x.pickle")
    assert list((tmp_path / "tables").iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path: Path, server: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"could not be made .*nothing was stored.*--tables"):
        fetch.fetch("hw-nas-bench", tmp_path / "file" / "tables", url=server)


def test_a_disk_too_full_for_the_download(tmp_path: Path, server: str) -> None:
    content = pickled(tmp_path / "served", official(True)).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError, match=r"download could not be written .*Make room.*--tables"):
            fetch.fetch("hw-nas-bench", tmp_path / "tables", url=server, blob=blob(content))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "tables").iterdir()) == []


def test_only_known_tables_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no published table 'hwnasbench'.*Did you mean 'hw-nas-bench'"):
        fetch.fetch("hwnasbench", tmp_path)


def test_the_address_names_commit_and_file() -> None:
    assert fetch.URL.startswith("https://raw.githubusercontent.com/GATECH-EIC/HW-NAS-Bench/")
    assert fetch.URL.endswith(f"{fetch.COMMIT}/HW-NAS-Bench-v1_0.pickle")
    assert len(fetch.BLOB) == len(fetch.COMMIT) == 40


# --- the real tables


def test_the_published_tables_are_valid(tables_dir: Path) -> None:
    listed = {info.kind: info for info in list_tables(tables_dir) if info.kind}
    assert [info.problem for info in listed.values()] == [""] * len(listed)
    assert set(listed) >= {ACCURACY, HARDWARE}
