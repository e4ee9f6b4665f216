# SPDX-License-Identifier: Apache-2.0
"""What ends the leases that nobody else ends: their process is gone, their backend was down, or their time is up.

Holds the rounds of a reaper over a journal and over the backends' own listings. Does not hold how one lease is ended:
that comes through `Backend`, from `jitwi.credentials.reaping`. Any number of reapers may run at once, in one process
or in many: each lease is claimed before it is ended, and ending twice is ending once.

What a backend lists and no open record explains is an *orphan*, judged by the journal as it is *after* the listing:

- its record says ENDED: a half-answered issue came true later, or the backend lied. It is ended again at once.
- there is no record: the journal was lost, or the lease is another journal's. Our ids say when a lease must be over
  (`lease_id.py`), so it is ended from that instant on, and not before: until then its owner may be alive elsewhere.
- there is no record and the id tells no time: it is reported for a day, the longest that a lease can last, then ended.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from typing import TYPE_CHECKING, Protocol

import attrs

from jitwi.errors import JitwiError, JournalError
from jitwi.journal.due import OVERDUE_GRACE_SECONDS, backoff, is_due
from jitwi.journal.lease_id import LEASE_ID_PREFIX, ends_at_of
from jitwi.journal.owner import Sighting, is_alive, look_up, this_owner
from jitwi.journal.record import LeaseRecord, LeaseStatus, Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitwi.clock import Clock
    from jitwi.journal.record import ReaperJournal

__all__ = ["Backend", "BackendEnding", "ReapReport", "Reaped", "Reaper"]

KEEP_ENDED_SECONDS = 7 * 86400.0
UNTIMED_ORPHAN_SECONDS = 86400.0 + 3600.0
MAX_FAILURES_IN_A_ROW = 3
MAX_LISTED = 100_000

_NOBODY = Owner(host="", pid=0, started_at=0, token="")
_log = logging.getLogger("jitwi.journal")


@attrs.frozen
class BackendEnding:
    """What came of a try to end one lease.

    Args:
        outcome: As in `jitwi.credentials.Outcome`: `verified`, `by_construction`, `expires_at` or `pending`.
        is_over: False if it must be tried again.
        proof: What the outcome rests on.
        detail: What went wrong in one line, no secret.
        is_silent: True if the backend did not answer at all: the others of this backend are then left for later.
    """

    outcome: str
    is_over: bool
    proof: str = ""
    detail: str = ""
    is_silent: bool = False


class Backend(Protocol):
    """Port: one configured issuer, as the reaper sees it. Calls are bounded in time and raise `JitwiError` only."""

    @property
    def claim_seconds(self) -> float:
        """How long one `end` can take at most."""
        ...

    def end(self, record: LeaseRecord, *, owner_is_gone: bool) -> BackendEnding:
        """End one lease and say what was seen; a failure is an ending that is not over."""
        ...

    def outstanding(self) -> tuple[str, ...]:
        """Return the lease ids under our prefix that the backend lists."""
        ...


@attrs.frozen
class Reaped:
    """One lease that a reaper has tried to end.

    Args:
        record: Its record as it was claimed.
        ending: What came of it.
        why: `owner-gone`, `overdue`, `unfinished` or `orphan`.
    """

    record: LeaseRecord
    ending: BackendEnding
    why: str


@attrs.frozen
class ReapReport:
    """What one round did.

    Args:
        reaped: Every lease that was tried, in order.
        unknown: Ids of open leases whose issuer is not configured here: reported, never touched.
        waiting: Ids that a backend lists without a record and whose time is not up.
        errors: What could not be asked, by the issuer's name, `journal` or `audit`; one line each.
    """

    reaped: tuple[Reaped, ...] = ()
    unknown: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    errors: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def ended(self) -> tuple[Reaped, ...]:
        """Those that are over."""
        return tuple(one for one in self.reaped if one.ending.is_over)

    @property
    def pending(self) -> tuple[Reaped, ...]:
        """Those that must be tried again."""
        return tuple(one for one in self.reaped if not one.ending.is_over)


@attrs.define
class _Round:
    """A report being written."""

    reaped: list[Reaped] = attrs.field(factory=list)
    unknown: list[str] = attrs.field(factory=list)
    waiting: list[str] = attrs.field(factory=list)
    errors: dict[str, str] = attrs.field(factory=dict)

    def report(self) -> ReapReport:
        return ReapReport(tuple(self.reaped), tuple(self.unknown), tuple(self.waiting), dict(self.errors))


class Reaper:
    """Ends what is left over, again and again, until it is over. No I/O before the first round.

    Args:
        journal: The journal.
        backends: By the configured name of the issuer. A record of any other issuer is reported and left alone.
        clock: The clock.
        on_reaped: Called with each lease that was tried, before the journal says so: for the audit. It must not raise
            for a lost sink, because revoking is never blocked by one; if it does, the round goes on.
    """

    def __init__(
        self,
        journal: ReaperJournal,
        backends: Mapping[str, Backend],
        *,
        clock: Clock,
        on_reaped: Callable[[Reaped], object] | None = None,
    ) -> None:
        self._journal = journal
        self._backends = dict(backends)
        self._clock = clock
        self._on_reaped = on_reaped
        self._me: Owner | None = None
        self._untimed: dict[tuple[str, str], float] = {}

    def run_once(self) -> ReapReport:
        """Go once over the journal and over every backend's listing.

        Returns:
            What was done. Failures are in it; nothing but an interrupt is raised.
        """
        here = _Round()
        self._look_for_strangers(here)
        for name in self._backends:
            self._round_of(name, here, only_gone=False)
        self._prune(here)
        return here.report()

    def recover(self) -> ReapReport:
        """End what earlier processes left in the journal: for a start. Listings are left to the next round."""
        here = _Round()
        self._look_for_strangers(here)
        for name in self._backends:
            self._round_of(name, here, only_gone=True)
        return here.report()

    def run(
        self, stop: threading.Event, *, interval: float, on_round: Callable[[ReapReport], object] | None = None
    ) -> None:
        """Go round until `stop` is set, each backend at its own pace: a silent one does not delay the others.

        Args:
            stop: Set by somebody else.
            interval: Seconds between two rounds.
            on_round: Called with the report of each round of each backend.
        """
        loops = [
            threading.Thread(
                target=self._loop, args=(name, stop, interval, on_round), name=f"jitwi-reaper-{name}", daemon=True
            )
            for name in self._backends
        ]
        for loop in loops:
            loop.start()
        while not stop.is_set():
            here = _Round()
            self._look_for_strangers(here)
            self._prune(here)
            if on_round is not None:
                on_round(here.report())
            stop.wait(interval)
        for loop, backend in zip(loops, self._backends.values(), strict=True):
            loop.join(2 * backend.claim_seconds)

    def _loop(
        self, name: str, stop: threading.Event, interval: float, on_round: Callable[[ReapReport], object] | None
    ) -> None:
        while not stop.is_set():
            here = _Round()
            try:
                self._round_of(name, here, only_gone=False)
                if on_round is not None:
                    on_round(here.report())
            except BaseException as exc:  # noqa: BLE001 - ending never gives up, whatever a round ran into
                _log.error("reaper: a round of issuer %s failed: %s", name, type(exc).__name__)
            stop.wait(interval)

    def _round_of(self, name: str, here: _Round, *, only_gone: bool) -> None:
        """One round of one backend: first what the journal says, then what the backend lists."""
        backend = self._backends[name]
        failures = 0
        for record, why, is_gone in self._due(name, here, only_gone=only_gone):
            failures = self._reap(backend, record, why, here, owner_is_gone=is_gone, failures=failures)
            if failures >= MAX_FAILURES_IN_A_ROW:
                here.errors[name] = f"{failures} calls in a row got no answer; the rest waits for the next round"
                return
        if not only_gone:
            self._reap_orphans(name, backend, here)

    def _due(self, name: str, here: _Round, *, only_gone: bool) -> list[tuple[LeaseRecord, str, bool]]:
        now = self._clock.now().wall
        try:
            records = self._journal.open_leases(issuer=name)
            beats = self._journal.heartbeats()
        except JournalError as exc:
            here.errors["journal"] = exc.message
            return []
        alive: dict[Owner, bool] = {}
        found = []
        for record in records:
            owner = record.owner
            if owner not in alive:
                alive[owner] = is_alive(owner, beats.get(owner.token), now)
            if only_gone and alive[owner]:
                continue
            if is_due(record, owner_is_alive=alive[owner], now=now):
                unfinished = record.status is LeaseStatus.ENDING
                why = "unfinished" if unfinished else ("overdue" if alive[owner] else "owner-gone")
                found.append((record, why, not alive[owner]))
        found.sort(key=lambda one: one[0].attempts)  # what fails again and again never keeps the others waiting
        return found

    def _reap(
        self, backend: Backend, record: LeaseRecord, why: str, here: _Round, *, owner_is_gone: bool, failures: int
    ) -> int:
        """Claim and end one lease; returns how many calls in a row got no answer."""
        now = self._clock.now().wall
        try:
            claimed = self._journal.claim(
                record.lease_id,
                by=self._name(),
                now=now,
                until=now + backend.claim_seconds + 1.0,
                is_gone=lambda owner: look_up(owner) is Sighting.ABSENT,
            )
        except JournalError as exc:
            here.errors["journal"] = exc.message
            if why != "orphan":
                return failures
            claimed = record  # the listing and the id are reason enough, and losing a record blocks no ending
        if claimed is None:
            return failures
        ending = backend.end(claimed, owner_is_gone=owner_is_gone)
        one = Reaped(claimed, ending, why)
        here.reaped.append(one)
        self._tell(one, here)
        try:
            if ending.is_over:
                self._journal.ended(claimed.lease_id, outcome=ending.outcome)
            else:
                delay = backoff(claimed.attempts + 1, jitter=random.random())  # noqa: S311 - spreads load
                at = self._clock.now().wall + delay
                self._journal.ending(claimed.lease_id, detail=ending.detail, next_attempt_at=at)
        except JournalError as exc:
            here.errors["journal"] = exc.message
        return failures + 1 if ending.is_silent else 0

    def _reap_orphans(self, name: str, backend: Backend, here: _Round) -> None:
        try:
            listed = [
                lease_id for lease_id in backend.outstanding()[:MAX_LISTED] if lease_id.startswith(LEASE_ID_PREFIX)
            ]
        except JitwiError as exc:
            here.errors[name] = f"its listing could not be read: {exc.message}"
            return
        self._untimed = {key: at for key, at in self._untimed.items() if key[0] != name or key[1] in set(listed)}
        if not listed:
            return
        try:
            known = self._journal.lookup(listed)  # after the listing: a record is written before its credential exists
        except JournalError as exc:
            here.errors["journal"] = exc.message
            known = {}
        now = self._clock.now().wall
        failures = 0
        for lease_id in listed:
            record = known.get(lease_id)
            if record is None:
                if not self._is_overdue_stranger(name, lease_id, now):
                    here.waiting.append(lease_id)
                    continue
                record = _orphan(lease_id, name, now)
            elif record.status is not LeaseStatus.ENDED or record.issuer != name:
                continue
            elif record.outcome == "expires_at" and now < record.expires_at:
                continue  # it was said that it lives until then
            try:
                self._journal.adopt(record)
            except JournalError as exc:
                here.errors["journal"] = exc.message
            failures = self._reap(backend, record, "orphan", here, owner_is_gone=True, failures=failures)
            if failures >= MAX_FAILURES_IN_A_ROW:
                return

    def _is_overdue_stranger(self, name: str, lease_id: str, now: float) -> bool:
        ends_at = ends_at_of(lease_id)
        if ends_at is not None:
            return now >= ends_at + OVERDUE_GRACE_SECONDS
        return now - self._untimed.setdefault((name, lease_id), now) >= UNTIMED_ORPHAN_SECONDS

    def _look_for_strangers(self, here: _Round) -> None:
        try:
            records = self._journal.open_leases()
        except JournalError as exc:
            here.errors["journal"] = exc.message
            return
        for record in records:
            if record.issuer not in self._backends:
                here.unknown.append(record.lease_id)
        if here.unknown:
            _log.error("reaper: %d open leases belong to issuers that are not configured here", len(here.unknown))

    def _prune(self, here: _Round) -> None:
        try:
            self._journal.prune(ended_before=self._clock.now().wall - KEEP_ENDED_SECONDS)
        except JournalError as exc:
            here.errors["journal"] = exc.message

    def _tell(self, one: Reaped, here: _Round) -> None:
        if not one.ending.is_over:
            _log.error(
                "reaper: lease %s of issuer %s is pending: %s",
                one.record.lease_id,
                one.record.issuer,
                one.ending.detail,
            )
        if self._on_reaped is None:
            return
        try:
            self._on_reaped(one)
        except Exception as exc:  # noqa: BLE001 - a lost sink never blocks an ending
            here.errors["audit"] = type(exc).__name__

    def _name(self) -> Owner:
        me = self._me
        if me is None or me.pid != os.getpid():
            me = self._me = this_owner()
        return me


def _orphan(lease_id: str, issuer: str, now: float) -> LeaseRecord:
    return LeaseRecord(
        lease_id=lease_id,
        grant_id="",
        txn="",
        issuer=issuer,
        kind="",
        workload="",
        task="",
        recipe={},
        owner=_NOBODY,
        created_at=now,
        expires_at=ends_at_of(lease_id) or now,
        status=LeaseStatus.ENDING,
        detail="no record of it: found in the backend's listing",
    )
