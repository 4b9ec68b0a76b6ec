"""Numbers counted from the network itself: exact, the same on every device, free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source
from hwnas.core.protocols import SearchSpace
from hwnas.errors import UnknownName

_METRICS = ("params_m", "macs_m")


class CountingEvaluator:
    """Parameters and multiply-accumulates, both in millions, as the space counts them.

    Args:
        space: The search space.
        dataset: Which data set the network is built for: it sets image size and number of classes.

    Raises:
        UnknownName: If the space builds no networks for that data set.
    """

    name = "counting"

    def __init__(self, space: SearchSpace, dataset: str) -> None:
        if dataset not in space.datasets:
            raise UnknownName("data set", dataset, space.datasets)
        self._space = space
        self._dataset = dataset

    def context(self, metric: str, device: str | None) -> Context | None:
        if metric not in _METRICS or device is not None:
            return None
        return Context(Source.MEASURED, runtime="count", dataset=self._dataset)

    def evaluate(
        self, architectures: Sequence[Architecture], wanted: Sequence[tuple[str, str | None]]
    ) -> Iterator[Measurement]:
        """One row for each architecture and wanted metric.

        Raises:
            ValueError: If a wanted metric has no context here.
            InvalidArchitecture: If an architecture is not one of the space.
        """
        contexts = [(metric, self._must(metric, device)) for metric, device in wanted]
        for architecture in architectures:
            counts = self._space.complexity(architecture, self._dataset)
            for metric, context in contexts:
                yield Measurement(architecture, metric, float(counts[metric]), context)

    def _must(self, metric: str, device: str | None) -> Context:
        context = self.context(metric, device)
        if context is None:
            raise ValueError(f"{self.name} answers {', '.join(_METRICS)} without a device; got {(metric, device)}")
        return context
