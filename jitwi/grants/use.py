# SPDX-License-Identifier: Apache-2.0
"""Using a handle: the one procedure that every use passes, in the order of rule 6.

Holds `check_use` and the gate that handles see. Does not hold what leaves afterwards: that is the handle's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from jitwi.audit.events import DecisionRecord, UseAllowed, UseDenied
from jitwi.credentials.gate import Use
from jitwi.errors import (
    AccessDeniedError,
    GrantError,
    GrantExpiredError,
    IdentityError,
    IdentityExpiredError,
    IdentityReplacedError,
    IdentityWithdrawnError,
    JitwiError,
    LimitExceededError,
    OutOfScopeError,
    StateError,
)
from jitwi.grants.ending import stop
from jitwi.grants.lease import EndCause, Lease
from jitwi.grants.slot import CREDENTIAL_EXPIRED
from jitwi.policy import Decision, Evidence, Facts
from jitwi.task import Entity, Under

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitwi.clock import Deadline, Instant
    from jitwi.grants.grant import Grant
    from jitwi.grants.runtime import Runtime
    from jitwi.grants.slot import Slot
    from jitwi.identity import Identity
    from jitwi.policy import ActionShape, PolicySnapshot
    from jitwi.task import Permission, Task, TaskDigest

__all__ = ["GrantGate", "check_use", "decision_record", "require_allowed", "require_identity", "require_own_process"]

_IDENTITY_CAUSES: dict[type[IdentityError], EndCause] = {
    IdentityWithdrawnError: EndCause.IDENTITY_WITHDRAWN,
    IdentityReplacedError: EndCause.IDENTITY_REPLACED,
    IdentityExpiredError: EndCause.IDENTITY_EXPIRED,
}


def check_use(
    grant: Grant, slot: Slot | None, action: str | Entity, resource: Entity, given: Mapping[str, Any] | None
) -> Use:
    """Check, count, decide and record one use.

    Args:
        grant: Of which grant.
        slot: Of which of its credentials; None for `grant.check`.
        action: What is to be done.
        resource: To what.
        given: The caller's `input`.

    Raises:
        StateError: This is a forked child.
        GrantError: The grant or credential is not live.
        AccessDeniedError: Scope, limits or policy say no.
        IdentityError: There is no identity any more.
        PolicyError: The action is unknown.
        AuditError: The line could not be written; the use is given back.
    """
    runtime = grant.runtime
    # 1 pid
    require_own_process(runtime)
    now = runtime.clock.now()
    record: DecisionRecord | None = None
    counted: list[tuple[Grant, int]] = []
    try:
        # 2 state, 3 deadline
        grant.lease.require_live(now)
        if slot is not None:
            slot.require_live(now)
        require_identity(grant)
        # 4 revocation epoch
        _require_not_revoked_elsewhere(grant)
        # 5 scope
        snapshot = runtime.policies.snapshot
        shape = snapshot.action(action)
        index, for_guard = _find_permission(grant, slot, snapshot, shape, resource)
        permission = grant.declaration.permissions[index]
        # 6 limits: reserved here, given back on a deny
        number, counted = _reserve(grant, index, snapshot, shape, resource, now)
        # 7 decision
        evidence = Evidence.LOCAL if slot is None else runtime.evidence_of(slot.plan.kind)
        if for_guard:
            record = _deferred_to_guard(snapshot, shape, resource, permission, given)
        else:
            facts = Facts(grant.task_json, number - 1, now.wall, evidence, given)
            decision = snapshot.decide(grant.identity.spiffe_id, shape, resource, facts)
            record = decision_record("use", decision, shape.action, resource, permission, given)
            require_allowed(decision, "`{}` on `{}`", shape.action, resource)
        # 8 audit: the line is written before anything leaves
        lease_id = "" if slot is None else slot.lease_id
        runtime.audit.record(UseAllowed(grant.subject, lease_id, number, record))
    except BaseException as error:
        _give_back(counted)
        if isinstance(error, JitwiError):
            _refuse(grant, slot, action, resource, error, record)
        raise
    return Use(shape.action, resource, permission, number, given, now)


def require_own_process(runtime: Runtime) -> None:
    """Refuse in a forked child.

    Raises:
        StateError: The process is not the one that opened the grant.
    """
    if os.getpid() != runtime.pid:
        msg = "this grant belongs to another process"
        raise StateError(msg, reasons=("forked",), remedy="open a task in the process that uses it")


def require_identity(grant: Grant) -> Identity:
    """Return the identity that the grant's uses may rest on now; end the grant if there is none any more.

    Raises:
        GrantError: It was withdrawn, replaced or has expired.
        IdentityError: It cannot be told.
    """
    runtime = grant.runtime
    identity = runtime.identity.peek() or runtime.identity.latest()
    if identity is not None and identity.spiffe_id == grant.identity.spiffe_id:
        return identity
    if identity is not None:
        stop(grant, EndCause.IDENTITY_REPLACED)
        raise Lease.error(EndCause.IDENTITY_REPLACED)
    try:
        runtime.identity.identity(timeout=0)
    except IdentityError as error:
        cause = _IDENTITY_CAUSES.get(type(error))
        if cause is not None:
            stop(grant, cause)
            raise Lease.error(cause) from error
        raise
    stop(grant, EndCause.IDENTITY_EXPIRED)
    raise Lease.error(EndCause.IDENTITY_EXPIRED)


def _require_not_revoked_elsewhere(grant: Grant) -> None:
    runtime = grant.runtime
    epoch = runtime.endings.epoch()
    if epoch == grant.seen_epoch:
        return
    if runtime.endings.is_ended(grant.ending_key):
        stop(grant, EndCause.REVOKED_ELSEWHERE)
        raise Lease.error(EndCause.REVOKED_ELSEWHERE)
    grant.seen_epoch = epoch


def _find_permission(
    grant: Grant, slot: Slot | None, snapshot: PolicySnapshot, shape: ActionShape, resource: Entity
) -> tuple[int, bool]:
    """Return the index of the permission that covers this use, and whether its `under` is left to the Guard."""
    if not isinstance(resource, Entity):
        msg = f"a resource is an `Entity`, not `{type(resource).__name__}`"
        raise OutOfScopeError(msg, reasons=("type",))
    index, is_known = _match(grant, None if slot is None else slot.indexes, snapshot, shape, resource)
    if index >= 0 and (is_known or (slot is not None and slot.plan.kind == Evidence.TASK_TOKEN.value)):
        return index, not is_known
    msg = f"`{shape.action}` on `{resource}` was not declared"
    if index >= 0:
        raise OutOfScopeError(
            f"{msg} as such, and this side does not know what the resource is under",
            reasons=("unresolved-under",),
            remedy="give the resource's parents in `entities.json` or by the entity provider",
        )
    raise OutOfScopeError(msg, reasons=("not-declared",), remedy="declare it in the task's `permissions`")


def _match(
    grant: Grant, indexes: tuple[int, ...] | None, snapshot: PolicySnapshot, shape: ActionShape, resource: Entity
) -> tuple[int, bool]:
    """Return the permission that covers a use: the exact one, else an `under` that holds it, else one that might.

    -1 if there is none; the second value is False for one that only might, as this side does not know the resource.
    """
    permissions, action = grant.declaration.permissions, shape.action
    scopes: list[tuple[int, Under]] = []
    for index in range(len(permissions)) if indexes is None else indexes:
        permission = permissions[index]
        if permission.action is not action and permission.action != action:  # mostly the same object
            continue
        if permission.resource is resource or permission.resource == resource:
            return index, True
        if isinstance(permission.resource, Under):
            scopes.append((index, permission.resource))
    perhaps = -1
    for index, scope in scopes:
        is_inside = snapshot.is_under(resource, scope.entity)
        if is_inside:
            return index, True
        if is_inside is None and perhaps < 0:
            perhaps = index
    return perhaps, False


def _match_in_parent(parent: Grant, snapshot: PolicySnapshot, shape: ActionShape, resource: Entity) -> int:
    index, _ = _match(parent, None, snapshot, shape, resource)
    if index < 0:
        raise OutOfScopeError("a parent task does not hold this use any more", reasons=("child-wider",))
    return index


def _reserve(
    grant: Grant, index: int, snapshot: PolicySnapshot, shape: ActionShape, resource: Entity, now: Instant
) -> tuple[int, list[tuple[Grant, int]]]:
    """Count one use on the grant and on each of its ancestors; returns its number and what was counted where."""
    if grant.parent is None:
        with grant.lock:
            return _reserve_one(grant, index, now), [(grant, index)]
    counted: list[tuple[Grant, int]] = []
    number = 0
    try:
        holder: Grant | None = grant
        while holder is not None:
            if holder is not grant:
                index = _match_in_parent(holder, snapshot, shape, resource)
            with holder.lock:
                used = _reserve_one(holder, index, now)
            number = number or used
            counted.append((holder, index))
            holder = holder.parent
    except BaseException:
        _give_back(counted)
        raise
    return number, counted


def _reserve_one(grant: Grant, index: int, now: Instant) -> int:
    grant.lease.require_live(now)
    return grant.lease.reserve(index)


def _give_back(counted: list[tuple[Grant, int]]) -> None:
    for holder, index in counted:
        with holder.lock:
            holder.lease.give_back(index)


def _refuse(
    grant: Grant,
    slot: Slot | None,
    action: str | Entity,
    resource: object,
    error: JitwiError,
    record: DecisionRecord | None,
) -> None:
    runtime = grant.runtime
    reason = error.reasons[0] if error.reasons else error.code
    detail = f"{str(action)[:_SHOWN]} on {str(resource)[:_SHOWN]}: {error.message}"
    lease_id = "" if slot is None else slot.lease_id
    runtime.audit.record_loss(UseDenied(grant.subject, lease_id, error.code, reason, detail, record))
    if isinstance(error, GrantExpiredError) and reason != CREDENTIAL_EXPIRED:
        stop(grant, EndCause.EXPIRED)
    elif isinstance(error, LimitExceededError) and grant.lease.is_used_up:
        stop(grant, EndCause.MAX_USES)
    elif isinstance(error, AccessDeniedError) and not isinstance(error, GrantError):
        with grant.lock:
            grant.lease.refused += 1
            too_many = grant.lease.refused >= runtime.settings.max_refused_uses
        if too_many:
            stop(grant, EndCause.REFUSED_USES)


def decision_record(
    question: str,
    decision: Decision,
    action: Entity,
    resource: Entity,
    permission: Permission,
    given: Mapping[str, Any] | None = None,
) -> DecisionRecord:
    """Return the record of a decision, with all that is needed to replay it."""
    return DecisionRecord(
        question,
        str(action),
        str(resource),
        str(permission),
        decision.is_allowed,
        decision.reason,
        decision.policy_ids,
        decision.errors,
        decision.policy_digest,
        decision.entities_digest,
        decision.context,
        given,
    )


def _deferred_to_guard(
    snapshot: PolicySnapshot,
    shape: ActionShape,
    resource: Entity,
    permission: Permission,
    given: Mapping[str, Any] | None,
) -> DecisionRecord:
    return DecisionRecord(
        question="use",
        action=str(shape.action),
        resource=str(resource),
        permission=str(permission),
        is_allowed=True,
        reason="deferred",
        policy_digest=snapshot.digest,
        input=given,
        scope="guard",
    )


def require_allowed(decision: Decision, what: str, *about: object) -> None:
    """Require an allow.

    Args:
        decision: The answer.
        what: What was asked, as a format; only a deny fills it in.
        *about: The values of the format.

    Raises:
        AccessDeniedError: It is not one; says why.
    """
    if decision.is_allowed:
        return
    by = f" by `{'`, `'.join(decision.policy_ids)}`" if decision.policy_ids else ""
    because = f": {decision.errors[0]}" if decision.errors else ""
    raise AccessDeniedError(
        f"{what.format(*about)} is denied{by} ({decision.reason}){because}",
        reasons=(decision.reason,),
        policy_ids=decision.policy_ids,
    )


class GrantGate:
    """The gate of one credential: what its handle may ask of the grant."""

    __slots__ = ("_grant", "_slot")

    def __init__(self, grant: Grant, slot: Slot) -> None:
        self._grant = grant
        self._slot = slot

    @property
    def lease_id(self) -> str:
        """Our id of the credential."""
        return self._slot.lease_id

    @property
    def txn(self) -> str:
        """Transaction id of the task."""
        return self._grant.txn

    @property
    def task(self) -> Task:
        """The task, actions resolved."""
        return self._grant.declaration

    @property
    def task_digest(self) -> TaskDigest:
        """Its canonical digest in this transaction."""
        return self._grant.task_digest

    @property
    def permissions(self) -> tuple[Permission, ...]:
        """The permissions that this credential serves."""
        return self._slot.order.permissions

    @property
    def deadline(self) -> Deadline:
        """When the credential ends at the latest."""
        return self._slot.deadline

    @property
    def may_block(self) -> bool:
        """True if a check may wait for an entity provider."""
        return self._grant.runtime.policies.may_block

    def check(self, action: str | Entity, resource: Entity, *, input: Mapping[str, Any] | None = None) -> Use:
        """Check, count, decide and record one use; see `check_use`."""
        return check_use(self._grant, self._slot, action, resource, input)

    def refuse(self, error: JitwiError, action: str | Entity, resource: Entity) -> None:
        """Record, and count as a refused use, what the handle itself refuses before the gate."""
        _refuse(self._grant, self._slot, action, resource, error, None)

    def identity(self) -> Identity:
        """Return the current identity of the task.

        Raises:
            IdentityError: There is none that may be used.
            GrantError: It is not the task's any more.
        """
        require_own_process(self._grant.runtime)
        return require_identity(self._grant)

    def now(self) -> Instant:
        """Read the clock once."""
        return self._grant.runtime.clock.now()


_SHOWN = 200
