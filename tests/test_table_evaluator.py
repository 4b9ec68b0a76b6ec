"""Measurements from tables and counts: the suite, published numbers, and what is not there."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hwnas
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Measurement, Source, Status
from hwnas.core.protocols import Evaluator, SearchSpace
from hwnas.core.wording import provenance
from hwnas.errors import InvalidArchitecture, InvalidSetting, UnknownName
from hwnas.evaluators.counting import CountingEvaluator
from hwnas.evaluators.table import TableEvaluator
from hwnas.measure import Wanted
from hwnas.spaces.codes import sample
from hwnas.spaces.nb201 import NasBench201
from hwnas.tables.folder import Tables
from hwnas.tables.schema import ACCURACY, ATTACKED, DEVICES, HARDWARE, ROBUSTNESS, ROWS, cells, columns_of
from hwnas.testing.evaluators import EvaluatorSuite
from hwnas.testing.toy import DATASET, ToyEvaluator, ToySpace

SPACE = NasBench201()
NAMES = sorted(cells())
COSTS: tuple[Wanted, ...] = tuple((metric, device) for device, names in DEVICES.items() for metric in names)

ROBUST: tuple[Wanted, ...] = tuple((metric, None) for metric in ATTACKED)

# HW-NAS-Bench's README (GATECH-EIC/HW-NAS-Bench, commit 393bb8a), architecture 0 on cifar10
CELL_0 = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
CELL_0_COSTS = {
    ("latency_ms", "edgegpu"): 5.807418537139893,
    ("energy_mj", "edgegpu"): 24.226614330768584,
    ("latency_ms", "raspi4"): 10.481976820010459,
    ("latency_ms", "edgetpu"): 0.9571811309997429,
    ("latency_ms", "pixel3"): 3.6058499999999998,
    ("latency_ms", "eyeriss"): 3.645620000000001,
    ("energy_mj", "eyeriss"): 0.6872827644999999,
    ("latency_ms", "fpga"): 2.57296,
    ("energy_mj", "fpga"): 18.01072,
}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tables with made-up numbers; a third of the Edge TPU's are not there."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    names = ("c10_val_200", "c10_test_200", "c100_test_200", "in16_test_200")
    quality = {name: rng.uniform(5, 95, ROWS) for name in names}
    numbers = {name: rng.uniform(0.1, 30, ROWS) for name in columns_of(HARDWARE)}
    attacked = {name: rng.uniform(3, 70, ROWS) for name in columns_of(ROBUSTNESS)}
    for name in numbers:
        if "edgetpu" in name:
            numbers[name][::3] = -1.0
    pq.write_table(pa.table({"index": range(ROWS), "arch": NAMES, **quality}), folder / ACCURACY.file)
    pq.write_table(pa.table({"index": range(ROWS), **numbers}), folder / HARDWARE.file)
    pq.write_table(pa.table({"index": range(ROWS), **attacked}), folder / ROBUSTNESS.file)
    return folder


def ask(evaluator: Evaluator, architecture: Architecture, *wanted: Wanted) -> list[Measurement]:
    return list(evaluator.evaluate([architecture], wanted))


class _Table(EvaluatorSuite):
    dataset = ""

    @pytest.fixture(autouse=True)
    def _tables(self, made_up: Path) -> None:
        self.tables = Tables(made_up)

    def space(self) -> SearchSpace:
        return SPACE

    def evaluator(self) -> Evaluator:
        return TableEvaluator(self.tables, SPACE, self.dataset)


class TestTableCifar10(_Table):
    dataset = "cifar10"
    wanted = (("val_error_pct", None), ("test_error_pct", None), *ROBUST, *COSTS)


class TestTableCifar100(_Table):
    dataset = "cifar100"
    wanted = (("test_error_pct", None), *COSTS)


class TestTableImageNet(_Table):
    dataset = "ImageNet16-120"
    wanted = (("test_error_pct", None), *COSTS)


class TestCounting(EvaluatorSuite):
    wanted = (("params_m", None), ("macs_m", None))

    def space(self) -> SearchSpace:
        return SPACE

    def evaluator(self) -> Evaluator:
        return CountingEvaluator(SPACE, "cifar100")


class TestCountingAnotherSpace(EvaluatorSuite):
    wanted = (("params_m", None), ("macs_m", None))

    def space(self) -> SearchSpace:
        return ToySpace()

    def evaluator(self) -> Evaluator:
        return CountingEvaluator(ToySpace(), DATASET)


class TestToyEvaluator(EvaluatorSuite):
    wanted = (
        ("val_error_pct", None),
        ("params_m", None),
        ("macs_m", None),
        ("latency_ms", "toybox"),
        ("energy_mj", "toybox"),
    )

    def space(self) -> SearchSpace:
        return ToySpace()

    def evaluator(self) -> Evaluator:
        return ToyEvaluator()


# --- made-up tables


def test_error_is_what_is_left_of_the_accuracy(made_up: Path) -> None:
    accuracy = pq.read_table(made_up / ACCURACY.file)["c10_val_200"].to_pylist()
    architecture = SPACE.parse(NAMES[4321])
    (row,) = ask(TableEvaluator(Tables(made_up), SPACE, "cifar10"), architecture, ("val_error_pct", None))
    assert row.value == 100.0 - accuracy[4321]


def test_context_says_all_that_makes_the_number_comparable(made_up: Path) -> None:
    evaluator = TableEvaluator(Tables(made_up), SPACE, "cifar10")
    error, latency = evaluator.context("val_error_pct", None), evaluator.context("latency_ms", "edgegpu")
    assert error is not None
    assert latency is not None
    assert (error.source, error.split, error.fidelity, error.seed) == (Source.TABLE, "val", "200 epochs", "mean")
    assert (latency.source, latency.runtime, latency.precision, latency.batch) == (Source.TABLE, "tensorrt", "fp32", 1)
    assert (latency.split, latency.fidelity) == (None, None)
    assert str(latency.origin).startswith("hwnasbench_nb201.parquet sha256:")
    raspi4 = evaluator.context("latency_ms", "raspi4")
    assert raspi4 is not None
    assert raspi4.precision is None  # not stated with the data, so not claimed


def test_robust_error_is_of_one_attack_which_its_context_names(made_up: Path) -> None:
    table = pq.read_table(made_up / ROBUSTNESS.file)
    evaluator = TableEvaluator(Tables(made_up), SPACE, "cifar10")
    rows = ask(evaluator, SPACE.parse(NAMES[4321]), *ROBUST)
    assert [row.value for row in rows] == [100.0 - table[column][4321].as_py() for column, _ in ATTACKED.values()]
    assert len({row.value for row in rows}) == len(rows)
    attacks = [str(row.context.attack).partition(",")[0] for row in rows]
    assert attacks == ["APGD-CE", "PGD", "FGSM", "Square"]
    assert {(row.context.split, row.context.fidelity) for row in rows} == {("test", "200 epochs")}
    told = provenance(rows[0].context)
    assert told.startswith("table: cifar10, test split, under APGD-CE, L-inf, eps 1/255, 200 epochs, nb201_robustness")


def test_robust_error_is_searched_within_a_budget_on_it(made_up: Path) -> None:
    result = hwnas.search(
        device="edgegpu", objectives=["error", "robust_error", "latency"], budgets={"robust_error": "60%"},
        queries=40, generator="random", tables=made_up,
    )  # fmt: skip
    assert [o.name for o in result.state.objectives] == ["val_error_pct", "robust_error_pct", "latency_ms@edgegpu"]
    assert result.state.front().losses[:, 1].max() <= 60.0 < result.state.losses[:, 1].max()
    assert str(result.state.constraints[0]) == "robust error (APGD-CE) <= 60.00 %"
    assert result.best is not None
    assert result.best["robust_error_pct"] <= 60.0


def test_robust_error_where_nobody_knows_it_is_refused(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HWNAS_TABLES", raising=False)
    (tmp_path / ACCURACY.file).write_bytes((made_up / ACCURACY.file).read_bytes())

    def search(**more: Any) -> None:
        hwnas.search(device="edgegpu", queries=5, **more)

    for words in ({"objectives": ["error", "robust_error"]}, {"budgets": {"robust_error": 60}}):
        with pytest.raises(InvalidSetting, match=r"'robust_error' is known on cifar10 only; .* is cifar100"):
            search(dataset="cifar100", tables=made_up, **words)
        with pytest.raises(
            InvalidSetting, match=r"and .* has no nb201_robustness_c10.parquet. Add it with 'hwnas tabl"
        ):
            search(tables=tmp_path, **words)
        with pytest.raises(InvalidSetting, match=r"reads no tables.*leave out --source surrogate"):
            search(source="surrogate", **words)
    with pytest.raises(InvalidSetting, match="the same on every device"):
        search(tables=made_up, objectives=["error", "robust_error@edgegpu"])
    assert "on cifar10 only" in TableEvaluator(Tables(made_up), SPACE, "cifar100").why_not("robust_error_pct", None)


def test_not_measured_is_a_row_without_a_number(made_up: Path) -> None:
    evaluator = TableEvaluator(Tables(made_up), SPACE, "cifar10")
    (row,) = ask(evaluator, SPACE.parse(NAMES[3]), ("latency_ms", "edgetpu"))
    assert row.status is Status.NOT_MEASURED
    assert math.isnan(row.value)
    assert NAMES[3] in row.message
    assert "on edgetpu" in row.message


def test_isomorphic_cells_stay_different_rows(made_up: Path) -> None:
    # nothing reaches the output of either: the same function, two rows with two measured latencies
    twins = [Architecture("nb201", code) for code in ((0, 0, 0, 0, 0, 0), (3, 0, 0, 0, 0, 0))]
    assert SPACE.canonical(twins[0]) == SPACE.canonical(twins[1])
    evaluator = TableEvaluator(Tables(made_up), SPACE, "cifar10")
    rows = list(evaluator.evaluate(twins, [("latency_ms", "raspi4")]))
    assert rows[0].value != rows[1].value


def test_why_a_metric_is_not_answered(made_up: Path, tmp_path: Path) -> None:
    whole = TableEvaluator(Tables(made_up), SPACE, "cifar100")
    assert whole.why_not("latency_ms", "fpga") == ""
    assert "has no column 'c100_val_200'" in whole.why_not("val_error_pct", None)
    assert "no table has latency_ms of device cpu" in whole.why_not("latency_ms", "cpu")
    assert "no table has energy_mj of device raspi4" in whole.why_not("energy_mj", "raspi4")
    with pytest.raises(ValueError, match=r"cannot answer val_error_pct on device None: .*c100_val_200"):
        ask(whole, SPACE.parse(NAMES[0]), ("val_error_pct", None))
    (tmp_path / ACCURACY.file).write_bytes((made_up / ACCURACY.file).read_bytes())
    part = TableEvaluator(Tables(tmp_path), SPACE, "cifar100")
    assert part.context("latency_ms", "fpga") is None
    assert "has no hwnasbench_nb201.parquet" in part.why_not("latency_ms", "fpga")


def test_what_has_no_tables_is_refused(made_up: Path) -> None:
    with pytest.raises(UnknownName, match="no search space with tables 'toy'"):
        TableEvaluator(Tables(made_up), ToySpace(), "cifar10")
    with pytest.raises(UnknownName, match=r"no data set 'cifar-10'.*Did you mean 'cifar10'"):
        TableEvaluator(Tables(made_up), SPACE, "cifar-10")
    with pytest.raises(UnknownName, match="no data set 'mnist'"):
        CountingEvaluator(SPACE, "mnist")


def test_architectures_of_another_space_are_refused(made_up: Path) -> None:
    for evaluator, wanted in (
        (TableEvaluator(Tables(made_up), SPACE, "cifar10"), ("val_error_pct", None)),
        (CountingEvaluator(SPACE, "cifar10"), ("params_m", None)),
    ):
        with pytest.raises(InvalidArchitecture, match="of another space"):
            list(evaluator.evaluate([Architecture("toy", (0, 0, 0, 0))], [wanted]))


def test_what_is_not_answered_is_said_before_any_row(made_up: Path) -> None:
    evaluator = TableEvaluator(Tables(made_up), SPACE, "cifar10")
    asked = iter(evaluator.evaluate([SPACE.parse(NAMES[0])], [("val_error_pct", None), ("no_such_metric", None)]))
    with pytest.raises(ValueError, match="no_such_metric"):
        next(asked)


def test_counts_follow_the_official_rule() -> None:
    # NAS-Bench-201's own figures for CIFAR-10: 0.073306 + 0.028 n1 + 0.24304 n3 M parameters
    cell = SPACE.parse("|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|nor_conv_1x1~0|skip_connect~1|nor_conv_1x1~2|")
    params, macs = ask(CountingEvaluator(SPACE, "cifar10"), cell, ("params_m", None), ("macs_m", None))
    assert params.value == pytest.approx(0.073306 + 2 * 0.028 + 2 * 0.24304, abs=1e-12)
    assert macs.value == pytest.approx(7.78305 + 2 * 3.93216 + 2 * 35.38944, abs=1e-9)
    assert (params.context.source, params.context.runtime) == (Source.MEASURED, "count")


def test_a_search_waits_for_no_table(made_up: Path) -> None:
    architectures = sample(SPACE, 200, rng=np.random.default_rng(0))
    began = time.process_time()
    evaluator = TableEvaluator(Tables(made_up), SPACE, "cifar10")
    rows = list(evaluator.evaluate(architectures, [("val_error_pct", None), ("latency_ms", "edgegpu")]))
    assert len(rows) == 400
    assert time.process_time() - began < 1.0  # 0.1 to 0.2 s on a slow core


# --- published numbers


def test_cell_0_as_hw_nas_bench_prints_it(tables_dir: Path) -> None:
    tables = Tables(tables_dir)
    assert tables.names[0] == CELL_0
    evaluator = TableEvaluator(tables, SPACE, "cifar10")
    rows = ask(evaluator, SPACE.parse(CELL_0), *CELL_0_COSTS)
    assert {(row.metric, row.context.device): row.value for row in rows} == pytest.approx(CELL_0_COSTS, rel=1e-12)


@pytest.mark.parametrize(
    ("column", "best"),
    # Dong and Yang, ICLR 2020 (arXiv 2001.00326), table of the optimal architectures
    [("c10_val_200", 91.61), ("c10_test_200", 94.37), ("c100_test_200", 73.51), ("in16_test_200", 47.31)],
)
def test_published_optima(tables_dir: Path, column: str, best: float) -> None:
    assert round(float(np.nanmax(Tables(tables_dir).column(ACCURACY, column))), 2) == best


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "ImageNet16-120"])
def test_edge_tpu_lacks_4699_cells(tables_dir: Path, dataset: str) -> None:
    evaluator = TableEvaluator(Tables(tables_dir), SPACE, dataset)
    rows = evaluator.evaluate([SPACE.parse(name) for name in NAMES], [("latency_ms", "edgetpu")])
    assert sum(row.status is Status.NOT_MEASURED for row in rows) == 4_699


def test_the_published_tables_cover_every_device(tables_dir: Path) -> None:
    for dataset in SPACE.datasets:
        evaluator = TableEvaluator(Tables(tables_dir), SPACE, dataset)
        for wanted in COSTS:
            assert evaluator.context(*wanted) is not None
            if wanted[1] != "edgetpu":
                rows = list(evaluator.evaluate([SPACE.parse(name) for name in NAMES[::400]], [wanted]))
                assert all(row.status is Status.OK for row in rows)
