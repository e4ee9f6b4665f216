# SPDX-License-Identifier: Apache-2.0
"""One SQLite file shared by the processes of one host.

Holds how it is opened, locked, left behind in a fork and noticed when it is taken away. Does not hold tables: those are
in `ledger.py` and `endings.py`.

One connection per process, behind a lock: writers wait for each other in SQLite anyway. A connection that was inherited
over a fork is never used and never closed in the child, as closing it could drop the parent's locks; as collecting it
would close it, the child keeps it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from jitwi.errors import SharedStateError
from jitwi.secret import NoCopy
from jitwi.state.folder import FileId, create_file, file_id, require_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jitwi.clock import Clock

__all__ = ["BUSY_SECONDS", "SKEW_SECONDS", "SqliteStore"]

BUSY_SECONDS = 2.0
"""How long one call waits for other threads, and then for other processes, before it is an error."""
SKEW_SECONDS = 30.0
"""How long an entry is kept after its end."""

_SCHEMA_VERSION = 1
_RETRY_SECONDS = 0.01
_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_INHERITED: list[sqlite3.Connection] = []


@attrs.define(eq=False)
class _PerProcess:
    """What one process holds of the store."""

    pid: int = attrs.field(factory=os.getpid)
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    connection: sqlite3.Connection | None = None
    opened: FileId | None = None

    def __del__(self) -> None:
        """Keep what a forked child has of its parent's; what is ours and was not closed is a `ResourceWarning`."""
        connection = getattr(self, "connection", None)  # an interrupt may have ended `__init__` early
        if connection is not None and self.pid != os.getpid():
            _INHERITED.append(connection)


class SqliteStore(NoCopy):
    """A SQLite file in a checked folder.

    Args:
        folder: Where; made with mode 0700 at first use if it is missing.
        name: File name.
        clock: The clock.
        private: See `require_folder`.

    Raises:
        SharedStateError: From every call: folder, file or lock are not as they must be.
    """

    schema: tuple[str, ...] = ()

    def __init__(self, folder: str | os.PathLike[str], name: str, *, clock: Clock, private: bool) -> None:
        self._folder = Path(folder)
        self._path = self._folder / name
        self._clock = clock
        self._private = private
        self._closed = False
        self._processes: dict[int, _PerProcess] = {}

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def close(self) -> None:
        """Close this process's connection; idempotent."""
        self._closed = True
        ours = self._processes.get(os.getpid())
        if ours is not None and ours.lock.acquire(timeout=BUSY_SECONDS):
            try:
                self._drop(ours)
            finally:
                ours.lock.release()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection to one thread; every error that leaves is a `SharedStateError`."""
        ours = self._processes.get(os.getpid()) or self._processes.setdefault(os.getpid(), _PerProcess())
        if not ours.lock.acquire(timeout=BUSY_SECONDS):
            raise SharedStateError(
                f"`{self._path}` was busy for {BUSY_SECONDS:g} s", reasons=("state-busy",), remedy="try again"
            )
        try:
            if self._closed:
                raise SharedStateError(f"the store `{self._path}` is closed", reasons=("state-closed",))
            try:
                yield self._current(ours)
            except sqlite3.Error as exc:
                raise self._failure(exc) from exc
            finally:
                if self._closed or (ours.connection is not None and ours.connection.in_transaction):
                    self._drop(ours)  # `close()` does not wait for us longer than a call may wait
        finally:
            ours.lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection with the write lock of the file held; commit at the end, roll back on any error."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _current(self, ours: _PerProcess) -> sqlite3.Connection:
        if ours.connection is not None and file_id(self._path, private=self._private) == ours.opened:
            return ours.connection
        self._drop(ours)
        require_folder(self._folder, private=self._private)
        if file_id(self._path, private=self._private) is None:
            create_file(self._path, mode=0o600 if self._private else 0o644)
        connection = self._connect()
        try:
            ours.opened = file_id(self._path, private=self._private)
        except BaseException:
            connection.close()
            raise
        ours.connection = connection
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_RETRY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        try:
            self._prepare(connection)
            connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for tries_left in range(int(BUSY_SECONDS / _RETRY_SECONDS / 2), -1, -1):
            try:
                connection.execute("PRAGMA trusted_schema=OFF")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("BEGIN IMMEDIATE")
                self._migrate(connection)
                connection.execute("COMMIT")
            except sqlite3.OperationalError as exc:
                # Two processes that switch a new file to WAL at once: SQLite does not wait there by itself, so we do,
                # in small steps and not longer than a call may wait.
                if exc.sqlite_errorcode & 0xFF not in _BUSY_CODES or not tries_left:
                    raise
                threading.Event().wait(_RETRY_SECONDS)
            else:
                return

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _SCHEMA_VERSION):
            raise SharedStateError(
                f"`{self._path}` was written by another version of jitwi (layout {version})",
                reasons=("state-version",),
                remedy="give each version a folder of its own",
            )
        for statement in self.schema:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        self._opened(connection)

    def _opened(self, connection: sqlite3.Connection) -> None:
        """Read or write what belongs to the store as a whole, inside the opening transaction."""

    def _drop(self, ours: _PerProcess) -> None:
        connection, ours.connection, ours.opened = ours.connection, None, None
        if connection is not None:
            connection.close()

    def _failure(self, exc: sqlite3.Error) -> SharedStateError:
        code = getattr(exc, "sqlite_errorname", type(exc).__name__)
        busy = getattr(exc, "sqlite_errorcode", 0) & 0xFF in _BUSY_CODES
        return SharedStateError(
            f"`{self._path}` cannot be {'locked in time' if busy else 'used'}: {code}",
            reasons=("state-busy" if busy else "state-failed",),
            remedy="try again" if busy else "check the disk; a removed store is made anew and refuses older proofs",
        )
