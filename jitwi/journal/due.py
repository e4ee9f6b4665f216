# SPDX-License-Identifier: Apache-2.0
"""When a lease is the reaper's business, and when it is tried again.

Holds two pure rules. Does not hold the reaper: it is in `reaper.py`.
"""

from __future__ import annotations

from jitwi.journal.lease_id import ends_at_of
from jitwi.journal.record import LeaseRecord, LeaseStatus

__all__ = [
    "BACKOFF_BASE_SECONDS",
    "BACKOFF_CAP_SECONDS",
    "MAX_DELAY_SECONDS",
    "OVERDUE_GRACE_SECONDS",
    "backoff",
    "is_due",
    "is_waiting",
    "must_end_at",
]

BACKOFF_BASE_SECONDS = 0.5
BACKOFF_CAP_SECONDS = 5.0
"""Small on purpose: a backend that is back gets its endings within ten seconds."""
OVERDUE_GRACE_SECONDS = 2.0
"""What a live owner gets to end a lease itself before a reaper does it too."""
MAX_DELAY_SECONDS = 60.0
"""A waiting time longer than this is not believed: the wall clock was set back."""

_MAX_DOUBLINGS = 16


def must_end_at(record: LeaseRecord) -> float:
    """Return when a lease must be over: the earlier of what its record and its id say."""
    named = ends_at_of(record.lease_id)
    return record.expires_at if named is None else min(record.expires_at, named)


def is_waiting(until: float, *, now: float) -> bool:
    """Whether `until` is still to come, and so near that it can have been meant."""
    return now < until <= now + MAX_DELAY_SECONDS


def is_due(record: LeaseRecord, *, owner_is_alive: bool, now: float) -> bool:
    """Whether a reaper must end this lease now.

    An ending that was begun is anybody's to finish. Everything else is its owner's business, until the owner is gone
    or has let it run over its end.

    Args:
        record: The lease.
        owner_is_alive: What `is_alive` said.
        now: Seconds since the epoch.
    """
    if record.status is LeaseStatus.ENDED or is_waiting(record.next_attempt_at, now=now):
        return False
    if record.status is LeaseStatus.ENDING:
        return True
    return not owner_is_alive or now >= must_end_at(record) + OVERDUE_GRACE_SECONDS


def backoff(attempts: int, *, jitter: float) -> float:
    """Return the seconds until the next try: doubling from half a second, capped, for ever.

    Args:
        attempts: How many tries have failed, this one included.
        jitter: From 0 to 1; spreads the tries over the upper half of the time.
    """
    doublings = min(max(attempts - 1, 0), _MAX_DOUBLINGS)
    whole: float = min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2**doublings)
    return whole * (0.5 + 0.5 * jitter)
