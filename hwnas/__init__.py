"""Hardware-aware, multi-objective neural architecture search.

    result = hwnas.search(device="edgegpu", latency_budget=5)
    result.best, result.front, result.to_pandas()

Names are loaded on use: `import hwnas` loads no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwnas.api import SearchResult, load, search
    from hwnas.conversion.module import export_module

__version__ = "0.1.0"
__all__ = ["SearchResult", "__version__", "export_module", "load", "search"]


def __getattr__(name: str) -> Any:
    if name == "export_module":
        from hwnas.conversion import module

        return module.export_module
    if name in __all__:
        from hwnas import api

        return getattr(api, name)
    raise AttributeError(f"module 'hwnas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
