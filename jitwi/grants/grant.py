# SPDX-License-Identifier: Apache-2.0
"""The grant: what a `with jit.task(...)` block yields.

Holds `Grant`, the record that an identity may do these permissions in this task until its end. Does not hold the
procedures: `opening.py`, `use.py`, `obtaining.py` and `ending.py` do, one each.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from jitwi.audit.events import Subject
from jitwi.clock import as_datetime
from jitwi.errors import StateError
from jitwi.grants import ending as _ending
from jitwi.grants import obtaining as _obtaining
from jitwi.grants.lease import EndCause, Lease, LeaseState
from jitwi.grants.use import check_use, require_own_process
from jitwi.secret import NoCopy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jitwi.clock import Deadline, Instant
    from jitwi.credentials import Use
    from jitwi.grants.block import TaskBlock
    from jitwi.grants.ending import Ending
    from jitwi.grants.runtime import Runtime
    from jitwi.grants.slot import Slot
    from jitwi.identity import Identity
    from jitwi.spiffe_id import SpiffeId
    from jitwi.task import Entity, Task, TaskDigest

__all__ = ["Grant"]


class Grant(NoCopy):
    """A live grant, for synchronous code.

    Attributes:
        id: Id of the grant.
        txn: Transaction id: joins the records of caller and Guard, and those of child tasks.
        declaration: The task as it was allowed, actions resolved and owner filled in.
    """

    __slots__ = (
        "__weakref__",
        "_children",
        "_digest",
        "declaration",
        "ended_at",
        "finish_lock",
        "id",
        "identity",
        "issue_lock",
        "lease",
        "lock",
        "parent",
        "runtime",
        "seen_epoch",
        "slots",
        "subject",
        "task_json",
        "txn",
    )

    def __init__(
        self,
        runtime: Runtime,
        *,
        grant_id: str,
        txn: str,
        task: Task,
        task_json: str,
        identity: Identity,
        deadline: Deadline,
        parent: Grant | None,
    ) -> None:
        self.runtime = runtime
        self.id = grant_id
        self.txn = txn
        self.declaration = task
        self.task_json = task_json
        self.identity = identity
        self.lease = Lease(deadline, task.max_uses, tuple([p.max_uses for p in task.permissions]))
        self.ended_at: Instant | None = None
        self.parent = parent
        self._children: list[Grant] | None = None
        self.slots: dict[str, Slot] = {}
        self.seen_epoch = runtime.endings.epoch()
        self.lock = threading.Lock()
        self.finish_lock = threading.Lock()
        self.issue_lock: threading.RLock | None = None
        self._digest: TaskDigest | None = None
        self.subject = Subject(
            txn,
            grant_id,
            str(identity.spiffe_id),
            task.name,
            "",
            task.owner,
            task.on_behalf_of,
            task.agent,
            None if parent is None else parent.id,
        )

    @property
    def workload(self) -> SpiffeId:
        """Who holds the grant."""
        return self.identity.spiffe_id

    @property
    def children(self) -> tuple[Grant, ...]:
        """The grants below this one that are not over yet, oldest first."""
        return tuple(self._children) if self._children else ()

    @property
    def ending_key(self) -> str:
        """Under which public id an ending of this grant by another process is published."""
        return f"grant:{self.id}"

    @property
    def task_digest(self) -> TaskDigest:
        """The task's canonical digest in this transaction."""
        if self._digest is None:
            self._digest = self.declaration.digest(txn=self.txn)
        return self._digest

    @property
    def is_live(self) -> bool:
        """True while uses are possible, as far as state and time can tell."""
        return self.lease.state is LeaseState.ACTIVE and not self.lease.deadline.is_passed(self.runtime.clock.now())

    @property
    def expires_at(self) -> datetime:
        """When it ends at the latest."""
        return as_datetime(self.lease.deadline.wall)

    @property
    def uses(self) -> int:
        """How many uses were counted."""
        return self.lease.used

    @property
    def ending(self) -> Ending | None:
        """How it and each of its credentials ended, as known now; None while it lives."""
        return _ending.ending_of(self)

    def check(self, action: str | Entity, resource: Entity, *, input: Mapping[str, Any] | None = None) -> Use:
        """Check one use of a resource that this process guards itself.

        Args:
            action: An action that the task declared.
            resource: The resource it is done to.
            input: The facts of this use that the action's schema names, if any.

        Returns:
            The use, counted and recorded.

        Raises:
            StateError: Called in a forked child.
            GrantError: The grant is over.
            AccessDeniedError: Not declared, used up, or denied by policy.
            AuditError: It could not be recorded.
        """
        return check_use(self, None, action, resource, input)

    def credential(self, name: str) -> Any:
        """Return the handle of the credential that issuer `name` makes for this task; made at the first call.

        Args:
            name: The name under which the issuer was given to `JIT`.

        Raises:
            ConfigurationError: There is no such issuer.
            OutOfScopeError: It serves none of the task's permissions.
            ScopeTooWideError: It would be wider than declared or not revocable, and no policy accepts that.
            IssuanceError: It could not be made; whatever was half made is being ended.
            GrantError: The grant is over.
            AuditError: The intent could not be recorded.
        """
        return _obtaining.obtain(self, name)

    def task(self, name: str, **declaration: Any) -> TaskBlock:
        """Declare a child task: a subset of this one, that dies with it.

        What the child leaves out of `owner`, `on_behalf_of`, `agent`, `max_uses` and `ttl` it takes from its parent.

        Args:
            name: Name of the child's task class.
            **declaration: As for `JIT.task`.

        Returns:
            A block for `with` and `async with`, or a decorator.

        Raises:
            InvalidTaskError: The declaration is out of bounds. `OutOfScopeError` comes at entry, when it is wider
                or nests more than 32 deep.
        """
        from jitwi.grants.block import TaskBlock

        raise_on_pending = declaration.pop("raise_on_pending", False)
        return TaskBlock(self.runtime_of, name, declaration, parent=self, raise_on_pending=raise_on_pending)

    def runtime_of(self) -> Runtime:
        """Return the runtime that a child of this grant belongs to."""
        return self.runtime

    def revoke(self, reason: str = "") -> Ending:
        """End the grant now, with everything below it; idempotent.

        Args:
            reason: For the record.

        Returns:
            How it ended, as known when the deadlines of its backends were over.

        Raises:
            StateError: Called in a forked child.
        """
        require_own_process(self.runtime)
        return _ending.end_now(self, EndCause.REVOKED, reason)

    def adopt(self, child: Grant) -> bool:
        """Take a child in; False if this grant is not live any more."""
        with self.lock:
            if self.lease.state is not LeaseState.ACTIVE:
                return False
            if self._children is None:
                self._children = []
            self._children.append(child)
            return True

    def forget(self, child: Grant) -> None:
        """Let a child go that is over."""
        with self.lock:
            if self._children is not None and child in self._children:
                self._children.remove(child)

    def __repr__(self) -> str:
        """Id, task and state."""
        return f"<Grant {self.id} {self.declaration.name} {self.lease.state.value}>"

    def __bool__(self) -> bool:
        """Refuse: a grant is no answer to a question."""
        msg = "use `grant.is_live`"
        raise StateError(msg)
