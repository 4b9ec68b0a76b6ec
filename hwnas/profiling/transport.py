"""Workers as processes: one here, or one on another machine over ssh. Frames, deadlines, and how a worker ended."""

from __future__ import annotations

import hashlib
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hwnas.core.measurement import Status
from hwnas.errors import DeviceUnavailable
from hwnas.profiling.backend import Failure
from hwnas.profiling.wire import PARENT, Message, WorkerDied, WorkerTimeout, frame, unframe

WORKER = "hwnas.profiling.worker"
_TAIL = 2000  # characters of standard error that are quoted
_GRACE_S = 2.0  # until a worker that was asked to quit is killed
_MUCH = 0.25  # of all memory: a worker of that size that was killed probably ran out of it
_OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "Cannot allocate memory", "Out of memory")


class ProcessTransport:
    """A worker that is reached through the pipes of a process.

    Args:
        command: What to start.
        environment: Variables to set in addition to ours.
        watching: Whether the command is a worker itself, which may watch this process and end with it.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str] | None = None, *, watching: bool = False
    ) -> None:
        self._watching = watching
        self._command = list(command)
        own = {name: value for name, value in os.environ.items() if name != PARENT}
        self._environment = {**own, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: IO[str] | None = None
        self._asked = 0
        self.noise = 0

    def start(self) -> None:
        """Begin a fresh worker; one that runs is ended first."""
        self.close()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by _kill
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=self._environment | (_parent() if self._watching else {}),
                start_new_session=True,  # a group of its own, so that nothing outlives the worker
            )
        except OSError as error:
            self._errors.close()
            self._errors = None
            raise DeviceUnavailable(f"the worker {shlex.join(self._command)} does not start: {error}") from error
        self._process = process
        self._lines = queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, self._lines), daemon=True).start()

    def call(self, request: Message, *, timeout: float) -> dict[str, Any]:
        """The reply to a request. See `hwnas.profiling.wire.Transport`."""
        process = self._process
        if process is None or process.stdin is None:
            raise WorkerDied("the worker has not been started")
        self._asked += 1
        at: str | None = None
        deadline = time.monotonic() + timeout
        try:
            process.stdin.write(frame({**request, "n": self._asked}))
            process.stdin.flush()
        except OSError:
            raise self._died(at) from None
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._kill()
                raise WorkerTimeout(f"no answer to {request.get('op')!r} within {timeout:.0f} s", at=at) from None
            if line is None:
                raise self._died(at)
            message = unframe(line)
            if message is None:
                self.noise += 1
            elif message.get("event") == "at":
                at = message.get("id")
            elif message.get("n") == self._asked:
                return good(message, at)

    def put(self, path: str) -> str:
        """The path itself: the worker sees the same files."""
        return path

    def close(self) -> None:
        """End the worker; closing twice does nothing."""
        process = self._process
        if process is None:
            return
        with suppress(OSError):
            assert process.stdin is not None
            process.stdin.write(frame({"op": "quit", "n": 0}))
            process.stdin.close()  # a worker ends when nobody can ask it any more
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
        self._kill()

    def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, self._errors):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process = self._errors = None

    def _died(self, at: str | None) -> WorkerDied:
        process = self._process
        assert process is not None
        size = _peak_bytes(process)
        said = self._said()
        self._kill()
        killed = process.returncode == -signal.SIGKILL
        memory = any(word in said for word in _OUT_OF_MEMORY) or (killed and size > _MUCH * _all_memory())
        told = f"; it said: {said}" if said else ""
        return WorkerDied(f"the worker {_ending(process.returncode)}{told}", at=at, out_of_memory=memory)

    def _said(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - _TAIL))
        return self._errors.read().strip()


class LocalTransport(ProcessTransport):
    """A worker on this machine.

    Args:
        python: Interpreter.
        environment: Variables to set in addition to ours.
    """

    def __init__(self, python: str = sys.executable, environment: dict[str, str] | None = None) -> None:
        super().__init__([python, "-m", WORKER], environment, watching=True)


class SshTransport(ProcessTransport):
    """A worker on another machine, which has hwnas and a runtime installed. Not verified on real boards yet.

    Args:
        address: As ssh takes it: "pi@board.lan".
        python: Interpreter there.
        ssh: Program to use, with its own options.
    """

    def __init__(
        self, address: str, *, python: str = "python3", ssh: Sequence[str] = ("ssh", "-o", "BatchMode=yes")
    ) -> None:
        super().__init__([*ssh, address, f"exec {shlex.quote(python)} -u -m {WORKER}"])
        self._ssh = [*ssh, address]
        self._sent: set[str] = set()

    def put(self, path: str) -> str:
        """Copy a file there, once for each content."""
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = f"/tmp/hwnas-{digest[:32]}{Path(path).suffix}"
        if digest in self._sent:
            return name
        # under another name first, so that a broken connection leaves no half of a model behind
        command = f"cat > {name}.part && mv {name}.part {name}"
        done = subprocess.run([*self._ssh, command], input=content, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise DeviceUnavailable(f"{path} cannot be copied to {self._ssh[-1]}: {said or 'ssh failed'}")
        self._sent.add(digest)
        return name


def _parent() -> dict[str, str]:
    """What tells a worker whom to end with. Linux ends it with the *thread* that started it, so only the main thread,
    which lasts as long as the process, says so; workers of others end when their standard input does."""
    return {PARENT: str(os.getpid())} if threading.current_thread() is threading.main_thread() else {}


def good(message: dict[str, Any], at: str | None) -> dict[str, Any]:
    """The reply, or the Failure that it tells of."""
    if message.get("ok"):
        return message
    raise Failure(Status(message["status"]), message["message"], at=at)


def _read(pipe: IO[str] | None, lines: queue.Queue[str | None]) -> None:
    assert pipe is not None
    with suppress(ValueError, OSError):  # closed while reading
        for line in pipe:
            lines.put(line)
    lines.put(None)


def _peak_bytes(process: subprocess.Popen[str]) -> int:
    """Wait for a worker that has ended; how large it ever was."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except (OSError, AttributeError):  # somebody else has waited, or the system has no such call
        process.wait()
        return 0
    process.returncode = os.waitstatus_to_exitcode(status)
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _all_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
