"""Hardware-aware, multi-objective neural architecture search.

    result = hwnas.search(device="edgegpu", latency_budget=5)
    result.best, result.front, result.to_pandas()

Names are loaded on use: `import hwnas` loads no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwnas.api import SearchResult, load, search

__version__ = "0.1.0"
__all__ = ["SearchResult", "__version__", "load", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from hwnas import api

        return getattr(api, name)
    raise AttributeError(f"module 'hwnas' has no attribute {name!r}")
