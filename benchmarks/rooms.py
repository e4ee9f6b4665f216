# SPDX-License-Identifier: Apache-2.0
"""Single rooms on the way of every task: the decision, the audit line, the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cedarpy

from benchmarks.harness import Case, Row, each
from benchmarks.world import BOX, NAME, TASK, WORKLOAD
from jitwi.audit import AuditLog
from jitwi.audit.events import UseAllowed
from jitwi.clock import SystemClock
from jitwi.grants.use import decision_record
from jitwi.policy import Evidence, Facts
from jitwi.policy.context import task_json
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Permission, Task

if TYPE_CHECKING:
    import jitwi
    from benchmarks.world import World

ROWS = [
    Row("bare decision with the vocabulary's request", "bare decision", "BASE_S"),
    Row("decide / the bare decision of the same request", "decide", "bare decision"),
    Row("audit line of a use", "audit line", "BASE_S"),
    Row("identity: peek", "peek", "BASE_S", 0.03),
    Row("declare a task", "declare", "BASE_S"),
]


def cases(world: World) -> list[Case]:
    """Return the cases of single rooms."""
    snapshot = world.store(10).load()
    shape, caller = snapshot.action("act0"), SpiffeId.parse(WORKLOAD)
    task = Task.declare(NAME, permissions={"act0": BOX}, **TASK)
    facts = Facts(task_json(task.facts()), 0, 0.0, Evidence.LOCAL)
    decision = snapshot.decide(caller, shape, BOX, facts)
    if not decision.is_allowed:
        msg = f"the decision is {decision.reason}: {decision.errors}"
        raise RuntimeError(msg)
    (ready,) = snapshot._ready.values()  # noqa: SLF001 - the very handle that `decide` uses
    request = {
        "principal": dict(ready.principal),
        "action": {"type": shape.action.type, "id": shape.action.id},
        "resource": {"type": BOX.type, "id": BOX.id},
        "context": decision.context,
    }
    policies, schema = snapshot._whole.handle, snapshot._schema  # noqa: SLF001 - the same
    log = AuditLog(world.folder / "line")
    world.at_end(log.close)
    grant: jitwi.Grant = world.own(world.jit.task(NAME, permissions={"act0": BOX}, **TASK))
    record = decision_record("use", decision, shape.action, BOX, Permission(shape.action, BOX))
    return [
        Case("bare decision", each(lambda: cedarpy.is_authorized(request, policies, ready.handle, schema).allowed)),
        Case("decide", each(lambda: snapshot.decide(caller, shape, BOX, facts))),
        Case("audit line", each(lambda: log.record(UseAllowed(grant.subject, "", 1, record)))),
        Case("peek", each(_live_source(world).peek)),
        Case("clock", each(SystemClock().now)),
        Case("declare", each(lambda: Task.declare(NAME, permissions={"act0": BOX}, **TASK))),
    ]


def _live_source(world: World) -> jitwi.identity.WorkloadApiSource:
    """A source that follows a real gRPC stream."""
    from benchmarks.once import follow

    source, _ = follow(world)
    return source
