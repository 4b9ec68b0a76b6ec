"""As much of the CUDA runtime as timing needs, through NVIDIA's own bindings, with errors as failures.

Not verified on hardware; the calls are those of the recorded interface of `cuda.bindings.runtime`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from hwnas.core.measurement import Status
from hwnas.profiling.backend import Failure


class Cuda:
    """The first CUDA device.

    Raises:
        Failure: The bindings are not installed, or there is no device or driver.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise Failure(
                Status.BACKEND_UNAVAILABLE,
                f"the CUDA bindings cannot be imported ({error}): pip install 'hwnas[tensorrt]'",
            ) from error
        self._runtime: Any = runtime
        (count,) = self.call("cudaGetDeviceCount")
        if not count:
            raise Failure(Status.BACKEND_UNAVAILABLE, "CUDA finds no device")
        # waiting threads spin: sleeping ones wake up late by more than a small network takes
        self.call("cudaSetDeviceFlags", runtime.cudaDeviceScheduleSpin)
        self.call("cudaSetDevice", 0)

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of the runtime; its results without the status.

        Raises:
            Failure: `oom`, `backend_unavailable` where there is no device, else `crashed`.
        """
        status, *results = getattr(self._runtime, name)(*arguments)
        errors = self._runtime.cudaError_t
        if status == errors.cudaSuccess:
            return tuple(results)
        _, text = self._runtime.cudaGetErrorString(status)
        absent = (errors.cudaErrorNoDevice, errors.cudaErrorInsufficientDriver, errors.cudaErrorInitializationError)
        kind = Status.BACKEND_UNAVAILABLE if status in absent else Status.CRASHED
        if status == errors.cudaErrorMemoryAllocation:
            kind = Status.OUT_OF_MEMORY
        raise Failure(kind, f"{name}: {text.decode() if isinstance(text, bytes) else text}")

    def facts(self) -> dict[str, str]:
        """What identifies the device and its driver."""
        (properties,) = self.call("cudaGetDeviceProperties", 0)
        (driver,) = self.call("cudaDriverGetVersion")
        (runtime,) = self.call("cudaRuntimeGetVersion")
        name = properties.name
        return {
            "name": name.decode() if isinstance(name, bytes) else str(name),
            "compute capability": f"{properties.major}.{properties.minor}",
            "memory MiB": str(properties.totalGlobalMem >> 20),
            "cuda driver": _version(driver),
            "cuda runtime": _version(runtime),
        }

    def free_bytes(self) -> int:
        """Memory of the device that is not allocated."""
        return int(self.call("cudaMemGetInfo")[0])

    def total_bytes(self) -> int:
        """Memory of the device."""
        return int(self.call("cudaMemGetInfo")[1])

    def allocate(self, size: int) -> int:
        """Address of so many bytes on the device."""
        return int(self.call("cudaMalloc", max(size, 1))[0])

    def upload(self, address: int, value: NDArray[Any]) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpy", address, value.ctypes.data, value.nbytes, kind)

    def download(self, address: int, value: NDArray[Any]) -> None:
        """Fill `value`, which is contiguous."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpy", value.ctypes.data, address, value.nbytes, kind)

    def captured(self, stream: Any, launch: Callable[[], None]) -> Any:
        """What `launch` puts on `stream`, as a graph that can be launched again and again."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            launch()
        finally:  # a stream that is left capturing can never be used again
            (graph,) = self.call("cudaStreamEndCapture", stream)
        (executable,) = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return executable


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
