# SPDX-License-Identifier: Apache-2.0
"""The journal of one host: a SQLite file that several processes share.

Holds `SqliteJournal`: the file with its checks, and the operations of the port. Does not hold rules (`due.py`,
`owner.py`) or secrets. Write-ahead log; what announces a credential is synced before it returns, what only says that
one is over is not, as ending it once more does no harm.

One connection per process behind a lock. One that was inherited over a fork is never used and never closed in the
child: closing it could drop the parent's locks, and as collecting it would close it, the child keeps it. The file is
never opened by other means, for the same reason.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from jitwi.errors import JournalError
from jitwi.journal import rows
from jitwi.journal.due import is_waiting
from jitwi.journal.record import LeaseStatus
from jitwi.secret import NoCopy

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jitwi.clock import Clock
    from jitwi.journal.record import LeaseRecord, Owner

__all__ = ["BUSY_SECONDS", "SqliteJournal", "journal_path"]

BUSY_SECONDS = 5.0
"""How long one call waits for other threads, and then for other processes, before it is an error."""

_APPLICATION_ID = 0x4A495457
_SCHEMA_VERSION = 1
_LOOKUP_BATCH = 500
_WAL_TRIES, _WAL_PAUSE_SECONDS = 100, 0.02
_BEFORE_ENDING = (LeaseStatus.INTENDED.value, LeaseStatus.ACTIVE.value)
_BUSY_CODES = frozenset({5, 6})  # SQLITE_BUSY, SQLITE_LOCKED; `sqlite3` is imported when first used
_INHERITED: list[sqlite3.Connection] = []


def journal_path(state_dir: str | os.PathLike[str]) -> Path:
    """Return where the journal is in a state folder."""
    return Path(state_dir, "journal", "journal.sqlite3")


@attrs.define(eq=False)
class _PerProcess:
    """What one process holds of the file."""

    pid: int = attrs.field(factory=os.getpid)
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    connection: sqlite3.Connection | None = None
    opened: tuple[int, int] | None = None

    def __del__(self) -> None:
        """Keep what a forked child has of its parent's; what is ours and was not closed is a `ResourceWarning`."""
        connection = getattr(self, "connection", None)  # an interrupt may have ended `__init__` early
        if connection is not None and self.pid != os.getpid():
            _INHERITED.append(connection)


class SqliteJournal(NoCopy):
    """The journal of one host. No I/O before the first call; safe in threads, processes and after a fork.

    Args:
        path: The file. Its folder is made with mode 0700 if it is missing, and must be this user's alone.
        clock: The clock.

    Raises:
        JournalError: From every call: the file cannot be read or written, or is not as it must be.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock) -> None:
        self._path = Path(path)
        self._clock = clock
        self._closed = False
        self._processes: dict[int, _PerProcess] = {}

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def __repr__(self) -> str:
        """The file."""
        return f"<SqliteJournal {self._path}>"

    def intend(self, record: LeaseRecord) -> None:
        """Write a new record, durable before it returns; counts as a heartbeat of its owner.

        Raises:
            JournalError: It is not on disk, is out of bounds, or the id is taken: do not call the issuer.
        """
        import sqlite3

        row = rows.row_of(record)
        with self._writing(durable=True) as connection:
            try:
                connection.execute(rows.INSERT, row)
            except sqlite3.IntegrityError as exc:
                raise JournalError(
                    f"lease `{record.lease_id}` is in the journal already", reasons=("duplicate",)
                ) from exc
            self._beat(connection, record.owner, record.created_at)

    def activate(self, lease_id: str, *, recipe: Mapping[str, str], expires_at: float) -> None:
        """Note that the issuer answered, and add to the recipe; durable, as the recipe may be needed.

        Raises:
            JournalError: Not written, no such record, or a reaper is ending it: end the credential.
        """
        with self._writing(durable=True) as connection:
            found = connection.execute("SELECT status, recipe FROM leases WHERE lease_id = ?", (lease_id,)).fetchone()
            if found is None or found[0] not in _BEFORE_ENDING:
                why, reason = ("is being ended", "being-ended") if found else ("is not in the journal", "unknown-lease")
                raise JournalError(f"lease `{lease_id}` {why}", reasons=(reason,), remedy="end the credential")
            connection.execute(
                "UPDATE leases SET status = 'active', recipe = ?, expires_at = ? WHERE lease_id = ?",
                (
                    rows.recipe_text({**rows.recipe_from(found[1])[0], **recipe}),
                    rows.require_time("expires_at", expires_at),
                    lease_id,
                ),
            )

    def ending(self, lease_id: str, *, detail: str, next_attempt_at: float) -> None:
        """Note a try to end it that did not succeed; the claim on it lapses.

        Raises:
            JournalError: Not written, or no such record.
        """
        with self._writing(durable=False) as connection:
            done = connection.execute(
                "UPDATE leases SET status = 'ending', attempts = attempts + 1, detail = ?, next_attempt_at = ?,"
                " claimed_by = '', claimed_until = 0 WHERE lease_id = ? AND status != 'ended'",
                (rows.one_line(detail), rows.require_time("next_attempt_at", next_attempt_at), lease_id),
            )
            if (
                done.rowcount != 1
                and not connection.execute("SELECT 1 FROM leases WHERE lease_id = ?", (lease_id,)).fetchone()
            ):
                raise JournalError(f"lease `{lease_id}` is not in the journal", reasons=("unknown-lease",))

    def ended(self, lease_id: str, *, outcome: str) -> None:
        """Note that it is over; idempotent, and nothing to do for a lease that the journal does not know.

        Raises:
            JournalError: Not written; the reaper will end it once more.
        """
        with self._writing(durable=False) as connection:
            connection.execute(
                "UPDATE leases SET status = 'ended', outcome = ?, ended_at = ?, claimed_by = '', claimed_until = 0"
                " WHERE lease_id = ? AND status != 'ended'",
                (rows.one_line(outcome), self._clock.now().wall, lease_id),
            )

    def heartbeat(self, owner: Owner, *, now: float) -> None:
        """Note that the owner is alive.

        Raises:
            JournalError: Not written.
        """
        rows.require_owner(owner)
        with self._writing(durable=False) as connection:
            self._beat(connection, owner, rows.require_time("now", now))

    def open_leases(self, *, issuer: str | None = None) -> tuple[LeaseRecord, ...]:
        """Return every record that is not ENDED, oldest first. An unreadable recipe is returned as an empty one.

        Raises:
            JournalError: It cannot be read.
        """
        with self._connected() as connection:
            found = connection.execute(
                f"{rows.SELECT} WHERE status != 'ended' AND (? IS NULL OR issuer = ?) ORDER BY created_at, lease_id",
                (issuer, issuer),
            ).fetchall()
        return tuple(rows.record_of(row) for row in found)

    def pending_count(self, issuer: str) -> int:
        """Return how many endings of this issuer were tried and are not proven yet.

        Raises:
            JournalError: It cannot be read.
        """
        with self._connected() as connection:
            found = connection.execute(
                "SELECT count(*) FROM leases WHERE issuer = ? AND status = 'ending' AND attempts > 0", (issuer,)
            ).fetchone()
        return int(found[0])

    def lookup(self, lease_ids: Iterable[str]) -> dict[str, LeaseRecord]:
        """Return those of the records that exist, ENDED ones included.

        Raises:
            JournalError: It cannot be read.
        """
        wanted = list(lease_ids)
        records: dict[str, LeaseRecord] = {}
        with self._connected() as connection:
            for start in range(0, len(wanted), _LOOKUP_BATCH):
                batch = wanted[start : start + _LOOKUP_BATCH]
                marks = ",".join("?" * len(batch))
                for row in connection.execute(f"{rows.SELECT} WHERE lease_id IN ({marks})", batch):
                    record = rows.record_of(row)
                    records[record.lease_id] = record
        return records

    def heartbeats(self) -> dict[str, float]:
        """Return the last heartbeat of each owner by its token, seconds since the epoch.

        Raises:
            JournalError: It cannot be read.
        """
        with self._connected() as connection:
            return dict(connection.execute("SELECT token, beat_at FROM owners").fetchall())

    def adopt(self, record: LeaseRecord) -> None:
        """Write a record for a lease that the backend lists and nobody answers for: new, or ENDED before.

        Raises:
            JournalError: Not written.
        """
        row = rows.row_of(record)
        with self._writing(durable=True) as connection:
            connection.execute(rows.INSERT_IF_NEW, row)
            connection.execute(
                "UPDATE leases SET status = 'ending', outcome = '', ended_at = 0, next_attempt_at = 0"
                " WHERE lease_id = ? AND status = 'ended'",
                (record.lease_id,),
            )

    def claim(
        self, lease_id: str, *, by: Owner, now: float, until: float, is_gone: Callable[[Owner], bool]
    ) -> LeaseRecord | None:
        """Take a lease for ending it, so that no other reaper does the same before `until`.

        Raises:
            JournalError: Not written.
        """
        rows.require_owner(by)
        with self._writing(durable=False) as connection:
            found = connection.execute(
                "SELECT next_attempt_at, claimed_by, claimed_until FROM leases"
                " WHERE lease_id = ? AND status != 'ended'",
                (lease_id,),
            ).fetchone()
            if found is None or is_waiting(found[0], now=now):
                return None
            claimant = rows.owner_from_text(found[1])
            if claimant is not None and is_waiting(found[2], now=now) and not is_gone(claimant):
                return None
            connection.execute(
                "UPDATE leases SET status = 'ending', claimed_by = ?, claimed_until = ? WHERE lease_id = ?",
                (rows.owner_text(by), rows.require_time("until", until), lease_id),
            )
            row = connection.execute(f"{rows.SELECT} WHERE lease_id = ?", (lease_id,)).fetchone()
        return rows.record_of(row)

    def prune(self, *, ended_before: float) -> int:
        """Forget ENDED records older than that, and owners without any lease; returns how many leases.

        Raises:
            JournalError: Not written.
        """
        with self._writing(durable=False) as connection:
            gone = connection.execute(
                "DELETE FROM leases WHERE status = 'ended' AND ended_at < ? AND expires_at < ?",
                (ended_before, ended_before),
            ).rowcount
            connection.execute(
                "DELETE FROM owners WHERE beat_at < ? AND token NOT IN (SELECT owner_token FROM leases)",
                (ended_before,),
            )
        return int(gone)

    def close(self) -> None:
        """Close this process's connection; idempotent."""
        self._closed = True
        ours = self._processes.get(os.getpid())
        if ours is not None and ours.lock.acquire(timeout=BUSY_SECONDS):
            try:
                self._drop(ours)
            finally:
                ours.lock.release()

    @staticmethod
    def _beat(connection: sqlite3.Connection, owner: Owner, at: float) -> None:
        connection.execute(
            "INSERT INTO owners (token, beat_at) VALUES (?, ?)"
            " ON CONFLICT (token) DO UPDATE SET beat_at = excluded.beat_at",
            (owner.token, at),
        )

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection to one thread; every error that leaves is a `JournalError`."""
        import sqlite3

        ours = self._processes.get(os.getpid()) or self._processes.setdefault(os.getpid(), _PerProcess())
        if not ours.lock.acquire(timeout=BUSY_SECONDS):
            raise JournalError(f"`{self._path}` was busy for {BUSY_SECONDS:g} s", reasons=("busy",), remedy="try again")
        try:
            if self._closed:
                raise JournalError(f"the journal `{self._path}` is closed", reasons=("closed",))
            try:
                yield self._current(ours)
            except sqlite3.Error as exc:
                self._drop(ours)
                raise self._failure(exc) from exc
        finally:
            if self._closed:  # `close()` does not wait for us longer than a call may wait
                self._drop(ours)
            ours.lock.release()

    @contextmanager
    def _writing(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """Lend the connection with the file's write lock held; commit at the end, roll back on any error."""
        with self._connected() as connection:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _current(self, ours: _PerProcess) -> sqlite3.Connection:
        """The connection to the file that is at the path now: one that was taken away is let go."""
        import sqlite3

        there = self._file_id()
        if ours.connection is not None and ours.opened == there:
            if ours.connection.in_transaction:  # an interrupt between BEGIN and its `try`
                ours.connection.execute("ROLLBACK")
            return ours.connection
        self._drop(ours)
        if there is None:
            self._create()
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            self._prepare(connection)
            opened = self._file_id()
        except BaseException:
            connection.close()
            raise
        ours.connection, ours.opened = connection, opened
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA trusted_schema = OFF")
        self._switch_to_wal(connection)
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and application == 0 and tables == 0:
            for statement in rows.SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        elif application != _APPLICATION_ID:
            raise JournalError(f"`{self._path}` is another program's database", reasons=("foreign",))
        elif version != _SCHEMA_VERSION:
            raise JournalError(
                f"`{self._path}` has version {version} of the journal, this is for version {_SCHEMA_VERSION}",
                reasons=("schema-version",),
                remedy="use the version of jitwi that wrote it",
            )
        connection.execute("COMMIT")

    @staticmethod
    def _switch_to_wal(connection: sqlite3.Connection) -> None:
        """SQLite does not wait here when another process opens the file at the same moment: we do."""
        import sqlite3

        for remaining in reversed(range(_WAL_TRIES)):
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF not in _BUSY_CODES or not remaining:
                    raise
                time.sleep(_WAL_PAUSE_SECONDS)
            else:
                return

    def _create(self) -> None:
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = os.lstat(folder)
        except OSError as exc:
            raise JournalError(f"`{folder}` cannot be made: {exc.strerror}", reasons=("folder",)) from exc
        if not stat.S_ISDIR(found.st_mode):
            raise JournalError(f"`{folder}` is a link or no folder", reasons=("link",), remedy="name the real folder")
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise JournalError(
                f"`{folder}` is open to others (mode {stat.S_IMODE(found.st_mode):o}, user {found.st_uid})",
                reasons=("folder-mode",),
                remedy="run `chmod 700` on it, or give another folder",
            )
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(self._path, flags, 0o600))
        except FileExistsError:
            self._file_id()
        except OSError as exc:
            raise JournalError(f"`{self._path}` cannot be made: {exc.strerror}", reasons=("file",)) from exc

    def _file_id(self) -> tuple[int, int] | None:
        """Device and inode of the file at the path, or None if there is none."""
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise JournalError(f"`{self._path}` cannot be read: {exc.strerror}", reasons=("file",)) from exc
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise JournalError(f"`{self._path}` is a link or no plain file", reasons=("link",), remedy="remove it")
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise JournalError(
                f"`{self._path}` is open to others (mode {stat.S_IMODE(found.st_mode):o}, user {found.st_uid})",
                reasons=("file-mode",),
                remedy="run `chmod 600` on it once you know who wrote to it",
            )
        return found.st_dev, found.st_ino

    @staticmethod
    def _drop(ours: _PerProcess) -> None:
        import sqlite3

        connection, ours.connection, ours.opened = ours.connection, None, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                return

    def _failure(self, exc: sqlite3.Error) -> JournalError:
        code = getattr(exc, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _BUSY_CODES:
            return JournalError(
                f"`{self._path}` was busy for {BUSY_SECONDS:g} s", reasons=("busy",), remedy="try again"
            )
        name = getattr(exc, "sqlite_errorname", type(exc).__name__)
        return JournalError(f"`{self._path}` could not be read or written: {name}", reasons=("sqlite",))
