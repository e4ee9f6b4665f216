# SPDX-License-Identifier: Apache-2.0
"""The life of one pinned identity: which state it is in, which events a change makes, what a reader gets.

Holds rules only: values and one instant in, events or an error out. No thread, lock, clock or socket; the source owns
one and calls it under its lock.

Rules kept here, after the design: withdrawn, replaced and expired end at once; stale for longer than `max_staleness`
refuses; each event is given exactly once per change; nothing that has ended is given out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from jitwi.clock import Deadline
from jitwi.errors import (
    AmbiguousIdentityError,
    IdentityError,
    IdentityExpiredError,
    IdentityReplacedError,
    IdentityUnavailableError,
    IdentityWithdrawnError,
)
from jitwi.identity.identity import Identity, IdentityEvent, IdentityEventKind, SourceState

if TYPE_CHECKING:
    from jitwi.clock import Instant
    from jitwi.spiffe_id import SpiffeId

__all__ = ["FATAL_CODES", "ROTATION_OVERDUE_SHARE", "Lifecycle", "Live"]

ROTATION_OVERDUE_SHARE = 0.75
"""Share of a lifetime after which a successor is overdue: SPIRE renews at about half."""
FATAL_CODES = frozenset({"INVALID_ARGUMENT", "UNIMPLEMENTED"})
"""Source: Workload Endpoint §6: report, do not retry."""

_NEVER = Deadline(float("inf"), float("inf"))
_ENDED = {
    SourceState.WITHDRAWN: IdentityWithdrawnError,
    SourceState.REPLACED: IdentityReplacedError,
    SourceState.EXPIRED: IdentityExpiredError,
}
_REMEDY = {
    SourceState.WITHDRAWN: "is there still an entry for this workload?",
    SourceState.REPLACED: "choose an identity again: start a new source",
    SourceState.EXPIRED: "is the agent running and in touch with its server?",
}


class Live(NamedTuple):
    """What a reader may take without asking further, until either limit (seconds) is reached."""

    identity: Identity
    wall: float
    boot: float


class Lifecycle:
    """State machine of one source; not thread-safe.

    Args:
        max_staleness: Seconds.
        pinned: The SPIFFE ID chosen by configuration, or None: the first unambiguous one is pinned.
    """

    def __init__(self, *, max_staleness: float, pinned: SpiffeId | None = None) -> None:
        self.max_staleness = max_staleness
        self.pinned = pinned
        self.current: Identity | None = None
        self.version = 0
        self.reason = "no answer yet"
        self.grpc_code = ""
        self.contact_at: Instant | None = None
        self._ended: SourceState | None = None
        self._is_fatal = False
        self._candidates: tuple[tuple[str, str], ...] = ()
        self._expiry = _NEVER
        self._overdue = _NEVER
        self._causes: dict[str, Instant] = {}
        self._is_stale_announced = False

    # What happened ---------------------------------------------------------------------------------------------

    def adopt(self, identity: Identity, now: Instant) -> list[IdentityEvent]:
        """A good update: the first, a rotation, or the same once more."""
        previous = self.current
        self.contact_at = now
        self._causes.clear()
        self.pinned = identity.spiffe_id
        self._is_fatal, self._candidates, self.reason, self.grpc_code = False, (), "", ""
        if previous is not None and previous.thumbprint == identity.thumbprint:
            return self._staleness(now)
        self.current, self._ended, self.version = identity, None, identity.version
        self._expiry = Deadline.at_wall(identity.not_after, now=now)
        overdue = identity.not_before + ROTATION_OVERDUE_SHARE * (identity.not_after - identity.not_before)
        self._overdue = Deadline.at_wall(overdue, now=now)
        kind = IdentityEventKind.READY if previous is None else IdentityEventKind.ROTATED
        return [IdentityEvent(kind, identity), *self.tick(now)]

    def end(self, state: SourceState, now: Instant, *, reason: str, grpc_code: str = "") -> list[IdentityEvent]:
        """Withdrawn, replaced or expired; before the first good update only the reason is kept."""
        self.reason, self.grpc_code = reason, grpc_code
        if state is not SourceState.EXPIRED:
            self.contact_at = now
        if self.current is None:
            if self._ended is not None:  # an ambiguity was never an identity: wait for one again
                self._ended = None if self._ended is SourceState.AMBIGUOUS else state
            return []
        self.current, self._ended = None, state
        self._expiry = self._overdue = _NEVER
        self._causes.clear()
        self._is_stale_announced = False
        return [IdentityEvent(IdentityEventKind(state.value), None, reason, grpc_code)]

    def choose_first(self, candidates: tuple[tuple[str, str], ...], now: Instant) -> list[IdentityEvent]:
        """Several identities are served and none was chosen."""
        self.contact_at = now
        self._candidates = candidates
        self._ended = SourceState.AMBIGUOUS
        self.reason, self.grpc_code = "several identities are served and none was chosen", ""
        return []

    def lose(self, cause: str, now: Instant, *, reason: str, grpc_code: str) -> list[IdentityEvent]:
        """The agent is out of touch: the stream ended, or a probe got no answer."""
        self.reason, self.grpc_code = reason, grpc_code
        self._is_fatal = grpc_code in FATAL_CODES
        if self.current is None:
            return []
        since = self.contact_at if cause == "probe" and self.contact_at is not None else now
        self._causes.setdefault(cause, since)
        return self.tick(now)

    def touch(self, cause: str, now: Instant) -> list[IdentityEvent]:
        """The agent answered: `cause` of staleness is over."""
        self.contact_at = now
        if self._causes.pop(cause, None) is not None and not self._causes:
            self.reason, self.grpc_code = "", ""
        return self.tick(now)

    def refuse(self, reason: str, now: Instant) -> list[IdentityEvent]:
        """An update did not pass admission; what was there stays until its expiry."""
        self.contact_at = now
        if self.current is None:
            self.reason, self.grpc_code = reason, ""
        return [IdentityEvent(IdentityEventKind.REFUSED_UPDATE, self.current, reason), *self.tick(now)]

    def tick(self, now: Instant) -> list[IdentityEvent]:
        """Let time pass."""
        if self.current is not None and self._expiry.is_passed(now):
            return self.end(
                SourceState.EXPIRED, now, reason=self.reason or "no successor arrived", grpc_code=self.grpc_code
            )
        return self._staleness(now)

    def _staleness(self, now: Instant) -> list[IdentityEvent]:
        is_stale = self.current is not None and self.stale_for(now) is not None
        if is_stale == self._is_stale_announced:
            return []
        self._is_stale_announced = is_stale
        if not is_stale:
            return [IdentityEvent(IdentityEventKind.FRESH, self.current)]
        self.reason = self.reason or "the rotation is overdue"
        return [IdentityEvent(IdentityEventKind.STALE, self.current, self.reason, self.grpc_code)]

    # What a reader gets ----------------------------------------------------------------------------------------

    def stale_for(self, now: Instant) -> float | None:
        """Seconds since the identity became stale, or None if it is not."""
        ages = [now.boot - since.boot for since in self._causes.values()]
        if self._overdue.is_passed(now):
            ages.append(-self._overdue.remaining(now))
        return max(ages) if ages else None

    def live(self) -> Live | None:
        """What `peek` may give out, and until when."""
        if self.current is None:
            return None
        boots = [since.boot for since in self._causes.values()]
        boot = min([self._overdue.boot, *boots]) + self.max_staleness
        return Live(
            self.current,
            min(self._expiry.wall, self._overdue.wall + self.max_staleness),
            min(self._expiry.boot, boot),
        )

    def next_change(self, now: Instant) -> float:
        """Seconds until time alone changes something."""
        if self.current is None:
            return float("inf")
        ends = [self._expiry.remaining(now)]
        if not self._is_stale_announced:
            ends.append(self._overdue.remaining(now))
        return max(0.0, min(ends))

    def state(self, now: Instant) -> SourceState:
        """The state, time taken into account."""
        if self.current is not None:
            if self._expiry.is_passed(now):
                return SourceState.EXPIRED
            return SourceState.READY if self.stale_for(now) is None else SourceState.STALE
        return self._ended or SourceState.STARTING

    def outcome(self, now: Instant) -> Identity | IdentityError | None:
        """The identity, why there is none, or None as long as waiting makes sense."""
        state = self.state(now)
        if self.current is not None and state is not SourceState.EXPIRED:
            age = self.stale_for(now)
            if age is None or age < self.max_staleness:
                return self.current
            return IdentityUnavailableError(
                f"the identity `{self.current.spiffe_id}` is stale for {age:.0f} s: {self.reason or 'overdue'}",
                reasons=("stale",),
                remedy="is the agent running and in touch with its server?",
                grpc_code=self.grpc_code,
            )
        if state is SourceState.AMBIGUOUS:
            names = ", ".join(f"`{name}`" + (f" (hint `{hint}`)" if hint else "") for name, hint in self._candidates)
            return AmbiguousIdentityError(
                f"several identities are served and none was chosen: {names}",
                reasons=("ambiguous",),
                remedy="pass `spiffe_id=` or `hint=`",
                candidates=self._candidates,
            )
        if state in _ENDED:
            return _ENDED[state](
                f"the identity `{self.pinned}` is {state.value}: {self.reason or 'no successor arrived'}",
                reasons=(state.value,),
                remedy=_REMEDY[state],
            )
        return self.unavailable() if self._is_fatal else None

    def unavailable(self) -> IdentityUnavailableError:
        """Why nothing has arrived."""
        return IdentityUnavailableError(
            f"no identity was received: {self.reason}",
            reasons=("unavailable",),
            remedy="is the agent running, the socket right, and this workload registered?",
            grpc_code=self.grpc_code,
        )
