# SPDX-License-Identifier: Apache-2.0
"""The gate that every use of a handle passes.

Holds the port between a handle and the grant behind it, and the record of one allowed use. The procedure itself, with
its numbered steps, is `jitwi.grants.use`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitwi.clock import Deadline, Instant
    from jitwi.errors import JitwiError
    from jitwi.identity import Identity
    from jitwi.task import Entity, Permission, Task, TaskDigest

__all__ = ["Gate", "Use"]


@attrs.define(slots=True, eq=False)
class Use:
    """One use that was allowed, counted and recorded.

    Args:
        action: The action's uid.
        resource: The resource.
        permission: The declared permission it rests on, action resolved.
        number: It is the n-th use of the task.
        input: The caller's input, as it was decided on.
        at: When.
    """

    action: Entity
    resource: Entity
    permission: Permission
    number: int
    input: Mapping[str, Any] | None
    at: Instant


class Gate(Protocol):
    """Port: what a handle may ask of its grant."""

    @property
    def lease_id(self) -> str:
        """Our id of the credential."""
        ...

    @property
    def txn(self) -> str:
        """Transaction id of the task."""
        ...

    @property
    def task(self) -> Task:
        """The task, actions resolved."""
        ...

    @property
    def task_digest(self) -> TaskDigest:
        """Its canonical digest in this transaction."""
        ...

    @property
    def permissions(self) -> tuple[Permission, ...]:
        """The permissions that this credential serves, actions resolved."""
        ...

    @property
    def deadline(self) -> Deadline:
        """When the credential ends at the latest."""
        ...

    def check(self, action: str | Entity, resource: Entity, *, input: Mapping[str, Any] | None = None) -> Use:
        """Check, count, decide and record one use, in the order of rule 6; nothing may leave before it returns.

        Raises:
            StateError: Forked child.
            GrantError: Not live; names the cause.
            AccessDeniedError: Scope, limits or policy say no.
            AuditError: The line could not be written.
        """
        ...

    def refuse(self, error: JitwiError, action: str | Entity, resource: Entity) -> None:
        """Record, and count as a refused use, what the handle itself refuses before the gate: a foreign origin, say."""
        ...

    def identity(self) -> Identity:
        """Return the current identity of the task, for minting under the SVID of now.

        Raises:
            IdentityError: There is none that may be used.
        """
        ...

    def now(self) -> Instant:
        """Read the clock once."""
        ...
