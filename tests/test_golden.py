"""Golden fronts: what each generator finds at a fixed seed on a planted problem, none missing.

Nothing here says that a front is good; a changed one says that behaviour has changed, which has to be meant. After a
change that is meant: `python tests/test_golden.py` writes tests/data/golden.json anew, and the commit says why.

The planted losses are exact in floating point, so methods that only compare and draw are the same everywhere. Methods
that learn sum in the order that the processor's vector width dictates; last bits decide between near ties, and after
some steps other architectures are evaluated. Their fronts are pinned to one platform and skip elsewhere.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hwnas import registry
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source
from hwnas.core.objective import Objective
from hwnas.core.state import SearchState
from hwnas.loop import Search
from hwnas.measure import Measure
from hwnas.optional import version
from hwnas.spaces.nb201 import NasBench201
from hwnas.stores.memory import MemoryStore

FILE = Path(__file__).parent / "data" / "golden.json"
LEARNED = ("agnet", "agnet-paper")
GENERATORS = (*registry.generators(), "pymoo:nsga3", "pymoo:smsemoa")
WANTED = (("val_error_pct", None), ("latency_ms", "planted"))


class Planted:
    """Error falls and latency grows with convolutions, by another whole number for each edge and operation."""

    name = "planted"

    def context(self, metric: str, device: str | None) -> Context | None:
        return Context(Source.TABLE, device=device, dataset="cifar10") if (metric, device) in WANTED else None

    def evaluate(
        self, architectures: Sequence[Architecture], wanted: Sequence[tuple[str, str | None]]
    ) -> Iterator[Measurement]:
        for architecture in architectures:
            for metric, device in wanted:
                context = self.context(metric, device)
                assert context is not None
                yield Measurement(architecture, metric, self.value(architecture.code, metric), context)

    @staticmethod
    def value(code: Sequence[int], metric: str) -> float:
        gain, cost = (0, 1, 7, 11, 3), (0, 1, 4, 9, 2)
        if metric == "latency_ms":
            return float(1 + sum((i + 2) * cost[op] for i, op in enumerate(code)))
        # the last edge decides how much the first ones are worth
        return float(900 - sum((7 - i) * gain[op] for i, op in enumerate(code)) * (1 + (code[5] in (2, 3)))) / 16


def front_of(name: str) -> list[str]:
    """The front's keys after 60 evaluations with seed 7, by ascending error."""
    space, evaluator = NasBench201(), Planted()
    objectives = tuple(Objective(metric, device) for metric, device in WANTED)
    search = Search(
        space, registry.generator(name, space), Measure(MemoryStore(), tuple((pair, evaluator) for pair in WANTED))
    )
    state = search.run(SearchState(space.name, objectives, (), 60, 7))
    return [architecture.key for architecture in state.front().architectures]


def this_platform() -> dict[str, str | None]:
    import scipy.linalg  # noqa: F401  (its BLAS is one of those that are asked)
    import torch
    from threadpoolctl import threadpool_info

    kernels = {str(library.get("architecture")) for library in threadpool_info() if library["user_api"] == "blas"}
    packages = ("numpy", "scipy", "torch", "pymoo", "moocore", "onnxruntime")
    return {
        "machine": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "blas": ", ".join(sorted(kernels)),
        **{package: version(package) for package in packages},
    }


def test_no_generator_lacks_a_golden_front() -> None:
    assert set(json.loads(FILE.read_text())["fronts"]) == set(GENERATORS)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_front_at_a_fixed_seed(name: str) -> None:
    golden: dict[str, Any] = json.loads(FILE.read_text())
    here = this_platform()
    pinned = list(golden["platform"]) if name in LEARNED else ["numpy", "pymoo", "moocore"]
    other = {key: (golden["platform"][key], here[key]) for key in pinned if golden["platform"][key] != here[key]}
    if other:
        pytest.skip(f"pinned to one platform; (there, here): {other}")
    assert front_of(name) == golden["fronts"][name]


if __name__ == "__main__":
    fronts = {name: front_of(name) for name in GENERATORS}
    FILE.write_text(json.dumps({"platform": this_platform(), "fronts": fronts}, indent=2) + "\n")
