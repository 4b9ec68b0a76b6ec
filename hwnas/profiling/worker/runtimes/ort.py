"""ONNX Runtime with any execution provider.

Always with explicit threads (its default pins to cores that a container may not own), sequential, all graph
optimisations, inputs and outputs bound. A provider that is not the one asked for is refused: given providers that it
cannot load, ONNX Runtime silently runs on the CPU.

Options (`SessionConfig.options`) are ONNX Runtime's own: keys that start with "session." or "optimization." go to the
session, all others to the provider, and both win over the defaults set here.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas import optional
from hwnas.core.measurement import Status
from hwnas.profiling import host
from hwnas.profiling.backend import DeviceInfo, Failure, MemoryInfo, Sample, SessionConfig
from hwnas.profiling.worker.clock import sample
from hwnas.profiling.worker.inputs import make_inputs

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_WHEELS = {
    CPU: "onnxruntime",
    CUDA: "hwnas[gpu]",
    TENSORRT: "hwnas[gpu,tensorrt]",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
}
_GPU = (CUDA, TENSORRT, "NvTensorRTRTXExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider")
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class OnnxRuntime:
    """One execution provider.

    Args:
        provider: Its name as ONNX Runtime spells it.
    """

    def __init__(self, provider: str) -> None:
        self.provider = provider

    def probe(self) -> DeviceInfo:
        try:
            import onnxruntime
        except ImportError as error:
            return host.unavailable(f"onnxruntime cannot be imported ({error}): pip install {_WHEELS[CPU]}")
        # the package's files and not its module: onnxruntime-gpu has the same module
        versions = {name: version for name in ("onnxruntime", "onnxruntime-gpu") if (version := _version(name))}
        found = onnxruntime.get_available_providers()
        if self.provider not in found:
            wheel = _WHEELS.get(self.provider)
            advice = f": pip install '{wheel}'" if wheel else ""
            if self.provider in (CUDA, TENSORRT):
                advice += f" && {optional.ONE_ONNXRUNTIME}"
            return host.unavailable(
                f"the installed onnxruntime has no {self.provider} (it has {', '.join(found)}){advice}", versions
            )
        if self.provider in _GPU:
            gpu = host.nvidia_gpu()
            if gpu is None:
                return host.unavailable("no NVIDIA GPU or driver was found", versions)
            return DeviceInfo(True, "", gpu["name"], versions, {**host.facts(), **gpu, **versions})
        facts = {**host.facts(), **versions}
        return DeviceInfo(True, "", facts["cpu"], versions, facts)

    def free_bytes(self, config: SessionConfig) -> int | None:
        # where nvidia-smi is missing, GPU and CPU share their memory (Jetson)
        return (host.free_gpu_bytes() if self.provider in _GPU else None) or host.free_bytes()

    def total_bytes(self, config: SessionConfig) -> int | None:
        return (host.total_gpu_bytes() if self.provider in _GPU else None) or host.total_bytes()

    def load(self, model: Path, config: SessionConfig) -> OrtModel:
        return OrtModel(Path(model), config, self.provider)


class OrtModel:
    """A session with its inputs bound where the provider wants them."""

    build_s = 0.0  # compiling is part of creating the session

    def __init__(self, path: Path, config: SessionConfig, provider: str) -> None:
        self._path, self._config, self._provider = path, config, provider
        before = host.resident_bytes()
        self._session = self._create(profile=None)
        self.providers: Sequence[str] = self._session.get_providers()
        if self.providers[0] != provider:
            raise Failure(
                Status.EP_FALLBACK,
                f"asked for {provider}, but ONNX Runtime would run on {', '.join(self.providers)}",
            )
        declared = [(i.name, i.shape, np.dtype(_element(i))) for i in self._session.get_inputs()]
        _check_precision(config, provider, [i.type for i in self._session.get_inputs()])
        self._inputs = make_inputs(declared, config.shapes)
        self._binding = self._session.io_binding()
        device = "cuda" if provider in _GPU else "cpu"
        self._resident = {name: _to_device(value, device) for name, value in self._inputs.items()}
        for name, value in self._resident.items():
            self._binding.bind_ortvalue_input(name, value)
        self._results = [self._bind(output, device) for output in self._session.get_outputs()]
        self._grown = host.resident_bytes() - before

    def run(self, n: int = 1) -> None:
        for _ in range(n):
            self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def timed(self, k: int, loops: int = 1) -> list[Sample]:
        one_thread = self._config.threads == 1 and self._provider not in _GPU
        return [sample(self.run, loops, thread_time=one_thread) for _ in range(k)]

    def inputs(self) -> dict[str, NDArray[Any]]:
        return self._inputs

    def outputs(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        return [np.asarray(value) for value in self._session.run(None, dict(feeds))]

    def memory(self) -> MemoryInfo:
        """From a run of its own with profiling on: ONNX Runtime's plan, which no other process disturbs."""
        nodes = self._profiled()
        peaks = [int(node["mem_in_use_peak"]) for node in nodes if "mem_in_use_peak" in node]
        weights = [int(node["parameter_size"]) for node in nodes if "parameter_size" in node]
        engine = self._engine_bytes()
        found = {
            "weights": (sum(weights) if weights else None, "ONNX Runtime's profile: parameters of each node, summed"),
            "activation_peak": (max(peaks, default=None), "ONNX Runtime's memory plan"),
            "engine": (engine, "TensorRT engines that ONNX Runtime has written to the cache"),
            "rss_delta": (self._grown, "resident memory of the worker before and after loading; rough"),
        }
        source = {name: source for name, (value, source) in found.items() if value is not None}
        if not nodes:
            source["reason"] = "ONNX Runtime has folded the whole network into constants, and plans no memory for it"
        return MemoryInfo(**{name: value for name, (value, _) in found.items()}, source=source)

    def _engine_bytes(self) -> int | None:
        """Size of the engines of this very model (their names begin with its digest); None where there are none."""
        if self._provider != TENSORRT or self._config.cache is None:
            return None
        engines = Path(self._config.cache).glob(f"{_engine_prefix(self._path, self._config)}*.engine")
        return sum(engine.stat().st_size for engine in engines) or None

    def _profiled(self) -> list[dict[str, Any]]:
        """What ONNX Runtime's profile says of each node of one run."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._create(profile=os.path.join(folder, "profile"))
            session.run(None, self._inputs)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return [event["args"] for event in events if event.get("cat") == "Node" and "provider" in event["args"]]

    def _bind(self, output: Any, device: str) -> Any:
        """Give an output its place: on a GPU one that never moves, which CUDA graphs want."""
        fixed = all(isinstance(size, int) and size > 0 for size in output.shape)
        if device == "cpu" or not fixed or output.type not in _TYPES:
            self._binding.bind_output(output.name, device)
            return None
        import onnxruntime

        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(output.shape, _TYPES[output.type], device, 0)
        self._binding.bind_ortvalue_output(output.name, value)
        return value

    def close(self) -> None:
        for name in ("_binding", "_results", "_resident", "_session"):
            if hasattr(self, name):
                delattr(self, name)

    def _create(self, profile: str | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._config.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._config.spinning else "0")
        if self._provider != CPU:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider_options: dict[str, Any] = dict(_defaults(self._provider, self._config, self._path))
        for key, value in self._config.options.items():
            if key.startswith(("session.", "optimization.")):
                options.add_session_config_entry(key, str(value))
            else:
                provider_options[key] = str(value)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        if self._provider not in onnxruntime.get_available_providers():
            raise Failure(
                Status.BACKEND_UNAVAILABLE,
                f"the installed onnxruntime has no {self._provider}; it has "
                f"{', '.join(onnxruntime.get_available_providers())}",
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                session = onnxruntime.InferenceSession(
                    str(self._path), options, providers=[(self._provider, provider_options)]
                )
                session.disable_fallback()
                return session
        except Exception as error:
            if "fallback to CPU EP" in str(error) or "disable_cpu_ep_fallback" in str(error):
                raise Failure(
                    Status.EP_FALLBACK,
                    f"{self._provider} cannot run all of the network, the rest would run on the CPU: {error}",
                ) from error
            raise


def _defaults(provider: str, config: SessionConfig, model: Path) -> dict[str, str]:
    """Options that make figures comparable; the user's own win over them."""
    if provider == CUDA:
        # the exhaustive search of kernels is slow per network and chooses differently from run to run; without the
        # second option "fp32" would be TF32 on newer GPUs
        return {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    if provider != TENSORRT:
        return {}
    precision = {
        "trt_fp16_enable": str(config.precision == "fp16"),
        "trt_int8_enable": str(config.precision == "int8"),  # scales come from the model's Q/DQ nodes
    }
    if config.cache is None:
        return precision
    Path(config.cache).mkdir(parents=True, exist_ok=True)
    return {
        **precision,
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": config.cache,
        # ONNX Runtime's own names tell models apart by their graph's name
        "trt_engine_cache_prefix": _engine_prefix(model, config),
        # with the timings of an earlier build another one would choose as that did
        "trt_timing_cache_enable": str(not config.build),
        "trt_timing_cache_path": config.cache,
    }


def _engine_prefix(model: Path, config: SessionConfig) -> str:
    """An engine for two shapes of a dynamic model would be slower for both than one for either."""
    build = f"build{config.build}-" if config.build else ""
    digest = hashlib.sha256(model.read_bytes())
    if config.shapes:
        digest.update(json.dumps(config.shapes, sort_keys=True).encode())
    return f"hwnas-{build}{digest.hexdigest()[:16]}"


def _check_precision(config: SessionConfig, provider: str, types: Sequence[str]) -> None:
    """Refuse a figure under a wrong name: but for TensorRT, ONNX Runtime runs what the file says.

    Raises:
        Failure: fp16 is asked for, and the model takes fp32.
    """
    if config.precision == "fp16" and provider != TENSORRT and "tensor(float)" in types:
        raise Failure(
            Status.INVALID_MODEL,
            f"precision fp16 is asked for, but {provider} runs a model as it is written and this one takes fp32; "
            "convert it to fp16 first, or measure with TensorRT",
        )


def _element(declared: Any) -> type:
    if declared.type not in _TYPES:
        raise Failure(
            Status.INVALID_MODEL,
            f"input {declared.name!r} is a {declared.type}; inputs of {', '.join(_TYPES)} can be made up",
        )
    return _TYPES[declared.type]


def _to_device(value: NDArray[Any], device: str) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
