"""Fakes of NVIDIA's modules that have exactly the names which the real ones were recorded to have.

`tests/data/recorded_apis.json` holds `dir()` of the modules and classes of the wheels `tensorrt-cu12-bindings` 10.0.1
and 10.16.1, `tensorrt-cu13-bindings` 11.4.0 and `cuda-bindings` 13.5.0. Reading or setting any other name raises
AttributeError, as it would there. Networks are computed by ONNX Runtime, in memory that the fake CUDA hands out, so
wrong places, shapes or orders give wrong outputs. Every call that matters for timing is logged in order.
"""

from __future__ import annotations

import ctypes
import enum
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

APIS = json.loads((Path(__file__).parent / "data" / "recorded_apis.json").read_text())
TENSORRT = [name.removeprefix("tensorrt ") for name in APIS if name.startswith("tensorrt ")]


def strict(cls: type, names: list[str]) -> type:
    """`cls` with those public names only that were recorded; others can be neither read nor set."""
    kept = {key: value for key, value in vars(cls).items() if key.startswith("_") or key in names}
    kept.pop("__dict__", None)
    kept.pop("__weakref__", None)

    def guard(self, name, value):
        if not name.startswith("_") and name not in names:
            raise AttributeError(f"the real {cls.__name__} has no {name!r}")
        object.__setattr__(self, name, value)

    return type(cls.__name__, cls.__bases__, {**kept, "__setattr__": guard})


class Strict:
    """A module with recorded names only."""

    def __init__(self, what: str, values: dict[str, Any], recorded: list[str]) -> None:
        vars(self).update({name: value for name, value in values.items() if name in recorded or name.startswith("__")})
        self._what = what

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the fake of {self._what} has no {name!r}, or the real one has not")


class FakeCuda:
    """`cuda.bindings.runtime` with memory of its own.

    Attributes:
        log: What was done on the stream, and when it was waited for.
        memory: Arrays of bytes by address; freed ones are gone.
        devices: How many there are; without any, every call says so.
        capacity: Bytes that can be allocated.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self.devices = 1
        self.capacity = 1 << 30
        self.streams = self.graphs = self.events = 0
        self._capturing: list[Any] | None = None
        recorded = APIS["cuda.bindings.runtime"]
        kinds = recorded["classes"]
        self.errors = enum.Enum("cudaError_t", kinds["cudaError_t"], start=0)
        values = {name: getattr(self, name) for name in dir(type(self)) if name.startswith("cuda")}
        values |= {
            "cudaError_t": self.errors,
            "cudaMemcpyKind": enum.Enum("cudaMemcpyKind", kinds["cudaMemcpyKind"]),
            "cudaStreamCaptureMode": enum.Enum("cudaStreamCaptureMode", kinds["cudaStreamCaptureMode"]),
            "cudaDeviceScheduleSpin": 1,
        }
        self.module = Strict("cuda.bindings.runtime", values, recorded["module"])

    def on_stream(self, what: str, work: Any) -> None:
        """Do something, or keep it for the graph that is being captured."""
        if self._capturing is not None:
            self._capturing.append((what, work))
        else:
            self.log.append(what)
            work()

    def _ok(self, *values: Any) -> tuple[Any, ...]:
        return (self.errors.cudaSuccess, *values)

    def cudaGetErrorString(self, error):
        return self._ok(error.name.encode())

    def cudaGetDeviceCount(self):
        return self._ok(self.devices) if self.devices else (self.errors.cudaErrorNoDevice, None)

    def cudaSetDeviceFlags(self, flags):
        assert flags == 1
        return self._ok()

    def cudaSetDevice(self, number):
        return self._ok()

    def cudaGetDeviceProperties(self, number):
        values = {"name": b"Fake GPU", "major": 9, "minor": 0, "totalGlobalMem": 8 << 30}
        recorded = APIS["cuda.bindings.runtime"]["classes"]["cudaDeviceProp"]
        return self._ok(Strict("cudaDeviceProp", values, recorded))

    def cudaDriverGetVersion(self):
        return self._ok(13010)

    def cudaRuntimeGetVersion(self):
        return self._ok(13000)

    def cudaMalloc(self, size):
        if sum(block.nbytes for block in self.memory.values()) + size > self.capacity:
            return self.errors.cudaErrorMemoryAllocation, None
        block = np.full(size, 0xFF, dtype=np.uint8)  # nan, until somebody writes
        self.memory[block.ctypes.data] = block
        return self._ok(block.ctypes.data)

    def cudaMemGetInfo(self):
        return self._ok(self.capacity - sum(block.nbytes for block in self.memory.values()), self.capacity)

    def cudaFree(self, address):
        del self.memory[address]
        return self._ok()

    def cudaMemcpy(self, target, source, size, kind):
        device = target if kind.name.endswith("HostToDevice") else source
        assert self.memory[device].nbytes == size, "a buffer of another size"
        ctypes.memmove(target, source, size)
        return self._ok()

    def cudaStreamCreate(self):
        self.streams += 1
        return self._ok(7)

    def cudaStreamDestroy(self, stream):
        self.streams -= 1
        return self._ok()

    def cudaStreamSynchronize(self, stream):
        assert stream == 7
        assert self._capturing is None, "a stream cannot be waited for while it is captured"
        self.log.append("synchronize")
        return self._ok()

    def cudaStreamBeginCapture(self, stream, mode):
        assert self._capturing is None
        assert mode.name in APIS["cuda.bindings.runtime"]["classes"]["cudaStreamCaptureMode"]
        self._capturing = []
        return self._ok()

    def cudaStreamEndCapture(self, stream):
        graph, self._capturing = self._capturing, None
        self.graphs += 1
        return self._ok(graph)

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs += 1
        return self._ok(tuple(graph))

    def cudaGraphDestroy(self, graph):
        self.graphs -= 1
        return self._ok()

    def cudaGraphExecDestroy(self, graph):
        self.graphs -= 1
        return self._ok()

    def cudaGraphLaunch(self, graph, stream):
        for what, work in graph:
            self.log.append(f"graph: {what}")
            work()
        return self._ok()

    def cudaEventCreate(self):
        self.events += 1
        return self._ok(SimpleNamespace(recorded=False, done=False, number=self.events))

    def cudaEventDestroy(self, event):
        self.events -= 1
        return self._ok()

    def cudaEventRecord(self, event, stream):
        self.log.append(f"record {event.number}")
        event.recorded = True
        return self._ok()

    def cudaEventSynchronize(self, event):
        assert event.recorded
        self.log.append(f"wait {event.number}")
        event.done = True
        return self._ok()

    def cudaEventElapsedTime(self, start, end):
        assert end.done, "read before it was waited for"
        return self._ok(6.0)


class FakeTensorRT:
    """The module `tensorrt` of one version.

    Attributes:
        log: Builds with what they were configured with, and engines read.
        refuses: Operators that the parser does not know.
        fails: What the builder says instead of building.
        stale_timings: Whether a timing cache that is not empty belongs to another device.
    """

    def __init__(self, version: str, cuda: FakeCuda) -> None:
        self.log: list[Any] = []
        self.refuses: tuple[str, ...] = ()
        self.fails = ""
        self.stale_timings = False
        recorded = APIS[f"tensorrt {version}"]
        names = recorded["classes"]
        enums = {
            name: enum.Enum(name, [n for n in names[name] if n not in ("name", "value", "itemsize")])
            for name in (
                "BuilderFlag",
                "DataType",
                "EngineStat",
                "ErrorCode",
                "MemoryPoolType",
                "TensorIOMode",
            )
            if name in names
        }
        severity = enum.Enum("Severity", [n for n in names["ILogger.Severity"] if n not in ("name", "value")])
        kinds = enums["DataType"]
        types = {1: kinds.FLOAT, 10: kinds.HALF, 7: kinds.INT64, 6: kinds.INT32, 3: kinds.INT8}
        numpy_types = {kinds.FLOAT: np.float32, kinds.HALF: np.float16, kinds.INT64: np.int64, kinds.INT32: np.int32}
        fake = self

        class ILogger:
            Severity = severity

            def log(self, severity, message):
                raise NotImplementedError

        class Builder:
            def __init__(self, logger):
                assert isinstance(logger, ILogger)
                self._logger = logger

            def create_network(self, flags=0):
                assert flags == 0
                return made["INetworkDefinition"]()

            def create_builder_config(self):
                return made["IBuilderConfig"]()

            def create_optimization_profile(self):
                return made["IOptimizationProfile"]()

            def build_serialized_network(self, network, config):
                if fake.fails:
                    self._logger.log(severity.ERROR, fake.fails)
                    return None
                dynamic = [v.name for v in network._inputs if -1 in v.shape]
                assert set(dynamic) <= {name for profile in config._profiles for name in profile._shapes}
                fake.log.append(("build", config._told()))
                config._cache._content += b"+timing"
                shapes = {name: shape for profile in config._profiles for name, shape in profile._shapes.items()}
                text = json.dumps({"onnx": network._onnx.hex(), "shapes": shapes})
                return bytearray(text.encode())  # a buffer, as IHostMemory is one

        class INetworkDefinition:
            def __init__(self):
                self._inputs, self._layers = [], []

            @property
            def num_inputs(self):
                return len(self._inputs)

            def get_input(self, i):
                return self._inputs[i]

            @property
            def num_layers(self):
                return len(self._layers)

            def get_layer(self, i):
                return self._layers[i]

        class ILayer:
            def __init__(self, dtype):
                self._dtype = dtype

            num_outputs = 1

            def get_output(self, i):
                return made["ITensor"]("", (), self._dtype)

        class ITensor:
            def __init__(self, name, shape, dtype):
                self.name, self.shape, self.dtype = name, shape, dtype

        class OnnxParser:
            def __init__(self, network, logger):
                self._network, self._errors = network, []

            def parse_from_file(self, path):
                import onnx

                try:
                    model = onnx.load(path)
                except Exception as error:
                    self._errors.append(made["ParserError"]("MODEL_DESERIALIZE_FAILED", "", str(error)))
                    return False
                for node in model.graph.node:
                    if node.op_type in fake.refuses:
                        self._errors.append(made["ParserError"]("UNSUPPORTED_NODE", node.op_type, "no such operator"))
                self._network._onnx = model.SerializeToString()
                for value in model.graph.input:
                    kind = value.type.tensor_type
                    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
                    self._network._inputs.append(made["ITensor"](value.name, shape, types[kind.elem_type]))
                inferred = onnx.shape_inference.infer_shapes(model).graph
                known = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
                layers = [made["ILayer"](types[known[node.output[0]]]) for node in model.graph.node]
                self._network._layers.extend(layers)
                return not self._errors

            @property
            def num_errors(self):
                return len(self._errors)

            def get_error(self, i):
                return self._errors[i]

        class ParserError:
            def __init__(self, code, operator, text):
                self._code, self._operator, self._text = code, operator, text

            def code(self):
                return enums["ErrorCode"][self._code]

            def desc(self):
                return self._text

            def node_operator(self):
                return self._operator

        class IOptimizationProfile:
            def __init__(self):
                self._shapes = {}

            def set_shape(self, name, low, best, high):
                assert tuple(low) == tuple(best) == tuple(high)
                self._shapes[name] = list(best)

        class IBuilderConfig:
            builder_optimization_level = 3

            def __init__(self):
                self._profiles, self._pools = [], {}
                self._flags = {enums["BuilderFlag"].TF32}
                self._cache = made["ITimingCache"](b"")

            def _told(self):
                return {
                    "flags": sorted(flag.name for flag in self._flags),
                    "pools": self._pools,
                    "level": self.builder_optimization_level,
                    "timings": self._cache._content,
                }

            def set_flag(self, flag):
                self._flags.add(flag)

            def clear_flag(self, flag):
                self._flags.discard(flag)

            def set_memory_pool_limit(self, pool, size):
                self._pools[pool.name] = size

            def add_optimization_profile(self, profile):
                self._profiles.append(profile)
                return 0

            def create_timing_cache(self, content):
                return made["ITimingCache"](content)

            def set_timing_cache(self, cache, ignore_mismatch):
                assert not ignore_mismatch
                if cache._content and fake.stale_timings:
                    return False
                self._cache = cache
                return True

            def get_timing_cache(self):
                return self._cache

        class ITimingCache:
            def __init__(self, content):
                self._content = bytes(content)

            def serialize(self):
                return bytearray(self._content)

        class Runtime:
            def __init__(self, logger):
                assert isinstance(logger, ILogger)

            def deserialize_cuda_engine(self, plan):
                fake.log.append("read engine")
                try:
                    return made["ICudaEngine"](json.loads(bytes(plan)))
                except ValueError:
                    return None

        class ICudaEngine:
            def __init__(self, plan):
                import onnx

                self._onnx = bytes.fromhex(plan["onnx"])
                graph = onnx.load_from_string(self._onnx).graph
                self._values = {v.name: v for v in (*graph.output, *graph.input)}  # outputs first: order says nothing
                self._inputs = [v.name for v in graph.input]
                self._nodes = len(graph.node)

            @property
            def num_io_tensors(self):
                return len(self._values)

            @property
            def num_layers(self):
                return self._nodes

            device_memory_size = 1234
            device_memory_size_v2 = 1234

            def get_engine_stat(self, stat):
                assert stat.name == "TOTAL_WEIGHTS_SIZE"
                return 5678

            def get_tensor_name(self, i):
                return list(self._values)[i]

            def get_tensor_mode(self, name):
                mode = enums["TensorIOMode"]
                return mode.INPUT if name in self._inputs else mode.OUTPUT

            def get_tensor_dtype(self, name):
                return types[self._values[name].type.tensor_type.elem_type]

            def create_execution_context(self):
                return made["IExecutionContext"](self)

        class IExecutionContext:
            def __init__(self, engine):
                import onnxruntime

                self._engine, self._places, self._shapes = engine, {}, {}
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 3
                options.intra_op_num_threads = 1
                self._session = onnxruntime.InferenceSession(engine._onnx, options, providers=["CPUExecutionProvider"])
                self._dtypes = {name: numpy_types[engine.get_tensor_dtype(name)] for name in engine._values}

            def set_input_shape(self, name, shape):
                declared = [d.dim_value for d in self._engine._values[name].type.tensor_type.shape.dim]
                fits = len(declared) == len(shape) and all(a in (0, b) for a, b in zip(declared, shape, strict=True))
                self._shapes[name] = tuple(shape)
                return fits

            def get_tensor_shape(self, name):
                if name in self._shapes:
                    return self._shapes[name]
                assert set(self._shapes) == set(self._engine._inputs), "asked before all inputs have shapes"
                feeds = {n: np.zeros(s, dtype=self._dtypes[n]) for n, s in self._shapes.items()}
                (found,) = self._session.run([name], feeds)
                return found.shape

            def set_tensor_address(self, name, address):
                self._places[name] = address
                return address in cuda.memory

            def execute_async_v3(self, stream_handle):
                assert stream_handle == 7
                cuda.on_stream("execute", self._run)
                return set(self._places) == set(self._engine._values)

            def _run(self):
                def view(name):
                    return cuda.memory[self._places[name]].view(self._dtypes[name]).reshape(self.get_tensor_shape(name))

                names = [name for name in self._engine._values if name not in self._engine._inputs]
                found = self._session.run(names, {name: view(name) for name in self._engine._inputs})
                for name, value in zip(names, found, strict=True):
                    view(name)[...] = value

        classes = [
            Builder,
            INetworkDefinition,
            ILayer,
            ITensor,
            OnnxParser,
            ParserError,
            IOptimizationProfile,
            IBuilderConfig,
            ITimingCache,
            Runtime,
            ICudaEngine,
            IExecutionContext,
        ]
        made = {cls.__name__: strict(cls, names[cls.__name__]) for cls in classes}
        values = {
            **enums,
            **made,
            "ILogger": ILogger,
            "__version__": version,
            "nptype": lambda kind: numpy_types[kind],
            "init_libnvinfer_plugins": lambda logger, namespace: True,
        }
        self.module = Strict(f"tensorrt {version}", values, recorded["module"])
