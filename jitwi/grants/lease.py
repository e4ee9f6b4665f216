# SPDX-License-Identifier: Apache-2.0
"""The life of a grant as a pure state machine: pending, active, ending, ended.

Holds the rules of state, deadline, counts and refusals. Does not hold locks, clocks or effects: values and one instant
in, a value or an exception out. Whoever shares a lease between threads brings the lock.

Example:
    >>> from jitwi.clock import Deadline, Instant
    >>> from jitwi.grants.lease import EndCause, Lease
    >>> lease = Lease(deadline=Deadline(1060.0, 160.0), max_uses=1, permission_limits=(None,))
    >>> lease.activate()
    >>> lease.reserve(0)
    1
    >>> lease.begin_end(EndCause.BLOCK_ENDED)
    True
    >>> lease.require_live(Instant(1001.0, 101.0))
    Traceback (most recent call last):
    jitwi.errors.GrantEndedError: the task has ended: its block was left (open a new task)
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

from jitwi.errors import (
    GrantEndedError,
    GrantError,
    GrantExpiredError,
    GrantRevokedError,
    LimitExceededError,
    StateError,
)

if TYPE_CHECKING:
    from jitwi.clock import Deadline, Instant

__all__ = ["EndCause", "Lease", "LeaseState"]


class LeaseState(enum.Enum):
    """Where a lease is; it only ever moves down this list."""

    PENDING = "pending"
    ACTIVE = "active"
    ENDING = "ending"
    ENDED = "ended"


class EndCause(enum.Enum):
    """Why a lease ended; the value is the stable code in errors and in the record."""

    BLOCK_ENDED = "block-ended"
    BLOCK_FAILED = "block-failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    MAX_USES = "max-uses"
    REVOKED = "revoked"
    IDENTITY_WITHDRAWN = "identity-withdrawn"
    IDENTITY_REPLACED = "identity-replaced"
    IDENTITY_EXPIRED = "identity-expired"
    POLICY_CHANGED = "policy-changed"
    REFUSED_USES = "refused-uses"
    PARENT_ENDED = "parent-ended"
    PROCESS_STOPPED = "process-stopped"
    OPENING_FAILED = "opening-failed"
    LEAKED = "leaked"
    REVOKED_ELSEWHERE = "revoked-elsewhere"


_SENTENCES = {
    EndCause.BLOCK_ENDED: "its block was left",
    EndCause.BLOCK_FAILED: "its block was left by an exception",
    EndCause.CANCELLED: "its block was cancelled",
    EndCause.EXPIRED: "its ttl has passed",
    EndCause.MAX_USES: "its `max_uses` are used up",
    EndCause.REVOKED: "it was revoked",
    EndCause.IDENTITY_WITHDRAWN: "the agent withdrew the workload's identity",
    EndCause.IDENTITY_REPLACED: "the workload's SPIFFE ID was replaced",
    EndCause.IDENTITY_EXPIRED: "the workload's SVID has expired",
    EndCause.POLICY_CHANGED: "the policies do not allow it any more",
    EndCause.REFUSED_USES: "too many of its uses were refused",
    EndCause.PARENT_ENDED: "its parent task has ended",
    EndCause.PROCESS_STOPPED: "the process is stopping",
    EndCause.OPENING_FAILED: "it could not be opened",
    EndCause.LEAKED: "its block was left without its exit being run",
    EndCause.REVOKED_ELSEWHERE: "it was revoked by another process of this host",
}
_ENDED_BY_TIME = frozenset({EndCause.EXPIRED, EndCause.IDENTITY_EXPIRED})
_ENDED_BY_BLOCK = frozenset({EndCause.BLOCK_ENDED, EndCause.BLOCK_FAILED, EndCause.CANCELLED, EndCause.LEAKED})


@attrs.define(slots=True, eq=False)
class Lease:
    """The state of one grant.

    Args:
        deadline: When it ends at the latest.
        max_uses: How many uses in all, or None.
        permission_limits: `max_uses` of each permission, in the task's order.

    Invariants:
        States only go forward; the first cause stays; `0 <= used <= max_uses`; never live at or after the deadline, nor
        again once its passing was seen, whatever the wall clock says later.
    """

    deadline: Deadline
    max_uses: int | None
    permission_limits: tuple[int | None, ...]
    state: LeaseState = LeaseState.PENDING
    cause: EndCause | None = None
    used: int = 0
    refused: int = 0
    permission_used: list[int] | None = None
    has_expired: bool = False

    def activate(self) -> None:
        """Begin to live.

        Raises:
            StateError: It is not pending.
        """
        if self.state is not LeaseState.PENDING:
            msg = f"a lease in state `{self.state.value}` cannot become active"
            raise StateError(msg)
        self.state = LeaseState.ACTIVE

    def require_live(self, now: Instant) -> None:
        """Require that uses are possible at `now`.

        Raises:
            GrantExpiredError: The deadline or the SVID has passed.
            GrantEndedError: Its block is over.
            GrantRevokedError: It was ended by something else; `cause` says by what.
            StateError: It has not begun.
        """
        if self.state is LeaseState.ACTIVE:
            deadline = self.deadline
            if self.has_expired or not (now.wall < deadline.wall and now.boot < deadline.boot):
                self.has_expired = True
                raise self.error(EndCause.EXPIRED)
            return
        if self.state is LeaseState.PENDING:
            msg = "the task has not begun"
            raise StateError(msg, reasons=("not-begun",), remedy="enter its `with` block first")
        raise self.error(self.cause or EndCause.REVOKED)

    def reserve(self, index: int) -> int:
        """Count one use of permission `index`; returns the number of this use in the task.

        Raises:
            LimitExceededError: The task's or the permission's uses are used up.
        """
        if self.max_uses is not None and self.used >= self.max_uses:
            msg = f"all {self.max_uses} uses of the task are used up"
            raise LimitExceededError(msg, reasons=("max-uses",), remedy="declare a larger `max_uses` in a new task")
        limit = self.permission_limits[index]
        if limit is not None:
            if self.permission_used is None:
                self.permission_used = [0] * len(self.permission_limits)
            if self.permission_used[index] >= limit:
                msg = f"all {limit} uses of this permission are used up"
                raise LimitExceededError(msg, reasons=("permission-max-uses",), remedy="declare more in a new task")
            self.permission_used[index] += 1
        self.used += 1
        return self.used

    def give_back(self, index: int) -> None:
        """Take one reserved use of permission `index` back, after a deny.

        Raises:
            StateError: None is reserved; nothing changes, as a count below zero would be uses for free.
        """
        limited = self.permission_limits[index] is not None
        counts = self.permission_used
        if self.used < 1 or (limited and (counts is None or counts[index] < 1)):
            msg = "no use of this permission is reserved"
            raise StateError(msg, reasons=("not-reserved",))
        if limited and counts is not None:
            counts[index] -= 1
        self.used -= 1

    @property
    def is_used_up(self) -> bool:
        """True if the task's own limit is reached."""
        return self.max_uses is not None and self.used >= self.max_uses

    def begin_end(self, cause: EndCause) -> bool:
        """Stop living for `cause`; True for the first caller only."""
        if self.state in (LeaseState.ENDING, LeaseState.ENDED):
            return False
        self.state = LeaseState.ENDING
        self.cause = cause
        return True

    def finish_end(self) -> None:
        """Note that everything that could be done at once for the ending was done.

        Raises:
            StateError: It was not ending.
        """
        if self.state not in (LeaseState.ENDING, LeaseState.ENDED):
            msg = f"a lease in state `{self.state.value}` cannot be finished"
            raise StateError(msg)
        self.state = LeaseState.ENDED

    @staticmethod
    def error(cause: EndCause) -> GrantError:
        """Return the precise error for use after an end by `cause`."""
        kind: type[GrantError] = GrantRevokedError
        if cause in _ENDED_BY_TIME:
            kind = GrantExpiredError
        elif cause in _ENDED_BY_BLOCK:
            kind = GrantEndedError
        return kind(
            f"the task has ended: {_SENTENCES[cause]}",
            reasons=(cause.value,),
            remedy="open a new task",
            cause=cause.value,
        )
