"""Whose turn it is to measure on this machine, for all of its users; and workers that end with whoever asks them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hwnas import locking
from hwnas.devices import load_device
from hwnas.locking import Held, SharedLock, lock_file, shared_folder
from hwnas.profiling import machine
from hwnas.profiling.backend import SessionConfig
from hwnas.profiling.machine import MachineLock
from hwnas.profiling.transport import LocalTransport
from hwnas.profiling.wire import unframe
from hwnas.testing.profiling import write_relu

CPU = load_device("cpu")
NOBODY = 65534
HOLD = """
import sys, time
from hwnas.devices import load_device
from hwnas.errors import DeviceBusy
from hwnas.profiling.machine import MachineLock
try:
    MachineLock(load_device(sys.argv[1]), 0.0)
except DeviceBusy as busy:
    sys.exit(f"busy: {busy}")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HWNAS_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "cache"))
    machine._warn.cache_clear()
    return tmp_path / "locks"


def process(code: str, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


# -- one process at a time -------------------------------------------------------------------------------------------


def test_users_with_different_caches_and_devices_exclude_each_other_and_a_dead_one_is_no_obstacle(
    tmp_path: Path,
) -> None:
    first = process(HOLD, "cpu", HWNAS_CACHE=str(tmp_path / "one"))
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = process(HOLD, "openvino", HWNAS_CACHE=str(tmp_path / "two"))
    _, said = second.communicate()
    assert second.returncode == 1
    assert f"busy: process {first.pid} of " in said
    assert "machine of device openvino" in said
    assert "--wait" in said
    end(first)
    MachineLock(CPU, 0.0).release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_users_lock_is_a_lock() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are its user's alone
        folder = Path(name)
        folder.chmod(0o1777)
        theirs, ours = SharedLock(folder / "x.lock"), SharedLock(folder / "x.lock")
        with somebody_else():
            theirs.acquire()
        assert (folder / "x.lock").stat().st_uid == NOBODY
        with pytest.raises(Held, match=f"process {os.getpid()} of .+ on .+ since 20"):
            ours.acquire()
        theirs.release()
        ours.acquire()
        with somebody_else(), pytest.raises(Held):
            theirs.acquire()
        ours.release()


@contextmanager
def somebody_else() -> Iterator[None]:
    """Be another user, whose files nobody else may write."""
    umask = os.umask(0o077)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.umask(umask)


def test_the_folder_is_the_first_that_is_open_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWNAS_LOCKS")
    for name, mode in (("private", 0o755), ("loose", 0o777), ("shared", 0o1777), ("later", 0o1777)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    names = [str(tmp_path / name) for name in ("missing", "private", "loose", "shared", "later")]
    monkeypatch.setattr(locking, "_FOLDERS", names)
    assert shared_folder() == tmp_path / "shared"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "private"))  # differs between users
    assert shared_folder() == tmp_path / "shared"


@pytest.mark.parametrize("place", ["none", "unusable"])
def test_without_a_folder_for_all_the_users_own_is_taken_with_a_warning(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if place == "none":
        monkeypatch.delenv("HWNAS_LOCKS")
        monkeypatch.setattr(locking, "_FOLDERS", [])
    else:
        (tmp_path / "locks").write_text("a file")
    lock = MachineLock(CPU, 0.0)
    (told,) = caplog.messages
    assert "other users of this machine" in told
    assert "HWNAS_LOCKS" in told
    with pytest.raises(Held):
        lock_file(tmp_path / "cache" / "locks", "local").acquire()
    lock.release()
    MachineLock(CPU, 0.0).release()
    assert len(caplog.messages) == 1


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def name(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


@pytest.mark.parametrize("trap", [link, pipe, name])
def test_what_others_put_in_its_place_harms_no_file(trap: Callable[[Path, Path], None], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    trap(tmp_path / "x.lock", victim)
    lock = SharedLock(tmp_path / "x.lock")
    if trap is name:  # locked, but not written to
        lock.acquire()
        with pytest.raises(Held):
            SharedLock(tmp_path / "x.lock").acquire()
        lock.release()
    else:
        with pytest.raises(OSError, match=r"symbolic|plain file"):
            lock.acquire()
    assert victim.read_text() == "precious"


def test_a_file_that_is_removed_while_it_is_held_does_not_admit_two_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    first, second, third = (SharedLock(path) for _ in range(3))
    first.acquire()
    path.unlink()
    second.acquire()  # nobody can know of the first
    first.release()
    with pytest.raises(Held):
        third.acquire()
    second.release()
    third.acquire()
    third.release()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666


@pytest.mark.parametrize("note", ["", "garbage", "[]", '{"pid": "x"}', json.dumps({"pid": 1, "host": "\x1b[31m"})])
def test_a_foreign_note_is_shown_as_plain_words_or_not_at_all(tmp_path: Path, note: str) -> None:
    lock = SharedLock(tmp_path / "x.lock")
    lock.acquire()
    (tmp_path / "x.lock").write_text(note)
    with pytest.raises(Held, match="another process"):
        SharedLock(tmp_path / "x.lock").acquire()
    (tmp_path / "x.lock").write_text(json.dumps({"pid": 7, "host": "\x1b[31mdesk\n", "since": "now", "user": "eve"}))
    with pytest.raises(Held) as told:
        SharedLock(tmp_path / "x.lock").acquire()
    assert told.value.by == r"process 7 of eve on [31mdesk since now"
    lock.release()


def test_waiting_ends_when_the_other_lets_go(tmp_path: Path) -> None:
    first, second = SharedLock(tmp_path / "x.lock"), SharedLock(tmp_path / "x.lock")
    first.acquire()
    threading.Timer(0.2, first.release).start()
    second.acquire(timeout=30.0)
    second.release()


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("local", "local"),
        ("ssh:localhost", "local"),
        ("ssh:me@127.0.0.1", "local"),
        ("ssh:pi@Board.lan", "board.lan"),
        ("ssh:root@board.lan", "board.lan"),
        ("ssh:pi@[fe80::1]", "-fe80-1-"),
    ],
)
def test_a_machine_is_known_by_its_address_whoever_logs_in(host: str, name: str) -> None:
    assert machine.machine(host) == name


def test_another_machine_is_another_turn() -> None:
    here, there = MachineLock(CPU, 0.0), MachineLock(replace(CPU, host="ssh:pi@board.lan"), 0.0)
    with pytest.raises(Held):
        lock_file(Path(os.environ["HWNAS_LOCKS"]), "board.lan").acquire()
    there.release()
    here.release()


# -- workers end with whoever asks them ------------------------------------------------------------------------------

# starts a worker that then hangs in a network: it cannot see that its input has ended
PARENT = """
import json, sys, threading
from hwnas.profiling.transport import LocalTransport
request, thread = json.loads(sys.argv[1]), sys.argv[2] == "thread"
transport = LocalTransport()
def start():
    transport.start()
    transport.call({"op": "state"}, timeout=60.0)
if thread:
    starter = threading.Thread(target=start)
    starter.start()
    starter.join()
else:
    start()
print(transport._process.pid, flush=True)
transport.call(request, timeout=600.0)
"""


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":  # nobody has asked how it ended
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
@pytest.mark.parametrize("how", ["main", "thread"])
def test_a_killed_process_leaves_no_worker_behind_that_is_busy(tmp_path: Path, how: str) -> None:
    """With the system's help where the main thread started it, else by the end of its input."""
    config = SessionConfig("fake", options={"fault.*": "hang"}).to_json()
    request = {"op": "load", "id": "a", "path": str(write_relu(tmp_path / "a.onnx")), "config": config}
    parent = process(PARENT, json.dumps(request), how)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    try:
        time.sleep(0.5)
        assert not gone(worker, 0.1)
        end(parent)
        assert gone(worker, 20.0)
    finally:
        end(parent)
        if not gone(worker, 0.1):
            os.kill(worker, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with another")
def test_the_system_ends_a_worker_in_which_no_thread_of_python_runs() -> None:
    stuck = (
        "import ctypes, os, sys; from hwnas.profiling.worker.__main__ import end_with; end_with(sys.argv[1]); "
        "print(os.getpid(), flush=True); ctypes.PyDLL(None).sleep(60)"
    )
    starts = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {stuck!r}, str(os.getpid())])"
    parent = process(starts)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    try:
        assert gone(worker, 10.0)
    finally:
        end(parent)


def test_a_worker_outlives_the_thread_that_started_it() -> None:
    """Linux would end it with that thread, were it told to watch it."""
    transport = LocalTransport()
    thread = threading.Thread(target=transport.start)
    thread.start()
    thread.join()
    time.sleep(0.2)
    try:
        assert transport.call({"op": "state"}, timeout=60.0)["ok"]
    finally:
        transport.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with another")
def test_a_worker_whose_parent_is_gone_already_does_not_start() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    worker = subprocess.run(
        [sys.executable, "-m", "hwnas.profiling.worker"],
        input='{"op": "state", "n": 1}\n{"op": "quit", "n": 2}\n',
        capture_output=True,
        text=True,
        env={**os.environ, "HWNAS_PARENT": str(dead.pid)},
        check=False,
    )
    assert (worker.returncode, worker.stdout) == (1, "")


def test_a_worker_that_is_asked_to_quit_answers_everything_before() -> None:
    asked = "".join(json.dumps({"op": "state", "n": n}) + "\n" for n in range(3)) + '{"op": "quit", "n": 3}\n'
    command = [sys.executable, "-m", "hwnas.profiling.worker"]
    worker = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert worker.returncode == 0, worker.stderr
    replies = [unframe(line) for line in worker.stdout.rstrip("\n").split("\n")]
    assert [reply and reply["n"] for reply in replies] == [0, 1, 2, 3]
