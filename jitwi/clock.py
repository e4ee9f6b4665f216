# SPDX-License-Identifier: Apache-2.0
"""Time: the one place that reads a clock.

Holds `Instant`, `Deadline` and the `Clock` port with its system implementation. Does not hold timers: those are the
watchdog's. A lifetime is measured on two clocks and the earlier one wins: the wall clock, because tokens and
certificates state their ends on it, and the boot-time clock, because nobody can set it back and it counts suspend.

Example:
    >>> from jitwi.clock import Deadline, Instant
    >>> end = Deadline.after(Instant(wall=1000.0, boot=50.0), seconds=60)
    >>> end.is_passed(Instant(wall=900.0, boot=111.0))  # wall clock set back, boot-time clock went on
    True
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["Clock", "Deadline", "Instant", "SystemClock", "as_datetime"]


class Instant(NamedTuple):
    """One moment, read once per decision and passed down.

    Attributes:
        wall: Seconds since the Unix epoch.
        boot: Seconds since boot, suspend included; never goes back.
    """

    wall: float
    boot: float


class Deadline(NamedTuple):
    """The end of a lifetime on both clocks; passed as soon as either is reached.

    Attributes:
        wall: Seconds since the Unix epoch.
        boot: Seconds since boot.
    """

    wall: float
    boot: float

    @classmethod
    def after(cls, start: Instant, *, seconds: float) -> Deadline:
        """Return the deadline `seconds` after `start` on both clocks."""
        return cls(start.wall + seconds, start.boot + seconds)

    @classmethod
    def at_wall(cls, wall: float, *, now: Instant) -> Deadline:
        """Return the deadline for wall-clock time `wall` (seconds since the epoch), as seen from `now`."""
        return cls(wall, now.boot + (wall - now.wall))

    def is_passed(self, now: Instant) -> bool:
        """True from the very instant on: `now >= deadline` on either clock; what is not a number is passed too."""
        return not (now.wall < self.wall and now.boot < self.boot)

    def remaining(self, now: Instant) -> float:
        """Seconds left, the smaller of both clocks; zero or less once passed."""
        return min(self.wall - now.wall, self.boot - now.boot)

    def earlier(self, other: Deadline) -> Deadline:
        """The earlier of two deadlines, clock by clock."""
        return Deadline(min(self.wall, other.wall), min(self.boot, other.boot))


@runtime_checkable
class Clock(Protocol):
    """Port: where an instant comes from."""

    def now(self) -> Instant:
        """Read both clocks once."""
        ...


class SystemClock:
    """The machine's clocks: `CLOCK_REALTIME` and, where the platform has it, `CLOCK_BOOTTIME`."""

    __slots__ = ()
    _BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> Instant:
        """Read both clocks once."""
        return Instant(time.time(), time.clock_gettime(self._BOOT))


def as_datetime(wall: float) -> datetime:
    """Return `wall` (seconds since the epoch) as an aware UTC datetime."""
    return datetime.fromtimestamp(wall, UTC)
