# SPDX-License-Identifier: Apache-2.0
"""What is remembered while the disk is away: records of lost access within bounds, and exact counts of the rest.

Holds `Job` (one record on its way to the chain) and `Spool`. Does not hold threads or files.
"""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, Final

from jitwi.audit.events import AuditGap

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_HELD", "MAX_HELD_BYTES", "Job", "Spool"]

MAX_HELD: Final = 4096
"""Records of lost access that are held in memory at most."""
MAX_HELD_BYTES: Final = 4 * 1024 * 1024
"""The same in bytes."""


class Job:
    """One record on its way through the writer.

    Args:
        at: The instant as text.
        wall: The instant, seconds since the epoch.
        body: The encoded event; empty for a barrier.
        durable: To be synced before `done`.
        loss: A record of lost access: kept when it cannot be written.
        closing: Close the chain after it.
    """

    __slots__ = ("at", "body", "done", "error", "is_abandoned", "is_closing", "is_durable", "is_loss", "wall")

    def __init__(
        self, at: bytes, wall: float, body: bytes, *, durable: bool, loss: bool = False, closing: bool = False
    ) -> None:
        self.at = at
        self.wall = wall
        self.body = body
        self.is_durable = durable
        self.is_loss = loss
        self.is_closing = closing
        self.is_abandoned = False
        self.error: Exception | None = None
        self.done = threading.Lock()
        self.done.acquire()


class Spool:
    """Counts what was refused and lost, and holds what can still be written.

    A gap is open from the first failure until its record is on disk.
    """

    def __init__(self) -> None:
        self.jobs: collections.deque[Job] = collections.deque()
        """Records to write once the disk is back; the writer's thread alone touches it."""
        self._lock = threading.RLock()  # a signal handler may come in the middle and need it too
        self._held = self._held_bytes = 0
        self._lost = self._refused = 0
        self._first_at: float | None = None
        self._detail = ""
        self._stated: tuple[int, int, float, str] | None = None

    @property
    def is_open(self) -> bool:
        """True while there is a gap that was not recorded."""
        return self._first_at is not None

    @property
    def left(self) -> tuple[int, int]:
        """How many records are held, and how many were dropped."""
        return self._held, self._lost

    def hold(self, job: Job) -> bool:
        """Count a record of lost access as held until `release`; False, and counted as lost, if there are too many."""
        with self._lock:
            if self._held >= MAX_HELD or self._held_bytes + len(job.body) > MAX_HELD_BYTES:
                self.lose(job.wall, "more records than can be held")
                return False
            self._held += 1
            self._held_bytes += len(job.body)
            return True

    def release(self, jobs: Iterable[Job]) -> None:
        """Forget the records of lost access among `jobs`: they are written."""
        sizes = [len(job.body) for job in jobs if job.is_loss]
        if sizes:
            with self._lock:
                self._held -= len(sizes)
                self._held_bytes -= sum(sizes)

    def lose(self, wall: float, detail: str) -> None:
        """Count one record that is lost."""
        with self._lock:
            self._lost += 1
            self.note(wall, detail)

    def note(self, wall: float, detail: str, *, refused: int = 0) -> bool:
        """Open a gap, or add to it; True if it was opened."""
        with self._lock:
            self._refused += refused
            if self._first_at is not None:
                return False
            self._first_at, self._detail = wall, detail
            return True

    def state_gap(self) -> AuditGap | None:
        """Return the record of the gap, or None; `settle` says what became of it."""
        with self._lock:
            if self._first_at is None and not self.jobs:
                return None
            self._stated = (self._lost, self._refused, self._first_at or 0.0, self._detail)
            lost, refused, first_at, detail = self._stated
            return AuditGap(None, lost, first_at, detail, refused, len(self.jobs))

    def settle(self, *, is_recorded: bool) -> None:
        """Close the gap that was stated if its record is on disk; what was counted meanwhile opens the next."""
        with self._lock:
            stated, self._stated = self._stated, None
            if stated is None or not is_recorded:
                return
            self._lost -= stated[0]
            self._refused -= stated[1]
            if not (self._lost or self._refused):
                self._first_at = None
