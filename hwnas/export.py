"""Architectures as checked ONNX models, with a manifest and a model card beside them.

A model is written only after the ONNX checker has accepted it and ONNX Runtime has run it. A model that fails
costs only itself: its status is in the manifest, and the outcome says so.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas import __version__, atomic
from hwnas.core.measurement import Context, Measurement, Status
from hwnas.core.objective import Objective
from hwnas.core.protocols import SearchSpace
from hwnas.core.state import Evaluation
from hwnas.core.wording import certainty, known, provenance, quantity
from hwnas.errors import ExportFailed, HwnasError, RunExists
from hwnas.onnx_facts import count_macs, count_params
from hwnas.optional import version

if TYPE_CHECKING:
    import onnx

SCHEMA = 1
MANIFEST, CARD, CERTIFICATE = "manifest.json", "README.md", ".certificate.json"
UNTRAINED = "untrained"
_FILE_PARAMS, _FILE_MACS = "file_params", "file_macs"

_TAGS = {
    "val_error_pct": "error",
    "test_error_pct": "error",
    "robust_error_pct": "robust",
    "robust_error_pgd_pct": "pgd",
    "robust_error_fgsm_pct": "fgsm",
    "robust_error_square_pct": "square",
    "latency_ms": "lat",
    "cpu_time_ms": "cputime",
    "energy_mj": "energy",
    "params_m": "params",
    "macs_m": "macs",
    "peak_memory_mib": "mem",
}


@dataclass(frozen=True)
class Exported:
    """What became of one architecture.

    Attributes:
        evaluation: The architecture and its facts.
        file: Name in the folder; None where nothing was written.
        status: OK, or why there is no file.
        message: For people, where the status is not ok.
        sha256: Of the file.
        bytes: Size of the file.
        input_shape: With batch first.
        output_shape: With batch first.
        opset: Of the ONNX model.
        exporter: What wrote its graph, as the model's metadata says; None where they do not.
        params: Counted from the file: without edges that reach no output (unless kept verbatim), norms folded.
        macs: Multiply-accumulates of one image, counted likewise; None where a shape is not known.
    """

    evaluation: Evaluation
    file: str | None
    status: Status
    message: str = ""
    sha256: str | None = None
    bytes: int | None = None
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    opset: int | None = None
    exporter: str | None = None
    params: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class ExportOutcome:
    """A folder of models.

    Attributes:
        folder: Where they are.
        models: One entry for each item that was asked for, in order.
        manifest: What manifest.json holds.
    """

    folder: Path
    models: tuple[Exported, ...]
    manifest: Mapping[str, Any]

    @property
    def failed(self) -> tuple[Exported, ...]:
        """Entries without a file."""
        return tuple(model for model in self.models if model.status is not Status.OK)

    def raise_for_failures(self) -> None:
        """Raise if any model is missing.

        Raises:
            ExportFailed: Naming each missing architecture, its status and its message.
        """
        if self.failed:
            told = "; ".join(f"{m.evaluation.architecture.key}: {m.status} ({m.message})" for m in self.failed)
            raise ExportFailed(
                f"{len(self.failed)} of {len(self.models)} models could not be exported to {self.folder}: {told}. "
                "The others are there and checked"
            )


def export_models(
    space: SearchSpace,
    dataset: str,
    items: Sequence[Evaluation],
    out_dir: Path,
    *,
    objectives: Sequence[Objective] = (),
    recommended: int | None = None,
    roles: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    batch: int = 1,
    verbatim: bool = False,
    force: bool = False,
    created: str | None = None,
    certificates: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    run: Mapping[str, Any] | None = None,
) -> ExportOutcome:
    """Write architectures as `NN-<metrics>-<key>.onnx` with manifest.json and README.md.

    Args:
        space: What they belong to.
        dataset: Fixes input shape and number of classes.
        items: Architectures with the facts to put into the files; the facts may be empty.
        out_dir: Folder to write; must not exist or be empty, unless `force`.
        objectives: Whose values stand in the file names, in this order.
        recommended: Index into `items` of the architecture to recommend, if any.
        roles: For each item, where a search has several fronts, what the manifest says of it beside: the devices whose
            `fronts` it is on, those that it is `recommended_on`, and whether it is the one for all (`portfolio`).
        seed: Of the random weights.
        batch: Batch size, fixed in the models.
        verbatim: Keep edges that do not reach the output.
        force: Write into a folder that holds something. Models of an earlier export there are removed, other
            files stay.
        created: ISO 8601 time for the metadata; now when not given.
        certificates: By key and device, how an architecture was measured: goes into its metadata
            (`hwnas.certificate`) and a file beside it.
        run: What to note about the search in the manifest (name, seed, command); plain values.

    Raises:
        RunExists: `out_dir` holds something and `force` was not given.
        ExportFailed: The folder cannot be written.
    """
    made_at = created or datetime.now(UTC).isoformat(timespec="seconds")
    about = {
        "space": space.name,
        "dataset": dataset,
        "weights": UNTRAINED,
        "seed": seed,
        "batch": batch,
        "versions": _versions(),
        "created": made_at,
    }
    try:
        _prepare(out_dir, force)
        names = [_name(i, item, objectives, len(items)) for i, item in enumerate(items)]
        models = tuple(
            _export_one(space, item, out_dir / name, about, verbatim, (certificates or {}).get(item.architecture.key))
            for item, name in zip(items, names, strict=True)
        )
        more = roles if roles is not None else [{}] * len(models)
        entries = [
            _entry(space, model, i == recommended, role)
            for i, (model, role) in enumerate(zip(models, more, strict=True))
        ]
        manifest = {"schema": SCHEMA, **about, "verbatim": verbatim, "run": dict(run or {}), "models": entries}
        atomic.write(out_dir / CARD, model_card(manifest))
        # last: a folder with a manifest is complete
        atomic.write(out_dir / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise ExportFailed(
            f"could not write models to {out_dir}: {error.strerror or error}. Choose a folder that can be written "
            "and has space, then export again with --force"
        ) from error
    return ExportOutcome(out_dir, models, manifest)


def model_card(manifest: Mapping[str, Any]) -> str:
    """README.md for a folder of models, from its manifest."""
    models = manifest["models"]
    written = [model for model in models if model["status"] == Status.OK]
    columns = list(dict.fromkeys(_column(row) for model in models for row in model["metrics"]))
    heads = ["", "file", "parameters of the file [M]", "MACs of the file [M]", *columns, "architecture"]
    lines = [
        f"# {len(written)} networks of the space {manifest['space']} for {manifest['dataset']}",
        "",
        f"**The weights are {manifest['weights']}** (random, seed {manifest['seed']}): the files serve to time and "
        "deploy the architectures; train them before using their outputs. Error figures below are those of the "
        "architectures as their sources trained them, not of these weights.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
        *(_card_row(model, columns) for model in models),
        "",
    ]
    if any(map(_star, models)):
        lines += ["★ recommended" + (" on a device; ● for all devices" if "fronts" in models[0] else ""), ""]
    lines += ["## Where the numbers come from", ""]
    lines.append(
        "- parameters and MACs of the file: counted from the file, per image; edges that reach no output are "
        + ("kept" if manifest["verbatim"] else "left out")
        + " and norms may be folded into convolutions"
    )
    lines += [f"- {told}" for told in dict.fromkeys(_origin(row) for model in models for row in model["metrics"])]
    if written:
        one = written[0]
        shape = tuple(one["input_shape"])
        lines += [
            "",
            "## Use",
            "",
            f"Input: float32 {shape}, batch size fixed. Output: logits {tuple(one['output_shape'])}. "
            f"ONNX opset {one['opset']}.",
            "",
            "```python",
            "import numpy as np, onnxruntime",
            f'session = onnxruntime.InferenceSession("{one["file"]}")',
            f"logits = session.run(None, {{session.get_inputs()[0].name: np.zeros({shape}, np.float32)}})[0]",
            "```",
            "",
            "Each file passed the ONNX checker and one run in ONNX Runtime. `manifest.json` holds sha256 sums, sizes "
            "and every figure with its context; the same facts are in each file's metadata (`hwnas.*`).",
        ]
    made = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    lines += ["", f"Made {manifest['created']} with {made}.", ""]
    return "\n".join(lines)


def _export_one(
    space: SearchSpace,
    item: Evaluation,
    path: Path,
    about: Mapping[str, Any],
    verbatim: bool,
    certificate: Mapping[str, Mapping[str, Any]] | None,
) -> Exported:
    """One model, built, checked, run and written; everything that is wrong with it becomes its status."""
    stage = Status.EXPORT_FAILED
    try:
        dataset, batch = about["dataset"], about["batch"]
        model = space.to_onnx(item.architecture, dataset, seed=about["seed"], batch=batch, verbatim=verbatim)
        _annotate(model, space, item, about)
        if certificate:
            model.metadata_props.add(key="hwnas.certificate", value=json.dumps(certificate, allow_nan=False))
        stage = Status.INVALID_MODEL
        _check(model)
        params, macs = count_params(model), count_macs(model)
        macs = None if macs is None else macs // batch
        for name, number in ((_FILE_PARAMS, params), (_FILE_MACS, macs)):
            if number is not None:
                model.metadata_props.add(key=f"hwnas.{name}", value=str(number))
        content = model.SerializeToString()
        stage = Status.CRASHED
        given, got = _run(content, (batch, *space.input_shape(dataset)))
    except MemoryError as error:
        return Exported(item, None, Status.OUT_OF_MEMORY, str(error) or "not enough memory")
    except _WrongOutput as error:
        return Exported(item, None, Status.NUMERICS_MISMATCH, str(error))
    except Exception as error:  # whatever a space or a runtime raises costs this model only
        return Exported(item, None, stage, f"{type(error).__name__}: {error}")
    atomic.write(path, content)
    if certificate:
        atomic.write(path.with_suffix(CERTIFICATE), json.dumps(certificate, indent=1, allow_nan=False) + "\n")
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    digest = hashlib.sha256(content).hexdigest()
    exporter = next((entry.value for entry in model.metadata_props if entry.key == "hwnas.exporter"), None)
    return Exported(item, path.name, Status.OK, "", digest, len(content), given, got, opset, exporter, params, macs)


def add_to_certificate(path: Path, timed: Mapping[str, Mapping[str, Any]]) -> None:
    """Add to the certificate beside a model how this very file was timed, by device, as `exported`. The one in its
    metadata stays as it is: another file than the one that was timed would come out."""
    beside = path.with_suffix(CERTIFICATE)
    certificate = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    for device, told in timed.items():
        certificate.setdefault(device, {})["exported"] = dict(told)
    atomic.write(beside, json.dumps(certificate, indent=1, allow_nan=False) + "\n")


def _annotate(model: onnx.ModelProto, space: SearchSpace, item: Evaluation, about: Mapping[str, Any]) -> None:
    metrics = [_fact(row) for row in item.measurements]
    facts = {
        "architecture": space.format(item.architecture),
        "key": item.architecture.key,
        "space": about["space"],
        "dataset": about["dataset"],
        "weights": about["weights"],
        "seed": str(about["seed"]),
        "metrics": json.dumps(metrics, ensure_ascii=False, allow_nan=False),
        "versions": json.dumps(about["versions"]),
        "created": about["created"],
    }
    known_keys = {entry.key for entry in model.metadata_props}
    for key, value in facts.items():
        if f"hwnas.{key}" not in known_keys:
            model.metadata_props.add(key=f"hwnas.{key}", value=value)
    model.producer_name = model.producer_name or "hwnas"
    model.producer_version = model.producer_version or __version__


def _check(model: onnx.ModelProto) -> None:
    import onnx

    onnx.checker.check_model(model, full_check=True)


class _WrongOutput(HwnasError):
    """A model that runs but does not answer as declared."""


def _run(content: bytes, wanted: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and output shape of a model that gives finite numbers of the declared shape for a random input."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    given = tuple(entry.shape)
    if given != wanted:
        raise _WrongOutput(f"the model declares the input {given}, its space and data set want {wanted}")
    data = np.random.default_rng(0).standard_normal(wanted, dtype=np.float32)
    declared = session.get_outputs()[0]
    output = session.run([declared.name], {entry.name: data})[0]
    if tuple(declared.shape) != output.shape or output.shape[0] != wanted[0]:
        raise _WrongOutput(
            f"the model declares the output {tuple(declared.shape)} for batch size {wanted[0]} and gave {output.shape}"
        )
    if not np.isfinite(output).all():
        bad = int((~np.isfinite(output)).sum())
        raise _WrongOutput(f"{bad} of {output.size} output numbers are not finite for a normal random input")
    return given, tuple(output.shape)


def _prepare(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunExists(f"{folder} is a file; models are written to a folder. Choose another one with --out")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise RunExists(f"{folder} is not empty and is never overwritten. Choose another folder, or give --force")
        _remove_earlier(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _remove_earlier(folder: Path) -> None:
    """Remove the models that an earlier manifest in the folder names, so that none outlives its manifest."""
    try:
        earlier = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["models"]
        names = [str(model["file"]) for model in earlier if model.get("file")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # not one of ours: nothing there is removed
    (folder / MANIFEST).unlink()
    for name in names:
        # a manifest is a file that anybody may edit: only plain names of models in this folder count
        if name.endswith(".onnx") and Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
            (folder / name).with_suffix(CERTIFICATE).unlink(missing_ok=True)


def _name(index: int, item: Evaluation, objectives: Sequence[Objective], count: int) -> str:
    """A readable file name that every file system takes: "01-error30.12-lat4.213-nb201-0.3.1.1.4.2.onnx"."""
    repeated = [o.metric for o in objectives]
    parts = []
    for objective in objectives:
        row = item.find(objective.metric, objective.device)
        if row is not None and row.status.has_value:
            where = f"-{objective.device}" if repeated.count(objective.metric) > 1 else ""
            tag = _TAGS.get(objective.metric, objective.metric)
            parts.append(f"{tag}{where}{quantity(objective.metric, row.value, unit=False)}")
    key = item.architecture.key
    if len(key) > 60:
        key = f"{key[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    number = str(index + 1).zfill(max(2, len(str(count))))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([number, *parts, key])) + ".onnx"


def _entry(space: SearchSpace, model: Exported, recommended: bool, role: Mapping[str, Any]) -> dict[str, Any]:
    architecture = model.evaluation.architecture
    return {
        "file": model.file,
        "status": str(model.status),
        "message": model.message,
        "recommended": recommended,
        **role,
        "key": architecture.key,
        "arch": _notation(space, model.evaluation),
        "sha256": model.sha256,
        "bytes": model.bytes,
        "input_shape": list(model.input_shape),
        "output_shape": list(model.output_shape),
        "opset": model.opset,
        "exporter": model.exporter,
        _FILE_PARAMS: model.params,
        _FILE_MACS: model.macs,
        "metrics": [_fact(row) for row in model.evaluation.measurements],
    }


def _notation(space: SearchSpace, item: Evaluation) -> str:
    try:
        return space.format(item.architecture)
    except HwnasError:  # an architecture outside the space is one of the failures that a manifest reports
        return item.architecture.key


def _fact(row: Measurement) -> dict[str, Any]:
    fact = {key: value for key, value in row.to_json().items() if key != "architecture"}
    return {**fact, "unit": known(row.metric).unit, "certainty": certainty(row)}


def _column(fact: Mapping[str, Any]) -> str:
    what = known(fact["metric"])
    device = fact["context"].get("device") if what.per_device else None
    # counts are the space's figures for the whole network; the file, without its dead edges, may hold much less
    whole = " with dead edges" if Context.from_json(fact["context"]).counted else ""
    return f"{what.title}{whole} [{what.unit}]" + (f" {device}" if device else "")


def _card_row(model: Mapping[str, Any], columns: Sequence[str]) -> str:
    values = {_column(fact): fact for fact in model["metrics"]}
    cells = [_card_value(values.get(column)) for column in columns]
    file = f"`{model['file']}`" if model["file"] else f"**{model['status']}**: {model['message']}"
    notation = "`" + model["arch"].replace("|", "\\|") + "`"
    counts = ["-" if model[name] is None else f"{model[name] / 1e6:.3f}" for name in (_FILE_PARAMS, _FILE_MACS)]
    row = [_star(model), file.replace("\n", " ").replace("|", "\\|"), *counts, *cells, notation]
    return "| " + " | ".join(row) + " |"


def _star(model: Mapping[str, Any]) -> str:
    """The mark of a recommended model; with several devices with the names of those that it is recommended on."""
    if "fronts" not in model:
        return "★" if model["recommended"] else ""
    on = f"★ {', '.join(model['recommended_on'])}" if model["recommended_on"] else ""
    return " ".join(filter(None, [on, "●" if model["portfolio"] else ""]))


def _card_value(fact: Mapping[str, Any] | None) -> str:
    if fact is None:
        return "-"
    return fact["status"] if fact["value"] is None else quantity(fact["metric"], fact["value"], unit=False)


def _origin(fact: Mapping[str, Any]) -> str:
    row = Measurement.from_json({**fact, "architecture": "any:0"})
    return f"{_column(fact)}: {provenance(row.context)}"


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("numpy", "onnx", "onnxruntime")}
    return {
        "hwnas": __version__,
        "python": platform.python_version(),
        **{name: number for name, number in found.items() if number is not None},
    }
