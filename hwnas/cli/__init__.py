"""The command line: parse, call, print. No logic, and no framework is loaded before a command needs it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import hwnas
from hwnas.cli import measuring
from hwnas.cli.shared import Json, Quiet, Tables, stderr, stdout
from hwnas.errors import HwnasError, InvalidSetting

INTERRUPTED = 130
NOTHING_FEASIBLE = 1

app = typer.Typer(
    name="hwnas",
    help="Hardware-aware, multi-objective neural architecture search: a device and a budget in, "
    "a Pareto front of networks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tables_app = typer.Typer(help="Benchmark tables: list, add, fetch.", no_args_is_help=True)
app.add_typer(tables_app, name="tables")
app.command()(measuring.profile)
app.command()(measuring.calibrate)
app.command()(measuring.doctor)

Budget = str | None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and exits with its code.

    Exit codes: 0 done; 1 done, but the answer is no (search: nothing feasible, or the exported model may miss its
    budget; profile: a network has no figure; doctor: hwnas is broken); 2 to 7 see hwnas.errors; 130 stopped by Ctrl-C.
    """
    try:
        app(args=None if argv is None else list(argv))
    except HwnasError as error:
        stderr().print(f"[bold red]{type(error).__name__}:[/] ", end="")
        stderr().print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(hwnas.__version__)
        raise typer.Exit


@app.command()
def search(
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Hardware target, or several by commas; see 'hwnas devices'.")
    ] = None,
    latency_budget: Annotated[Budget, typer.Option(help="Highest latency: 5, 5ms, 800us.")] = None,
    energy_budget: Annotated[Budget, typer.Option(help="Highest energy an inference: 20mJ.")] = None,
    params_budget: Annotated[Budget, typer.Option(help="Most parameters: 1M, 500k.")] = None,
    macs_budget: Annotated[Budget, typer.Option(help="Most multiply-accumulates: 100M.")] = None,
    error_budget: Annotated[Budget, typer.Option(help="Highest error: 10%.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="Any budget as WORD=VALUE, e.g. latency@fpga=2ms (wins over a plain latency budget), memory=4MiB, "
            "robust_error=70%; "
            "repeatable."
        ),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="What to minimise, by commas: error,latency,energy,params,macs; on a device that is "
            "measured here cpu_time, memory; with a table of CIFAR-10 under attack robust_error (APGD-CE), "
            "robust_error_pgd, robust_error_fgsm, robust_error_square."
        ),
    ] = None,
    fronts: Annotated[
        str | None,
        typer.Option(
            help="With several devices: device (default) for one front each, joint for one over all objectives."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Importance of each objective, e.g. error=2,latency=1: without a budget it picks the network to "
            "recommend, in the place of the front's knee."
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="cifar10, cifar100 or ImageNet16-120.")] = None,
    space: Annotated[str | None, typer.Option(help="Search space.")] = None,
    generator: Annotated[
        str | None, typer.Option("--generator", "-g", help="Search method: agnet, random, ..., pymoo:NAME.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the generator, KEY=VALUE; repeatable.")
    ] = None,
    queries: Annotated[int | None, typer.Option("--queries", "-n", help="Architectures to evaluate.")] = None,
    batch: Annotated[
        int | None, typer.Option(help="At most so many evaluations a step; default: the generator's choice.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result.")] = None,
    source: Annotated[
        str | None, typer.Option(help="auto (table where there is one, else surrogate), table or surrogate.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="How carefully a device here is measured on: quick, default, final.")
    ] = None,
    wait: Annotated[float | None, typer.Option(help="Seconds to wait for another measurement here to end.")] = None,
    predict: Annotated[
        bool | None,
        typer.Option(
            "--predict/--no-predict", help="Predict latencies that are known well enough (default) or measure each."
        ),
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            help="Use figures of earlier measurements in the same conditions, and keep new ones (default), or neither.",
        ),
    ] = None,
    stop_when: Annotated[
        str | None,
        typer.Option(
            help="never (default: all queries are paid) or converged: end before, when the expected gain in "
            "hypervolume of one query stays below the threshold. With --resume: from now on."
        ),
    ] = None,
    stop_threshold: Annotated[
        str | None, typer.Option(help="Of --stop-when converged: 0.2% of the present hypervolume, or another.")
    ] = None,
    tables: Tables = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with the same settings; flags win over it.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default: runs/DATE-DEVICE.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run directory exactly where it stopped.")] = None,
    models: Annotated[str, typer.Option(help="ONNX models to write into the run: front, best or none.")] = "front",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for the best networks under a budget, and write a run directory with everything about them."""
    from hwnas import api
    from hwnas.progress import Progress

    given = {
        "devices": device.split(",") if device is not None else None,
        "objectives": objectives.split(",") if objectives is not None else None,
        "budgets": _budgets(
            budget,
            latency=latency_budget,
            energy=energy_budget,
            params=params_budget,
            macs=macs_budget,
            error=error_budget,
        )
        or None,
        "fronts": fronts,
        "weights": _weights(weights) if weights is not None else None,
        "dataset": dataset,
        "space": space,
        "generator": generator,
        "generator_settings": _settings(setting) or None,
        "queries": queries,
        "batch": batch,
        "seed": seed,
        "source": source,
        "preset": preset,
        "wait": wait,
        "predict": predict,
        "cache": cache,
        "stop_when": stop_when,
        "stop_threshold": stop_threshold,
        "tables": str(tables) if tables is not None else None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if models not in ("front", "best", "none"):
        raise InvalidSetting(f"--models is front, best or none; got {models!r}")
    console = stderr()
    with Progress(console, shown=not (quiet or as_json)) as progress:
        try:
            run = api.open_run(given, config=config, out=out, resume=resume)
            for name, (then, now) in run.changed_versions().items():
                console.print(f"note: {name} was {then} when this run began and is {now} now: results may differ")
            late = [f"--{flag.replace('_', '-')}" for flag in ("stop_when", "stop_threshold") if flag in given]
            if late and run.spent:  # as only a continued run can be
                flags, verb = " and ".join(late), "have" if len(late) > 1 else "has"
                console.print(
                    f"note: all {len(run.state.archive)} evaluations are paid: {flags} {verb} nothing to decide"
                )
            progress.start(run.state, None if run.directory is None else run.directory.path, run.search.rule)
            result = run.finish(on_step=progress.step, on_measure=progress.on_device, models=models)
        except KeyboardInterrupt:
            progress.stop()
            if progress.folder is None:
                console.print("Stopped before anything was paid for.")
            else:
                console.print(
                    f"Stopped. Everything paid for is kept; continue with: hwnas search --resume {progress.folder}"
                )
            raise
    _show(result, as_json=as_json, quiet=quiet)
    if not result.view.answered or result.finals.broken:
        if quiet and not as_json:
            where = "" if result.folder is None else f"; see {result.folder}"
            why = "the exported model may miss its budget" if result.view.answered else "nothing meets the budgets"
            console.print(f"{why}{where}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(NOTHING_FEASIBLE)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run directory, of a finished or running search.")],
    as_json: Json = False,
) -> None:
    """Make report.html and the figures of a run again, and show its front."""
    from hwnas import api

    result = api.load(run)
    api.write_report(result)
    _show(result, as_json=as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the models.")],
    front: Annotated[bool, typer.Option("--front", help="All architectures of the front (default).")] = False,
    best: Annotated[bool, typer.Option("--best", help="Only the recommended architecture.")] = False,
    arch: Annotated[
        list[str] | None, typer.Option("--arch", help="An architecture, by key or official string; repeatable.")
    ] = None,
    verbatim: Annotated[bool, typer.Option(help="Keep edges that do not reach the output.")] = False,
    force: Annotated[bool, typer.Option(help="Write into a folder that is not empty.")] = False,
    as_json: Json = False,
) -> None:
    """Write architectures of a run as checked ONNX models with metadata and a manifest."""
    from hwnas import api

    if front + best + bool(arch) > 1:
        raise InvalidSetting("choose one of --front, --best and --arch")
    manifest = api.export(
        api.load(run), out, which="best" if best else "front", architectures=arch, verbatim=verbatim, force=force
    )
    if as_json:
        print(json.dumps(manifest, indent=2))
    else:
        for model in manifest["models"]:
            print(f"{out / model['file']}  {model['arch']}")


@app.command()
def devices(tables: Tables = None, as_json: Json = False) -> None:
    """List hardware targets, what is known about them, and whether they are available here."""
    from hwnas import listing

    rows = listing.devices(tables)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        stdout().print(listing.devices_table(rows))


@tables_app.command("list")
def tables_list(tables: Tables = None, as_json: Json = False) -> None:
    """List the tables that are found, what they hold and whether they can be trusted."""
    from hwnas import listing

    found = listing.tables(tables)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        stdout().print(listing.tables_table(found, tables))


@tables_app.command("add")
def tables_add(
    path: Annotated[Path, typer.Argument(help="HW-NAS-Bench's pickle, or a CSV or Parquet file of figures.")],
    tables: Tables = None,
    replace: Annotated[bool, typer.Option(help="Replace a table of the same name.")] = False,
) -> None:
    """Check and import a table into the tables folder."""
    from hwnas import listing

    for written in listing.add(path, tables, replace=replace):
        print(written)


@tables_app.command("fetch")
def tables_fetch(
    name: Annotated[str, typer.Argument(help="hw-nas-bench")],
    tables: Tables = None,
    replace: Annotated[bool, typer.Option(help="Replace a table of the same name.")] = False,
) -> None:
    """Download a published table, verify its hash, and import it."""
    from hwnas import listing

    for written in listing.fetch(name, tables, replace=replace):
        print(written)


def _budgets(pairs: Sequence[str] | None, **named: str | None) -> dict[str, str | float]:
    budgets: dict[str, str | float] = {word: text for word, text in named.items() if text is not None}
    for pair in pairs or ():
        word, equals, text = pair.partition("=")
        if not (word and equals):
            raise InvalidSetting(f"--budget wants WORD=VALUE, e.g. latency@fpga=2ms; got {pair!r}")
        if word in budgets:
            raise InvalidSetting(f"the {word} budget is given twice")
        try:
            budgets[word] = float(text)  # a number beside a full metric name is in that metric's unit
        except ValueError:
            budgets[word] = text
    return budgets


def _weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for pair in text.split(","):
        word, _, number = (part.strip() for part in pair.partition("="))
        try:
            value = float(number)
        except ValueError:
            raise InvalidSetting(
                f"--weights wants WORD=NUMBER by commas, e.g. error=2,latency=1; got {pair!r}"
            ) from None
        if word in weights:
            raise InvalidSetting(f"the weight of {word} is given twice")
        weights[word] = value
    return weights


def _settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise InvalidSetting(f"--set wants KEY=VALUE, got {pair!r}")
        try:
            settings[key.replace("-", "_")] = json.loads(text)
        except json.JSONDecodeError:
            settings[key.replace("-", "_")] = text
    return settings


def _show(result: Any, *, as_json: bool, quiet: bool = False) -> None:
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    elif not quiet:
        stdout().print(result)
