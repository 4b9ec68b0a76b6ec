"""OpenVINO: a second compiler and other kernels, hence a second device on the same machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.measurement import Status
from hwnas.profiling import host
from hwnas.profiling.backend import DeviceInfo, Failure, MemoryInfo, Sample, SessionConfig
from hwnas.profiling.worker.clock import sample
from hwnas.profiling.worker.inputs import make_inputs

_PRECISIONS = {"fp32": "f32", "fp16": "f16"}


class OpenVino:
    """One of OpenVINO's devices.

    Args:
        device: "CPU", "GPU", "NPU" as OpenVINO spells them.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def probe(self) -> DeviceInfo:
        try:
            import openvino
        except ImportError as error:
            return host.unavailable(f"openvino cannot be imported ({error}): pip install 'hwnas[openvino]'")
        versions = {"openvino": str(openvino.__version__)}
        try:
            core = openvino.Core()
            found = list(core.available_devices)
            if self.device not in found:
                return host.unavailable(
                    f"OpenVINO sees no {self.device} here, only {', '.join(found) or 'none'}", versions
                )
            name = str(core.get_property(self.device, "FULL_DEVICE_NAME"))
        except RuntimeError as error:
            return host.unavailable(f"OpenVINO does not start: {error}", versions)
        return DeviceInfo(True, "", name, versions, {**host.facts(), "openvino device": name, **versions})

    def free_bytes(self, config: SessionConfig) -> int | None:
        return host.free_bytes()

    def total_bytes(self, config: SessionConfig) -> int | None:
        return host.total_bytes()

    def load(self, model: Path, config: SessionConfig) -> OpenVinoModel:
        return OpenVinoModel(Path(model), config, self.device)


class OpenVinoModel:
    """A compiled model with one inference request, inputs set once."""

    def __init__(self, path: Path, config: SessionConfig, device: str) -> None:
        import openvino

        if config.precision not in _PRECISIONS:
            raise Failure(
                Status.INVALID_MODEL,
                f"OpenVINO is asked for precision {config.precision!r}; it runs {', '.join(_PRECISIONS)} "
                "(int8 has to be in the model)",
            )
        before = host.resident_bytes()
        core = openvino.Core()
        read = core.read_model(str(path))
        declared = [
            (port.get_any_name(), _shape(port.partial_shape), np.dtype(port.element_type.to_dtype()))
            for port in read.inputs
        ]
        self._inputs = make_inputs(declared, config.shapes)
        self._weights = _constants(read)
        read.reshape({name: list(value.shape) for name, value in self._inputs.items()})
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[config.precision],
            "INFERENCE_NUM_THREADS": config.threads,
            "NUM_STREAMS": 1,
        }
        if config.cache is not None:
            options["CACHE_DIR"] = config.cache
        started = time.perf_counter()
        compiled = core.compile_model(read, device, {**options, **config.options})
        self.build_s = time.perf_counter() - started
        self.providers: Sequence[str] = [str(name) for name in compiled.get_property("EXECUTION_DEVICES")]
        if self.providers != [device]:
            raise Failure(
                Status.EP_FALLBACK, f"asked for {device}, but OpenVINO would run on {', '.join(self.providers)}"
            )
        self._request = compiled.create_infer_request()
        for name, value in self._inputs.items():
            self._request.set_tensor(name, openvino.Tensor(value))
        self._compiled = compiled
        self._grown = host.resident_bytes() - before

    def run(self, n: int = 1) -> None:
        for _ in range(n):
            self._request.infer()

    def timed(self, k: int, loops: int = 1) -> list[Sample]:
        # inference runs in OpenVINO's own threads, so the calling thread's CPU time says nothing
        return [sample(self.run, loops, thread_time=False) for _ in range(k)]

    def inputs(self) -> dict[str, NDArray[Any]]:
        return self._inputs

    def outputs(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        found = self._compiled.create_infer_request().infer(dict(feeds))
        return [np.array(found[port]) for port in self._compiled.outputs]

    def memory(self) -> MemoryInfo:
        return MemoryInfo(
            weights=self._weights,
            engine=self._compiled.export_model().getbuffer().nbytes,
            rss_delta=self._grown,
            source={
                "weights": "constants of the model before it is compiled",
                "engine": "size of the exported compiled model, weights included",
                "rss_delta": "resident memory of the worker before and after loading; rough",
            },
        )

    def close(self) -> None:
        for name in ("_request", "_compiled"):
            if hasattr(self, name):
                delattr(self, name)


def _shape(partial: Any) -> list[int | None]:
    if partial.rank.is_dynamic:
        raise Failure(Status.INVALID_MODEL, "an input does not even say how many dimensions it has")
    return [None if size.is_dynamic else size.get_length() for size in partial]


def _constants(model: Any) -> int:
    """Bytes of all constants of a model."""
    found = (op.output(0) for op in model.get_ops() if op.get_type_name() == "Constant")
    return sum(int(np.prod(tuple(port.get_shape()))) * port.get_element_type().size for port in found)
