# SPDX-License-Identifier: Apache-2.0
"""A clock that stands still until it is told otherwise.

Holds `FakeClock`. Does not change what the operating system or a library of somebody else thinks the time is.

Example:
    >>> from jitwi.testing.clock import FakeClock
    >>> clock = FakeClock(wall=1000.0, boot=10.0)
    >>> clock.advance(5)
    >>> clock.now()
    Instant(wall=1005.0, boot=15.0)
"""

from __future__ import annotations

import threading
from datetime import timedelta

from jitwi.clock import Instant, SystemClock

__all__ = ["FakeClock"]


class FakeClock:
    """A settable clock behind the `jitwi.clock.Clock` port; safe to use from several threads.

    Args:
        wall: Seconds since the epoch to start at; None takes the machine's.
        boot: Seconds since boot to start at; None takes the machine's.
    """

    def __init__(self, wall: float | None = None, boot: float | None = None) -> None:
        real = SystemClock().now()
        self._lock = threading.Lock()
        self._now = Instant(real.wall if wall is None else wall, real.boot if boot is None else boot)

    def now(self) -> Instant:
        """Return the instant that was set."""
        return self._now

    def advance(self, by: float | timedelta) -> None:
        """Move both clocks on.

        Args:
            by: A timedelta, or seconds.
        """
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        with self._lock:
            self._now = Instant(self._now.wall + seconds, self._now.boot + seconds)

    def set_wall(self, wall: float) -> None:
        """Set the wall clock alone (seconds since the epoch), as an administrator or NTP would; also back."""
        with self._lock:
            self._now = Instant(wall, self._now.boot)

    def set_boot(self, boot: float) -> None:
        """Set the boot-time clock alone (seconds), as a suspend would."""
        with self._lock:
            self._now = Instant(self._now.wall, boot)
