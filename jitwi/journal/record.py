# SPDX-License-Identifier: Apache-2.0
"""What is remembered of a lease whose ending needs a backend, and the port that remembers it.

Holds values and the protocol. Does not hold secrets, SQL or URLs: a record is data for a configured issuer.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Journal", "LeaseRecord", "LeaseStatus", "Owner", "ReaperJournal"]


class LeaseStatus(enum.Enum):
    """How far a lease has come."""

    INTENDED = "intended"
    ACTIVE = "active"
    ENDING = "ending"
    ENDED = "ended"


@attrs.frozen
class Owner:
    """The process that opened a lease; alive only if all of it still matches and its heartbeat is young.

    Args:
        host: Host's boot id or machine name.
        pid: Process id.
        started_at: The process's start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
        token: Random, new with each `JIT`.
    """

    host: str
    pid: int
    started_at: int
    token: str


@attrs.frozen
class LeaseRecord:
    """One lease.

    Args:
        lease_id: Our id, which the backend carries too.
        grant_id: The grant it belongs to.
        txn: Transaction id.
        issuer: The configured name of the issuer.
        kind: Kind of credential.
        workload: SPIFFE ID.
        task: Task name.
        recipe: What `end` and `probe` need.
        owner: Which process.
        created_at: Seconds since the epoch.
        expires_at: When it must be over, seconds since the epoch.
        status: How far it has come.
        outcome: The ending's outcome once ENDED, else empty.
        attempts: How often ending it was tried.
        next_attempt_at: When the reaper tries again, seconds since the epoch.
        detail: The last failure in one line, no secret.
        strength: `Strength` of the plan, by its value; empty where it is not known: its end must then be shown.
    """

    lease_id: str
    grant_id: str
    txn: str
    issuer: str
    kind: str
    workload: str
    task: str
    recipe: Mapping[str, str]
    owner: Owner
    created_at: float
    expires_at: float
    status: LeaseStatus = LeaseStatus.INTENDED
    outcome: str = ""
    attempts: int = 0
    next_attempt_at: float = 0.0
    detail: str = ""
    strength: str = ""


class Journal(Protocol):
    """Port: durable, shared by the processes of one host. No I/O before the first call."""

    def intend(self, record: LeaseRecord) -> None:
        """Write a new record, durable before it returns.

        Raises:
            JournalError: It is not on disk: do not call the issuer.
        """
        ...

    def activate(self, lease_id: str, *, recipe: Mapping[str, str], expires_at: float) -> None:
        """Note that the issuer answered.

        Args:
            lease_id: Which.
            recipe: What is added to the recipe, learnt only now.
            expires_at: When it must be over, seconds since the epoch.

        Raises:
            JournalError: It could not be written, there is no such record, or a reaper is ending it already
                (`being-ended`): end the credential, do not hand it out.
        """
        ...

    def ending(self, lease_id: str, *, detail: str, next_attempt_at: float) -> None:
        """Note a try to end it that did not succeed; counts the attempt. Nothing happens if it is over by now.

        Args:
            lease_id: Which.
            detail: Why, in one line, no secret.
            next_attempt_at: From when on the reaper, of whichever process, tries again; seconds since the epoch.

        Raises:
            JournalError: It could not be written; the record stays as it was, so the reaper will come.
        """
        ...

    def ended(self, lease_id: str, *, outcome: str) -> None:
        """Note that it is over; idempotent, the first outcome stays.

        Raises:
            JournalError: It could not be written; the reaper will end it once more.
        """
        ...

    def heartbeat(self, owner: Owner, *, now: float) -> None:
        """Note that the owner is alive: at least every `HEARTBEAT_SECONDS` while it has open leases.

        Raises:
            JournalError: It could not be written.
        """
        ...

    def open_leases(self, *, issuer: str | None = None) -> tuple[LeaseRecord, ...]:
        """Return every record that is not ENDED.

        Raises:
            JournalError: It cannot be read.
        """
        ...

    def pending_count(self, issuer: str) -> int:
        """Return how many endings of this issuer were tried and are not proven yet: the cap on new issues.

        Raises:
            JournalError: It cannot be read: do not issue.
        """
        ...

    def close(self) -> None:
        """Close; idempotent."""
        ...


class ReaperJournal(Journal, Protocol):
    """Port: what a reaper needs besides."""

    def lookup(self, lease_ids: Iterable[str]) -> dict[str, LeaseRecord]:
        """Return those of the records that exist, ENDED ones included.

        Raises:
            JournalError: It cannot be read.
        """
        ...

    def heartbeats(self) -> dict[str, float]:
        """Return the last heartbeat of each owner by its token, seconds since the epoch.

        Raises:
            JournalError: It cannot be read.
        """
        ...

    def adopt(self, record: LeaseRecord) -> None:
        """Write a record for a lease that the backend lists and nobody answers for: new, or ENDED before.

        Raises:
            JournalError: It could not be written.
        """
        ...

    def claim(
        self, lease_id: str, *, by: Owner, now: float, until: float, is_gone: Callable[[Owner], bool]
    ) -> LeaseRecord | None:
        """Take a lease for ending it: it is ENDING from now on, and no other reaper takes it before `until`.

        Args:
            lease_id: Which.
            by: The reaper.
            now: Seconds since the epoch.
            until: When the claim lapses if nothing is written, seconds since the epoch.
            is_gone: Tells of a reaper with a running claim whether its process is gone, so that the claim is void.

        Returns:
            The record, or None if it is over, not due yet, or taken.

        Raises:
            JournalError: It could not be written.
        """
        ...

    def prune(self, *, ended_before: float) -> int:
        """Forget ENDED records older than that, and owners without any; returns how many leases.

        Raises:
            JournalError: It could not be written.
        """
        ...
