"""One holder at a time, across processes. The operating system frees a lock when its process dies, however it dies."""

from __future__ import annotations

import errno
import getpass
import json
import os
import socket
import stat
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hwnas import atomic

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# not what TMPDIR says: that differs between users. The first is emptied at boot only, the others by age as well
_FOLDERS = ("/run/lock", "/var/lock", "/tmp", "/var/tmp")
_POLL_S = 0.05
_NOTE_BYTES = 4096


class Held(Exception):
    """Somebody else holds the lock.

    Args:
        by: Who, in words, e.g. "process 4242 on desk since 2026-01-31T12:00:00+00:00".
    """

    def __init__(self, by: str) -> None:
        super().__init__(f"held by {by}")
        self.by = by


class ExclusiveLock:
    """A lock file with a note beside it that says who holds it.

    Args:
        path: The lock file; its folder exists. On some systems a locked file cannot be read by others, so the note
            is a file of its own: the same name with ".json" behind it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path, thread_local=False)
        self._note = path.with_name(path.name + ".json")

    def acquire(self, *, timeout: float = 0) -> None:
        """Take the lock.

        Args:
            timeout: Seconds to wait for another holder.

        Raises:
            Held: Another process, or another lock object in this one, holds it.
            NotImplementedError: The file system knows no locks.
            OSError: The file system refuses to write.
        """
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            raise Held(self._holder()) from None
        try:
            atomic.write(self._note, json.dumps(_self()) + "\n")
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let others in. Releasing twice does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._note.unlink()
            self._lock.release()

    def _holder(self) -> str:
        try:
            return _words(self._note.read_bytes())
        except OSError:
            return "another process"


class SharedLock:
    """A lock file in a folder where every user may write, such as /tmp, with a note in it that says who holds it.

    The file belongs to whoever made it first, everybody may lock it, and nobody removes it. What others put at its
    place is not trusted: a symbolic link or a special file is refused, a second name of another file is never written
    to, and a note is shown only as far as it is plain words. POSIX only.

    Args:
        path: The lock file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self, *, timeout: float = 0) -> None:
        """Take the lock.

        Args:
            timeout: Seconds to wait for another holder.

        Raises:
            Held: Another process, or another lock object in this one, holds it.
            OSError: The folder cannot be written, or what is there is no lock file that everybody may use.
        """
        deadline = time.monotonic() + timeout
        while True:
            file = self._open()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                by = _words(os.pread(file, _NOTE_BYTES, 0))
                os.close(file)
                if time.monotonic() >= deadline:
                    raise Held(by) from None
                time.sleep(max(0.0, min(_POLL_S, deadline - time.monotonic())))
            except BaseException:
                os.close(file)
                raise
            else:
                if self._is_there(file):
                    self._file = file
                    self._write(json.dumps({**_self(), "user": _user()}))
                    return
                os.close(file)  # somebody tidied up between opening and locking: what is there now is another file

    def release(self) -> None:
        """Let others in. Releasing twice does nothing."""
        if self._file is not None:
            self._write("")
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        for _ in range(100):
            try:
                # never with O_CREAT: systems refuse that for a file of another user in a folder like /tmp
                file = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                self._create()
                continue
            if stat.S_ISREG(os.fstat(file).st_mode):
                return file
            os.close(file)
            break
        raise OSError(errno.EINVAL, "it is no plain file that stays there", str(self._path))

    def _create(self) -> None:
        """Make the file, with the rights that it keeps: whatever our umask is, everybody else may lock it at once."""
        file, name = tempfile.mkstemp(prefix=".hwnas-", dir=self._path.parent)
        try:
            os.fchmod(file, 0o666)
            with suppress(FileExistsError):
                os.link(name, self._path)
        finally:
            os.close(file)
            os.unlink(name)

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def _write(self, note: str) -> None:
        """Say who holds it; a lock without a note is still a lock."""
        assert self._file is not None
        with suppress(OSError):
            if os.fstat(self._file).st_nlink == 1:
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, note.encode(), 0)


def shared_folder() -> Path | None:
    """Where all users of this machine lock: `HWNAS_LOCKS`, else the first of the system's folders that is open to all,
    which is the same one for whoever asks. None where there is none."""
    named = os.environ.get("HWNAS_LOCKS")
    if named:
        return Path(named).expanduser()
    if os.name == "nt":
        public = os.environ.get("PUBLIC")  # the folder of all users
        return Path(public) / "hwnas" if public else None
    return next((folder for folder in map(Path, _FOLDERS) if _open_to_all(folder)), None)


def lock_file(folder: Path, name: str) -> ExclusiveLock | SharedLock:
    """The lock of a name in a folder that several users share; the folder is made if it is not there.

    Raises:
        OSError: It cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"hwnas-{name}.lock"
    return ExclusiveLock(path) if fcntl is None else SharedLock(path)


def _open_to_all(folder: Path) -> bool:
    """Whether every user may make files there, and none remove those of others."""
    wanted = stat.S_IFDIR | stat.S_ISVTX | stat.S_IWOTH | stat.S_IXOTH
    try:
        return folder.stat().st_mode & wanted == wanted
    except OSError:
        return False


def _words(note: bytes) -> str:
    """Who a note says holds a lock. Any user may have written it, and it is shown in a terminal."""
    try:
        told = json.loads(note)
        owner = f" of {_plain(told['user'])}" if "user" in told else ""
        return f"process {int(told['pid'])}{owner} on {_plain(told['host'])} since {_plain(told['since'])}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _plain(text: object) -> str:
    return "".join(letter for letter in str(text)[:100] if letter.isprintable())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in some containers
        return str(os.getuid())


def _self() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
