# SPDX-License-Identifier: Apache-2.0
"""The grant as asynchronous code sees it.

Holds `AsyncGrant`: the same grant, with verbs that never block the loop. Does not hold a second set of rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jitwi.grants.off_loop import run_off_loop
from jitwi.secret import NoCopy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jitwi.credentials import Use
    from jitwi.grants.block import TaskBlock
    from jitwi.grants.ending import Ending
    from jitwi.grants.grant import Grant
    from jitwi.spiffe_id import SpiffeId
    from jitwi.task import Entity, Task

__all__ = ["AsyncGrant"]


class AsyncGrant(NoCopy):
    """A live grant, for asynchronous code; what `async with jit.task(...)` yields."""

    __slots__ = ("__weakref__", "_grant")

    def __init__(self, grant: Grant) -> None:
        self._grant = grant

    @property
    def id(self) -> str:
        """Id of the grant."""
        return self._grant.id

    @property
    def txn(self) -> str:
        """Transaction id."""
        return self._grant.txn

    @property
    def declaration(self) -> Task:
        """The task as it was allowed."""
        return self._grant.declaration

    @property
    def workload(self) -> SpiffeId:
        """Who holds the grant."""
        return self._grant.workload

    @property
    def is_live(self) -> bool:
        """True while uses are possible, as far as state and time can tell."""
        return self._grant.is_live

    @property
    def expires_at(self) -> datetime:
        """When it ends at the latest."""
        return self._grant.expires_at

    @property
    def uses(self) -> int:
        """How many uses were counted."""
        return self._grant.uses

    @property
    def ending(self) -> Ending | None:
        """How it and each of its credentials ended, as known now; None while it lives."""
        return self._grant.ending

    async def check(self, action: str | Entity, resource: Entity, *, input: Mapping[str, Any] | None = None) -> Use:
        """Check one use; see `Grant.check`."""
        grant = self._grant
        if grant.runtime.policies.may_block:
            return await run_off_loop(lambda: grant.check(action, resource, input=input))
        return grant.check(action, resource, input=input)

    async def credential(self, name: str) -> Any:
        """Return the handle of a credential; see `Grant.credential`."""
        grant = self._grant
        return await run_off_loop(lambda: grant.credential(name))

    def task(self, name: str, **declaration: Any) -> TaskBlock:
        """Declare a child task; see `Grant.task`."""
        return self._grant.task(name, **declaration)

    async def revoke(self, reason: str = "") -> Ending:
        """End the grant now; see `Grant.revoke`."""
        grant = self._grant
        return await run_off_loop(lambda: grant.revoke(reason))

    def __repr__(self) -> str:
        """Id, task and state."""
        return repr(self._grant).replace("<Grant", "<AsyncGrant", 1)
