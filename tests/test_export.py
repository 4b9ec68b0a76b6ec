"""Exported models: checked, run, described; one that fails costs only itself; nothing is overwritten."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hwnas import atomic
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.objective import Objective
from hwnas.core.state import Evaluation
from hwnas.errors import ExportFailed, RunExists
from hwnas.evaluators.counting import CountingEvaluator
from hwnas.export import export_models
from hwnas.onnx_facts import model_facts
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.toy import DATASET, DEVICE, ToyEvaluator, ToySpace

SPACE = ToySpace()
OBJECTIVES = (Objective("val_error_pct"), Objective("latency_ms", DEVICE))
GOOD, POOLS = Architecture("toy", (1, 2, 0, 1)), Architecture("toy", (2, 2, 2, 0))


def item(architecture: Architecture) -> Evaluation:
    rows = ToyEvaluator().evaluate([architecture], [("val_error_pct", None), ("latency_ms", DEVICE)])
    return Evaluation(architecture, tuple(rows))


class Broken(ToySpace):
    """A space whose networks with a pool first go wrong in a chosen way."""

    def __init__(self, how: str) -> None:
        self.how = how

    def to_onnx(self, architecture: Architecture, dataset: str, **settings: Any) -> onnx.ModelProto:
        model = super().to_onnx(architecture, dataset, **settings)
        if architecture.code[0] != 2:
            return model
        if self.how == "raises":
            raise RuntimeError("no such layer")
        if self.how == "memory":
            raise MemoryError
        if self.how == "invalid":
            model.graph.node[0].input[0] = "nowhere"
        if self.how == "nan":
            bias = next(i for i in model.graph.initializer if i.name == "head.bias")
            bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), "head.bias"))
        if self.how == "batch":
            return super().to_onnx(architecture, dataset, seed=0, batch=2)
        return model


def test_models_run_and_tell_what_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    outcome = export_models(
        SPACE,
        DATASET,
        [item(GOOD), item(POOLS)],
        folder,
        objectives=OBJECTIVES,
        recommended=0,
        batch=3,
        run={"seed": 5},
    )
    assert outcome.failed == ()
    outcome.raise_for_failures()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(outcome.manifest))
    assert manifest["weights"] == "untrained"
    assert manifest["run"] == {"seed": 5}
    assert [m["recommended"] for m in manifest["models"]] == [True, False]
    error = ToyEvaluator().truth(GOOD, "val_error_pct")
    assert manifest["models"][0]["file"] == f"01-error{error:.2f}-lat3.000-toy-1.2.0.1.onnx"
    assert manifest["models"][1]["file"].startswith("02-error")
    assert "lat" not in manifest["models"][1]["file"]  # not measured: no number in the name
    for entry, architecture in zip(manifest["models"], (GOOD, POOLS), strict=True):
        content = (folder / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) == entry["bytes"]
        model = onnx.load_from_string(content)
        facts = {prop.key: prop.value for prop in model.metadata_props}
        assert facts["hwnas.architecture"] == SPACE.format(architecture) == entry["arch"]
        assert facts["hwnas.key"] == architecture.key == entry["key"]
        assert facts["hwnas.weights"] == "untrained"
        assert facts["hwnas.exporter"] == entry["exporter"] == "direct"
        assert facts["hwnas.dataset"] == DATASET
        rows = [{**fact, "architecture": architecture.key} for fact in json.loads(facts["hwnas.metrics"])]
        told = [Measurement.from_json(row) for row in rows]
        assert str(told) == str(list(item(architecture).measurements))
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {"input": np.ones(entry["input_shape"], np.float32)})
        assert list(output.shape) == entry["output_shape"] == [3, 3]
        assert np.isfinite(output).all()


def test_card_lists_models_sources_and_that_weights_are_untrained(tmp_path: Path) -> None:
    outcome = export_models(SPACE, DATASET, [item(GOOD), item(POOLS)], tmp_path, objectives=OBJECTIVES, recommended=0)
    card = (tmp_path / "README.md").read_text()
    assert "weights are untrained" in card
    assert all(f"`{model.file}`" in card for model in outcome.models)
    (starred,) = [line for line in card.splitlines() if line.startswith("| ★")]
    assert "3.000" in starred
    assert "not_measured" in card
    assert "validation error [%]: table: toy, val split, toy" in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1  # a notation with bars breaks no row


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("raises", Status.EXPORT_FAILED),
        ("memory", Status.OUT_OF_MEMORY),
        ("invalid", Status.INVALID_MODEL),
        ("nan", Status.NUMERICS_MISMATCH),
        ("batch", Status.NUMERICS_MISMATCH),
    ],
)
def test_a_failing_model_costs_only_itself(how: str, status: Status, tmp_path: Path) -> None:
    outcome = export_models(Broken(how), DATASET, [item(POOLS), item(GOOD)], tmp_path / "m", objectives=OBJECTIVES)
    bad, good = outcome.models
    assert (bad.status, bad.file, good.status) == (status, None, Status.OK)
    assert bad.message
    assert [p.name for p in (tmp_path / "m").glob("*.onnx")] == [good.file]
    assert [m["status"] for m in outcome.manifest["models"]] == [str(status), "ok"]
    with pytest.raises(ExportFailed, match=rf"1 of 2 models .*{POOLS.key}: {status}"):
        outcome.raise_for_failures()


def test_an_architecture_of_another_space_is_a_status(tmp_path: Path) -> None:
    outcome = export_models(SPACE, DATASET, [Evaluation(Architecture("other", (1,)), ())], tmp_path)
    assert outcome.models[0].status is Status.EXPORT_FAILED
    assert "other" in outcome.models[0].message


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunExists, match=str(tmp_path)):
        export_models(SPACE, DATASET, [item(GOOD)], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]
    file = tmp_path / "note.txt"
    with pytest.raises(RunExists, match="is a file"):
        export_models(SPACE, DATASET, [item(GOOD)], file, force=True)
    assert file.read_text() == "mine"


def test_force_replaces_the_earlier_models_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    outside = tmp_path.parent / "outside.onnx"
    outside.write_text("not yours")
    folder = tmp_path
    export_models(SPACE, DATASET, [item(GOOD), item(POOLS)], folder, force=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["models"].append({"file": "../outside.onnx"})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    again = export_models(SPACE, DATASET, [item(POOLS)], folder, force=True)
    assert {p.name for p in folder.iterdir()} == {"note.txt", "README.md", "manifest.json", again.models[0].file}
    assert outside.read_text() == "not yours"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes | str) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write", full)
    with pytest.raises(ExportFailed, match=r"models.*No space left"):
        export_models(SPACE, DATASET, [item(GOOD)], tmp_path / "models")


def test_atomic_write_leaves_the_old_file_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    assert atomic.write(path, "old µ").read_bytes() == "old µ".encode()

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="No space"):
        atomic.write(path, "new")
    assert path.read_text(encoding="utf-8") == "old µ"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_long_keys_make_short_distinct_names(tmp_path: Path) -> None:
    class Long(ToySpace):
        def to_onnx(self, architecture: Architecture, dataset: str, **settings: Any) -> onnx.ModelProto:
            return super().to_onnx(GOOD, dataset, **settings)

        def format(self, architecture: Architecture) -> str:
            return "long"

    items = [Evaluation(Architecture("toy", (0,) * 200 + (last,)), ()) for last in (0, 1)]
    names = [model.file for model in export_models(Long(), DATASET, items, tmp_path).models]
    assert all(name is not None and len(name) < 80 for name in names)
    assert len({str(name)[3:] for name in names}) == 2


@pytest.mark.parametrize("dataset", ["cifar10", "ImageNet16-120"])
def test_nb201_models(dataset: str, tmp_path: Path) -> None:
    space = NasBench201()
    context = Context(Source.SURROGATE, device="edgegpu", dataset=dataset)
    items = []
    for code in ((3, 1, 0, 2, 4, 3), (0, 0, 0, 0, 0, 0), (0, 4, 0, 0, 0, 1)):
        architecture = Architecture("nb201", code)
        items.append(Evaluation(architecture, (Measurement(architecture, "latency_ms", 4.2126, context),)))
    outcome = export_models(space, dataset, items, tmp_path, objectives=(Objective("latency_ms", "edgegpu"),))
    assert [model.status for model in outcome.models] == [Status.OK] * 3
    assert outcome.models[0].file == "01-lat4.213-nb201-3.1.0.2.4.3.onnx"
    assert outcome.models[0].output_shape == (1, {"cifar10": 10, "ImageNet16-120": 120}[dataset])


@pytest.mark.parametrize(("batch", "verbatim"), [(1, False), (3, False), (1, True)])
def test_counts_of_the_file_stand_beside_those_with_dead_edges(batch: int, verbatim: bool, tmp_path: Path) -> None:
    space = NasBench201()
    dead = Architecture("nb201", (3, 3, 0, 3, 0, 0))  # three convolutions, none of which reaches the output
    rows = CountingEvaluator(space, "cifar10").evaluate([dead], [("params_m", None), ("macs_m", None)])
    whole = space.complexity(dead, "cifar10")
    items = [Evaluation(dead, tuple(rows))]
    outcome = export_models(space, "cifar10", items, tmp_path, batch=batch, verbatim=verbatim)
    (entry,) = outcome.manifest["models"]
    facts = model_facts(tmp_path / entry["file"])
    assert (entry["file_params"], batch * entry["file_macs"]) == (facts.params, facts.macs)
    if verbatim:
        assert entry["file_macs"] == round(1e6 * whole["macs_m"]) - 10  # they count the linear layer's bias
    else:
        assert entry["file_macs"] < 0.4 * 1e6 * whole["macs_m"]
        assert entry["file_params"] < 0.4 * 1e6 * whole["params_m"]
    metadata = {prop.key: prop.value for prop in onnx.load(tmp_path / entry["file"]).metadata_props}
    assert int(metadata["hwnas.file_params"]) == entry["file_params"]
    assert int(metadata["hwnas.file_macs"]) == entry["file_macs"]
    told = json.loads(metadata["hwnas.metrics"])
    assert {fact["certainty"] for fact in told} == {"exact count, dead edges included"}
    card = (tmp_path / "README.md").read_text()
    heads, _, cells = ([c.strip() for c in line.split(" | ")] for line in card.splitlines() if line.startswith("|"))
    row = dict(zip(heads, cells, strict=True))
    assert row["parameters of the file [M]"] == f"{facts.params / 1e6:.3f}"
    assert row["parameters with dead edges [M]"] == f"{whole['params_m']:.3f}"
