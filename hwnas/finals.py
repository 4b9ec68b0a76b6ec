"""After a search on a measured device: the front is measured again with more care, and what is promised is checked.

Differences that decide who is on the front are often smaller than the intervals of a search's quick measurements. What
may be on the front once it is measured well is therefore measured with the protocol `final`, until nothing new turns
up; and the exported models are timed once more from the very files that the user gets.

A saved profile has no device that could be asked: its front may consist of predictions. Then the result says how many
they are and, where the profile's own device is at hand, which command measures them.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas import atomic
from hwnas.assembly import Assembly
from hwnas.core import pareto, picking
from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Measurement, Source
from hwnas.core.metrics import METRICS
from hwnas.core.protocols import Store
from hwnas.core.recommending import runner_up, weights_of, with_common
from hwnas.core.state import Evaluation, SearchState
from hwnas.core.wording import quantity
from hwnas.devices import load_device
from hwnas.errors import HwnasError, RunCorrupt, RunError
from hwnas.evaluators.measured import FileTiming, MeasuredEvaluator, notes_topic
from hwnas.evaluators.meter import noted, tally
from hwnas.profiling import host
from hwnas.profiling.bench import DRIFT
from hwnas.profiling.profiler import choose_runtime
from hwnas.profiling.record import write_samples
from hwnas.profiling.runs import LATENCY, floor_note

if TYPE_CHECKING:
    from hwnas.evaluators.saved import SavedEvaluator

FILE = "measurements.json"
SAMPLES = "samples"
_TOLD = 0.03  # changes of the machine's pace below it are not worth a sentence
_PAID = "paid"  # topic of notes in a run's store
_AFTERWARDS = (  # entries of a ledger that the search itself does not fill
    "networks_measured",
    "networks_kept",
    "final_measurements",
    "final_kept",
    "final_wall_s",
    "file_timings",
    "file_wall_s",
)
_TURNS = 5  # the front changes with better figures; it settles within two or three turns
OnTurn = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Finals:
    """What is known about a run's measurements beside the figures themselves.

    Attributes:
        devices: For each measured device: runtime, versions, fingerprint, noise floor, how well figures repeated, how
            much slower the machine was for the final measurements than for the search's first (`drift`, relative) and
            in the search's batches (`paces`, fastest and slowest), when the figures of the front were measured that the
            user's cache answered (`kept`), and for each architecture (by key) the name of its network in the files of
            raw samples.
        certificates: For each architecture (by key) of the front, and the next best or nearest ones that are named
            beside it, and for each device: the whole record of its last measurement.
        checked: For each device: the recommended model timed from its exported file, and whether it meets the budget.
        exported: The same for each exported model of the front, by its file's name.
        predicted: For each saved profile whose front is partly predicted: of how many networks, and what to do.
    """

    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    certificates: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    checked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    exported: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    predicted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def broken(self) -> list[str]:
        """Budgets that the exported model may miss, in words."""
        return [str(told["message"]) for told in self.checked.values() if not told["kept"]]

    @property
    def notes(self) -> list[str]:
        """What a reader of the result should know about its measurements, beside what is `broken`."""
        return [
            *map(_note, self.devices.values()),
            *(str(told["message"]) for told in self.checked.values() if told["kept"]),
            *(note for device in self.devices if (note := self._files_note(device))),
            *(str(told["message"]) for told in self.predicted.values()),
        ]

    def _files_note(self, device: str) -> str:
        """What timing the files of the whole front came to, where there is more than the recommended one."""
        files = {name: told[device] for name, told in self.exported.items() if device in told}
        if len(files) < 2:
            return ""
        agree = sum(bool(told["agrees"]) for told in files.values())
        timed = [told for told in files.values() if "latency_ms" in told]
        which = f"All {len(files)}" if len(timed) == len(files) else f"{len(timed)} of {len(files)}"
        text = f"{which} exported models were timed from their files on {device}: {agree} agree with the front"
        unknown = sum(told["agrees"] is None for told in timed)
        if unknown:
            text += f", {unknown} have no figure there to compare with"
        others = [name for name, told in files.items() if told["agrees"] is False]
        if others:
            text += f", {', '.join(others)} not"
        late = [name for name, told in files.items() if not told["kept"]]
        if late:
            text += f"; without a figure or not certainly within the budget: {', '.join(late)}"
        slow = {name: above for name, told in files.items() if told["kept"] and (above := _above(told))}
        if slow:
            named = ", ".join(f"{name} ({above})" for name, above in slow.items())
            text += f"; within the budget, but with single runs above it: {named}"
        return f"{text}."

    def write(self, folder: Path) -> None:
        """Keep it in a run directory.

        Raises:
            RunError: It cannot be written.
        """
        try:
            atomic.write(folder / FILE, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise RunError(
                f"could not write {folder / FILE}: {error.strerror or error}. The search itself is kept"
            ) from error

    @classmethod
    def read(cls, folder: Path) -> Finals:
        """What a run directory holds; nothing where nothing was measured.

        Raises:
            RunCorrupt: The file is damaged.
        """
        path = folder / FILE
        if not path.exists():
            return cls()
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RunCorrupt(
                f"{path} is damaged ({error}); the figures in the run's database are not touched by that"
            ) from error


def measure_front(
    assembly: Assembly, store: Store, state: SearchState, on_turn: OnTurn | None = None
) -> tuple[SearchState, int]:
    """The state with careful measurements of everything that is or may be on the front and of the runner-up, and how
    many networks have them by that: measured or kept, for this session or for one that it continues. With several
    fronts a device measures what is or may be on its own, and the one network for all.

    Args:
        assembly: Has the devices.
        store: The run's.
        state: When the search is done.
        on_turn: Called before a device measures, with its name, the turn, from 1, and how many networks it measures:
            from turn 2 on those that earlier turns have brought to, or near, the front.
    """
    made = 0
    for turn in range(1, _TURNS + 1):
        before = made
        for evaluator, chosen in [(e, _worth_measuring(assembly, e, state)) for e in assembly.measured]:
            metrics = [metric for (metric, _), e in assembly.plan if e is evaluator]
            rows, missing = _known_finals(evaluator, store, state, chosen, metrics)
            if missing:
                if on_turn is not None:
                    on_turn(evaluator.device, turn, len(missing))
                fresh = evaluator.finals(missing, metrics)
                store.append(fresh)
                rows += fresh
            # what an earlier session of this run has measured was paid for as well, and may change the front as well
            state, made = state.amend(rows), made + len({row.architecture for row in rows})
        if made == before:
            break
    return state, made


def stage(turn: int, networks: int) -> str:
    """A turn of `measure_front` in words, for whoever waits: one after the first begins anew with other networks."""
    if turn == 1:
        return "final measurements"
    return f"final measurements, turn {turn} ({networks} more network{'s' * (networks != 1)} may be on the front)"


def note_paid(store: Store, what: str, wall_s: float, count: int = 0) -> None:
    """Keep what a stage after the search cost, for the ledger of whoever reads the run.

    Args:
        store: The run's.
        what: "finals" or "files".
        wall_s: Wall seconds of this session.
        count: Timings of files in this session. Final measurements are counted from what the devices noted.
    """
    store.note(_PAID, {"what": what, "count": count, "wall_s": wall_s})


def with_paid(ledger: Ledger, store: Store, devices: Iterable[str]) -> Ledger:
    """A search's ledger with what was paid after it, by all sessions that came to the end of a stage, and with how many
    networks were run on devices for the search and after it.

    Args:
        ledger: The search's.
        store: The run's.
        devices: Those that it measured on.

    Raises:
        RunCorrupt: What was noted cannot be read.
    """
    notes = store.notes(_PAID)
    files = [told for told in notes if told["what"] == "files"]
    paid = Ledger(
        final_wall_s=sum(told["wall_s"] for told in notes if told["what"] == "finals"),
        file_timings=sum(told["count"] for told in files),  # files are timed again whenever they are written
        file_wall_s=sum(told["wall_s"] for told in files),
    )
    for device in devices:
        try:
            paid = paid.plus(tally(store.notes(notes_topic(device))))
        except (KeyError, TypeError) as error:
            raise RunCorrupt(f"what the run noted of device {device} cannot be read ({error})") from error
    return replace(ledger, **{name: getattr(paid, name) for name in _AFTERWARDS})


def _worth_measuring(assembly: Assembly, evaluator: MeasuredEvaluator, state: SearchState) -> list[Architecture]:
    """What is or may be on a device's front, its runner-up, and with several fronts the one network for all."""
    common = (state.architectures[i] for i in with_common((), state, assembly.weights))
    final, apart = evaluator.meter.context(LATENCY, final=True), abs(math.expm1(evaluator.meter.drift()))

    def doubt(row: Measurement) -> float:
        """What a figure of the search may be off beside a final one: they are of the machine at different paces."""
        other = (row.metric, row.context.device) != (LATENCY, evaluator.device)
        return 0.0 if other or row.context == final else apart

    hoped = hopeful(_concerning(state, evaluator.device), doubt)
    return list(dict.fromkeys([*hoped, *_runners_up(assembly, state, evaluator.device), *common]))


def _runners_up(assembly: Assembly, state: SearchState, device: str) -> list[Architecture]:
    """The second best, which need not be on a front, of each front that a device's numbers count for."""
    found = []
    for goal in _goals(state, device):
        own = None if assembly.weights is None else weights_of(state, goal, assembly.weights)
        if (index := runner_up(goal, own)) is not None:
            found.append(state.architectures[index])
    return found


def _goals(state: SearchState, device: str) -> Sequence[SearchState]:
    """What a device's numbers count for: its own goal, or those of all where it has none."""
    return [state.by_device[device]] if device in state.by_device else state.goals


def _concerning(state: SearchState, device: str) -> SearchState:
    """The search as a device sees it: its own goal where it has a front of its own."""
    return state.by_device.get(device, state)


def hopeful(state: SearchState, doubt: Callable[[Measurement], float] = lambda row: 0.0) -> list[Architecture]:
    """Architectures that may be on the front: those that are, and those that would be if every number that was
    measured or predicted here were at the better end of its interval.

    Args:
        state: The search's.
        doubt: By how much of its value a number's interval is too narrow to each side.
    """
    if state.front_devices:  # of a device without a front of its own: its numbers count on every front
        return list(dict.fromkeys(a for goal in state.goals for a in hopeful(goal, doubt)))
    possible = np.array([_possible(state, i, doubt) for i in range(len(state.archive))], dtype=bool)
    possible &= ~np.isnan(state.losses).any(axis=1) if len(state.archive) else possible
    rows = np.flatnonzero(possible)
    widths, shared = _half_widths(state, doubt)[rows], state.shared.of(rows)
    kept = rows[pareto.non_dominated(state.losses[rows], widths, shared)]
    chosen = sorted({*map(int, kept), *map(int, state.front_indices)})
    return [state.architectures[i] for i in chosen]


def summarise(assembly: Assembly, state: SearchState) -> Finals:
    """What the devices say about a run's measurements."""
    devices: dict[str, dict[str, Any]] = {}
    certificates: dict[str, dict[str, dict[str, Any]]] = {}
    for evaluator in assembly.measured:
        meter = evaluator.meter
        front = _finalists(assembly, evaluator, state)
        networks = {a.key: name for a in state.architectures if (name := meter.network(a)) is not None}
        devices[evaluator.device] = meter.summary() | {
            "audits": list(evaluator.audits),
            "networks": networks,
            "front": len(front),
            "not_final": _not_final(assembly, evaluator, front),
        }
        named = [*(e.architecture for e in front), *_runners_up(assembly, state, evaluator.device)]
        for architecture in dict.fromkeys([*named, *_nearest(state, evaluator.device)]):
            told = evaluator.meter.certificate(architecture)
            if told is not None:
                certificates.setdefault(architecture.key, {})[evaluator.device] = told
        own = (certificates.get(e.architecture.key, {}).get(evaluator.device) for e in front)
        devices[evaluator.device]["kept"] = _kept([told for told in own if told is not None])
    return Finals(devices, certificates)


def _nearest(state: SearchState, device: str) -> list[Architecture]:
    """What is named where nothing meets the budgets."""
    goals = [goal for goal in _goals(state, device) if len(goal.archive) and not len(goal.front_indices)]
    found = [picking.nearest_to_feasible(goal.losses, goal.violations) for goal in goals]
    return [state.architectures[index] for index in found if index is not None]


def certificates_so_far(
    notes: Mapping[str, Sequence[Mapping[str, Any]]], state: SearchState
) -> dict[str, dict[str, dict[str, Any]]]:
    """As `Finals.certificates`, of the front of a search that has not come to its end.

    Args:
        notes: What the run's store has noted, by device.
        state: What the run's store holds.

    Raises:
        RunCorrupt: What is noted of a device cannot be read.
    """
    front = {state.architectures[i] for i in state.front_indices}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for device, told in notes.items():
        try:
            for _, architecture, record in noted(told):
                if architecture in front:
                    found.setdefault(architecture.key, {})[device] = record.to_json()
        except (KeyError, TypeError, ValueError) as error:
            raise RunCorrupt(f"what the run noted of device {device} cannot be read ({error})") from error
    return found


def keep_samples(assembly: Assembly, folder: Path) -> None:
    """Write the raw samples of this session to `samples/DEVICE-NUMBER.npz`; they may be deleted at any time.

    Raises:
        RunError: They cannot be written.
    """
    for evaluator in assembly.measured:
        samples = evaluator.meter.samples()
        if samples:
            numbered = (folder / SAMPLES / f"{evaluator.device}-{number}.npz" for number in count(1))
            path = next(path for path in numbered if not path.exists())
            try:
                write_samples(path, samples)
            except OSError as error:
                raise RunError(
                    f"could not write {path}: {error.strerror or error}. The search itself is kept"
                ) from error


def check_exported(assembly: Assembly, files: Mapping[Path, Evaluation]) -> dict[str, dict[str, dict[str, Any]]]:
    """Time exported models from their files on every measured device, interleaved with each other, and hold them
    against the budgets.

    Args:
        assembly: Has the devices.
        files: What the run says of each, which another figure than the file's may contradict.

    Returns:
        By file name and device: latency with its interval, and other metrics that the search is about (`beside`);
        whether they agree with the front's (`agrees`: the intervals meet; None where the run has none to compare with)
        and are certainly within the budgets of the device (`kept`), and all that in words.
    """
    checked: dict[str, dict[str, dict[str, Any]]] = {path.name: {} for path in files}
    for evaluator in assembly.measured:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        context = evaluator.meter.context(LATENCY, final=True)
        how = {"date": date, "fidelity": None if context is None else context.fidelity}
        for (path, found), told in zip(files.items(), evaluator.meter.measure_files(list(files)), strict=True):
            facts = _checked(assembly, evaluator.device, found, path, told)
            checked[path.name][evaluator.device] = {"file": path.name, **how, **facts}
    return checked


def _checked(assembly: Assembly, device: str, known: Evaluation, path: Path, told: FileTiming | str) -> dict[str, Any]:
    """What timing a file says of its model; `known` is what the run says of it. A latency budget is kept at the
    machine's pace now and at that of the final measurements; whether a file is as fast as its network was is a question
    of one pace."""
    start = f"{path.name} timed from its file on {device}: "
    if isinstance(told, str):
        bounded = any(c.device == device for c in assembly.constraints)
        unknown = ", so that it is not known whether its budget is kept" if bounded else ""
        return {"kept": not bounded, "agrees": None, "message": f"{start}no figure ({told}){unknown}."}
    row = known.find(LATENCY, device)
    value, low, high = told.now
    worst = max(high, told.high)
    bounds = [c for c in assembly.constraints if (c.metric, c.device) == (LATENCY, device)]
    message = f"{start}latency {quantity(LATENCY, value)} ({quantity(LATENCY, low)} to {quantity(LATENCY, high)})"
    above: dict[str, None] = {}
    for bound in bounds:
        how = "within" if bound.violation(worst) == 0 else "NOT certainly within"
        message += f", {how} the budget of {quantity(LATENCY, bound.bound)}"
        if told.runs is not None and (beyond := told.runs.beyond(bound)):
            message += f" ({beyond})"
            above |= dict.fromkeys(told.runs.above(bound))
    if abs(told.slower) >= _TOLD or any(bound.violation(high) != bound.violation(worst) for bound in bounds):
        message += (
            f"; the machine is {_slower(math.expm1(told.slower))} now than when the front was measured: at that pace "
            f"it would be {quantity(LATENCY, told.value)} (up to {quantity(LATENCY, told.high)})"
        )
    kept, agrees = [bound.violation(worst) == 0 for bound in bounds], list[bool]()
    message, beside = f"{message}{_differs(row, told.low, told.high, agrees)}", dict[str, dict[str, float]]()
    for metric in _beside(assembly, device):
        text, figures = _held(assembly, device, metric, known, told, kept, agrees)
        message += f"; {text}"
        if figures is not None:
            beside[metric] = dict(zip(("value", "low", "high"), figures, strict=True))
    if told.runs is not None and told.runs.doubts:
        message += f"; flags: {told.runs.flagged}"
    return {
        "latency_ms": value,
        "low": low,
        "high": high,
        "slower": math.expm1(told.slower),
        "runs": None if told.runs is None else {**told.runs.to_json(), "above_budget": list(above)},
        "beside": beside,
        "kept": all(kept),
        "agrees": all(agrees) if agrees else None,
        "message": f"{message}.",
    }


def _beside(assembly: Assembly, device: str) -> list[str]:
    """Metrics other than latency that a search is about on a device."""
    asked = [(o.metric, o.device) for o in assembly.objectives]
    asked += [(c.metric, c.device) for c in assembly.constraints]
    return list(dict.fromkeys(metric for metric, where in asked if where == device and metric != LATENCY))


def _held(
    assembly: Assembly,
    device: str,
    metric: str,
    known: Evaluation,
    told: FileTiming,
    kept: list[bool],
    agrees: list[bool],
) -> tuple[str, tuple[float, float, float] | None]:
    """Another metric of a file in words, with its budgets and what the run says of it; and its figures. Whether budgets
    are kept and the run agrees is added to the lists."""
    title, found = METRICS[metric].title, told.beside.get(metric, "the device does not tell it")
    bounds = [c for c in assembly.constraints if (c.metric, c.device) == (metric, device)]
    if isinstance(found, str):
        kept += [False for _ in bounds]
        return f"no {title} of the file ({found})" + (", so its budget may NOT be kept" if bounds else ""), None
    value, low, high = found
    text = f"{title} {quantity(metric, value)}"
    if high > low:
        text += f" ({quantity(metric, low)} to {quantity(metric, high)})"
    for bound in bounds:
        kept.append(bound.violation(high) == 0)
        how = "within" if kept[-1] else "NOT certainly within" if high > low else "NOT within"
        text += f", {how} the budget of {quantity(metric, bound.bound)}"
    return text + _differs(known.find(metric, device), low, high, agrees), found


def _differs(row: Measurement | None, low: float, high: float, agrees: list[bool]) -> str:
    """Words where what a run says of a network does not meet its file's interval; whether it does is added to a
    list."""
    if row is None or not row.status.has_value:
        return ""
    ends = row.interval or (row.value, row.value)
    agrees.append(ends[0] <= high and low <= ends[1])
    if agrees[-1]:
        return ""
    again = "the intervals do not meet: this machine does not repeat its figures that well now"
    return f"; the front says {quantity(row.metric, row.value)}, and {again if high > low else 'that differs'}"


def predicted_front(assembly: Assembly, state: SearchState, models: Path | None = None) -> dict[str, dict[str, Any]]:
    """For each saved profile of a search: how many networks of the front have a predicted latency, and the command
    that measures the front where the profile's own device is at hand.

    Args:
        assembly: Has the profiles.
        state: The search's.
        models: Folder of the front's exported models; without it, the command names architectures.
    """
    from hwnas.evaluators.saved import SavedEvaluator  # its predictors load scipy

    told: dict[str, dict[str, Any]] = {}
    for profile in {e.device: e for _, e in assembly.plan if isinstance(e, SavedEvaluator)}.values():
        goal = _concerning(state, profile.device)
        front = [goal.archive[i] for i in goal.front_indices]
        rows = [row for e in front if (row := e.find(LATENCY, profile.device)) is not None]
        count = sum(row.context.source is Source.PREDICTED for row in rows)
        if not count:
            continue
        # how many they are is said of every front with predictions
        message = f"{profile.device} is a saved profile: nothing is measured at the end of a search on it"
        origin, here = _origin(profile)
        command = ""
        if here:
            archs = [word for e in front for word in ("--arch", assembly.space.format(e.architecture))]
            named = shlex.join(["--space", assembly.space.name, "--dataset", assembly.config.dataset, *archs])
            if models is not None:
                named = f"{shlex.quote(str(models))}/*.onnx"
            command = f"hwnas profile {named} --device {shlex.quote(origin)} --preset final"
            message += f"; this measures the front on {origin}, where it was made: {command}"
        else:
            message += "; its front can be measured where it was made" + (f" (device {origin})" if origin else "")
        told[profile.device] = {"front": len(rows), "predicted": count, "command": command, "message": f"{message}."}
    return told


def _origin(profile: SavedEvaluator) -> tuple[str, bool]:
    """The device that a profile was measured on, and whether it is at hand: the same hardware, with a runtime."""
    told = profile.measured_on
    name, facts = str(told.get("device", "")), told.get("facts", {})
    try:
        device = load_device(name)
        choose_runtime(device)
    except HwnasError:
        return name, False
    if device.host != "local":
        return name, True  # whoever can reach it can measure
    now = {**host.facts(), **(host.nvidia_gpu() or {})}
    return name, bool(facts) and all(now.get(key) == facts[key] for key in ("cpu", "uuid") if key in facts)


def _finalists(assembly: Assembly, evaluator: MeasuredEvaluator, state: SearchState) -> list[Evaluation]:
    """What a device's final figures are for: the front, and with several fronts its own with the one network for
    all."""
    own = _concerning(state, evaluator.device)
    return [state.archive[i] for i in with_common(own.front_indices, state, assembly.weights)]


def _not_final(assembly: Assembly, evaluator: MeasuredEvaluator, found: Sequence[Evaluation]) -> list[str]:
    """Keys of networks on the front with a figure of this device that is not of its most careful protocol: it failed
    there, or the front still changed when `measure_front` stopped."""
    wanted = [(pair, evaluator.final_context(pair[0])) for pair, e in assembly.plan if e is evaluator]
    return [
        e.architecture.key
        for e in found
        if any((row := e.find(*pair)) is None or row.context != context for pair, context in wanted)
    ]


def _kept(certificates: Sequence[Mapping[str, Any]]) -> list[str]:
    """When those figures of some networks were measured that the user's cache answered, oldest first."""
    return sorted(
        told["sampling"]["started"] for told in certificates if "cached" in told["flags"] and told["sampling"]
    )


def _half_widths(state: SearchState, doubt: Callable[[Measurement], float]) -> NDArray[np.float64]:
    """`n x m`, half of each interval that was measured or predicted here; 0 for others. Predictions make no ties on a
    front, but here they decide what is worth a measurement."""
    own = (Source.MEASURED, Source.PREDICTED)
    found = [[e.find(o.metric, o.device) for o in state.objectives] for e in state.archive]
    widths = [
        [row.resolution + doubt(row) * row.value if row and row.context.source in own else 0.0 for row in rows]
        for rows in found
    ]
    return np.array(widths, dtype=np.float64).reshape(len(state.archive), len(state.objectives))


def _possible(state: SearchState, index: int, doubt: Callable[[Measurement], float]) -> bool:
    for constraint in state.constraints:
        row = state.archive[index].find(constraint.metric, constraint.device)
        if row is None:
            return False
        low, high = row.interval if row.interval is not None else (row.value, row.value)
        better = low - doubt(row) * row.value if constraint.goal == "min" else high + doubt(row) * row.value
        if constraint.violation(better) > 0 and constraint.violation(row.value) > 0:
            return False
    return True


def _known_finals(
    evaluator: MeasuredEvaluator,
    store: Store,
    state: SearchState,
    chosen: Sequence[Architecture],
    metrics: Sequence[str],
) -> tuple[list[Measurement], list[Architecture]]:
    """Careful rows of some architectures that the run has and the state does not, and the architectures that are still
    to be measured."""
    rows: list[Measurement] = []
    missing = []
    current = {e.architecture: e for e in state.archive}
    for architecture in chosen:
        known = [store.find(architecture, metric, evaluator.final_context(metric)) for metric in metrics]
        if any(row is None for row in known):
            missing.append(architecture)
        else:
            mine = {(row.metric, row.context) for row in current[architecture].measurements}
            rows += [row for row in known if row is not None and (row.metric, row.context) not in mine]
    return rows, missing


def _above(told: Mapping[str, Any]) -> str:
    """Which figures of the single runs of a timed file are above the budget, in words; "" for none."""
    words = {"median": "median", "p95": "95th percentile"}
    runs = told.get("runs") or {}  # a run of an older hwnas has none
    return " and ".join(words[name] for name in runs.get("above_budget", ()))


def _slower(change: float) -> str:
    return f"{abs(change):.0%} {'slower' if change > 0 else 'faster'}"


def _note(told: Mapping[str, Any]) -> str:
    text = f"Measured on {told['title']} with {told['runtime']}, {told['threads']} thread(s): {floor_note(told)}"
    again = told.get("retests")
    if again:
        tau = "" if again["tau"] is None else f", Kendall tau {again['tau']:.2f}"
        several = "s differ" if again["pairs"] != 1 else " differs"
        text += f"; {again['pairs']} repeated measurement{several} by {again['relative']:.1%} (median{tau})"
    if abs(told.get("drift", 0.0)) >= _TOLD:
        text += (
            f"; the machine was {_slower(told['drift'])} when the front was measured than at the search's beginning, "
            "whose pace the figures of other networks are at"
        )
    slowest = (told.get("paces") or (0.0, 0.0))[1]
    if slowest >= DRIFT:
        text += f"; in between it was up to {slowest:.0%} slower than then, which the reference networks corrected"
    if told.get("clock") == "device":
        text += "; latencies are by the device's own events, without what the host takes to launch the work"
    text += "".join(f"; {told[word]}" for word in ("crowded", "squeezed") if told.get(word))
    hasty = len(told.get("not_final", ()))
    if hasty:
        text += f"; {hasty} of {told['front']} networks of the front were not measured with the protocol final"
        text += ": what is said of them is the search's own, less certain figure"
    kept = told.get("kept", ())
    if kept:
        text += (
            f"; {len(kept)} of {told['front']} figures of the front are kept from earlier measurements (the oldest of "
            f"{kept[0][:10]}), brought to today's pace"
        )
    checks, inside = told["audits"]
    if checks:
        text += f"; {inside} of {checks} checked predictions held"
    return text + "."
