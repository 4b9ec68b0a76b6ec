"""Configurations: every field is checked, words become metrics, TOML and back."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.config import SearchConfig, weigh
from hwnas.core.objective import Constraint, Objective
from hwnas.errors import InvalidBudget, InvalidSetting, UnknownName, UsageError


def everything(metric: str, device: str | None) -> bool:
    """A source that knows every metric."""
    del metric, device
    return True


def test_words_become_metrics_of_each_device() -> None:
    config = SearchConfig(devices=("edgegpu", "fpga"), objectives=("error", "latency", "params"))
    assert config.resolve_objectives(everything) == (
        Objective("val_error_pct"),
        Objective("latency_ms", "edgegpu"),
        Objective("latency_ms", "fpga"),
        Objective("params_m"),
    )


@pytest.mark.parametrize(
    ("settings", "fronts"),
    [
        ({}, ("edgegpu", "fpga")),
        ({"fronts": "joint"}, ()),
        ({"devices": "edgegpu"}, ()),
        ({"objectives": "error,latency@edgegpu,latency@fpga"}, ()),  # one set of objectives, put together by hand
        ({"objectives": "error,latency@edgegpu,energy"}, ("edgegpu", "fpga")),
        ({"objectives": "error,params"}, ()),
        ({"objectives": "error", "budgets": {"latency": "5ms"}}, ("edgegpu", "fpga")),
        ({"objectives": "latency@edgegpu", "budgets": {"latency": "5ms"}}, ()),  # fpga has nothing to optimise
        ({"objectives": "latency@raspi4", "budgets": {"latency": "5ms"}}, ("edgegpu", "fpga")),
        ({"objectives": "error", "budgets": {"latency@fpga": "5ms"}}, ()),
    ],
)
def test_several_devices_have_a_front_each_where_a_word_is_meant_for_all(
    settings: dict[str, Any], fronts: tuple[str, ...]
) -> None:
    assert SearchConfig.from_toml({"devices": "edgegpu,fpga", **settings}).front_devices == fronts


def test_error_is_validation_where_there_is_one_else_test() -> None:
    config = SearchConfig(objectives=("error",))
    assert config.resolve_objectives(lambda metric, device: metric == "test_error_pct") == (
        Objective("test_error_pct"),
    )


def test_a_word_may_name_its_own_device() -> None:
    config = SearchConfig(
        devices=("edgegpu",), objectives=("error", "latency", "energy_mj@fpga"), budgets={"latency@raspi4": "3ms"}
    )
    assert [o.name for o in config.resolve_objectives(everything)] == [
        "val_error_pct",
        "latency_ms@edgegpu",
        "energy_mj@fpga",
    ]
    assert config.resolve_budgets(everything) == (Constraint("latency_ms", 3.0, "raspi4"),)
    assert config.targets == ("edgegpu", "fpga", "raspi4")


@pytest.mark.parametrize(
    ("word", "value", "metric", "bound"),
    [
        ("latency", "5", "latency_ms", 5.0),
        ("latency", "5ms", "latency_ms", 5.0),
        ("latency", 5, "latency_ms", 5.0),
        ("latency", np.float64(5e-7), "latency_ms", 5e-7),
        ("latency_ms", "0.005 s", "latency_ms", 5.0),
        ("energy", "20mJ", "energy_mj", 20.0),
        ("params", "1M", "params_m", 1.0),
        ("params_m", 1.5, "params_m", 1.5),
        ("memory", "2GiB", "peak_memory_mib", 2048.0),
        ("error", "30%", "val_error_pct", 30.0),
    ],
)
def test_budgets_are_read_in_the_metrics_unit(word: str, value: Any, metric: str, bound: float) -> None:
    (constraint,) = SearchConfig(devices=("edgegpu",), budgets={word: value}).resolve_budgets(everything)
    assert constraint.metric == metric
    assert constraint.bound == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize(
    ("word", "value", "said"),
    [
        ("latency", "-5", "above 0"),
        ("latency", "0ms", "above 0"),
        ("latency", -5, "above 0"),
        ("latency", float("nan"), "nan"),
        ("latency", float("inf"), "inf"),
        ("latency", "5mJ", "unit 'mJ'"),
        ("latency", "fast", "'fast'"),
        ("params", "1", "has none"),
        ("params", 1, "has none. Write 1M, 1k, ..."),
        ("params", "-1", "above 0"),
        ("params", 1e6, "has none. Write 1M"),
        ("params", "1500000", "has none. Write 1.5M"),
        ("macs", 20_000, "has none. Write 20k"),
        ("memory", 64, "has none. Write 64MiB"),
        ("memory", 2**26, "has none. Write 64MiB"),
        ("latency", True, "quantity"),
        ("latency", None, "quantity"),
        ("latency", [5], "quantity"),
    ],
)
def test_a_budget_that_is_no_quantity_is_refused_at_once(word: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidBudget) as caught:
        SearchConfig(devices=("edgegpu",), budgets={word: value})
    assert said in str(caught.value)
    suggested = re.search(r"Write ([^,]+)", str(caught.value))
    if suggested:  # what is proposed is admitted
        SearchConfig(devices=("edgegpu",), budgets={word: suggested.group(1)})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objectives": ("latecy",)}, "no objective 'latecy'. Known: .*Did you mean 'latency'"),
        ({"objectives": "error,acuracy"}, "no objective 'acuracy'"),
        ({"budgets": {"enrgy": 1}}, "no budget 'enrgy'. Known: .*Did you mean 'energy'"),
        ({"source": "tabel"}, "no source 'tabel'. .*Did you mean 'table'"),
        ({"source": 3}, "no source '3'"),
        ({"objectives": ()}, "at least one objective"),
        ({"objectives": 7}, "objectives wants a list of names; got 7"),
        ({"objectives": ("error", "error")}, "names 'error' twice"),
        ({"objectives": ("error@edgegpu",)}, "error is the same on every device"),
        ({"objectives": ("latency@",)}, "no device behind"),
        ({"devices": ("a", 3)}, "devices wants a name; got 3"),
        ({"devices": "edgegpu,"}, "devices wants a name; got ''"),
        ({"queries": 0}, "queries wants a whole number of at least 1 .*got 0"),
        ({"queries": 2.5}, "queries wants a whole number .*got 2.5"),
        ({"queries": "200"}, "queries wants a whole number .*got '200'"),
        ({"queries": True}, "queries wants a whole number .*got True"),
        ({"seed": -1}, "seed wants a whole number of at least 0"),
        ({"seed": 2**63}, "seed wants"),
        ({"batch": 0}, "batch wants a whole number of at least 1"),
        ({"space": ""}, "space wants a name"),
        ({"dataset": None}, "dataset wants a name"),
        ({"generator": 1}, "generator wants a name"),
        ({"tables": 5}, "tables wants a name"),
        ({"budgets": [5]}, "budgets wants a table"),
        ({"generator_settings": {"lr": None}}, "generator_settings.lr wants"),
        ({"generator_settings": {"a": {"b": [object()]}}}, "generator_settings.a.b wants"),
        ({"generator_settings": {1: 2}}, "generator_settings wants a table"),
    ],
)
def test_every_field_is_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){said}"):
        SearchConfig(**settings)


def test_two_words_for_the_same_are_refused() -> None:
    twice = SearchConfig(
        devices=("edgegpu",), objectives=("latency", "latency_ms"), budgets={"energy": 1, "energy_mj": 2}
    )
    with pytest.raises(InvalidSetting, match="latency_ms@edgegpu twice"):
        twice.resolve_objectives(everything)
    with pytest.raises(InvalidSetting, match="energy_mj@edgegpu twice"):
        twice.resolve_budgets(everything)


@pytest.mark.parametrize("budgets", [{"latency": 5, "latency@fpga": "2ms"}, {"latency@fpga": "2ms", "latency": 5}])
def test_a_budget_of_one_device_wins_over_that_of_all(budgets: dict[str, Any]) -> None:
    config = SearchConfig(devices=("edgegpu", "fpga"), budgets=budgets)
    assert {c.name: c.bound for c in config.resolve_budgets(everything)} == {
        "latency_ms@edgegpu": 5.0,
        "latency_ms@fpga": 2.0,
    }
    assert config.limit("latency_ms", "fpga") == 2.0
    assert config.limit("latency_ms", "edgegpu") == 5.0
    twice = SearchConfig(devices=("fpga",), budgets={**budgets, "latency_ms@fpga": 3.0})
    with pytest.raises(InvalidSetting, match="latency_ms@fpga twice"):
        twice.resolve_budgets(everything)


THREE = (Objective("val_error_pct"), Objective("latency_ms", "edgegpu"), Objective("latency_ms", "fpga"))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, (1, 1, 1)),
        ({"error": 2}, (2, 1, 1)),
        ({"latency": 3, "error": 0.5}, (0.5, 3, 3)),
        ({"latency@fpga": 4, "latency": 3}, (1, 3, 4)),
        ({"latency_ms": 3, "latency_ms@edgegpu": 5}, (1, 5, 3)),
    ],
)
def test_weights_belong_to_objectives(weights: dict[str, float], expected: tuple[float, ...]) -> None:
    assert weigh(THREE, weights) == expected


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"eror": 1}, "no weight 'eror'. .*Did you mean 'error'"),
        ({"error": 0}, "weight 'error' wants a number above 0; got 0"),
        ({"error": -1.5}, "above 0; got -1.5"),
        ({"error": float("nan")}, "above 0; got nan"),
        ({"error": float("inf")}, "above 0; got inf"),
        ({"error": "2"}, "above 0; got '2'"),
        ({"error": True}, "above 0; got True"),
        ([2, 1], "weights wants a table"),
    ],
)
def test_a_weight_that_cannot_be_meant_is_refused_at_once(weights: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){said}"):
        SearchConfig(weights=weights)
    if isinstance(weights, dict):
        with pytest.raises(UsageError, match=f"(?s){said}"):
            weigh(THREE, weights)


def test_a_weight_of_no_objective_or_given_twice_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"'energy' belongs to none of the objectives val_error_pct, latency_ms@e"):
        weigh(THREE, {"energy": 1})
    with pytest.raises(InvalidSetting, match="latency@raspi4"):
        weigh(THREE, {"latency@raspi4": 1})
    with pytest.raises(InvalidSetting, match="weigh latency_ms@edgegpu twice"):
        weigh(THREE, {"latency": 1, "latency_ms": 2})


def test_what_no_source_knows_is_refused_with_what_to_do() -> None:
    config = SearchConfig(devices=("edgetpu",), objectives=("error", "energy"))
    with pytest.raises(InvalidSetting, match=r"no source knows energy_mj .* device 'edgetpu'.*tables add"):
        config.resolve_objectives(lambda metric, device: device is None)


def test_a_devices_metric_without_a_device_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"name one, e.g. --device"):
        SearchConfig().resolve_objectives(everything)


def test_names_are_checked_against_what_exists() -> None:
    config = SearchConfig(devices="edgegpu", generator="agnt", objectives="error,latency@fgpa")
    config.check_names(spaces=["nb201"], datasets=["cifar10"])
    with pytest.raises(UnknownName, match=r"no generator 'agnt'.*Did you mean 'agnet'"):
        config.check_names(generators=["agnet", "random"])
    with pytest.raises(UnknownName, match=r"no device 'fgpa'.*Did you mean 'fpga'"):
        config.check_names(devices=["edgegpu", "fpga"])
    with pytest.raises(UnknownName, match="no data set 'cifar10'"):
        config.check_names(datasets=["cifar100"])


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no setting 'querys'. Known: .*space.*Did you mean 'queries'"):
        SearchConfig.from_toml({"querys": 3})


def test_a_configuration_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text('devices = ["edgegpu"]\nqueries = 50\n[budgets]\nlatency = 5\n', encoding="utf-8")
    assert SearchConfig.load(path) == SearchConfig(devices=("edgegpu",), queries=50, budgets={"latency": 5.0})


@pytest.mark.parametrize(
    ("content", "said"), [(b"queries = ", "no TOML"), (b"\xff\xfe", "no TOML"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "search.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidSetting, match=said) as caught:
        SearchConfig.load(path)
    assert str(path) in str(caught.value)


def test_what_the_caller_passed_may_change_afterwards() -> None:
    budgets, chosen = {"latency": "5ms"}, {"sizes": [1, 2]}
    config = SearchConfig(devices=["edgegpu"], budgets=budgets, generator_settings=chosen)  # type: ignore[arg-type]
    budgets["latency"] = "nonsense"
    chosen["sizes"].append(3)
    assert config.budgets == {"latency": "5ms"}
    assert config.generator_settings == {"sizes": [1, 2]}


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda text: text.strip() == text != ""
)
NAMES = st.lists(WORDS.filter(lambda text: "," not in text), unique=True, max_size=3).map(tuple)
PLAIN = st.recursive(
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        SearchConfig,
        space=WORDS,
        devices=NAMES,
        objectives=st.sampled_from([("error",), ("error", "latency"), ("macs", "energy@fpga")]),
        budgets=st.dictionaries(
            st.sampled_from(["latency", "latency@a", "energy_mj"]), st.floats(1e-6, 1e9) | st.just("5"), max_size=3
        ),
        queries=st.integers(1, 2**62),
        seed=st.integers(0, 2**63 - 1),
        generator_settings=st.dictionaries(WORDS, PLAIN, max_size=3),
        tables=st.none() | WORDS,
        batch=st.none() | st.integers(1, 100),
        weights=st.dictionaries(st.sampled_from(["error", "latency", "latency@fpga"]), st.floats(0.1, 9)),
    )
)
def test_a_configuration_survives_toml(config: SearchConfig) -> None:
    text = tomli_w.dumps(config.to_toml())
    assert SearchConfig.from_toml(tomllib.loads(text)) == config


def test_the_limit_of_a_devices_metric() -> None:
    config = SearchConfig(devices=("cpu",), budgets={"latency": "800us", "energy@fpga": 2.0, "params": "1M"})
    assert config.limit("latency_ms", "cpu") == pytest.approx(0.8)
    assert config.limit("energy_mj", "fpga") == 2.0
    assert config.limit("energy_mj", "cpu") is None
    assert config.limit("cpu_time_ms", "cpu") is None


@pytest.mark.parametrize("name", ["predict", "cache"])
def test_predict_and_cache_are_true_or_false(name: str) -> None:
    assert SearchConfig.from_toml({name: False}).to_toml()[name] is False
    with pytest.raises(InvalidSetting, match=f"{name} wants true or false; got 'no'"):
        SearchConfig.from_toml({name: "no"})
