# SPDX-License-Identifier: Apache-2.0
"""What is recorded: one typed event for every step of the walk and every refusal.

Holds frozen shapes of the record. Does not hold encoding, chaining or sinks. No field ever holds a secret: tokens are
named by `jti`, `txn` or a SHA-256.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AuditGap",
    "CredentialEnded",
    "CredentialIntended",
    "CredentialIssued",
    "CredentialRefused",
    "DecisionRecord",
    "Event",
    "GrantEnded",
    "GrantLeaked",
    "GuardAllowed",
    "GuardDenied",
    "IdentityChanged",
    "LeaseReaped",
    "PolicyLoaded",
    "PolicyRefused",
    "Subject",
    "TaskOpened",
    "TaskRefused",
    "UseAllowed",
    "UseDenied",
]


@attrs.define(slots=True, eq=False)
class Subject:
    """Who and what an event is about: the same for all events of one grant, encoded once.

    Args:
        txn: Transaction id: joins caller and Guard.
        grant_id: Id of the grant; empty at a Guard.
        workload: SPIFFE ID of the actor.
        task: Task name.
        task_digest: Canonical digest, or empty where it is not known yet.
        owner: Owner of the task class, or None.
        on_behalf_of: For whom, or None.
        agent: Which agent in the process, or None.
        parent: Grant id of the parent, or None.
    """

    txn: str
    grant_id: str
    workload: str
    task: str
    task_digest: str = ""
    owner: str | None = None
    on_behalf_of: str | None = None
    agent: str | None = None
    parent: str | None = None
    encoded: bytes | None = attrs.field(default=None, init=False, repr=False)
    """Cache of the encoder; nobody else's."""


@attrs.define(slots=True, eq=False)
class DecisionRecord:
    """One decision with all that is needed to replay it.

    Args:
        question: `open`, `obtain`, `use` or `guard`.
        action: Action uid as Cedar text.
        resource: Resource uid as Cedar text.
        permission: The declared permission that it rests on, as text.
        is_allowed: The answer.
        reason: Stable code of `Decision.reason`; `deferred` where it could not be asked yet.
        policy_ids: `@id`s of the determining policies.
        errors: Evaluation errors.
        policy_digest: Policies, schema and task classes.
        entities_digest: Entities.
        context: The context as JSON text, without `input`.
        input: The caller's input, or None. Recorded in full or as a keyed digest, by the log's setting.
        scope: `local`, or `guard` where an `under` is passed on to the Guard.
    """

    question: str
    action: str
    resource: str
    permission: str
    is_allowed: bool
    reason: str
    policy_ids: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    policy_digest: str = ""
    entities_digest: str = ""
    context: str = ""
    input: Mapping[str, Any] | None = None
    scope: str = "local"


@attrs.define(slots=True, eq=False)
class Event:
    """Base of all events.

    Args:
        subject: Who and what it is about, or None for events of the process.
    """

    kind: ClassVar[str] = ""
    subject: Subject | None


@attrs.define(slots=True, eq=False)
class TaskOpened(Event):
    """A task was allowed to open: the intent, before anything exists."""

    kind: ClassVar[str] = "task.opened"
    svid: str
    svid_kind: str
    purpose: str | None
    ttl: int
    max_uses: int | None
    ends_at: float
    decisions: tuple[DecisionRecord, ...]


@attrs.define(slots=True, eq=False)
class TaskRefused(Event):
    """A task was not opened."""

    kind: ClassVar[str] = "task.refused"
    error: str
    reason: str
    detail: str
    decisions: tuple[DecisionRecord, ...] = ()


@attrs.define(slots=True, eq=False)
class CredentialIntended(Event):
    """A credential is about to be asked for; durable before the issuer is called."""

    kind: ClassVar[str] = "credential.intended"
    lease_id: str
    issuer: str
    credential: Mapping[str, Any]
    standing_right: str
    decision: DecisionRecord
    task_digest: str = ""


@attrs.define(slots=True, eq=False)
class CredentialIssued(Event):
    """An issuer answered."""

    kind: ClassVar[str] = "credential.issued"
    lease_id: str
    issuer: str
    expires_at: float


@attrs.define(slots=True, eq=False)
class CredentialRefused(Event):
    """A credential was planned and not issued, or its issue failed."""

    kind: ClassVar[str] = "credential.refused"
    lease_id: str
    issuer: str
    error: str
    detail: str
    decision: DecisionRecord | None = None


@attrs.define(slots=True, eq=False)
class UseAllowed(Event):
    """A handle may be used; written before its proof leaves. `lease_id` is empty for `grant.check`."""

    kind: ClassVar[str] = "use.allowed"
    lease_id: str
    number: int
    decision: DecisionRecord


@attrs.define(slots=True, eq=False)
class UseDenied(Event):
    """A use was refused, at whichever step."""

    kind: ClassVar[str] = "use.denied"
    lease_id: str
    error: str
    reason: str
    detail: str
    decision: DecisionRecord | None = None


@attrs.define(slots=True, eq=False)
class CredentialEnded(Event):
    """How one credential ended: `verified`, `by_construction`, `expires_at` or `pending`."""

    kind: ClassVar[str] = "credential.ended"
    lease_id: str
    issuer: str
    outcome: str
    proof: str
    detail: str
    expires_at: float


@attrs.define(slots=True, eq=False)
class GrantEnded(Event):
    """A grant is over."""

    kind: ClassVar[str] = "grant.ended"
    cause: str
    detail: str
    uses: int
    outcomes: tuple[str, ...]


@attrs.define(slots=True, eq=False)
class GrantLeaked(Event):
    """A block was left without its exit being run; the watchdog ended the grant."""

    kind: ClassVar[str] = "grant.leaked"
    detail: str


@attrs.define(slots=True, eq=False)
class LeaseReaped(Event):
    """The reaper ended, or failed to end, a lease whose owner is gone."""

    kind: ClassVar[str] = "lease.reaped"
    lease_id: str
    issuer: str
    outcome: str
    proof: str
    detail: str


@attrs.define(slots=True, eq=False)
class IdentityChanged(Event):
    """The identity became ready, rotated, stale, or is gone."""

    kind: ClassVar[str] = "identity.changed"
    workload: str
    change: str
    reason: str
    grpc_code: str
    version: int


@attrs.define(slots=True, eq=False)
class PolicyLoaded(Event):
    """A set of policies was taken into use."""

    kind: ClassVar[str] = "policy.loaded"
    policy_digest: str
    policies: int


@attrs.define(slots=True, eq=False)
class PolicyRefused(Event):
    """A set of policies was refused; the last good one stays."""

    kind: ClassVar[str] = "policy.refused"
    path: str
    line: int
    detail: str


@attrs.define(slots=True, eq=False)
class GuardAllowed(Event):
    """A Guard accepted a call."""

    kind: ClassVar[str] = "guard.allowed"
    jti: str
    audience: str
    evidence: str
    decision: DecisionRecord


@attrs.define(slots=True, eq=False)
class GuardDenied(Event):
    """A Guard refused a call; `subject` is None where nothing was verified yet."""

    kind: ClassVar[str] = "guard.denied"
    jti: str
    audience: str
    step: str
    error: str
    detail: str
    decision: DecisionRecord | None = None


@attrs.define(slots=True, eq=False)
class AuditGap(Event):
    """The sink was away; written once it is back.

    `lost` records of lost access were dropped, `refused` events were refused to their callers (what they announced did
    not happen), and the `held` records that follow were kept in memory meanwhile, with their own times.
    """

    kind: ClassVar[str] = "audit.gap"
    lost: int
    first_at: float
    detail: str
    refused: int = 0
    held: int = 0
