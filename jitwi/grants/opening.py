# SPDX-License-Identifier: Apache-2.0
"""Opening a task: the one procedure from a declaration to a live grant.

Holds `open_grant`, sync and free of waiting but for the identity. Does not hold the block around it (`block.py`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from jitwi.audit.events import DecisionRecord, Subject, TaskOpened, TaskRefused
from jitwi.clock import Deadline
from jitwi.delegation import narrowed
from jitwi.errors import JitwiError, OutOfScopeError, StateError
from jitwi.grants import ending as _ending
from jitwi.grants.grant import Grant
from jitwi.grants.lease import EndCause, LeaseState
from jitwi.grants.use import decision_record, require_allowed, require_identity, require_own_process
from jitwi.policy import Evidence, Facts
from jitwi.task import Entity, Permission, Task, Under

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.clock import Instant
    from jitwi.grants.runtime import Runtime
    from jitwi.identity import Identity
    from jitwi.policy import ActionShape, PolicySnapshot

__all__ = ["MAX_DEPTH", "decide_all", "open_grant"]

MAX_DEPTH = 32
"""How many generations of children a task may have."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


def open_grant(runtime: Runtime, task: Task, *, grant_id: str, parent: Grant | None = None) -> Grant:
    """Open a task.

    Args:
        runtime: The rooms.
        task: The declaration; actions may be names.
        grant_id: Its id, random, known to the caller before anything exists.
        parent: The grant that it is a child of.

    Returns:
        A live grant, registered and watched. Its end is the caller's.

    Raises:
        StateError: Wrong process, or closed.
        IdentityError: There is no identity within the deadline.
        PolicyError: An action is unknown.
        AccessDeniedError: The task class or a policy says no, or a child is wider than its parent.
        AuditError: The intent could not be recorded.
    """
    decisions: list[DecisionRecord] = []
    identity: Identity | None = None
    grant: Grant | None = None
    try:
        # 1 the process and the parent are alive
        require_own_process(runtime)
        if parent is not None:
            parent.lease.require_live(runtime.clock.now())
            _require_depth(parent)
        # 2 identity, fresh
        identity = runtime.identity.identity(timeout=runtime.settings.identity_timeout)
        # 3 class and schema: owner, ceilings, actions
        snapshot = runtime.policies.snapshot
        task = _resolve(snapshot, snapshot.check_task(task))
        if parent is not None:
            task, _ = narrowed(task, parent.declaration, is_under=_below(snapshot))
        now = runtime.clock.now()
        # 4 each permission that can be asked
        task_json = _encode(task.facts())
        decide_all(runtime, snapshot, identity, task, task_json, now, decisions)
        # 5 registered before it exists
        grant = _register(runtime, grant_id, task, task_json, identity, now, parent)
        # 6 the intent, before anything leaves
        runtime.audit.record(
            TaskOpened(
                grant.subject,
                identity.thumbprint,
                identity.kind.value,
                task.purpose,
                task.ttl_seconds,
                task.max_uses,
                grant.lease.deadline.wall,
                tuple(decisions),
            )
        )
        # 7 live, unless it was ended meanwhile
        with grant.lock:
            if grant.lease.state is LeaseState.PENDING:
                grant.lease.activate()
        _require_not_stopping(runtime)
        require_identity(grant)
        if runtime.policies.snapshot is not snapshot:  # a reload asks again of live tasks only, and this was none yet
            snapshot = runtime.policies.snapshot
            snapshot.check_task(task)
            decide_all(runtime, snapshot, identity, task, task_json, now, decisions)
        grant.lease.require_live(now)
    except BaseException as error:
        if grant is not None:
            _ending.stop(grant, EndCause.OPENING_FAILED)
        if isinstance(error, JitwiError):
            _record_refusal(runtime, task, identity, error, decisions)
        raise
    return grant


def _require_depth(parent: Grant) -> None:
    """Bound the chain of children: an ending walks down all of it."""
    depth, above = 1, parent.parent
    while above is not None:
        depth, above = depth + 1, above.parent
    if depth > MAX_DEPTH:
        msg = f"child tasks nest more than {MAX_DEPTH} deep"
        raise OutOfScopeError(msg, reasons=("too-deep",), remedy="open children side by side")


def _require_not_stopping(runtime: Runtime) -> None:
    if runtime.is_stopping:
        msg = "this `JIT` is closed"
        raise StateError(msg, reasons=("closed",), remedy="make a new one")


def _resolve(snapshot: PolicySnapshot, task: Task) -> Task:
    """Name every action by its uid."""
    return task.with_actions([snapshot.action(permission.action).action for permission in task.permissions])


def _below(snapshot: PolicySnapshot) -> Callable[[Entity, Entity], bool]:
    return lambda resource, ancestor: resource == ancestor or snapshot.is_under(resource, ancestor) is True


def decide_all(
    runtime: Runtime,
    snapshot: PolicySnapshot,
    identity: Identity,
    task: Task,
    task_json: str,
    now: Instant,
    decisions: list[DecisionRecord],
) -> None:
    """Put the question `open` for each permission that it can be put for; append what was answered to `decisions`.

    Raises:
        AccessDeniedError: One of them is denied.
        PolicyError: An action is unknown.
    """
    for permission in task.permissions:
        shape = snapshot.action(permission.action)
        evidence = runtime.evidence(runtime.serving(snapshot, shape))
        scope = permission.resource
        resource = scope.entity if isinstance(scope, Under) else scope
        put_off = _put_off(snapshot, shape, permission, evidence)
        if put_off is not None:
            decisions.append(
                DecisionRecord(
                    "open",
                    str(shape.action),
                    str(resource),
                    str(permission),
                    is_allowed=True,
                    reason="deferred",
                    policy_digest=snapshot.digest,
                    scope=put_off,
                )
            )
            continue
        decision = snapshot.decide(identity.spiffe_id, shape, resource, Facts(task_json, 0, now.wall, evidence))
        decisions.append(decision_record("open", decision, shape.action, resource, permission))
        require_allowed(decision, "task `{}` with `{}`", task.name, permission)


def _put_off(snapshot: PolicySnapshot, shape: ActionShape, permission: Permission, evidence: Evidence) -> str | None:
    """Return `local` or `guard` where the question cannot be put before the use, else None. Source: vocabulary §3."""
    if shape.needs_input:
        return "local"
    if isinstance(permission.resource, Under):
        entity = permission.resource.entity
        if evidence is Evidence.TASK_TOKEN and not snapshot.knows(entity):
            return "guard"
        if entity.type not in shape.resource_types:
            return "local"
    return None


def _register(
    runtime: Runtime,
    grant_id: str,
    task: Task,
    task_json: str,
    identity: Identity,
    now: Instant,
    parent: Grant | None,
) -> Grant:
    deadline = Deadline.after(now, seconds=task.ttl_seconds)
    if parent is not None:
        deadline = deadline.earlier(parent.lease.deadline)
    grant = Grant(
        runtime,
        grant_id=grant_id,
        txn=grant_id if parent is None else parent.txn,
        task=task,
        task_json=task_json,
        identity=identity,
        deadline=deadline,
        parent=parent,
    )
    runtime.registry.add(grant)
    if parent is not None and not parent.adopt(grant):
        runtime.registry.remove(grant_id)
        parent.lease.require_live(now)
        msg = "the parent task is not live"
        raise StateError(msg)
    runtime.watchdog.watch(grant)
    return grant


def _record_refusal(
    runtime: Runtime,
    task: Task,
    identity: Identity | None,
    error: JitwiError,
    decisions: list[DecisionRecord],
) -> None:
    subject = Subject(
        "",
        "",
        "" if identity is None else str(identity.spiffe_id),
        task.name,
        "",
        task.owner,
        task.on_behalf_of,
        task.agent,
    )
    reason = error.reasons[0] if error.reasons else error.code
    runtime.audit.record_loss(TaskRefused(subject, error.code, reason, error.message, tuple(decisions)))
