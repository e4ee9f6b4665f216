# SPDX-License-Identifier: Apache-2.0
"""Obtaining a credential: plan, ask, write down, issue.

Holds the one procedure behind `grant.credential(name)`. Does not hold what an issuer does, nor how it is undone.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from jitwi.audit.events import CredentialIntended, CredentialIssued, CredentialRefused, DecisionRecord
from jitwi.clock import Deadline
from jitwi.credentials import CredentialHandle, Issued, LeaseRef, Order, call_bounded
from jitwi.credentials.bounded import describe_failure
from jitwi.credentials.plan import Plan, Wider
from jitwi.errors import ConfigurationError, IssuanceError, JitwiError, OutOfScopeError, ScopeTooWideError
from jitwi.grants import ending as _ending
from jitwi.grants.slot import Slot
from jitwi.grants.use import GrantGate, decision_record, require_identity, require_own_process
from jitwi.journal import LeaseRecord, new_lease_id
from jitwi.policy import Evidence, Facts
from jitwi.task import Entity, Permission

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.credentials import Issuer
    from jitwi.grants.grant import Grant
    from jitwi.identity import Identity
    from jitwi.policy import PolicySnapshot

__all__ = ["ask_obtain", "obtain"]

_T = TypeVar("_T")

_SHOWN = 200
_CLOCK_GRAIN = 1.0
"""Seconds by which a backend that counts in whole seconds may round up."""


def obtain(grant: Grant, name: str) -> CredentialHandle:
    """Return the handle of the credential of issuer `name`; make it at the first call.

    Raises:
        ConfigurationError: There is no such issuer.
        OutOfScopeError: It serves none of the task's permissions.
        ScopeTooWideError: No policy accepts what it would be.
        IssuanceError: It could not be made.
        GrantError: The grant is over.
        AuditError: The intent could not be recorded.
    """
    # 1 pid, state, deadline, identity
    require_own_process(grant.runtime)
    try:
        grant.lease.require_live(grant.runtime.clock.now())
        issuer = grant.runtime.issuers.get(name)
        if issuer is None:
            known = "`, `".join(grant.runtime.issuers) or "none"
            raise ConfigurationError(f"there is no issuer `{name}`", remedy=f"configured are: `{known}`")
    except JitwiError as error:
        _record_refusal(grant, "", name, error)
        raise
    with _issue_lock(grant):
        slot = grant.slots.get(name)
        if slot is not None and slot.handle is not None and slot.ending is None:
            if not slot.deadline.is_passed(grant.runtime.clock.now()):
                return slot.handle
            with grant.finish_lock:
                _ending.end_slot(grant, slot)
        return _make(grant, name, issuer)


def _record_refusal(
    grant: Grant, lease_id: str, name: str, error: JitwiError, record: DecisionRecord | None = None
) -> None:
    shown = str(name)[:_SHOWN]
    grant.runtime.audit.record_loss(
        CredentialRefused(grant.subject, lease_id, shown, error.code, error.message, record)
    )


def _issue_lock(grant: Grant) -> threading.RLock:
    with grant.lock:
        if grant.issue_lock is None:
            grant.issue_lock = threading.RLock()
        return grant.issue_lock


def _make(grant: Grant, name: str, issuer: Issuer) -> CredentialHandle:
    runtime = grant.runtime
    lease_id = ""
    record: DecisionRecord | None = None
    try:
        identity = require_identity(grant)
        now = runtime.clock.now()
        snapshot = runtime.policies.snapshot
        # 2 what it serves of this task
        indexes = _served(grant, snapshot, name)
        permissions = tuple(grant.declaration.permissions[i] for i in indexes)
        order = _order(grant, name, permissions, identity, now.wall)
        lease_id = order.lease_id
        # 3 plan
        plan = _call(grant, name, issuer, lambda: issuer.plan(order))
        _check_plan(order, plan, snapshot, permissions)
        _require_room(grant, name, plan)
        # 4 obtain?
        record = ask_obtain(grant, snapshot, order, plan)
        # 5 the intent is durable before the issuer is called
        runtime.audit.record(
            CredentialIntended(
                grant.subject,
                order.lease_id,
                name,
                plan.as_credential(now=now.wall),
                plan.standing_right,
                record,
                grant.task_digest.value,
            ),
            durable=True,
        )
        # 6 registered before it exists
        ref = LeaseRef(order.lease_id, name, plan.kind, dict(plan.recipe), plan.expires_at)
        deadline = Deadline.at_wall(plan.expires_at, now=now).earlier(grant.lease.deadline)
        slot = Slot(name, issuer, order, plan, indexes, deadline, ref)
        with grant.lock:
            grant.lease.require_live(now)
            grant.slots[_slot_key(grant, name)] = slot
    except JitwiError as error:
        _record_refusal(grant, lease_id, name, error, record)
        raise
    try:
        if plan.has_outside_effects:
            runtime.journal.intend(_journal_record(grant, slot))
            runtime.journal.heartbeat(runtime.owner, now=now.wall)
        # 7 issue
        issued = _call(
            grant, name, issuer, lambda: issuer.issue(order, plan), late=lambda late: _undo_late(grant, slot, late)
        )
        _adopt(grant, slot, _require(Issued, issued, name))
        # 8 its handle, made without a lock: it is somebody else's code
        handle = _call(
            grant,
            name,
            issuer,
            lambda: issuer.handle(order, plan, issued, GrantGate(grant, slot)),
            late=lambda late: late.destroy(),
        )
        _require(CredentialHandle, handle, name)
        # 9 it may have ended meanwhile: then this credential ends too
        with grant.lock:
            slot.handle, slot.is_being_made = handle, False
            grant.lease.require_live(runtime.clock.now())
        if runtime.policies.snapshot is not snapshot:  # a reload asks again for what was made, and this was not yet
            ask_obtain(grant, runtime.policies.snapshot, order, plan)
    except BaseException as error:
        _undo(grant, slot, error)
        raise
    return handle


def _slot_key(grant: Grant, name: str) -> str:
    """The issuer's name; a credential that was not made keeps its place in the record under its own id."""
    old = grant.slots.pop(name, None)
    if old is not None:
        grant.slots[old.lease_id] = old
    return name


def _served(grant: Grant, snapshot: PolicySnapshot, name: str) -> tuple[int, ...]:
    runtime = grant.runtime
    indexes = tuple(
        i
        for i, permission in enumerate(grant.declaration.permissions)
        if name in runtime.serving(snapshot, snapshot.action(permission.action))
    )
    if not indexes:
        raise OutOfScopeError(
            f"issuer `{name}` serves none of the task's permissions",
            reasons=("not-served",),
            remedy="declare a permission that it serves, or correct its `serves=[...]`",
        )
    return indexes


def _order(grant: Grant, name: str, permissions: tuple[Permission, ...], identity: Identity, now: float) -> Order:
    return Order(
        issuer=name,
        lease_id=new_lease_id(ends_at=grant.lease.deadline.wall),
        txn=grant.txn,
        task=grant.declaration,
        permissions=permissions,
        spiffe_id=identity.spiffe_id,
        svid_kind=identity.kind,
        issued_at=now,
        ends_at=grant.lease.deadline.wall,
        svid_ends_at=identity.not_after,
    )


def _call(
    grant: Grant, name: str, issuer: Issuer, job: Callable[[], _T], *, late: Callable[[_T], object] | None = None
) -> _T:
    if not issuer.is_local:
        return call_bounded(name, job, timeout=grant.runtime.settings.issuer_timeout, on_late=late)
    try:
        return job()
    except JitwiError:
        raise
    except Exception as exc:
        raise IssuanceError(f"issuer `{name}` failed: {describe_failure(exc)}", reasons=("issuer-raised",)) from exc


def _require(kind: type[_T], answer: _T, name: str) -> _T:
    if not isinstance(answer, kind):
        msg = f"issuer `{name}` answered with `{type(answer).__name__}` instead of `{kind.__name__}`"
        raise IssuanceError(msg, reasons=("not-the-port",))
    return answer


def _check_plan(order: Order, plan: Plan, snapshot: PolicySnapshot, permissions: tuple[Permission, ...]) -> None:
    _require(Plan, plan, order.issuer)
    if plan.expires_at > order.ends_at and Wider.TIME not in plan.wider:
        raise IssuanceError(
            f"issuer `{order.issuer}` planned past the end of the task and did not say so", reasons=("plan-dishonest",)
        )
    if plan.is_bearer:
        for permission in permissions:
            if snapshot.action(permission.action).needs_input:
                raise ScopeTooWideError(
                    f"`{permission.action}` is decided over its `input` at each use, and nobody would ask at a bearer "
                    f"credential of issuer `{order.issuer}`",
                    reasons=("input-unchecked",),
                    remedy="serve it by task tokens and a Guard, or check it with `grant.check`",
                )


def _require_room(grant: Grant, name: str, plan: Plan) -> None:
    """Issue no more on a backend whose endings pile up, here or in another process of this host."""
    runtime = grant.runtime
    owed = runtime.watchdog.owed(name)
    if plan.has_outside_effects:
        owed = max(owed, runtime.journal.pending_count(name))
    if owed >= runtime.settings.max_pending_endings:
        raise IssuanceError(
            f"issuer `{name}` still owes {owed} endings, so it issues no more",
            reasons=("pending-cap",),
            remedy="bring its backend back; `python -m jitwi leases` lists what is owed",
        )


def ask_obtain(grant: Grant, snapshot: PolicySnapshot, order: Order, plan: Plan) -> DecisionRecord:
    """Put the question `obtain` for a plan.

    Raises:
        ScopeTooWideError: It is denied.
    """
    facts = Facts(
        grant.task_json,
        grant.lease.used,
        order.issued_at,
        Evidence.LOCAL,
        credential=plan.as_credential(now=order.issued_at),
    )
    decision = snapshot.decide_obtain(order.spiffe_id, order.issuer, facts)
    whole = Permission(Entity("Jitwi::Action", "obtain"), Entity("Jitwi::Issuer", order.issuer))
    record = decision_record(
        "obtain", decision, Entity("Jitwi::Action", "obtain"), Entity("Jitwi::Issuer", order.issuer), whole
    )
    if not decision.is_allowed:
        why = f": {'; '.join(plan.why)}" if plan.why else ""
        raise ScopeTooWideError(
            f"no policy accepts the credential that issuer `{order.issuer}` would make (strength "
            f"`{plan.strength.value}`, wider in {sorted(w.value for w in plan.wider) or 'nothing'}){why}",
            reasons=(decision.reason,),
            wider=tuple(sorted(w.value for w in plan.wider)),
            remedy='write a policy on `Jitwi::Action::"obtain"` that accepts it, or use a narrower issuer',
        )
    return record


def _journal_record(grant: Grant, slot: Slot) -> LeaseRecord:
    return LeaseRecord(
        lease_id=slot.lease_id,
        grant_id=grant.id,
        txn=grant.txn,
        issuer=slot.name,
        kind=slot.plan.kind,
        workload=str(grant.workload),
        task=grant.declaration.name,
        recipe=dict(slot.plan.recipe),
        owner=grant.runtime.owner,
        created_at=slot.order.issued_at,
        expires_at=slot.plan.expires_at,
        strength=slot.plan.strength.value,
    )


def _adopt(grant: Grant, slot: Slot, issued: Issued) -> None:
    runtime = grant.runtime
    recipe = {**slot.ref.recipe, **issued.recipe}
    slot.ref = LeaseRef(slot.lease_id, slot.name, slot.plan.kind, recipe, issued.expires_at, issued.secret)
    if issued.expires_at > slot.plan.expires_at + _CLOCK_GRAIN:
        raise IssuanceError(
            f"issuer `{slot.name}` made a credential that lives longer than it planned",
            reasons=("longer-than-planned",),
        )
    slot.deadline = Deadline.at_wall(issued.expires_at, now=runtime.clock.now()).earlier(slot.deadline)
    if slot.plan.has_outside_effects:
        runtime.journal.activate(slot.lease_id, recipe=issued.recipe, expires_at=issued.expires_at)
    runtime.audit.record(CredentialIssued(grant.subject, slot.lease_id, slot.name, issued.expires_at), durable=True)


def _undo(grant: Grant, slot: Slot, error: BaseException) -> None:
    """End what may have been half made; the first error is the one that counts."""
    runtime = grant.runtime
    code = error.code if isinstance(error, JitwiError) else type(error).__name__
    detail = error.message if isinstance(error, JitwiError) else ""
    runtime.audit.record_loss(CredentialRefused(grant.subject, slot.lease_id, slot.name, code, detail))
    slot.is_being_made = False
    _ending.destroy(slot)
    if not isinstance(error, Exception):
        runtime.watchdog.owe(grant, slot)
        return
    with grant.finish_lock:  # once more even if the grant's own ending came first: the issuer may have been later
        _ending.end_slot(grant, slot)


def _undo_late(grant: Grant, slot: Slot, issued: Issued) -> None:
    """An answer came after the deadline: end it once more, whatever was proven before it came."""
    if isinstance(issued, Issued) and slot.ref.secret is None and issued.secret is not None:
        slot.ref = LeaseRef(
            slot.lease_id,
            slot.name,
            slot.plan.kind,
            {**slot.ref.recipe, **issued.recipe},
            issued.expires_at,
            issued.secret,
        )
    with grant.finish_lock:
        _ending.end_slot(grant, slot)
