"""Commands about devices that networks are run on: profile, calibrate, doctor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.cli.shared import Json, Quiet, Tables, Threads, Wait, shapes, stderr, stdout, words
from hwnas.errors import InvalidSetting

if TYPE_CHECKING:
    from hwnas.core.device import Device
    from hwnas.profiling.protocol import Protocol

NO_FIGURE = 1  # exit code: some network has no figure
BROKEN = 1  # exit code of the doctor


@dataclass(frozen=True)
class _How:
    """What both kinds of profile share."""

    protocol: Protocol
    cached: bool
    energy: bool
    seed: int
    wait: float
    out: Path | None
    as_json: bool
    quiet: bool


def profile(
    models: Annotated[list[Path] | None, typer.Argument(help="ONNX models to time against each other.")] = None,
    device: Annotated[str, typer.Option("--device", "-d", help="Devices, by commas, or .toml files.")] = "cpu",
    preset: Annotated[str, typer.Option(help="How carefully: quick, default, final.")] = "default",
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape of an input that is dynamic in a model, NAME=1x3x224x224; repeatable."),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Measure networks of this search space instead, e.g. nb201.")
    ] = None,
    sample: Annotated[int | None, typer.Option(help="So many of them at random.", min=1)] = None,
    arch: Annotated[list[str] | None, typer.Option(help="One of them, by key or official string; repeatable.")] = None,
    dataset: Annotated[str | None, typer.Option(help="What they are built for; default: the space's first.")] = None,
    save: Annotated[
        str | None, typer.Option(help="Keep the measurements as a device: hwnas search --device NAME.", metavar="NAME")
    ] = None,
    replace_saved: Annotated[bool, typer.Option("--replace", help="Replace saved measurements of that name.")] = False,
    threads: Threads = None,
    energy: Annotated[bool, typer.Option(help="Measure energy, too, where there is a meter (12 s a model).")] = True,
    cache: Annotated[bool, typer.Option(help="Use figures of earlier measurements in the same conditions.")] = True,
    seed: Annotated[int, typer.Option(help="Of the sample and of random orders.", min=0)] = 0,
    wait: Wait = 0.0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for records, raw samples, picture and page.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time ONNX models against each other, or networks of a search space, on devices here.

    Exits with 1 if some network has no figure; the others' are shown and kept all the same.
    """
    from hwnas.profiling.protocol import protocol

    devices = [_device(name, threads) for name in words(device)]
    how = _How(protocol(preset), cache, energy, seed, wait, out, as_json, quiet)
    if bool(models) == (space is not None):
        raise InvalidSetting("name ONNX models, or a space to sample (--space nb201 --sample 100): one of both")
    if models:
        for word, given in (("sample", sample), ("arch", arch), ("dataset", dataset), ("save", save)):
            if given is not None:
                raise InvalidSetting(f"--{word} is about networks of a space; name one with --space")
        complete = _profile_models(models, devices, shapes(shape), how)
    else:
        assert space is not None
        if len(devices) > 1 or shape:
            raise InvalidSetting("networks of a space are measured on one device at a time, in their own shape")
        complete = _profile_space(space, devices[0], dataset, sample or 0, arch or (), save, replace_saved, how)
    if not complete:
        raise typer.Exit(NO_FIGURE)


def calibrate(
    device: Annotated[str, typer.Option("--device", "-d", help="Device, or a .toml file.")] = "cpu",
    preset: Annotated[str, typer.Option(help="How carefully each session measures.")] = "default",
    sessions: Annotated[int, typer.Option(help="Fresh processes that measure the same.", min=2)] = 5,
    networks: Annotated[int, typer.Option(help="Networks of NAS-Bench-201 that they measure.", min=1)] = 8,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Of the networks and of random orders.", min=0)] = 0,
    wait: Wait = 0.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a device's noise floor: how much figures differ between sessions. Every later interval contains it."""
    from hwnas import registry, survey
    from hwnas.profiling.profiler import calibration_file
    from hwnas.profiling.protocol import protocol
    from hwnas.progress import Measuring

    asked, how = _device(device, threads), protocol(preset)
    space = registry.space("nb201")
    with (
        Measuring(stderr(), shown=not (quiet or as_json)) as progress,
        survey.open_meter(
            space,
            space.datasets[0],
            asked,
            how,
            seed=seed,
            wait_s=wait,
            on_progress=lambda *told: progress.on_device(asked.name, *told),
        ) as meter,
    ):
        before, known = meter.profiler.noise_floor
        sigma = survey.calibrate(meter, how, networks=networks, sessions=sessions, seed=seed)
        told = meter.profiler.describe() | {"before": before if known else None}
        path = calibration_file(meter.profiler.fingerprint, meter.profiler.config)
        seen = json.loads(path.read_text(encoding="utf-8"))["seen"]
    if as_json:
        found = {"sessions": sessions, "networks": networks, "seen": seen, "file": str(path)}
        print(json.dumps({**told, **found}, indent=2))
    elif not quiet:
        then = f"{before:.2%} before" if known else f"{before:.1%} was assumed"
        least = f"\nseen: {seen:.2%}; as minutes differ more than seconds, less than {sigma:.1%} is never promised"
        stdout().print(
            f"{asked.name}: {told['title']}, {told['runtime']}, {told['threads']} thread(s)\n"
            f"noise floor {sigma:.2%} between sessions ({sessions} sessions, {networks} networks; {then}): "
            f"intervals are at least ± {1.96 * sigma:.1%}{least if seen < sigma else ''}\nkept in {path}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def doctor(
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Ask this device as well, also over ssh; or a .toml file.")
    ] = None,
    tables: Tables = None,
    as_json: Json = False,
) -> None:
    """Say what works here, what is missing, and the line that installs it. Exits with 1 if hwnas itself is broken."""
    from hwnas import doctor as examination

    findings = examination.examine(device, tables)
    if as_json:
        print(json.dumps(examination.to_json(findings), indent=2))
    else:
        stdout().print(examination.table(findings))
    if not examination.healthy(findings):
        raise typer.Exit(BROKEN)


def _profile_models(
    models: Sequence[Path], devices: Sequence[Device], given: Mapping[str, tuple[int, ...]], how: _How
) -> bool:
    from hwnas.comparison import new_folder, time_models
    from hwnas.progress import Measuring

    folder = None if how.out is None else new_folder(how.out)
    with Measuring(stderr(), shown=not (how.quiet or how.as_json)) as progress:
        found = time_models(
            models,
            devices,
            how.protocol,
            shapes=given,
            cached=how.cached,
            energy=how.energy,
            seed=how.seed,
            wait_s=how.wait,
            on_progress=progress.on_device,
        )
    written = [] if folder is None else found.write(folder)
    if how.as_json:
        print(json.dumps(found.to_json(), indent=2))
    if folder is not None or not (how.as_json or how.quiet):
        from hwnas.report import timings

        if folder is not None:
            written += timings.write(found, folder)
        if not (how.as_json or how.quiet):
            stdout().print(timings.table(found))
            for path in written:
                print(path)
    return found.complete


def _profile_space(
    name: str,
    device: Device,
    dataset: str | None,
    sample: int,
    archs: Sequence[str],
    save: str | None,
    replacing: bool,
    how: _How,
) -> bool:
    from hwnas import registry, survey
    from hwnas.comparison import new_folder, write_records
    from hwnas.profiling import saved
    from hwnas.progress import Measuring

    space = registry.space(name)
    chosen, how_chosen = survey.choose(space, sample=sample, archs=archs, seed=how.seed)
    if not chosen:
        raise InvalidSetting("say which networks: --sample 100, or --arch STRING")
    if save is not None:
        saved.check_name(save, space, replacing=replacing)
    found = survey.Survey(space, dataset or space.datasets[0], how.protocol, tuple(chosen), how_chosen)
    console = stderr()
    with (
        Measuring(console, shown=not (how.quiet or how.as_json)) as progress,
        survey.open_meter(
            space,
            found.dataset,
            device,
            how.protocol,
            cached=how.cached,
            energy=how.energy,
            seed=how.seed,
            wait_s=how.wait,
            on_progress=lambda *told: progress.on_device(device.name, *told),
        ) as meter,
    ):
        folder = None if how.out is None else new_folder(how.out)
        try:
            survey.measure(meter, found, energy=how.energy)
        except BaseException:
            places = ["the cache of measurements"] if how.cached else []
            if save is not None and found.rows:
                places.insert(0, str(found.save(save + saved.PARTIAL, device)))
            kept = f"kept in {' and in '.join(places)}" if found.rows and places else "nothing is kept"
            console.print(
                f"stopped: {len(found.measured)} of {len(chosen)} networks had been measured; {kept}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            raise
    content = found.to_json()
    written = []
    if folder is not None:
        from hwnas.report import surveyed

        written += write_records(folder, content, found.samples) + surveyed.write(content, folder)
    if save is not None:
        written.append(found.save(save, device))
        saved.discard_partial(save)
    if how.as_json:
        print(json.dumps(content, indent=2))
    elif not how.quiet:
        from hwnas.report import surveyed

        stdout().print(surveyed.table(content))
        for path in written:
            print(path)
        if save is not None:
            stdout().print(survey.next_step(save, space), highlight=False, markup=False, soft_wrap=True)
    return found.complete


def _device(name: str, threads: int | None) -> Device:
    from hwnas.devices import load_device

    found = load_device(name)
    if threads is None:
        return found
    if threads < 1:
        raise InvalidSetting(f"--threads wants a whole number above 0; got {threads}")
    return replace(found, threads=threads)
