# SPDX-License-Identifier: Apache-2.0
"""What has ended before its time, told to the Guards of one host.

Holds `SqliteEndings`: a table of public ids and an epoch beside it. Does not hold who may end what: an ending can only
deny, so a folder shared with another user's Guard gives that user nothing but refusals.

The epoch is eight bytes that change after each commit. A reader takes the epoch first and looks into the table only
if it moved, so that a look costs a memory read. A writer that dies between commit and epoch is noticed within a second.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import struct
from contextlib import closing
from typing import TYPE_CHECKING

from jitwi.errors import SharedStateError
from jitwi.state.folder import create_file, file_id, require_folder
from jitwi.state.sqlite import BUSY_SECONDS, SKEW_SECONDS, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.clock import Clock
    from jitwi.state.folder import FileId

__all__ = ["SqliteEndings"]

_EPOCH = struct.Struct("=Q")
_MAX_MEMO = 4096
_PRUNE_EVERY_SECONDS = 10.0
_RESYNC_SECONDS = 1.0


class SqliteEndings(SqliteStore):
    """Endings shared by the processes of one host.

    Args:
        folder: The folder; made with mode 0700 at first use. To share it with another user's Guard, make it before,
            owned by the writer and readable by the Guard.
        clock: The clock.

    Note:
        No I/O before the first call. Who cannot write to the folder reads it.

    Raises:
        SharedStateError: From every call: the store cannot answer. Deny.
    """

    schema = (
        "CREATE TABLE IF NOT EXISTS ended (key TEXT PRIMARY KEY, expires_at REAL NOT NULL) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS ended_by_end ON ended (expires_at)",
    )

    def __init__(self, folder: str | os.PathLike[str], *, clock: Clock) -> None:
        super().__init__(folder, "endings.sqlite3", clock=clock, private=False)
        self._epoch_path = self._folder / "endings.epoch"
        self._word: memoryview | None = None
        self._epoch_file: FileId | None = None
        self._checked_at = float("-inf")
        self._memo: dict[str, tuple[int, float]] = {}
        self._prune_at = 0.0

    def epoch(self) -> int:
        """Return the number that changes with every `publish`, on this host.

        Raises:
            SharedStateError: The epoch file cannot be read.
        """
        word = self._word
        if word is None or self._closed:
            return self._read_epoch()
        return int(word[0])

    def publish(self, key: str, *, expires_at: float) -> None:
        """Say that `key` is over. Committed before the epoch moves.

        Args:
            key: A public id.
            expires_at: Until when somebody could still accept it, seconds since the epoch.

        Raises:
            SharedStateError: It could not be stored.
        """
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO ended VALUES (?, ?) ON CONFLICT (key)"
                " DO UPDATE SET expires_at = max(ended.expires_at, excluded.expires_at)",
                (key, float(expires_at)),
            )
            now = self._clock.now()
            if now.boot >= self._prune_at:
                self._prune_at = now.boot + _PRUNE_EVERY_SECONDS
                connection.execute("DELETE FROM ended WHERE expires_at <= ?", (now.wall - SKEW_SECONDS,))
        self._bump()

    def is_ended(self, key: str) -> bool:
        """Whether `key` was published.

        Raises:
            SharedStateError: The store cannot be read: deny.
        """
        boot = self._clock.now().boot
        self._check_epoch_file(boot)
        epoch = self.epoch()
        seen = self._memo.get(key)
        if seen is not None and seen[0] == epoch and 0 <= boot - seen[1] < _RESYNC_SECONDS:
            return False
        row = self._look(lambda c: c.execute("SELECT 1 FROM ended WHERE key = ?", (key,)).fetchone())
        if row is not None:
            return True
        if len(self._memo) >= _MAX_MEMO:
            self._memo.clear()
        self._memo[key] = (epoch, boot)
        return False

    def close(self) -> None:
        """Close this process's connection; idempotent."""
        super().close()
        self._word = None

    def _look(self, question: Callable[[sqlite3.Connection], object]) -> object:
        if os.access(self._folder, os.W_OK) or not self._folder.exists():
            with self._connected() as connection:
                return question(connection)
        if self._closed:
            raise SharedStateError(f"the store `{self._path}` is closed", reasons=("state-closed",))
        require_folder(self._folder, private=False)
        # Somebody else's folder. While nobody has the database open there is no log beside it and nothing can change:
        # only then may it be read as it lies there.
        for immutable in (False, True):
            if immutable and self._path.with_name(self._path.name + "-wal").exists():
                break
            uri = f"{self._path.absolute().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
            try:
                with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                    return question(connection)
            except sqlite3.Error as exc:
                failure = self._failure(exc)
                failure.__cause__ = exc
        raise failure

    def _check_epoch_file(self, boot: float) -> None:
        if 0 <= boot - self._checked_at < _RESYNC_SECONDS:
            return
        self._checked_at = boot
        if self._word is not None and file_id(self._epoch_path, private=False) != self._epoch_file:
            self._word = None

    def _open_epoch(self, *, write: bool) -> int:
        flags = os.O_RDWR if write else os.O_RDONLY
        return os.open(self._epoch_path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _read_epoch(self) -> int:
        """Read the epoch from the file; map it if the file is this user's own, so that nobody else can cut it short."""
        if self._closed:
            raise SharedStateError(f"the store `{self._path}` is closed", reasons=("state-closed",))
        ours = self._prepare_epoch()
        try:
            fd = self._open_epoch(write=False)
            try:
                if not ours:
                    data = os.pread(fd, _EPOCH.size, 0)
                    return int(_EPOCH.unpack(data)[0]) if len(data) == _EPOCH.size else 0
                found = os.fstat(fd)
                self._epoch_file = found.st_dev, found.st_ino
                mapped = mmap.mmap(fd, _EPOCH.size, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        except (OSError, ValueError) as exc:
            raise self._epoch_failure(exc) from exc
        word = self._word = memoryview(mapped).cast("Q")
        return int(word[0])

    def _prepare_epoch(self) -> bool:
        """Make the epoch file where this user may; True if it is this user's own."""
        require_folder(self._folder, private=False)
        if os.access(self._folder, os.W_OK):
            create_file(self._epoch_path, mode=0o644)
        file_id(self._epoch_path, private=False)
        try:
            found = os.lstat(self._epoch_path)
            if found.st_uid != os.geteuid():
                return False
            if found.st_size < _EPOCH.size:
                fd = self._open_epoch(write=True)
                try:
                    os.truncate(fd, _EPOCH.size)
                finally:
                    os.close(fd)
        except OSError as exc:
            raise self._epoch_failure(exc) from exc
        return True

    def _bump(self) -> None:
        """Write a value that never was there: unique, so that two writers cannot undo each other's change."""
        self._prepare_epoch()
        try:
            fd = self._open_epoch(write=True)
            try:
                os.pwrite(fd, os.urandom(_EPOCH.size), 0)
            finally:
                os.close(fd)
        except OSError as exc:
            raise self._epoch_failure(exc) from exc

    def _epoch_failure(self, exc: Exception) -> SharedStateError:
        return SharedStateError(
            f"`{self._epoch_path}` cannot be used: {getattr(exc, 'strerror', None) or type(exc).__name__}",
            reasons=("state-failed",),
            remedy="check the folder; a Guard of another user needs the right to read it",
        )
