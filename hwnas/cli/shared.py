"""What several commands share: options, consoles, and how words of the command line become values."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.errors import InvalidSetting

if TYPE_CHECKING:
    from rich.console import Console

Tables = Annotated[
    Path | None,
    typer.Option("--tables", help="Folder of Parquet tables; default: HWNAS_TABLES, then the user's own folder."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait for another measurement on this machine to end.")]
Threads = Annotated[int | None, typer.Option(help="Threads that run one network; default: the device's own, 1.")]


def stdout() -> Console:
    from rich.console import Console

    return Console()


def stderr() -> Console:
    from rich.console import Console

    return Console(file=sys.stderr)


def shapes(pairs: Sequence[str] | None) -> Mapping[str, tuple[int, ...]]:
    """`NAME=1x3x224x224` options as shapes by input name.

    Raises:
        InvalidSetting: Not of that form, or a name twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for pair in pairs or ():
        # names of inputs may hold anything, "=" included
        name, _, text = pair.rpartition("=")
        sizes = text.replace(",", "x").split("x")
        if not name or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise InvalidSetting(f"--shape wants NAME=1x3x224x224; got {pair!r}")
        if name in found:
            raise InvalidSetting(f"--shape names the input {name!r} twice")
        found[name] = tuple(map(int, sizes))
    return found


def words(text: str) -> list[str]:
    """A list by commas.

    Raises:
        InvalidSetting: It is empty, or names something twice.
    """
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found or len(set(found)) < len(found):
        raise InvalidSetting(f"a list of different names is wanted, by commas; got {text!r}")
    return found
