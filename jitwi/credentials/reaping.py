# SPDX-License-Identifier: Apache-2.0
"""A reaper over real issuers: where the journal's reaper meets the issuer port and the audit.

Holds `make_reaper` and the adapter of one issuer. Does not hold the rounds (`jitwi.journal.reaper`) or how one lease
ends (`ending.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitwi.audit.events import LeaseReaped, Subject
from jitwi.credentials.bounded import call_bounded
from jitwi.credentials.ending import end_lease
from jitwi.credentials.plan import Strength
from jitwi.credentials.port import LeaseRef
from jitwi.errors import IssuanceError
from jitwi.journal.reaper import BackendEnding, Reaped, Reaper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitwi.audit.port import Audit
    from jitwi.clock import Clock
    from jitwi.credentials.port import Issuer
    from jitwi.journal.record import LeaseRecord, ReaperJournal

__all__ = ["DEFAULT_TIMEOUT", "IssuerBackend", "make_reaper"]

DEFAULT_TIMEOUT = 5.0
"""Seconds that one call to an issuer may take."""

_STRENGTHS = {strength.value: strength for strength in Strength}


class IssuerBackend:
    """One configured issuer as the reaper sees it.

    Args:
        name: The issuer's configured name.
        issuer: The issuer.
        clock: The clock.
        timeout: Seconds that one call may take.
    """

    def __init__(self, name: str, issuer: Issuer, *, clock: Clock, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._name = name
        self._issuer = issuer
        self._clock = clock
        self._timeout = timeout

    @property
    def claim_seconds(self) -> float:
        """How long one `end` can take at most."""
        return self._timeout

    def end(self, record: LeaseRecord, *, owner_is_gone: bool) -> BackendEnding:
        """End one lease. A strength that is not known asks for the proof that every backend can give: its listing."""
        ending = end_lease(
            self._issuer,
            _STRENGTHS.get(record.strength, Strength.REFUSED_AT_NEXT_USE),
            LeaseRef(record.lease_id, self._name, record.kind, record.recipe, record.expires_at),
            now=self._clock.now().wall,
            timeout=self._timeout,
            key_destroyed=owner_is_gone,
        )
        return BackendEnding(
            ending.outcome.value, ending.outcome.is_over, ending.proof, ending.detail, ending.is_silent
        )

    def outstanding(self) -> tuple[str, ...]:
        """Return the lease ids under our prefix that the backend lists.

        Raises:
            IssuanceError: It could not be asked, or answered something else.
        """
        listed = call_bounded(self._name, self._issuer.outstanding, timeout=self._timeout)
        if not isinstance(listed, tuple | list) or not all(isinstance(lease_id, str) for lease_id in listed):
            raise IssuanceError(f"issuer `{self._name}` listed something else than ids", reasons=("listing",))
        return tuple(listed)


def make_reaper(
    journal: ReaperJournal,
    issuers: Mapping[str, Issuer],
    *,
    clock: Clock,
    audit: Audit | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Reaper:
    """Return a reaper that ends leases through their issuers and records each try. No I/O.

    Args:
        journal: The journal.
        issuers: By configured name; issuers that were not started (`start`) will do.
        clock: The clock.
        audit: Where `LeaseReaped` goes; a lost sink never blocks an ending.
        timeout: Seconds that one call to an issuer may take.
    """
    backends = {name: IssuerBackend(name, issuer, clock=clock, timeout=timeout) for name, issuer in issuers.items()}

    def record(one: Reaped) -> None:
        if audit is not None:
            audit.record_loss(_event(one), durable=True)

    return Reaper(journal, backends, clock=clock, on_reaped=record)


def _event(one: Reaped) -> LeaseReaped:
    lease, ending = one.record, one.ending
    subject = Subject(txn=lease.txn, grant_id=lease.grant_id, workload=lease.workload, task=lease.task)
    detail = f"{one.why}: {ending.detail}" if ending.detail else one.why
    return LeaseReaped(subject, lease.lease_id, lease.issuer, ending.outcome, ending.proof, detail)
