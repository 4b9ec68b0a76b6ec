"""Any torch module as a checked ONNX file: the fastest exporter that can do it, its outputs compared with torch's.

Exporters in order: "fx" (hwnas's own, milliseconds; see `to_onnx`), "legacy" (torch's tracing one, about a second),
"dynamo" (torch's newer one, about ten seconds, needs onnxscript). A model that an exporter got wrong is never written:
the next one has its turn. Which one made the file is in the result and in the file's metadata (`hwnas.exporter`),
because it changes the graph and with it the latency.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas import __version__, atomic
from hwnas.errors import ExportFailed, UnknownName
from hwnas.optional import version
from hwnas.seeding import stream
from hwnas.spaces.onnx_writer import INPUT, IR_VERSION, OPSET, OUTPUT

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

EXPORTERS = ("fx", "legacy", "dynamo")
TOLERANCE = 1e-4
# an output that moves by less than this from one input to another is a constant, and comparing it proves nothing
_RESPONSE = 1e-3

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class ModuleExport:
    """What became of a module.

    Attributes:
        path: The file.
        exporter: Which one wrote it.
        failed: Why the ones before it did not, by exporter.
        difference: Largest difference between outputs of ONNX Runtime and torch (in double precision where the module
            runs so), over the largest output.
        checked_on: The weights that outputs were compared with: "given"; or "calibrated" where the module's outputs do
            not depend on its inputs, as of untrained networks: then a copy with fresh statistics of its batch norms and
            random numbers for zero weights was exported in the same way and compared; or "constant" where that copy's
            outputs do not depend on its inputs either, and the comparison says little.
        inputs, outputs: Shapes by name.
        opset: Of the model.
        bytes: Size of the file.
        sha256: Of the file.
    """

    path: Path
    exporter: str
    failed: Mapping[str, str]
    difference: float
    checked_on: str
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    opset: int
    bytes: int
    sha256: str


def export_module(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    exporters: Sequence[str] = EXPORTERS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> ModuleExport:
    """Write a torch module as an ONNX file whose outputs equal torch's.

    The module is exported in evaluation mode with static shapes at opset 18, and not changed. Outputs are compared on
    the example and on random inputs of its shapes; control flow that depends on data is found out by these, if one of
    them takes the other way.

    Args:
        module: On the CPU.
        example: Its input, or its inputs in order; their shapes become the model's.
        path: The file; an earlier one is replaced once the new one has been checked.
        exporters: Which to try, in order.
        tolerance: Largest difference, relative to the largest output, that passes.
        seed: Of the random inputs.

    Raises:
        ExportFailed: No exporter could; with the reason of each. Or the module does not run on the example, or the file
            cannot be written.
        UnknownName: An exporter that does not exist.
    """
    for name in exporters:
        if name not in EXPORTERS:
            raise UnknownName("exporter", name, EXPORTERS)
    from hwnas.conversion.to_onnx import evaluating

    given = _examples(example)
    path = Path(path)
    with evaluating(module):
        feeds = _feeds(given, seed)
        try:
            subject, checked_on, wanted = _subject(module, feeds, seed)
        except Exception as error:  # whatever a user's module raises
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
            raise ExportFailed(
                f"{type(module).__name__} does not run on inputs like its example's ({shapes}): {_reason(error)}"
            ) from error
        failed: dict[str, str] = {}
        for name in exporters:
            try:
                model, difference = _attempt(name, module, subject, given, feeds, wanted, tolerance)
            except Exception as error:  # exporters raise whatever they like, and the next one may do better
                failed[name] = _reason(error)
                continue
            return _write(path, model, name, failed, difference, checked_on, given)
    told = "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "no exporter was named"
    raise ExportFailed(f"{type(module).__name__} cannot be written as an ONNX model that equals it. {told}")


class _WrongOutputs(Exception):
    pass


def _attempt(
    name: str,
    module: nn.Module,
    subject: nn.Module,
    given: Sequence[Tensor],
    feeds: Sequence[Arrays],
    wanted: Sequence[Arrays],
    tolerance: float,
) -> tuple[onnx.ModelProto, float]:
    """One exporter's model, and how far its outputs are from torch's.

    Args:
        subject: What is compared: `module`, or a copy of it with other batch statistics.
    """
    import onnx

    export = _EXPORT[name]
    checked = export(subject, given)
    difference = _compare(checked, feeds, wanted, tolerance)
    model = checked if subject is module else export(module, given)
    onnx.checker.check_model(model, full_check=True)
    if subject is not module:
        _run(model, feeds[:1])
    return model, difference


def _export_fx(module: nn.Module, given: Sequence[Tensor]) -> onnx.ModelProto:
    from hwnas.conversion.to_onnx import CannotLower, to_onnx

    if len(given) != 1:
        raise CannotLower(f"one tensor is wanted as input; the module takes {len(given)}")
    return to_onnx(module, given[0], name=type(module).__name__)


def _export_legacy(module: nn.Module, given: Sequence[Tensor]) -> onnx.ModelProto:
    import onnx
    import torch

    with tempfile.TemporaryDirectory() as folder, _quiet():
        torch.onnx.export(
            module,
            tuple(given),
            Path(folder) / "model.onnx",
            dynamo=False,
            opset_version=OPSET,
            input_names=_input_names(given),
            output_names=_output_names(module, given),
        )
        return onnx.load(Path(folder) / "model.onnx")


def _export_dynamo(module: nn.Module, given: Sequence[Tensor]) -> onnx.ModelProto:
    import torch

    if version("onnxscript") is None:
        raise ImportError("needs the package 'onnxscript': pip install 'hwnas[export]'")
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(given),
            dynamo=True,
            opset_version=OPSET,
            input_names=_input_names(given),
            output_names=_output_names(module, given),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch gave no program")
    model: onnx.ModelProto = program.model_proto
    model.ir_version = min(model.ir_version, IR_VERSION)  # newer ones are refused by older runtimes
    return model


_EXPORT: Mapping[str, Callable[[nn.Module, Sequence[Tensor]], Any]] = MappingProxyType(
    {"fx": _export_fx, "legacy": _export_legacy, "dynamo": _export_dynamo}
)


def _input_names(given: Sequence[Tensor]) -> list[str]:
    return [INPUT] if len(given) == 1 else [f"{INPUT}{i}" for i in range(len(given))]


def _output_names(module: nn.Module, given: Sequence[Tensor]) -> list[str]:
    count = len(_torch(module, [np.asarray(tensor.detach().numpy()) for tensor in given]))
    return [OUTPUT] if count == 1 else [f"{OUTPUT}{i}" for i in range(count)]


def _examples(example: Tensor | Sequence[Tensor]) -> list[Tensor]:
    import torch

    given = [example] if isinstance(example, torch.Tensor) else list(example)
    for tensor in given:
        if not isinstance(tensor, torch.Tensor):
            raise ExportFailed(f"an example is a tensor, or several in a tuple; got a {type(tensor).__name__}")
    return [tensor.detach() for tensor in given]


def _feeds(given: Sequence[Tensor], seed: int) -> list[Arrays]:
    """The example, normal numbers, and their negatives; whole numbers stay the example's."""
    own = [np.asarray(tensor.numpy()) for tensor in given]
    rng = stream(seed, 0, "example")
    drawn = [
        rng.standard_normal(value.shape).astype(value.dtype) if np.issubdtype(value.dtype, np.floating) else value
        for value in own
    ]
    return [own, drawn, [-v if np.issubdtype(v.dtype, np.floating) else v for v in drawn]]


def _subject(module: nn.Module, feeds: Sequence[Arrays], seed: int) -> tuple[nn.Module, str, list[Arrays]]:
    """What to compare outputs of: the module if they depend on its input, else a copy of it of which they do."""
    wanted = _truth(module, feeds)
    if _responds(wanted):
        return module, "given", wanted
    calibrated = _calibrated(module, feeds[0], seed)
    outputs = _truth(calibrated, feeds)
    return (calibrated, "calibrated", outputs) if _responds(outputs) else (module, "constant", wanted)


def _responds(outputs: Sequence[Arrays]) -> bool:
    """Whether some output differs between two inputs by more than rounding could explain."""
    first, second = outputs[1], outputs[2]
    return any(_difference(a, b) > _RESPONSE for a, b in zip(first, second, strict=True) if a.size)


def _calibrated(module: nn.Module, example: Arrays, seed: int) -> nn.Module:
    """A copy whose zero weights are random (many heads begin at zero), and whose norms have statistics of real runs."""
    import torch
    from torch import nn

    from hwnas.nn.calibrate import calibrate

    twin, shape = copy.deepcopy(module), example[0].shape
    rng = stream(seed, 0, "weights")
    with torch.no_grad():
        for weight in twin.parameters():
            if weight.ndim > 1 and not weight.any():
                deviation = 1 / np.sqrt(np.prod(weight.shape[1:]))
                drawn = deviation * rng.standard_normal(tuple(weight.shape))
                weight.copy_(torch.from_numpy(drawn))
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if len(example) > 1 or not any(isinstance(layer, norms) for layer in twin.modules()):
        return twin
    for batch in (8, max(shape[0], 2)):  # some modules only take the batch that they were written for
        try:
            return calibrate(twin, shape[1:], rng=stream(seed, 0, "calibrate"), batch=batch)
        except (RuntimeError, ValueError):
            twin.eval()
    return twin


def _truth(module: nn.Module, feeds: Sequence[Arrays]) -> list[Arrays]:
    """What torch gives, in double precision where the module can: its own rounding may exceed the tolerance."""
    try:
        exact = copy.deepcopy(module).double()
        doubles = [[v.astype(np.float64) if v.dtype == np.float32 else v for v in feed] for feed in feeds]
        return [_torch(exact, feed) for feed in doubles]
    except Exception:  # parts that insist on float32, or cannot be copied; whatever they raise
        return [_torch(module, feed) for feed in feeds]


def _torch(module: nn.Module, feed: Arrays) -> Arrays:
    import torch

    with torch.no_grad():
        found = module(*(torch.from_numpy(np.ascontiguousarray(value)) for value in feed))
    tensors = [found] if isinstance(found, torch.Tensor) else _flat(found)
    return [np.asarray(tensor.detach().numpy()) for tensor in tensors]


def _flat(found: Any) -> list[Any]:
    """Tensors of nested lists, tuples and dictionaries, in the order in which torch's exporters name them."""
    import torch

    if isinstance(found, torch.Tensor):
        return [found]
    parts = found.values() if isinstance(found, dict) else found
    return [tensor for part in parts for tensor in _flat(part)]


def _run(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> list[Arrays]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [[np.asarray(value) for value in session.run(None, dict(zip(names, feed, strict=True)))] for feed in feeds]


def _compare(model: onnx.ModelProto, feeds: Sequence[Arrays], wanted: Sequence[Arrays], tolerance: float) -> float:
    worst = 0.0
    for found, expected in zip(_run(model, feeds), wanted, strict=True):
        if [value.shape for value in found] != [value.shape for value in expected]:
            raise _WrongOutputs(
                f"outputs of the shapes {[value.shape for value in found]} where torch gives "
                f"{[value.shape for value in expected]}"
            )
        worst = max([worst, *(_difference(a, b) for a, b in zip(found, expected, strict=True))])
    if not worst <= tolerance:
        raise _WrongOutputs(f"its outputs differ from torch's by {worst:.2g} relative; {tolerance:g} passes")
    return worst


def _difference(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest absolute difference over the largest absolute value of `wanted`; inf where one is not finite."""
    if not found.size:
        return 0.0
    same = found.astype(np.float64) - wanted.astype(np.float64)
    gap, scale = float(np.abs(same).max()), float(np.abs(wanted).astype(np.float64).max())
    return gap / max(scale, 1e-12) if np.isfinite(gap) else float("inf")


def _write(
    path: Path,
    model: onnx.ModelProto,
    exporter: str,
    failed: Mapping[str, str],
    difference: float,
    checked_on: str,
    given: Sequence[Tensor],
) -> ModuleExport:
    facts = {
        "exporter": exporter,
        "exporter_version": __version__ if exporter == "fx" else str(version("torch")),
        "verified": json.dumps(
            {
                "max_rel_diff": difference,
                "against": f"torch {version('torch')}",
                "with": f"onnxruntime {version('onnxruntime')}",
                "weights": checked_on,
            }
        ),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    kept = [entry for entry in model.metadata_props if entry.key.removeprefix("hwnas.") not in facts]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in facts.items():
        model.metadata_props.add(key=f"hwnas.{key}", value=value)
    try:
        content = model.SerializeToString()
        atomic.write(path, content)
    except (OSError, ValueError) as error:  # ValueError: larger than the 2 GiB of a protobuf
        raise ExportFailed(f"{path} cannot be written: {error}") from error
    return ModuleExport(
        path,
        exporter,
        MappingProxyType(dict(failed)),
        difference,
        checked_on,
        _shapes(model.graph.input),
        _shapes(model.graph.output),
        max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        len(content),
        hashlib.sha256(content).hexdigest(),
    )


def _shapes(values: Any) -> dict[str, tuple[int, ...]]:
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters print and log at length what their exceptions say as well."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
            # that an exporter is old, and of branches that tracing takes for granted: outputs are compared
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: Exception) -> str:
    """An exception and what it was caused by in the end, each in one line."""
    from hwnas.conversion.to_onnx import CannotLower

    if isinstance(error, _WrongOutputs | CannotLower):
        return str(error)
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    return _line(error) if root is error else f"{_line(error)} ({_line(root)})"


def _line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    first = next(iter(text.splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"
