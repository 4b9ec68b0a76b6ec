"""The command line as tests call it."""

from __future__ import annotations

import pytest

from hwnas.cli import main


def cli(*words: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return int(done.value.code or 0)
