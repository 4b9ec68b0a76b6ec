"""Optional packages: imported where they are used, with the exact line that installs them when absent."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from hwnas.errors import MissingExtra

# both packages bring the module onnxruntime, in the same files: side by side one breaks the other, and removing one
# takes files of the other away
ONE_ONNXRUNTIME = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


def load(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra of hwnas brings it.

    Args:
        module: Dotted module name, e.g. "openvino".
        extra: The extra of hwnas that installs it, e.g. "openvino".
        purpose: What it is needed for, e.g. "runtime 'openvino'".

    Raises:
        MissingExtra: If the package is not installed or its libraries do not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{purpose} needs the package {module.partition('.')[0]!r} ({error}): pip install 'hwnas[{extra}]'"
        ) from error


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
