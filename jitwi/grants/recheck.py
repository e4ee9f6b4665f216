# SPDX-License-Identifier: Apache-2.0
"""Asking again for a live grant, after the policies changed.

Holds `recheck`. Does not hold loading or timing: a reload calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitwi.errors import JitwiError
from jitwi.grants.ending import stop
from jitwi.grants.lease import EndCause, LeaseState
from jitwi.grants.obtaining import ask_obtain
from jitwi.grants.opening import decide_all

if TYPE_CHECKING:
    from jitwi.grants.grant import Grant

__all__ = ["recheck"]


def recheck(grant: Grant) -> None:
    """End a live grant that the policies or task classes of now would not let open, or not obtain what it has."""
    runtime = grant.runtime
    if grant.lease.state is not LeaseState.ACTIVE:
        return
    try:
        snapshot = runtime.policies.snapshot
        snapshot.check_task(grant.declaration)
        decide_all(runtime, snapshot, grant.identity, grant.declaration, grant.task_json, runtime.clock.now(), [])
        for slot in list(grant.slots.values()):
            if slot.handle is not None and slot.ending is None:
                ask_obtain(grant, snapshot, slot.order, slot.plan)
    except JitwiError:
        stop(grant, EndCause.POLICY_CHANGED)
