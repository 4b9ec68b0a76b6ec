"""PyTorch, eager or as a CUDA graph: how fast a network is before any deployment compiler has seen it.

The ONNX file becomes a `torch.fx` module (`hwnas.conversion.to_torch`), so every runtime times the same graph: norms
that the file has folded stay folded, and no Python module tree adds its own overhead.

Options (`SessionConfig.options`):

    mode            "eager", or "graph": capture once as a CUDA graph and replay it (default on CUDA)
    memory_format   "contiguous" (default) or "channels_last"
    tf32            whether convolutions and matrix products may round to TF32 (default false)
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.measurement import Status
from hwnas.errors import InvalidModel
from hwnas.profiling import host
from hwnas.profiling.backend import DeviceInfo, Failure, MemoryInfo, Sample, SessionConfig
from hwnas.profiling.worker.clock import sample
from hwnas.profiling.worker.inputs import make_inputs

if TYPE_CHECKING:
    import torch

_PRECISIONS = ("fp32", "fp16")
_OPTIONS = ("mode", "memory_format", "tf32")
_CAPTURE_RUNS = 3  # libraries allocate and choose kernels in their first runs, which a capture must not contain


class Torch:
    """PyTorch on one kind of device.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def probe(self) -> DeviceInfo:
        try:
            import torch
        except (ImportError, OSError) as error:
            return host.unavailable(f"torch cannot be imported ({error}): pip install torch")
        versions = {"torch": metadata.version("torch")}
        if self.device == "cpu":
            # the instruction set decides which kernels run, and an environment variable may lower it
            facts = {**host.facts(), **versions, "torch kernels": torch.backends.cpu.get_cpu_capability()}
            return DeviceInfo(True, "", facts["cpu"], versions, facts)
        if not torch.cuda.is_available():
            why = "is built for CPUs only" if torch.version.cuda is None else "finds no CUDA device or driver"
            return host.unavailable(f"the installed torch {why}", versions)
        versions["cuda"] = str(torch.version.cuda)
        cudnn: Any = torch.backends.cudnn
        if cudnn.is_available():
            versions["cudnn"] = str(cudnn.version())
        name = torch.cuda.get_device_name(0)
        return DeviceInfo(
            True, "", name, versions, {**host.facts(), **(host.nvidia_gpu() or {"name": name}), **versions}
        )

    def free_bytes(self, config: SessionConfig) -> int | None:
        return host.free_bytes() if self.device == "cpu" else self._gpu_bytes(0)

    def total_bytes(self, config: SessionConfig) -> int | None:
        return host.total_bytes() if self.device == "cpu" else self._gpu_bytes(1)

    def _gpu_bytes(self, which: int) -> int | None:
        """Free (0) or total (1) memory of the GPU; None where there is none."""
        import torch

        return int(torch.cuda.mem_get_info()[which]) if torch.cuda.is_available() else None

    def load(self, model: Path, config: SessionConfig) -> TorchModel:
        return TorchModel(Path(model), config, self.device)


class TorchModel:
    """A module on its device, with its inputs there."""

    def __init__(self, path: Path, config: SessionConfig, device: str) -> None:
        options = _options(config, device)
        if "torch" not in sys.modules:
            # read once, when torch's OpenMP library starts its threads
            os.environ.setdefault("OMP_WAIT_POLICY", "active" if config.spinning else "passive")
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise Failure(Status.BACKEND_UNAVAILABLE, "the installed torch has no CUDA device here")
        before = host.resident_bytes()
        self._torch, self._config, self._on_gpu, self._place = torch, config, device == "cuda", _place(device)
        self._use()
        if device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options["tf32"]
            # the search of the fastest kernel chooses differently from run to run
            torch.backends.cudnn.benchmark = False
        self._dtype = torch.float16 if config.precision == "fp16" else torch.float32
        self._format = torch.channels_last if options["memory_format"] == "channels_last" else torch.contiguous_format
        started = time.perf_counter()
        self._module, self._inputs = _read(path, config)
        self._module = self._placed(self._module)
        self._feeds = [self._tensor(value) for value in self._inputs.values()]
        self.build_s = time.perf_counter() - started
        self._graph: Any = None
        if options["mode"] == "graph":
            self._graph, self._captured = self._capture()
        precision = config.precision + (f", tf32 {'on' if options['tf32'] else 'off'}" if device == "cuda" else "")
        self.providers: Sequence[str] = (f"torch {device}", options["mode"], precision, options["memory_format"])
        self._grown = host.resident_bytes() - before

    def run(self, n: int = 1) -> None:
        self._use()
        with self._torch.inference_mode():
            for _ in range(n):
                self._launch()
        self._wait()

    def timed(self, k: int, loops: int = 1) -> list[Sample]:
        if not self._on_gpu:
            return [sample(self.run, loops, thread_time=self._config.threads == 1) for _ in range(k)]
        return [self._on_device(loops) for _ in range(k)]

    def inputs(self) -> dict[str, NDArray[Any]]:
        return self._inputs

    def outputs(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        self._use()
        with self._torch.inference_mode():
            found = self._module(*(self._tensor(np.asarray(feeds[name])) for name in self._inputs))
        values = (value.float() if value.is_floating_point() else value for value in found)
        return [np.asarray(value.cpu().numpy()) for value in values]

    def memory(self) -> MemoryInfo:
        """Weights and live activations as torch keeps them; on CUDA the allocator's peak in one eager run."""
        buffers = [*self._module.buffers(), *self._module.parameters()]
        weights = sum(value.numel() * value.element_size() for value in buffers)
        source = {
            "weights": "torch's buffers",
            "rss_delta": "resident memory of the worker before and after loading; rough",
        }
        if not self._on_gpu:
            from hwnas.conversion.to_torch import live_peak

            source["activation_peak"] = "tensors alive at once in eager order, operators' work space not included"
            return MemoryInfo(weights, live_peak(self._module, self._feeds), rss_delta=self._grown, source=source)
        cuda = self._torch.cuda
        cuda.synchronize()
        resident = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
        with self._torch.inference_mode():
            self._module(*self._feeds)
        cuda.synchronize()
        source["activation_peak"] = "torch's CUDA allocator: peak of an eager run over what was allocated before"
        source["device"] = "torch's CUDA allocator: peak of an eager run, all loaded networks included"
        peak = cuda.max_memory_allocated()
        return MemoryInfo(weights, peak - resident, rss_delta=self._grown, device=peak, source=source)

    def close(self) -> None:
        for name in ("_graph", "_captured", "_module", "_feeds"):
            if hasattr(self, name):
                delattr(self, name)
        if self._on_gpu:
            self._torch.cuda.empty_cache()

    def _launch(self) -> None:
        if self._graph is None:
            self._module(*self._feeds)
        else:
            self._graph.replay()

    def _wait(self) -> None:
        if self._on_gpu:
            self._torch.cuda.current_stream().synchronize()

    def _on_device(self, loops: int) -> Sample:
        """Host time from the first launch to the end of the work, device time between two events around it."""
        cuda = self._torch.cuda
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)

        def run(n: int) -> None:
            begin.record()
            with self._torch.inference_mode():
                for _ in range(n):
                    self._launch()
            end.record()
            end.synchronize()

        return sample(run, loops, thread_time=False, device_ns=lambda: 1e6 * float(begin.elapsed_time(end)))

    def _capture(self) -> tuple[Any, Any]:
        """The network as a CUDA graph, and the outputs that replaying it writes."""
        cuda = self._torch.cuda
        graph = cuda.CUDAGraph()
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with self._torch.inference_mode():
            with cuda.stream(side):
                for _ in range(_CAPTURE_RUNS):
                    self._module(*self._feeds)
            cuda.current_stream().wait_stream(side)
            with cuda.graph(graph):
                outputs = self._module(*self._feeds)
        return graph, outputs

    def _placed(self, module: Any) -> Any:
        module = module.to(device=self._place, dtype=self._dtype)
        for name, value in module.named_buffers():
            if value.ndim == 4:
                setattr(module, name, value.contiguous(memory_format=self._format))
        return module

    def _tensor(self, value: NDArray[Any]) -> torch.Tensor:
        tensor = self._torch.from_numpy(np.ascontiguousarray(value)).to(self._place)
        tensor = tensor.to(self._dtype) if tensor.is_floating_point() else tensor
        return tensor.contiguous(memory_format=self._format) if tensor.ndim == 4 else tensor

    def _use(self) -> None:
        """Threads are the process's and not the network's; another one may have set them."""
        if self._torch.get_num_threads() != self._config.threads:
            self._torch.set_num_threads(self._config.threads)
        if self._torch.get_num_interop_threads() != 1:
            with contextlib.suppress(RuntimeError):  # can be set only before the first parallel work
                self._torch.set_num_interop_threads(1)


def _place(device: str) -> torch.device:
    import torch

    return torch.device(device)


def _options(config: SessionConfig, device: str) -> dict[str, Any]:
    """The options with their defaults.

    Raises:
        Failure: One that does not exist, or a value that cannot be.
    """
    unknown = sorted(set(config.options) - set(_OPTIONS))
    if unknown:
        raise Failure(
            Status.BACKEND_UNAVAILABLE, f"the torch runtime has no option {unknown[0]!r}; it has {', '.join(_OPTIONS)}"
        )
    if config.precision not in _PRECISIONS:
        raise Failure(
            Status.INVALID_MODEL,
            f"torch is asked for precision {config.precision!r}; it runs {', '.join(_PRECISIONS)}",
        )
    chosen = {
        "mode": "graph" if device == "cuda" else "eager",
        "memory_format": "contiguous",
        "tf32": False,
        **config.options,
    }
    admitted = {"mode": ("eager", "graph"), "memory_format": ("contiguous", "channels_last"), "tf32": (False, True)}
    for name, value in chosen.items():
        if value not in admitted[name] or (name == "mode" and value == "graph" and device == "cpu"):
            raise Failure(
                Status.BACKEND_UNAVAILABLE,
                f"the torch runtime's option {name!r} is {' or '.join(map(str, admitted[name]))} "
                f"(graph on CUDA only); got {value!r} on {device}",
            )
    return chosen


def _read(path: Path, config: SessionConfig) -> tuple[Any, dict[str, NDArray[Any]]]:
    """A module on the CPU from an ONNX file, and what it is timed with.

    Raises:
        Failure: `unsupported_op` or `invalid_model`.
    """
    import onnx

    from hwnas.conversion.to_torch import UnsupportedOperator, to_torch
    from hwnas.onnx_facts import input_shapes, read_model, set_shapes

    try:
        model = read_model(path, weights=True)
        kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        declared = [
            (name, shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name])))
            for name, shape in input_shapes(model).items()
        ]
        inputs = make_inputs(declared, config.shapes)
        set_shapes(model, {name: value.shape for name, value in inputs.items()}, path.name)
        return to_torch(model), inputs
    except UnsupportedOperator as error:
        raise Failure(Status.UNSUPPORTED_OP, f"{path.name}: {error}") from error
    except InvalidModel as error:
        raise Failure(Status.INVALID_MODEL, str(error)) from error
