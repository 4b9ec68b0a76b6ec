"""What is written of a result: reports into its run directory, ONNX models into any folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hwnas import report
from hwnas.core.architecture import Architecture
from hwnas.core.state import Evaluation
from hwnas.errors import ExportFailed, RunError, UsageError
from hwnas.result import SearchResult
from hwnas.rundir import RunDirectory


def write_report(result: SearchResult, directory: RunDirectory | None = None) -> list[Path]:
    """Write front.csv, front.json, report.html and the figures into the result's run directory.

    Args:
        result: A search's result.
        directory: Its directory, where that is open already.

    Raises:
        RunError: The result has no directory, or it cannot be written.
    """
    folder = write_front(result, directory)
    try:
        return report.write_report(result.view, folder)
    except OSError as error:
        raise RunError(f"the report cannot be written to {folder}: {error}. The search itself is kept") from error


def write_front(result: SearchResult, directory: RunDirectory | None) -> Path:
    """Write front.csv and front.json; the run directory. Errors as `write_report`."""
    if result.folder is None:
        raise UsageError("this result has no run directory; search with out=...")
    view, named = result.view, result.view.state.architectures
    best = {} if view.recommended is None else {named[view.recommended]: "yes"}
    marks: dict[str, dict[Architecture, str]] = {"recommended": best}
    if view.devices:
        roles = {i: view.role(i) for i in view.shown}
        marks = {
            "fronts": {named[i]: "+".join(role.fronts) for i, role in roles.items()},
            "recommended": {named[i]: "+".join(role.recommended) for i, role in roles.items()},
            "portfolio": best,
        }
    with nullcontext(directory) if directory is not None else RunDirectory.read(result.folder) as run:
        run.set_notation(result.space.format)
        run.write_front(
            result.state,
            report.to_json(view),
            marks=marks,
            rows=view.shown,
            reported=result.reported,
        )
    return result.folder


def export(
    result: SearchResult,
    out: str | Path,
    *,
    which: str = "front",
    architectures: Sequence[str] | None = None,
    verbatim: bool = False,
    force: bool = False,
) -> Mapping[str, Any]:
    """Write architectures as checked ONNX models with metadata, a manifest and a model card.

    Args:
        result: A search's result.
        out: Folder to write.
        which: "front" or "best".
        architectures: Keys or public notations to export instead; they need not be in the archive.
        verbatim: Keep edges that do not reach the output.
        force: Write into a folder that holds something.

    Returns:
        The manifest.

    Raises:
        ExportFailed: There is nothing to export, or a model could not be written.
        RunExists: The folder holds something.
    """
    from hwnas.export import export_models

    archive = {e.architecture: e for e in result.view.state.archive}
    best = result.view.recommended
    recommended = None if best is None else result.view.state.architectures[best]
    if architectures:
        asked = [result.space.parse(text) for text in architectures]
    elif which == "best":
        asked = [result.view.state.architectures[i] for i in _best(result.view)]
    else:
        asked = [result.view.state.architectures[i] for i in result.view.shown]
    if not asked:
        raise ExportFailed("the run has no feasible architecture to export; name one with --arch")
    outcome = export_models(
        result.space,
        result.config.dataset,
        [archive.get(a, Evaluation(a, ())) for a in asked],
        Path(out),
        objectives=result.state.objectives,
        recommended=asked.index(recommended) if recommended in asked else None,
        roles=_manifest_roles(result.view, asked),
        verbatim=verbatim,
        force=force,
        certificates=result.finals.certificates,
        run={"seed": result.config.seed, "command": result.command},
    )
    outcome.raise_for_failures()
    return outcome.manifest


def _best(view: report.RunView) -> list[int]:
    """Archive indices of what is recommended: with several fronts of each device's, and of the one for all."""
    every = [own.recommended for own in view.devices.values()]
    return list(dict.fromkeys(index for index in (*every, view.recommended) if index is not None))


def _manifest_roles(view: report.RunView, asked: Sequence[Architecture]) -> list[dict[str, Any]] | None:
    """What the manifest says of each architecture where there are several fronts."""
    if not view.devices:
        return None
    place = {architecture: i for i, architecture in enumerate(view.state.architectures)}
    found = [view.role(place[a]) if a in place else report.Role((), (), False) for a in asked]
    return [
        {"fronts": list(role.fronts), "recommended_on": list(role.recommended), "portfolio": role.portfolio}
        for role in found
    ]
