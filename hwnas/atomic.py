"""Files that are there in full or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write(path: Path, content: bytes | str) -> Path:
    """Write a file so that a reader, a crash or a full disk never leaves half of it under its name.

    Args:
        path: Where it goes; its folder is created. An earlier file is replaced in one step.
        content: Bytes, or text to be written as UTF-8 with newlines as they are.

    Returns:
        `path`.

    Raises:
        OSError: As the file system says it; nothing is left behind, and an earlier file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # same folder, so that the rename stays on one file system; the process id keeps two writers apart
    part = path.with_name(f".{path.name[:60]}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    return path
