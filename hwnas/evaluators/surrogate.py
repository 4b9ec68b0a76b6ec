"""Numbers from the small models that hwnas ships (`hwnas.surrogates`), so that a search needs no download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hwnas import optional, resources
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.protocols import SearchSpace
from hwnas.devices import load_device
from hwnas.errors import UnknownName
from hwnas.surrogates import ACCURACY, Profile, find_profiles


class SurrogateEvaluator:
    """Errors, latency and energy from shipped models; every row says that it is a surrogate's.

    An answer is a prediction with an interval that held for 95 % of held-out cells; a cell that the model takes for one
    that its device cannot run is a row with status `not_measured`. Same question, same answer.

    Args:
        space: The search space; its codes are what the models read.
        dataset: Which data set's columns to answer.
        folder: Where the models lie; default: hwnas's own `profiles`.

    Raises:
        UnknownName: If there is no model for the space, or it builds no networks for the data set.
    """

    name = "surrogate"

    def __init__(self, space: SearchSpace, dataset: str, folder: Path | None = None) -> None:
        self._found = find_profiles(space.name, folder)
        if not self._found:
            raise UnknownName("search space with surrogates", space.name, _spaces(folder))
        if dataset not in space.datasets:
            raise UnknownName("data set", dataset, space.datasets)
        self._space = space
        self._dataset = dataset
        self._read: dict[str, Profile] = {}
        self._contexts: dict[tuple[str, str | None], Context | None] = {}

    def devices(self) -> list[str]:
        """Devices for which there is a model."""
        return [name for name in self._found if name != ACCURACY]

    def context(self, metric: str, device: str | None) -> Context | None:
        """What an answer will carry; None if no model has this metric.

        Raises:
            InvalidTable: If the model or its card is damaged.
        """
        if (metric, device) not in self._contexts:
            self._contexts[metric, device] = self._context(metric, device)
        return self._contexts[metric, device]

    def why_not(self, metric: str, device: str | None) -> str:
        """Why `context` is None, in words; "" if it is not None."""
        if self.context(metric, device) is not None:
            return ""
        if device is None:
            profile = self._profile(device)
            known = sorted(profile.metrics) if profile is not None else []
            return (
                f"no surrogate has {metric} on {self._dataset}; without a device there are {', '.join(known) or 'none'}"
            )
        if device not in self.devices():
            return f"no surrogate for device {device}; there are {', '.join(self.devices()) or 'none'}"
        return f"the surrogate of device {device} has no {metric} on {self._dataset}"

    def evaluate(
        self, architectures: Sequence[Architecture], wanted: Sequence[tuple[str, str | None]]
    ) -> Iterator[Measurement]:
        """One row for each architecture and wanted metric, architecture by architecture.

        Raises:
            ValueError: If a wanted metric has no context here.
            InvalidArchitecture: If an architecture is not one of the space.
        """
        asked = [(metric, *self._must(metric, device)) for metric, device in wanted]
        profiles = {profile.name: profile for _, profile, _, _ in asked}
        for architecture in architectures:
            self._space.validate(architecture)
            told = {name: profile.predict(architecture.code) for name, profile in profiles.items()}
            for metric, profile, column, context in asked:
                values, measurable = told[profile.name]
                if measurable < 0.5:
                    yield _refused(architecture, metric, context, measurable)
                    continue
                value = float(values[column])
                yield Measurement(architecture, metric, value, context, interval=profile.interval(column, value))

    def _must(self, metric: str, device: str | None) -> tuple[Profile, int, Context]:
        context, profile = self.context(metric, device), self._profile(device)
        column = None if profile is None else profile.column(metric, self._dataset)
        if context is None or profile is None or column is None:
            raise ValueError(f"cannot answer {metric} on device {device}: {self.why_not(metric, device)}")
        return profile, column, context

    def _profile(self, device: str | None) -> Profile | None:
        name = ACCURACY if device is None else device
        if name not in self._found or device == ACCURACY:
            return None
        if name not in self._read:
            self._read[name] = Profile.read(self._found[name])
        return self._read[name]

    def _context(self, metric: str, device: str | None) -> Context | None:
        profile = self._profile(device)
        column = None if profile is None else profile.column(metric, self._dataset)
        if profile is None or column is None:
            return None
        card = profile.card
        output = card["outputs"][column]
        versions = {"profile": card["sha256"][:12], "onnxruntime": optional.version("onnxruntime") or "unknown"}
        common = Context(
            Source.SURROGATE,
            dataset=self._dataset,
            origin=f"profiles/{profile.name}/{card['model']}",
            versions=tuple(sorted(versions.items())),
        )
        if device is None:
            return replace(common, split=output["split"], fidelity=output["fidelity"], seed=output["seed"])
        published = load_device(device)
        return replace(
            common,
            device=device,
            runtime=published.runtimes[0],
            precision=published.precisions[0] if published.precisions else None,
            batch=published.batch,
        )


def _refused(architecture: Architecture, metric: str, context: Context, measurable: float) -> Measurement:
    message = (
        f"{context.origin} takes it for a cell without a result on {context.device} (probability {1 - measurable:.0%})"
    )
    return Measurement.failed(architecture, metric, context, Status.NOT_MEASURED, message)


def _spaces(folder: Path | None) -> list[str]:
    root = resources.folder("profiles") if folder is None else folder
    return sorted({path.stem for path in root.glob("*/*.toml")})
