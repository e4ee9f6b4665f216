# SPDX-License-Identifier: Apache-2.0
"""A Guard's memory on one host: which proofs were seen, how often a task was used.

Holds `SqliteProofLedger`. Does not hold what a key means; keys are stored as 128 bits of their SHA-256, so that their
size is bounded and the file says nothing about tasks.

What was forgotten must not be accepted again. Three things can make a store forget, and each has its mark:

* the file is new: `created_at`, and the caller refuses whatever was made before it; a process that had another file
  open moves it to the moment when it notices, for all;
* the machine was restarted, and the last entries may not have reached the disk: `created_at` moves to this start;
* entries were pruned and then the clock was set back: `pruned` is the latest end that was pruned, and an entry that
  would be over by it is never a first one.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

from jitwi.errors import SharedStateError
from jitwi.state.folder import boot_id
from jitwi.state.sqlite import SKEW_SECONDS, SqliteStore

if TYPE_CHECKING:
    import os
    import sqlite3

    from jitwi.clock import Clock

__all__ = ["SqliteProofLedger"]

_PRUNE_EVERY_SECONDS = 10.0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:16]


class SqliteProofLedger(SqliteStore):
    """Exactly-once and exact counts over the threads and processes of one host.

    Args:
        folder: A folder of this user alone; made with mode 0700 at first use.
        clock: The clock.
        name: File name; Guards that share it share their memory.
        since: What a store dates from that this object makes at its first use, seconds since the epoch; by default
            from now. Not earlier than this process: another one may have used a store that is gone.

    Note:
        No I/O before the first call. Safe for threads, and in a forked child, which opens a connection of its own.

    Raises:
        SharedStateError: From every call: the store cannot answer, or its folder could be written to by others. Deny.
    """

    schema = (
        "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY, expires_at REAL NOT NULL) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS seen_by_end ON seen (expires_at)",
        """CREATE TABLE IF NOT EXISTS counts
           (key BLOB PRIMARY KEY, used INTEGER NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX IF NOT EXISTS counts_by_end ON counts (expires_at)",
    )

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        clock: Clock,
        name: str = "proofs.sqlite3",
        since: float | None = None,
    ) -> None:
        super().__init__(folder, name, clock=clock, private=True)
        self._since = clock.now().wall if since is None else since
        self._store_id: str | None = None
        self._prune_at = 0.0

    @property
    def created_at(self) -> float:
        """When the store was made, seconds since the epoch: what is older may have been forgotten.

        Read anew each time: another process may just have found out that an older store was taken away.

        Raises:
            SharedStateError: The store cannot answer.
        """
        with self._connected() as connection:
            return self._instant(connection, "created_at")

    def first_seen(self, key: str, *, expires_at: float) -> bool:
        """True exactly once per key, until `expires_at` and longer; False for one that is over already.

        Args:
            key: What must not come twice.
            expires_at: When nobody would accept it any more, seconds since the epoch.

        Raises:
            SharedStateError: The store cannot answer: deny.
        """
        with self._connected() as connection:
            self._prune(connection)
            done = connection.execute(
                "INSERT OR IGNORE INTO seen SELECT ?, ? WHERE ? > (SELECT value FROM meta WHERE name = 'pruned')",
                (_digest(key), float(expires_at), float(expires_at)),
            )
            return done.rowcount == 1

    def reserve(self, key: str, *, limit: int, expires_at: float) -> int:
        """Count one use of `key`.

        Args:
            key: What is counted.
            limit: How many uses there are.
            expires_at: Until when the count is needed, seconds since the epoch; a later one prolongs it.

        Returns:
            The number of this use, from 1; 0 if `limit` uses are counted already or the count is over.

        Raises:
            SharedStateError: The store cannot answer: deny.
        """
        digest, end = _digest(key), float(expires_at)
        with self._transaction() as connection:
            if end <= self._instant(connection, "pruned"):
                return 0
            row = connection.execute("SELECT used FROM counts WHERE key = ?", (digest,)).fetchone()
            used = int(row[0]) if row else 0
            granted = used < limit
            connection.execute(
                "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT (key)"
                " DO UPDATE SET used = excluded.used, expires_at = max(counts.expires_at, excluded.expires_at)",
                (digest, used + granted, end),
            )
            return used + 1 if granted else 0

    def release(self, key: str) -> None:
        """Give one reserved use back, after a deny.

        Raises:
            SharedStateError: The store cannot answer; the use stays counted.
        """
        with self._connected() as connection:
            connection.execute("UPDATE counts SET used = used - 1 WHERE key = ? AND used > 0", (_digest(key),))

    def _instant(self, connection: sqlite3.Connection, name: str) -> float:
        (value,) = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone() or (None,)
        return self._checked(value)

    def _checked(self, value: object) -> float:
        if not isinstance(value, int | float):
            raise SharedStateError(
                f"`{self._path}` is damaged",
                reasons=("state-damaged",),
                remedy="remove it; what is older is then refused",
            )
        return float(value)

    def _opened(self, connection: sqlite3.Connection) -> None:
        meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        boot = boot_id()
        # Once a store was open here, another one means that the old one was taken away, by now at the latest, even if
        # a process that knows nothing of the old one has made it.
        is_another = self._store_id is not None and meta.get("id") != self._store_id
        if meta.get("boot") != boot or not {"id", "created_at"} <= meta.keys() or is_another:
            since = self._since if self._store_id is None else self._clock.now().wall
            meta = {
                "id": meta.get("id") or secrets.token_hex(16),
                "boot": boot,
                "created_at": max(since, self._checked(meta.get("created_at", 0.0))),
                "pruned": self._checked(meta.get("pruned", 0.0)),
            }
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(meta.items()))
        self._store_id = str(meta["id"])

    def _prune(self, connection: sqlite3.Connection) -> None:
        now = self._clock.now()
        if now.boot < self._prune_at:
            return
        self._prune_at = now.boot + _PRUNE_EVERY_SECONDS
        over = now.wall - SKEW_SECONDS
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'pruned'", (over,))
        connection.execute("DELETE FROM seen WHERE expires_at <= ?", (over,))
        connection.execute("DELETE FROM counts WHERE expires_at <= ?", (over,))
        connection.execute("COMMIT")
