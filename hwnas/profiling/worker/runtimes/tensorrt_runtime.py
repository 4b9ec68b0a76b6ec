"""TensorRT 10 and 11 through its own Python interface: parser, builder, engine, execution context.

Not verified on hardware. The sequence of calls is tested against a fake that has exactly the attributes of the real
modules of 10.0, 10.16 and 11.4, as recorded from NVIDIA's wheels.

Options (`SessionConfig.options`):

    mode                "graph" (default): capture once as a CUDA graph and launch that; or "stream"
    tf32                whether fp32 may be rounded to TF32 (default false)
    workspace_mib       memory that a layer's implementation may use while it runs; TensorRT's default is all there is
    optimization_level  0 to 5, how long TensorRT looks for fast implementations (its default is 3)

Precision: TensorRT 10 chooses fp16 where it is faster when fp16 is asked for. TensorRT 11 runs exactly the types that
the model declares, and so does int8 with either (Q/DQ nodes in the model): a model without them is then refused.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas import atomic
from hwnas.core.measurement import Status
from hwnas.profiling import host
from hwnas.profiling.backend import DeviceInfo, Failure, MemoryInfo, Sample, SessionConfig
from hwnas.profiling.worker import engines
from hwnas.profiling.worker.clock import sample
from hwnas.profiling.worker.inputs import make_inputs
from hwnas.profiling.worker.runtimes.cudart import Cuda

_PRECISIONS = ("fp32", "fp16", "int8")
_DEFAULTS: Mapping[str, Any] = {"mode": "graph", "tf32": False, "workspace_mib": None, "optimization_level": None}


class TensorRT:
    """TensorRT on the first CUDA device.

    Args:
        device: Unused; there is one kind of device.
    """

    def __init__(self, device: str = "") -> None:
        del device

    def probe(self) -> DeviceInfo:
        try:
            trt = importlib.import_module("tensorrt")
        except (ImportError, OSError) as error:  # OSError: a library beside it does not load
            return host.unavailable(f"tensorrt cannot be imported ({error}): pip install 'hwnas[tensorrt]'")
        versions = {"tensorrt": str(trt.__version__)}
        if _major(trt) < 10:
            return host.unavailable(f"TensorRT 10 or newer is wanted, {trt.__version__} is installed", versions)
        try:
            facts = Cuda().facts()
        except Failure as failure:
            return host.unavailable(failure.message, versions)
        return DeviceInfo(
            True, "", facts["name"], versions, {**host.facts(), **facts, **(host.nvidia_gpu() or {}), **versions}
        )

    def free_bytes(self, config: SessionConfig) -> int | None:
        return Cuda().free_bytes()

    def total_bytes(self, config: SessionConfig) -> int | None:
        return Cuda().total_bytes()

    def load(self, model: Path, config: SessionConfig) -> TensorRTModel:
        options = _options(config)
        cuda = Cuda()  # before anything of TensorRT: without a device that ends the process
        trt = importlib.import_module("tensorrt")
        if _major(trt) < 10:
            raise Failure(Status.BACKEND_UNAVAILABLE, f"TensorRT 10 or newer is wanted, {trt.__version__} is installed")
        return TensorRTModel(Path(model), config, options, trt, cuda)


@dataclass(frozen=True)
class _Buffer:
    """One input or output on the device."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int


class TensorRTModel:
    """An engine with one execution context, its inputs and outputs at fixed places on the device."""

    def __init__(self, path: Path, config: SessionConfig, options: Mapping[str, Any], trt: Any, cuda: Cuda) -> None:
        self._trt, self._cuda = trt, cuda
        self._addresses: list[int] = []
        self._events: list[Any] = []
        self._stream: Any = None
        self._launchable: Any = None
        self._logger = _logger(trt)
        before = host.resident_bytes()
        try:
            started = time.perf_counter()
            plan, self._inputs = _plan(path, config, options, trt, cuda, self._logger)
            self._runtime = trt.Runtime(self._logger)
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:  # a file of the cache may be damaged
                plan, _ = _plan(path, config, options, trt, cuda, self._logger, reuse=False)
                engine = self._must(self._runtime.deserialize_cuda_engine(plan), "reading the engine")
            self.build_s = time.perf_counter() - started
            self._engine, self._plan_bytes = engine, len(plan)
            self._context = self._must(self._engine.create_execution_context(), "making an execution context")
            (self._stream,) = cuda.call("cudaStreamCreate")
            self._events = [cuda.call("cudaEventCreate")[0] for _ in range(2)]
            self._fed, self._found = self._bind()
            if options["mode"] == "graph":
                self._enqueue()  # what the first run sets up must not be part of the graph
                cuda.call("cudaStreamSynchronize", self._stream)
                self._launchable = cuda.captured(self._stream, self._enqueue)
        except BaseException:
            self.close()
            raise
        precision = f"{config.precision}, tf32 {'on' if options['tf32'] else 'off'}"
        layers = f"{self._engine.num_layers} layers"
        self.providers: Sequence[str] = (f"TensorRT {trt.__version__}", options["mode"], precision, layers)
        self._grown = host.resident_bytes() - before

    def run(self, n: int = 1) -> None:
        for _ in range(n):
            self._launch()
        self._cuda.call("cudaStreamSynchronize", self._stream)

    def timed(self, k: int, loops: int = 1) -> list[Sample]:
        begin, end = self._events

        def run(n: int) -> None:
            self._cuda.call("cudaEventRecord", begin, self._stream)
            for _ in range(n):
                self._launch()
            self._cuda.call("cudaEventRecord", end, self._stream)
            self._cuda.call("cudaEventSynchronize", end)

        def device_ns() -> float:
            return 1e6 * float(self._cuda.call("cudaEventElapsedTime", begin, end)[0])

        return [sample(run, loops, thread_time=False, device_ns=device_ns) for _ in range(k)]

    def inputs(self) -> dict[str, NDArray[Any]]:
        return self._inputs

    def outputs(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        for buffer in self._fed:
            self._cuda.upload(buffer.address, np.ascontiguousarray(feeds[buffer.name], dtype=buffer.dtype))
        self.run()
        found = [np.empty(buffer.shape, dtype=buffer.dtype) for buffer in self._found]
        for buffer, value in zip(self._found, found, strict=True):
            self._cuda.download(buffer.address, value)
        for buffer in self._fed:  # what is timed stays what it was
            self._cuda.upload(buffer.address, np.ascontiguousarray(self._inputs[buffer.name]))
        return [v.astype(np.float32) if np.issubdtype(v.dtype, np.floating) else v for v in found]

    def memory(self) -> MemoryInfo:
        engine, trt = self._engine, self._trt
        scratch = int(engine.device_memory_size_v2 if _has_v2(engine) else engine.device_memory_size)
        weights = None
        if hasattr(engine, "get_engine_stat"):
            weights = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))
        bound = sum(int(np.prod(b.shape)) * b.dtype.itemsize for b in (*self._fed, *self._found))
        source = {
            "activation_peak": "TensorRT: what an execution context needs, scratch memory included",
            "engine": "size of the serialised engine",
            "device": "sum of engine weights, execution context, inputs and outputs",
            "rss_delta": "resident memory of the worker before and after loading; rough",
        }
        if weights is not None:
            source["weights"] = "TensorRT's statistics of the engine"
        else:
            source["device"] = "sum of the serialised engine, execution context, inputs and outputs"
        resident = self._plan_bytes if weights is None else weights
        return MemoryInfo(weights, scratch, self._plan_bytes, self._grown, resident + scratch + bound, source)

    def close(self) -> None:
        if self._launchable is not None:
            self._cuda.call("cudaGraphExecDestroy", self._launchable)
            self._launchable = None
        for name in ("_context", "_engine", "_runtime"):  # each is made by the next
            if hasattr(self, name):
                delattr(self, name)
        while self._addresses:
            self._cuda.call("cudaFree", self._addresses.pop())
        while self._events:
            self._cuda.call("cudaEventDestroy", self._events.pop())
        if self._stream is not None:
            self._cuda.call("cudaStreamDestroy", self._stream)
            self._stream = None

    def _launch(self) -> None:
        if self._launchable is None:
            self._enqueue()
        else:
            self._cuda.call("cudaGraphLaunch", self._launchable, self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise Failure(Status.CRASHED, f"TensorRT does not run the engine: {self._logger.told()}")

    def _bind(self) -> tuple[list[_Buffer], list[_Buffer]]:
        """Shapes of the inputs, then places of inputs and outputs; the inputs are filled."""
        trt, engine, context = self._trt, self._engine, self._context
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        fed = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in fed:
            if not context.set_input_shape(name, self._inputs[name].shape):
                raise Failure(
                    Status.INVALID_MODEL, f"TensorRT refuses the shape {self._inputs[name].shape} of input {name!r}"
                )
        buffers = {name: self._buffer(name) for name in names}
        for name in fed:
            self._cuda.upload(buffers[name].address, np.ascontiguousarray(self._inputs[name]))
        return [buffers[name] for name in fed], [buffers[name] for name in names if name not in fed]

    def _buffer(self, name: str) -> _Buffer:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise Failure(Status.UNSUPPORTED_OP, f"the shape of output {name!r} depends on the data: {list(shape)}")
        dtype = _dtype(self._trt, name, self._engine.get_tensor_dtype(name))
        address = self._cuda.allocate(int(np.prod(shape)) * dtype.itemsize)
        self._addresses.append(address)
        if not self._context.set_tensor_address(name, address):
            raise Failure(Status.CRASHED, f"TensorRT refuses the place of {name!r}: {self._logger.told()}")
        return _Buffer(name, shape, dtype, address)

    def _must(self, made: Any, what: str) -> Any:
        if made is None:
            raise _failure(f"{what} failed", self._logger.told())
        return made


def _plan(
    path: Path,
    config: SessionConfig,
    options: Mapping[str, Any],
    trt: Any,
    cuda: Cuda,
    logger: Any,
    *,
    reuse: bool = True,
) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """The serialised engine, built or from the cache, and what it is timed with."""
    trt.init_libnvinfer_plugins(logger, "")  # some operators of ONNX are plugins
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise _parser_failure(path, parser, logger)
    given = [network.get_input(i) for i in range(network.num_inputs)]
    inputs = make_inputs([(i.name, _sizes(i.shape), _dtype(trt, i.name, i.dtype)) for i in given], config.shapes)
    facts = cuda.facts()
    kept = None if config.cache is None else Path(config.cache)
    engine_file = kept and kept / f"{_engine_key(path, config, options, trt, facts, inputs)}.engine"
    if reuse and engine_file and engine_file.is_file():
        engines.used(engine_file)
        return engine_file.read_bytes(), inputs
    settings = builder.create_builder_config()
    _configure(trt, settings, network, config, options)
    dynamic = [i for i in given if any(size < 0 for size in i.shape)]
    if dynamic:
        profile = builder.create_optimization_profile()
        for i in dynamic:
            profile.set_shape(i.name, *[inputs[i.name].shape] * 3)
        settings.add_optimization_profile(profile)
    # with the timings of an earlier build this one would choose as that did: what building again changes would not show
    timings = None if config.build else kept and kept / f"{_digest(facts, str(trt.__version__))[:32]}.timing"
    if timings:
        known = timings.read_bytes() if timings.is_file() else b""
        if not settings.set_timing_cache(settings.create_timing_cache(known), False):
            settings.set_timing_cache(settings.create_timing_cache(b""), False)  # of another device or version
    memory = builder.build_serialized_network(network, settings)
    if memory is None:
        raise _failure(f"TensorRT cannot build an engine for {path.name}", logger.told())
    plan = bytes(memory)
    if timings:
        atomic.write(timings, bytes(settings.get_timing_cache().serialize()))
    if engine_file:
        atomic.write(engine_file, plan)
    return plan, inputs


def _configure(trt: Any, settings: Any, network: Any, config: SessionConfig, options: Mapping[str, Any]) -> None:
    flags = trt.BuilderFlag
    if options["tf32"]:
        settings.set_flag(flags.TF32)
    else:  # on by default
        settings.clear_flag(flags.TF32)
    if options["workspace_mib"] is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options["workspace_mib"]) << 20)
    if options["optimization_level"] is not None:
        settings.builder_optimization_level = int(options["optimization_level"])
    if config.precision == "fp32":
        return
    weak = hasattr(flags, "FP16")  # until TensorRT 10
    wanted = trt.DataType.HALF if config.precision == "fp16" else trt.DataType.INT8
    if weak:
        settings.set_flag(flags.FP16 if config.precision == "fp16" else flags.INT8)
    if (config.precision == "int8" or not weak) and wanted not in _types(network):
        raise Failure(
            Status.INVALID_MODEL,
            f"precision {config.precision} is asked for, but TensorRT {trt.__version__} runs the types that the model "
            f"declares, and this one has no {config.precision}: convert it first "
            f"({'Q/DQ nodes' if config.precision == 'int8' else 'to fp16'})",
        )


def _types(network: Any) -> list[Any]:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [layer.get_output(i).dtype for layer in layers for i in range(layer.num_outputs)]


def _engine_key(
    path: Path,
    config: SessionConfig,
    options: Mapping[str, Any],
    trt: Any,
    facts: Mapping[str, str],
    inputs: Mapping[str, NDArray[Any]],
) -> str:
    """Everything that an engine depends on: the model with its weights, how it is built, for what, and by what; and
    which of several builds it is."""
    shapes = {name: value.shape for name, value in inputs.items()}
    built = {name: value for name, value in options.items() if name != "mode"}
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    again = [config.build] if config.build else []
    return _digest(content, config.precision, built, shapes, facts, str(trt.__version__), *again)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _options(config: SessionConfig) -> dict[str, Any]:
    """The options with their defaults.

    Raises:
        Failure: One that does not exist, or a value that cannot be.
    """
    unknown = sorted(set(config.options) - set(_DEFAULTS))
    if unknown:
        raise Failure(
            Status.BACKEND_UNAVAILABLE,
            f"the tensorrt runtime has no option {unknown[0]!r}; it has {', '.join(_DEFAULTS)}",
        )
    if config.precision not in _PRECISIONS:
        raise Failure(
            Status.INVALID_MODEL,
            f"TensorRT is asked for precision {config.precision!r}; it runs {', '.join(_PRECISIONS)}",
        )
    chosen = {**_DEFAULTS, **config.options}
    if chosen["mode"] not in ("graph", "stream"):
        raise Failure(Status.BACKEND_UNAVAILABLE, f"the option 'mode' is graph or stream; got {chosen['mode']!r}")
    return chosen


def _logger(trt: Any) -> Any:
    """A logger that keeps what went wrong: TensorRT returns None and says why only there."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(message.strip())

        def told(self) -> str:
            return "; ".join(self._errors[-3:]) or "TensorRT gave no reason"

    return Logger()


def _parser_failure(path: Path, parser: Any, logger: Any) -> Failure:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    told = "; ".join(f"{error.node_operator()}: {error.desc()}" for error in errors) or logger.told()
    unsupported = (
        any("UNSUPPORTED" in str(error.code()) for error in errors) or "no importer registered" in told.lower()
    )
    status = Status.UNSUPPORTED_OP if unsupported else Status.INVALID_MODEL
    return Failure(status, f"TensorRT's parser refuses {path.name}: {told}")


def _failure(what: str, told: str) -> Failure:
    memory = any(sign in told.lower() for sign in ("out of memory", "outofmemory", "insufficient memory"))
    return Failure(Status.OUT_OF_MEMORY if memory else Status.CRASHED, f"{what}: {told}")


def _has_v2(engine: Any) -> bool:
    """The only name in TensorRT 11; 10.0 has only the older one."""
    return hasattr(engine, "device_memory_size_v2")


def _sizes(shape: Any) -> list[int | None]:
    return [size if size >= 0 else None for size in tuple(shape)]


def _dtype(trt: Any, name: str, kind: Any) -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(trt.nptype(kind))
        return found
    except TypeError as error:
        raise Failure(
            Status.INVALID_MODEL, f"{name!r} is of the type {kind}, which has no counterpart in numpy"
        ) from error


def _major(trt: Any) -> int:
    return int(str(trt.__version__).partition(".")[0])
