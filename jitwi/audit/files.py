# SPDX-License-Identifier: Apache-2.0
"""Files of the audit trail: the folder, one chain, the index that names the chains.

Holds what touches the disk, one function per step. Does not hold threads, deadlines of callers or the spool (`log.py`).
Everything raises `OSError`, or `AuditError` where the disk answers and the answer is not acceptable. The folder is
0700 and ours, files are 0600, symbolic links are refused; parents of the folder are the operator's business.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from pathlib import Path
from typing import Any, Final

from jitwi.audit.chain import FORMAT, GENESIS, INDEX_NAME, link, parse_line
from jitwi.audit.encode import encode_fields
from jitwi.errors import AuditError

__all__ = ["ChainFile", "Folder"]

_write = os.write
_sync = getattr(os, "fdatasync", os.fsync)
_POLL: Final = 0.005
_MAX_INDEX_TAIL: Final = 16 * 1024
_OPEN: Final = os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def _started_at() -> int:
    """Start time of this process in clock ticks since boot (field 22 of its stat), or 0 where there is no /proc."""
    try:
        text = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jitwi")
    except PackageNotFoundError:
        return "unknown"


def _require_file(fd: int, name: str) -> os.stat_result:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise AuditError(
            f"`{name}` is not a regular file of this user that nobody else can write",
            reasons=("unsafe-file",),
            remedy="move the audit folder aside and look who changed it",
        )
    return status


class Folder:
    """The folder of an audit trail, held open by descriptor.

    Args:
        path: Where it is; made with mode 0700 if it does not exist.
    """

    __slots__ = ("fd", "identity", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1
        self.identity: tuple[int, int] = (0, 0)

    def open(self) -> None:
        """Make or open the folder and check it.

        Raises:
            OSError: It cannot be made or opened.
            AuditError: A link, not ours, or open to others.
        """
        if self.fd >= 0:
            self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)  # noqa: PTH102 - exactly this mode
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise AuditError(
                    f"`{self.path}` is a link or not a folder",
                    reasons=("unsafe-folder",),
                    remedy="name the folder itself",
                ) from exc
            raise
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            os.close(fd)
            raise AuditError(
                f"`{self.path}` is not this user's alone",
                reasons=("unsafe-folder",),
                remedy="chmod 700, or name a folder that does not exist yet: it is made so",
            )
        self.fd = fd
        self.identity = (status.st_dev, status.st_ino)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def append_index(self, at: bytes, kind: str, fields: dict[str, Any], *, patience: float) -> None:
        """Append one entry to the chained index, durable before it returns.

        Args:
            at: The instant as text.
            kind: `chain.opened`, `chain.anchored` or `chain.closed`.
            fields: Its members.
            patience: How long to wait for other processes, seconds.

        Raises:
            OSError: It cannot be locked in time, or written.
            AuditError: The index that is there is damaged.
        """
        try:
            fd = os.open(INDEX_NAME, os.O_RDWR | _OPEN, dir_fd=self.fd)
        except FileNotFoundError:
            fd = os.open(INDEX_NAME, os.O_RDWR | os.O_CREAT | _OPEN, 0o600, dir_fd=self.fd)
            os.fsync(self.fd)
        try:
            _lock(fd, patience)
            try:
                self._append_locked(fd, at, kind, fields)
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)  # a forked child may share the descriptor: closing is not enough
        finally:
            os.close(fd)

    def _append_locked(self, fd: int, at: bytes, kind: str, fields: dict[str, Any]) -> None:
        size = _require_file(fd, INDEX_NAME).st_size
        start = max(0, size - _MAX_INDEX_TAIL)
        tail = os.pread(fd, size - start, start)
        whole = tail.rfind(b"\n") + 1
        torn = len(tail) - whole
        seq, prev = -1, GENESIS
        if whole:
            try:
                last = parse_line(tail[tail.rfind(b"\n", 0, whole - 1) + 1 : whole])
            except AuditError as exc:
                raise AuditError(
                    f"the last entry of `{self.path / INDEX_NAME}` is damaged",
                    reasons=("damaged-index",),
                    remedy="run `audit verify`, then move the folder aside",
                ) from exc
            seq, prev = last.seq, last.digest.encode()
        elif start:
            raise AuditError(f"`{self.path / INDEX_NAME}` is damaged", reasons=("damaged-index",))
        if torn:  # a writer died in the middle of its entry
            os.ftruncate(fd, size - torn)
            fields = {**fields, "repaired": torn}
        line, _ = link(seq + 1, prev, at, encode_fields({"kind": kind, **fields}))
        try:
            _write_all(fd, line)
            _sync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size - torn)
            raise


def _write_all(fd: int, line: bytes) -> None:
    if _write(fd, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lock(fd: int, patience: float) -> None:
    for _ in range(max(1, int(patience / _POLL))):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL)
        else:
            return
    raise OSError(errno.ETIMEDOUT, "another process keeps the index locked")


class ChainFile:
    """One chain being written: by one process, one thread at a time.

    Args:
        folder: An open folder.
        at: The instant as text.
        patience: How long to wait for the index, seconds.

    Raises:
        OSError: The file or the index cannot be written; nothing is left behind.
        AuditError: See `Folder`.
    """

    __slots__ = ("_fd", "_folder", "_identity", "_path", "_pending", "_state", "anchored", "name", "opening")

    def __init__(self, folder: Folder, at: bytes, *, patience: float) -> None:
        host = os.uname().nodename
        pid, started_at = os.getpid(), _started_at()
        safe_host = re.sub(r"[^A-Za-z0-9.-]", "-", host)[:64] or "host"
        self.name = f"chain-{safe_host}-{pid}-{started_at}-{os.urandom(8).hex()}.jsonl"
        self._folder = folder
        self._path = os.fspath(folder.path / self.name)
        self._fd = os.open(self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=folder.fd)
        self._state: tuple[int, bytes, int] = (0, GENESIS, 0)  # next number, last hash, size
        self._pending: tuple[int, bytes, int] | None = None
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)
        opened = {
            "kind": "chain.opened",
            "chain": self.name,
            "host": host,
            "pid": pid,
            "started_at": started_at,
            "jitwi": _version(),
            "format": FORMAT,
        }
        try:
            self.opening = self.append(at, encode_fields(opened))
            self.sync()
            os.fsync(folder.fd)
            folder.append_index(
                at, "chain.opened", {"chain": self.name, "head": self._state[1].decode()}, patience=patience
            )
        except BaseException:
            self.abandon()
            with contextlib.suppress(OSError):
                os.unlink(self.name, dir_fd=folder.fd)
            raise
        self.anchored = 1

    @property
    def records(self) -> int:
        """How many records it has."""
        return self._state[0]

    @property
    def head(self) -> tuple[str, int, str]:
        """Name, number and hash of the last record."""
        seq, digest, _ = self._state
        return self.name, seq - 1, digest.decode()

    def append(self, at: bytes, body: bytes) -> bytes:
        """Write one record with one system call; return its line.

        An exception may be raised at any instruction (a signal): what was about to be written is noted first, and the
        next call looks at the file's size to see whether it was.

        Raises:
            OSError: Nothing was written; or a part was and could not be taken back (then the next call fails too).
        """
        if self._pending is not None:
            self._settle(self._pending)
        seq, prev, size = self._state
        line, digest = link(seq, prev, at, body)
        after = (seq + 1, digest, size + len(line))
        self._pending = after
        written = _write(self._fd, line)
        if written != len(line):
            self._settle(after)
            raise OSError(errno.ENOSPC, "only a part of the record could be written")
        self._state = after
        self._pending = None
        return line

    def _settle(self, after: tuple[int, bytes, int]) -> None:
        """Find out whether a write that was interrupted had happened; take a part of it back."""
        size = os.fstat(self._fd).st_size
        if size == after[2]:
            self._state = after
        elif size != self._state[2]:
            if not self._state[2] < size < after[2]:
                raise OSError(errno.EIO, "the chain has a size that nobody of this process gave it")
            os.ftruncate(self._fd, self._state[2])
        self._pending = None

    def sync(self) -> None:
        """Bring it to the disk. After an error the chain must be abandoned: the kernel reports a lost page once.

        Raises:
            OSError: It is not on the disk.
        """
        _sync(self._fd)

    def require_place(self) -> None:
        """Check that the file is still where readers will look for it, and nobody else may write to it.

        Raises:
            OSError: Deleted, renamed, or its folder is out of reach.
            AuditError: Replaced, or its permissions were changed.
        """
        folder, status = os.lstat(self._folder.path), os.lstat(self._path)
        mode = status.st_mode
        is_elsewhere = (folder.st_dev, folder.st_ino) != self._folder.identity
        if is_elsewhere or (status.st_dev, status.st_ino) != self._identity or mode & 0o022 or not mode & 0o200:
            raise AuditError(
                f"`{self._path}` was replaced or its permissions were changed",
                reasons=("unsafe-file",),
                remedy="see who did it; a new chain is opened at the next record",
            )

    def anchor(self, at: bytes, *, patience: float = 0.0) -> None:
        """Sync, and state number and hash of the last record in the index."""
        _, seq, digest = self.head
        self.sync()
        self._folder.append_index(
            at, "chain.anchored", {"chain": self.name, "at_seq": seq, "at_hash": digest}, patience=patience
        )
        self.anchored = seq + 1

    def close(self, at: bytes, *, patience: float) -> bytes:
        """Write the closing record with the count, sync, say so in the index; return the record's line.

        Raises:
            OSError: It could not be written; the chain stays "not closed".
            AuditError: The index is damaged.
        """
        try:
            line = self.append(at, encode_fields({"kind": "chain.closed", "records": self._state[0] + 1}))
            self.sync()
            _, seq, digest = self.head
            self._folder.append_index(
                at, "chain.closed", {"chain": self.name, "at_seq": seq, "at_hash": digest}, patience=patience
            )
        finally:
            self.abandon()
        return line

    def abandon(self) -> None:
        """Close the descriptor without a closing record; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
