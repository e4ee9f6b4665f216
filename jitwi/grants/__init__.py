# SPDX-License-Identifier: Apache-2.0
"""LIFE: grants, their leases, and how they begin and end.

Holds the procedures of opening, using and ending a task. Does not hold who may (policy), who asks (identity) or what
is made (issuers).
"""

from jitwi.grants.async_grant import AsyncGrant
from jitwi.grants.block import TaskBlock
from jitwi.grants.ending import Ending, end_now, stop
from jitwi.grants.grant import Grant
from jitwi.grants.lease import EndCause, Lease, LeaseState
from jitwi.grants.recheck import recheck
from jitwi.grants.registry import Registry
from jitwi.grants.runtime import Runtime, Settings
from jitwi.grants.watchdog import Watchdog

__all__ = [
    "AsyncGrant",
    "EndCause",
    "Ending",
    "Grant",
    "Lease",
    "LeaseState",
    "Registry",
    "Runtime",
    "Settings",
    "TaskBlock",
    "Watchdog",
    "end_now",
    "recheck",
    "stop",
]
