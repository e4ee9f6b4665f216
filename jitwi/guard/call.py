# SPDX-License-Identifier: Apache-2.0
"""What a Guard hands to the service once a call was allowed.

Holds `Call` and `CallTask`. Does not hold anything that is secret or that the caller could still change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from datetime import datetime

    from jitwi.spiffe_id import SpiffeId
    from jitwi.task import Entity, Permission

__all__ = ["Call", "CallTask"]


@attrs.frozen
class CallTask:
    """The declared task behind a call, as its digest covers it.

    Args:
        name: Name of its task class.
        ttl: Declared length in seconds.
        digest: Canonical digest.
        purpose: Why, or None.
        owner: Who answers for this kind of task, or None; the Guard's own task class wins.
        on_behalf_of: For whom, or None.
        agent: Which agent in the caller's process, or None: a name for the record, not a boundary.
        max_uses: How many uses in all, or None.
    """

    name: str
    ttl: int
    digest: str
    purpose: str | None = None
    owner: str | None = None
    on_behalf_of: str | None = None
    agent: str | None = None
    max_uses: int | None = None

    def facts(self) -> dict[str, str | int]:
        """Return what policies read as `context.task`; absent fields are left out."""
        facts: dict[str, str | int] = {"name": self.name, "ttl": self.ttl}
        for key in ("purpose", "owner", "on_behalf_of", "agent", "max_uses"):
            value = getattr(self, key)
            if value is not None:
                facts[key] = value
        return facts


@attrs.frozen
class Call:
    """One call that was verified, counted, decided and recorded.

    Args:
        workload: The authenticated actor.
        task: Its task.
        txn: Transaction id: joins the caller's record and the Guard's.
        jti: Id of the proof.
        action: The action's uid.
        resource: The resource.
        permission: The declared permission that it rests on.
        expires_at: End of the task token, UTC; a response that still streams then is to be cut.
        policy_ids: `@id`s of the policies that allowed it.
        chain: Everybody who acts, the actor first; one workload until delegation is built.
        number: It is the n-th use of the task at this Guard; 0 where uses are not counted.
    """

    workload: SpiffeId
    task: CallTask
    txn: str
    jti: str
    action: Entity
    resource: Entity
    permission: Permission
    expires_at: datetime
    policy_ids: tuple[str, ...]
    chain: tuple[SpiffeId, ...]
    number: int = 0

    @property
    def owner(self) -> str | None:
        """Who answers for this kind of task."""
        return self.task.owner
