"""Measurements saved as a device: files, answers and predictions; samples of a space; calibration."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from commands import cli

import hwnas
from hwnas import doctor, registry, resources, survey
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.devices import load_device
from hwnas.errors import InvalidSetting, InvalidTable, RunError, RunExists, TooFewMeasurements
from hwnas.evaluators.saved import FEWEST, SavedEvaluator
from hwnas.predictors.log_process import LogProcess
from hwnas.profiling import host, saved
from hwnas.profiling.profiler import Profiler, read_calibration
from hwnas.profiling.protocol import protocol
from hwnas.report import html, sentences
from hwnas.spaces.codes import sample
from hwnas.testing.evaluators import EvaluatorSuite
from hwnas.testing.toy import DATASET, ToySpace

SPACE = ToySpace()
CPU = load_device("cpu")
MEASURED = Context(
    Source.MEASURED,
    device="cpu",
    runtime="ort-cpu",
    precision="fp32",
    batch=1,
    dataset=DATASET,
    fidelity="protocol default, 1 thread",
    origin="a CPU (0123456789ab)",
    versions=(("onnxruntime", "1.0"),),
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHE", "PROFILES", "DEVICES"):
        monkeypatch.setenv(f"HWNAS_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("HWNAS_TABLES", raising=False)
    monkeypatch.chdir(tmp_path)


def truth(architecture: Architecture) -> float:
    """Latency, ms, of what the network computes."""
    code = SPACE.canonical(architecture).code
    return float(np.prod([(1.0, 1.9, 1.3)[op] for op in code]))


def drawn(n: int, seed: int = 1) -> list[Architecture]:
    return list(dict.fromkeys(sample(SPACE, 6 * n, rng=np.random.default_rng(seed))))[:n]


def rows(architectures: Sequence[Architecture], broken: Sequence[Architecture] = ()) -> list[Measurement]:
    found = []
    for architecture in architectures:
        value = truth(architecture)
        if architecture in broken:
            found.append(
                Measurement.failed(architecture, "latency_ms", MEASURED, Status.CRASHED, 'it said "no", then\nnothing')
            )
            continue
        found.append(
            Measurement(
                architecture,
                "latency_ms",
                value,
                MEASURED,
                interval=(0.97 * value, 1.03 * value),
                own_half=0.02 * value,
            )
        )
        found.append(Measurement(architecture, "peak_memory_mib", 2 * value, MEASURED))
    return found


def save(name: str, of: Sequence[Measurement]) -> Path:
    return saved.save_profile(name, CPU, SPACE, of, {"retests": None, "sampled": "by hand"}, {"default/x": np.eye(8)})


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_read_back_as_a_device_of_its_own() -> None:
    some = drawn(5)
    before = rows(some, broken=some[:1])
    folder = save("mine", before)
    profile = saved.read_profile("mine", SPACE)
    assert profile is not None
    assert profile.context == replace(MEASURED, device="mine", origin=profile.context.origin)
    assert "a CPU (0123456789ab)" in str(profile.context.origin)
    assert [row.to_json() for row in profile.rows] == [
        replace(row, context=profile.context).to_json() for row in before
    ]
    device = load_device("mine")
    assert (device.host, device.metrics) == ("profile", ("latency_ms", "peak_memory_mib"))
    assert not device.measurable
    card = tomllib.loads((folder / "toy.toml").read_text())
    assert card["networks"] == 5
    assert "retests" not in card
    assert np.load(folder / "samples.npz")["default/x"].shape == (8, 8)


def test_a_profile_of_an_earlier_version_lacks_a_column() -> None:
    before = rows(drawn(3))
    folder = save("mine", before)
    card = (folder / "toy.toml").read_text()
    text = "".join(line.rsplit(",", 1)[0] + "\n" for line in (folder / "toy.csv").read_text().splitlines())
    (folder / "toy.csv").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "toy.toml").write_text(re.sub('sha256 = ".*"', f'sha256 = "{digest}"', card))
    profile = saved.read_profile("mine", SPACE)
    assert profile is not None
    told = [replace(row, context=profile.context, own_half=None).to_json() for row in before]
    assert [row.to_json() for row in profile.rows] == told


def test_a_space_that_the_profile_does_not_hold() -> None:
    save("mine", rows(drawn(3)))
    assert saved.read_profile("mine", registry.space("nb201")) is None


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("toy.csv", lambda text: text.replace("ok", "noisy", 1), "other rows than its card"),
        ("toy.toml", lambda text: text + "\nnot toml", "damaged"),
        ("toy.toml", lambda text: text.replace("sha256", "sha255"), "damaged"),
        ("toy.toml", lambda text: text.replace('device = "mine"', 'device = "other"'), "card of another profile"),
        ("toy.csv", None, "toy.csv cannot be read"),
    ],
)
def test_damaged_files_are_refused_with_the_way_out(file: str, change: Any, message: str) -> None:
    path = save("mine", rows(drawn(3))) / file
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(InvalidTable, match=f"(?s){message}.*--replace"):
        saved.read_profile("mine", SPACE)


def test_rows_that_cannot_be_true_are_refused_by_line() -> None:
    folder = save("mine", rows(drawn(3)))
    text = (folder / "toy.csv").read_text()
    wrong = text.replace(",ok,", ",crashed,", 1)
    card = (folder / "toy.toml").read_text()
    for old, new in ((text, wrong),):
        card = card.replace(*(hashlib.sha256(t.encode()).hexdigest() for t in (old, new)))
    (folder / "toy.csv").write_text(wrong)
    (folder / "toy.toml").write_text(card)
    with pytest.raises(InvalidTable, match="line 2"):
        saved.read_profile("mine", SPACE)


def test_names_that_cannot_be_saved_under(tmp_path: Path) -> None:
    for name, message in (("toy", "called as the space"), ("cpu", "belongs to the device"), ("a/b", "only letters")):
        with pytest.raises(InvalidSetting, match=message):
            saved.check_name(name, SPACE, replacing=True)
    save("mine", rows(drawn(3)))
    with pytest.raises(RunExists, match="--replace"):
        saved.check_name("mine", SPACE, replacing=False)
    saved.check_name("mine", SPACE, replacing=True)


def test_replacing_leaves_nothing_of_the_old_one_and_a_failure_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save("mine", rows(drawn(3)))
    save("mine", rows(drawn(6)))
    found = saved.read_profile("mine", SPACE)
    assert found is not None
    assert found.card["networks"] == 6

    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved, "write_samples", full)
    with pytest.raises(RunError, match="No space left"):
        save("mine", rows(drawn(9)))
    again = saved.read_profile("mine", SPACE)
    assert again == found
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


# -- answers -----------------------------------------------------------------------------------------------------------


def evaluator(measured: int, broken: Sequence[Architecture] = (), **settings: Any) -> SavedEvaluator:
    save("mine", rows(drawn(measured), broken))
    profile = saved.read_profile("mine", SPACE)
    assert profile is not None
    return SavedEvaluator(profile, SPACE, **settings)


class TestSaved(EvaluatorSuite):
    wanted = (("latency_ms", "mine"), ("peak_memory_mib", "mine"))

    def space(self) -> ToySpace:
        return SPACE

    def evaluator(self) -> SavedEvaluator:
        return evaluator(14, broken=drawn(2))


class TestFewRows(EvaluatorSuite):
    wanted = (("latency_ms", "mine"),)

    def space(self) -> ToySpace:
        return SPACE

    def evaluator(self) -> SavedEvaluator:
        return evaluator(5)


class Spy:
    """A predictor that is right, and tells what it was fitted to."""

    fitted: ClassVar[list[int]] = []

    def __init__(self, metric: str) -> None:
        assert metric == "latency_ms"

    def fit(self, architectures: Sequence[Architecture], latencies: np.ndarray, half_widths: np.ndarray) -> None:
        np.testing.assert_allclose(half_widths, 0.03 * latencies)
        self.fitted.append(len(architectures))

    def interval(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value = np.array([truth(a) for a in architectures])
        return value, 0.9 * value, 1.1 * value


def test_measured_rows_are_measured_and_others_predicted() -> None:
    Spy.fitted = []
    there = evaluator(20, model=Spy)
    same = {SPACE.canonical(a) for a in drawn(20)}
    least = min(map(truth, same))
    found = list(there.evaluate(drawn(60), [("latency_ms", "mine")]))
    assert {row.context.source for row in found} == {Source.MEASURED, Source.PREDICTED}
    for row in found:
        assert (row.context.source is Source.MEASURED) == (SPACE.canonical(row.architecture) in same)
        assert row.value == pytest.approx(max(least, truth(row.architecture)))  # nothing beats what was measured
        assert row.interval is not None
    assert Spy.fitted == [len(same)]  # once, to each network once


def test_the_same_network_under_another_name_is_measured() -> None:
    conv_skip, skip_conv = Architecture("toy", (1, 0, 2, 2)), Architecture("toy", (2, 2, 0, 1))
    assert SPACE.canonical(conv_skip) == SPACE.canonical(skip_conv)
    save("mine", rows([conv_skip]))
    profile = saved.read_profile("mine", SPACE)
    assert profile is not None
    (row,) = SavedEvaluator(profile, SPACE).evaluate([skip_conv], [("latency_ms", "mine")])
    assert (row.architecture, row.context.source) == (skip_conv, Source.MEASURED)


def test_from_few_rows_nothing_is_predicted() -> None:
    there = evaluator(FEWEST - 6)
    known = {SPACE.canonical(a) for a in drawn(FEWEST - 6)}
    unknown = next(a for a in drawn(60) if SPACE.canonical(a) not in known)
    (row,) = there.evaluate([unknown], [("latency_ms", "mine")])
    assert row.status is Status.NOT_MEASURED
    assert "holds latency of 4 networks, and at least 10 are needed" in row.message


def test_a_process_of_the_logarithm_knows_how_wrong_it_is() -> None:
    everything = drawn(81)
    rng = np.random.default_rng(0)
    noisy = np.array([truth(a) for a in everything]) * np.exp(0.02 * rng.standard_normal(len(everything)))
    model = LogProcess(SPACE)
    with pytest.raises(ValueError, match="fit comes before"):
        model.interval(everything)
    model.fit(everything[:30], noisy[:30], 0.03 * noisy[:30])
    value, low, high = model.interval(everything[30:])
    assert ((low < value) & (value < high)).all()
    assert np.mean((low <= noisy[30:]) & (noisy[30:] <= high)) >= 0.8
    assert np.median(np.abs(value / noisy[30:] - 1)) < 0.1


def test_a_search_on_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    space = registry.space("nb201")
    architectures = sample(space, 40, rng=np.random.default_rng(0))
    context = replace(MEASURED, dataset="cifar10")
    of = [
        Measurement(a, "latency_ms", v, context, interval=(0.97 * v, 1.03 * v))
        for a in dict.fromkeys(architectures)
        for v in [1e-3 + space.complexity(a, "cifar10")["macs_m"] / 30]
    ]
    saved.save_profile("board", CPU, space, of, {}, {})
    result = hwnas.search(device="board", latency_budget="2ms", generator="random", queries=60, source="surrogate")
    assert result.best is not None
    assert result.best["latency_ms@board"] < 2
    assert result.ledger.predicted > 0
    sources = {row.context.source for e in result.state.archive for row in e.measurements if row.metric == "latency_ms"}
    assert sources == {Source.MEASURED, Source.PREDICTED} or sources == {Source.PREDICTED}
    assert any("predicted, not measured" in sentence for sentence in sentences(result.view))
    (note,) = result.finals.notes
    predicted = sum(found.sources["latency_ms@board"] == "predicted" for found in result.front)
    assert result.finals.predicted["board"]["predicted"] == predicted > 0
    assert note.startswith("board is a saved profile: nothing is measured at the end")
    assert "hwnas profile" not in note  # nobody knows where it was measured
    words = ("search", "--device", "board", "--source", "surrogate", "--dataset", "cifar100", "--queries", "5")
    assert cli(*words) == 4
    assert "are not about this space and data set" in capsys.readouterr().err


@pytest.mark.parametrize("here", [True, False])
def test_a_front_of_predictions_says_so_and_how_it_can_be_measured(here: bool) -> None:
    space = registry.space("nb201")
    context = replace(MEASURED, dataset="cifar10")
    of = [
        Measurement(a, "latency_ms", v, context, interval=(0.97 * v, 1.03 * v))
        for a in dict.fromkeys(sample(space, 40, rng=np.random.default_rng(0)))
        for v in [1e-3 + space.complexity(a, "cifar10")["macs_m"] / 30]
    ]
    facts = {"cpu": host.facts()["cpu"] if here else "another processor"}
    saved.save_profile("board", CPU, space, of, {"device": {"device": "cpu", "facts": facts}}, {})
    result = hwnas.search(device="board", generator="random", queries=60, source="surrogate", out="run")
    told = result.finals.predicted["board"]
    front = [found.sources["latency_ms@board"] for found in result.front]
    assert (told["front"], told["predicted"]) == (len(front), front.count("predicted"))
    (note,) = [sentence for sentence in sentences(result.view) if "saved profile" in sentence]
    many = f"Latency is predicted, not measured, for {front.count('predicted')} of the front's {len(front)}."
    assert [sentence for sentence in sentences(result.view) if "predict" in sentence] == [many]  # once
    assert note in html(result.view).replace("&#x27;", "'")
    assert hwnas.load("run").finals.notes == result.finals.notes
    if here:
        assert told["command"] == "hwnas profile run/models/*.onnx --device cpu --preset final"
        assert len(list(Path("run/models").glob("*.onnx"))) == len(front)
        in_memory = hwnas.search(device="board", generator="random", queries=60, source="surrogate")
        words = shlex.split(in_memory.finals.predicted["board"]["command"])
        archs = [word for before, word in itertools.pairwise(words) if before == "--arch"]
        assert archs == [found.arch for found in in_memory.front]
    else:
        assert told["command"] == ""
        assert "where it was made (device cpu)" in note


# -- measuring a sample ------------------------------------------------------------------------------------------------


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    one, two, three = (survey.choose(SPACE, sample=10, seed=seed)[0] for seed in (1, 1, 2))
    assert one == two != three
    named, told = survey.choose(SPACE, sample=3, archs=["conv-skip|pool-conv", "toy:1.0.2.1"], seed=1)
    assert len(named) == len(set(named)) == 4
    assert told == "1 named, 3 at random, seed 1"


def test_profile_of_a_space_saves_what_search_then_uses(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("profile", "--space", "nb201", "--sample", "4", "--preset", "quick", "--no-cache", "--save", "mine")
    assert cli(*words, "--arch", "nb201:1.1.1.1.1.1", "--out", "raw", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["networks"]) == 5
    folder = Path("profiles/mine")
    with open(folder / "nb201.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["arch"] for row in table} == {network["arch"] for network in told["networks"]}
    assert {row["metric"] for row in table} == {"latency_ms", "cpu_time_ms", "peak_memory_mib"}
    assert json.loads(Path("raw/profile.json").read_text())["sampled"] == "1 named, 4 at random, seed 0"
    assert {path.name for path in Path("raw").iterdir()} == {
        "profile.json",
        "samples.npz",
        "latencies.png",
        "latencies.pdf",
    }
    samples = np.load(folder / "samples.npz")
    assert {network["samples"] for network in told["networks"]} <= set(samples.files)
    assert cli(*words) == 5
    assert "--replace" in capsys.readouterr().err
    assert cli("devices", "--json") == 0
    (mine,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "mine"]
    assert not mine["available"]  # five are too few for a search
    assert mine["reason"].startswith("profile mine holds latency of 5 networks, and at least 10 are needed")


@pytest.mark.parametrize("enough", [True, False])
def test_a_profile_of_too_few_networks_is_not_recommended_and_not_searched_on(
    enough: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    space = registry.space("nb201")
    context = replace(MEASURED, dataset="cifar10")
    once = list({space.canonical(a): a for a in sample(space, 40, rng=np.random.default_rng(0))}.values())
    of = [
        Measurement(a, "latency_ms", v, context, interval=(0.97 * v, 1.03 * v))
        for a in once[: FEWEST if enough else FEWEST - 1]
        for v in [1e-3 + space.complexity(a, "cifar10")["macs_m"] / 30]
    ]
    saved.save_profile("board", CPU, space, of, {"device": {"device": "cpu"}}, {})
    advice = survey.next_step("board", space)
    finding = next(f for f in doctor.examine() if (f.area, f.name) == ("devices", "board"))
    assert f"{len(of)} networks of nb201, in {saved.profile_folder('board')}" in finding.told
    words = ("search", "--device", "board", "--source", "surrogate", "--generator", "random", "--queries", "3", "-q")
    if enough:
        assert advice == "use it: hwnas search --device board"
        assert (finding.state, finding.fix) == (doctor.OK, "")
        assert cli(*words) == 0
        return
    assert advice.startswith("profile board holds latency of 9 networks, and at least 10 are needed")
    again = "hwnas profile --space nb201 --sample 100 --device cpu --save board --replace"
    assert advice.endswith(again)
    assert (finding.state, finding.fix) == (doctor.NOTE, advice)
    assert cli(*words) == TooFewMeasurements.exit_code == 4
    assert again in " ".join(capsys.readouterr().err.split())
    with pytest.raises(TooFewMeasurements, match="of 9 networks"):
        hwnas.search(device="board", source="surrogate", generator="random", queries=3)
    assert not Path("runs").exists()


def test_a_network_that_fails_is_a_row_of_the_profile(capsys: pytest.CaptureFixture[str]) -> None:
    Path("devices").mkdir()
    text = (resources.folder("devices") / "cpu.toml").read_text()
    text = text.replace('name = "cpu"', 'name = "simulated"').replace('"ort-cpu"', '"fake"')
    Path("devices/simulated.toml").write_text(text + 'options = { "fault.3" = "crash", seed = 1 }\n')
    words = ("profile", "--space", "nb201", "--sample", "12", "--preset", "quick", "--device", "simulated")
    assert cli(*words, "--save", "mine", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    failed = [network for network in told["networks"] if network["record"]["status"] == "crashed"]
    assert 1 <= len(failed) < 12
    space = registry.space("nb201")
    profile = saved.read_profile("mine", space)
    assert profile is not None
    architectures = [space.parse(network["arch"]) for network in failed]
    rows = SavedEvaluator(profile, space).evaluate(architectures, [("latency_ms", "mine")])
    assert {row.status for row in rows} == {Status.CRASHED}


class Interrupted:
    """A meter whose user presses Ctrl-C after some networks."""

    metrics = ("latency_ms",)

    def __init__(self, after: int) -> None:
        self.after = after
        self.records: dict[Architecture, Any] = {}
        self.profiler = self
        self.benches: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        return {"title": "a CPU", "device": "cpu"}

    def network(self, architecture: Architecture) -> str | None:
        return None

    def samples(self) -> dict[str, Any]:
        return {}

    def measure(self, architectures: Sequence[Architecture]) -> Iterator[Mapping[str, Measurement]]:
        for i, architecture in enumerate(architectures):
            if i == self.after:
                raise KeyboardInterrupt
            yield {"latency_ms": rows([architecture])[0]}


@pytest.mark.parametrize(
    ("after", "words", "said"),
    [
        (3, ("--save", "mine"), "3 of 9 networks had been measured; kept in"),
        (3, (), "3 of 9 networks had been measured; kept in the cache"),
        (3, ("--no-cache",), "3 of 9 networks had been measured; nothing is kept"),
        (0, ("--save", "mine"), "0 of 9 networks had been measured; nothing is kept"),
    ],
)
def test_what_was_measured_before_ctrl_c_is_kept_and_said(
    after: int,
    words: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from contextlib import contextmanager

    @contextmanager
    def meter(*_: object, **__: object) -> Iterator[Interrupted]:
        yield Interrupted(after)

    monkeypatch.setattr(survey, "open_meter", meter)
    monkeypatch.setattr(registry, "space", lambda name: SPACE)
    assert cli("profile", "--space", "toy", "--sample", "9", *words) == 130
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""
    assert not Path("profiles/mine").exists()
    assert Path("profiles/mine-partial").exists() is (after > 0 and "--save" in words)
    if after == 0 or "--save" not in words:
        return
    kept = saved.read_profile("mine-partial", SPACE)
    assert kept is not None
    assert "mine-partial" in told.err
    assert (kept.card["networks"], kept.card["asked"]) == (3, 9)


def test_calibration_is_kept_and_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("calibrate", "--preset", "quick", "--sessions", "2", "--networks", "2")
    assert cli(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 <= told["noise_floor"] < 1
    assert 0 < told["seen"] <= told["noise_floor"]  # what was found, and what intervals contain
    assert told["calibrated"] is True
    assert told["before"] is None
    with Profiler(CPU) as profiler:
        assert read_calibration(profiler.fingerprint, profiler.config) == told["noise_floor"]
        assert profiler.noise_floor == (told["noise_floor"], True)
    assert cli(*words) == 0
    assert "noise floor" in capsys.readouterr().out


def test_calibrating_wants_two_sessions() -> None:
    assert cli("calibrate", "--sessions", "1") == 2
    with Profiler(CPU) as profiler, pytest.raises(ValueError, match="at least 2 sessions"):
        profiler.calibrate([], protocol("quick"), 1)
