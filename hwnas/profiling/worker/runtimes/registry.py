"""Runtime names to modules; nothing is imported before its runtime is asked for."""

from __future__ import annotations

import importlib

from hwnas.core.measurement import Status
from hwnas.profiling.backend import Backend, Failure

_HERE = "hwnas.profiling.worker.runtimes"
_BACKENDS = {
    "ort-cpu": (f"{_HERE}.ort", "OnnxRuntime", "CPUExecutionProvider"),
    "ort-cuda": (f"{_HERE}.ort", "OnnxRuntime", "CUDAExecutionProvider"),
    "ort-trt": (f"{_HERE}.ort", "OnnxRuntime", "TensorrtExecutionProvider"),
    "openvino": (f"{_HERE}.openvino_runtime", "OpenVino", "CPU"),
    "torch-cpu": (f"{_HERE}.torch_runtime", "Torch", "cpu"),
    "torch-cuda": (f"{_HERE}.torch_runtime", "Torch", "cuda"),
    "tensorrt": (f"{_HERE}.tensorrt_runtime", "TensorRT", ""),
    "fake": (f"{_HERE}.fake", "Fake", ""),
}
_MADE: dict[str, Backend] = {}


def backend(name: str) -> Backend:
    """The runtime called `name`; "ort:PROVIDER" is any execution provider of ONNX Runtime.

    Raises:
        Failure: No such runtime, or its package is not installed.
    """
    if name not in _MADE:
        if name.startswith("ort:"):
            place = (f"{_HERE}.ort", "OnnxRuntime", name.removeprefix("ort:"))
        elif name in _BACKENDS:
            place = _BACKENDS[name]
        else:
            raise Failure(
                Status.BACKEND_UNAVAILABLE, f"no runtime {name!r}. Known: {', '.join(_BACKENDS)}, ort:PROVIDER"
            )
        module, attribute, argument = place
        made: Backend = getattr(importlib.import_module(module), attribute)(argument)
        _MADE[name] = made
    return _MADE[name]
