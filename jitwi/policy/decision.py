# SPDX-License-Identifier: Apache-2.0
"""A question to Cedar and its answer, as values; and the port that answers.

Holds `Facts`, `Decision` and `DecisionPoint`. Does not hold the engine: that is `engine.py`, the only importer of it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from jitwi.spiffe_id import SpiffeId
    from jitwi.task import Entity, Task

__all__ = ["ActionShape", "Decision", "DecisionPoint", "Evidence", "Facts", "Question"]


class Question(enum.Enum):
    """When Cedar is asked. Source: vocabulary §3."""

    OPEN = "open"
    OBTAIN = "obtain"
    USE = "use"
    GUARD = "guard"


class Evidence(enum.Enum):
    """What the enforcement point verified, as policies see it in `context.evidence`."""

    LOCAL = "local"
    TASK_TOKEN = "task-token"  # noqa: S105 - the name of a kind
    MTLS = "mtls"
    JWT_SVID = "jwt-svid"


@attrs.define(slots=True, eq=False)
class Facts:
    """Everything that a context may be built from; only the keys that the action declares are sent.

    Args:
        task_json: The task's facts as JSON text, made once per task (`TaskFacts` of the vocabulary).
        used: Uses so far in this task.
        now: Seconds since the epoch.
        evidence: What was verified.
        input: The caller's own record, or None where there is none.
        credential: The plan as `Jitwi::Credential`, for `obtain` only.
        approval: Verified approvals as `Jitwi::Approval`, or None.
        delegation: The verified chain as `Jitwi::Delegation`, or None.
        risk: The risk feed's number, or None where there is no feed.
        posture: What the posture probes say, or None where there are none.
    """

    task_json: str
    used: int
    now: float
    evidence: Evidence
    input: Mapping[str, Any] | None = None
    credential: Mapping[str, Any] | None = None
    approval: Mapping[str, Any] | None = None
    delegation: Mapping[str, Any] | None = None
    risk: int | None = None
    posture: Mapping[str, Any] | None = None


@attrs.define(slots=True, eq=False)
class Decision:
    """What Cedar said, after rule 1: allowed means Allow and no evaluation error.

    Args:
        is_allowed: The only field to branch on.
        reason: Stable code: `allow`, `no-permit`, `forbid`, `evaluation-error`, `no-decision`, `unknown-resource`,
            `provider-failed`, `missing-input`, `bad-input`, `missing-fact`, `bad-context` and `bad-KEY`, `evidence`
            (there is no task, and the action does not declare `evidence`), `unknown-action`, `not-applicable`,
            `not-a-workload`, `bad-request`, `stale`.
        policy_ids: `@id`s of the determining policies.
        errors: Evaluation errors, bounded.
        policy_digest: Digest of policies, schema and task classes of the snapshot that answered.
        entities_digest: Digest of the entities that the answer rested on.
        context: The context as JSON text, without `input`: for the record.
    """

    is_allowed: bool
    reason: str
    policy_ids: tuple[str, ...]
    errors: tuple[str, ...]
    policy_digest: str
    entities_digest: str
    context: str = ""

    def __bool__(self) -> bool:
        """Refuse: `if decision` would be one typing slip away from an allow."""
        msg = "use `decision.is_allowed`"
        raise TypeError(msg)


@attrs.frozen
class ActionShape:
    """What the schema says of one action.

    Args:
        action: Its uid.
        keys: Context key -> True if required.
        resource_types: Resource types that it applies to.
    """

    action: Entity
    keys: Mapping[str, bool]
    resource_types: frozenset[str]

    @property
    def needs_input(self) -> bool:
        """True if `input` is a required key."""
        return self.keys.get("input", False)

    @property
    def wants_approval(self) -> bool:
        """True if the action declares `approval?`."""
        return "approval" in self.keys


class DecisionPoint(Protocol):
    """Port: one immutable snapshot of policies, schema, entities and task classes."""

    @property
    def digest(self) -> str:
        """Digest of policies, schema and task classes."""
        ...

    def action(self, name: str | Entity) -> ActionShape:
        """Resolve an action's name.

        Raises:
            PolicyEvaluationError: Unknown, or more than one action has that id; lists the candidates.
        """
        ...

    def knows(self, entity: Entity) -> bool:
        """True if this side can say what `entity` is and what it is in."""
        ...

    def check_task(self, task: Task) -> Task:
        """Hold a declaration against its task class; return it with the class's owner.

        Raises:
            AccessDeniedError: The class refuses it.
            PolicyStaleError: This set is stale.
        """
        ...

    def check_task_facts(
        self, facts: Mapping[str, str | int], actions: Collection[Entity] = ()
    ) -> dict[str, str | int]:
        """Hold the facts of a task against its class: at a Guard; return them with the class's owner.

        Raises:
            AccessDeniedError: The class refuses it.
            PolicyStaleError: This set is stale.
        """
        ...

    def decide_obtain(self, principal: SpiffeId, issuer: str, facts: Facts) -> Decision:
        """Answer whether a planned credential may be obtained; never raises for a bad request."""
        ...

    def is_under(self, resource: Entity, ancestor: Entity) -> bool | None:
        """Whether `resource` is `ancestor` or below it; None if this side does not know the resource."""
        ...

    def decide(self, principal: SpiffeId, action: ActionShape, resource: Entity, facts: Facts) -> Decision:
        """Answer one question; never raises for a bad request: that is a deny with its reason."""
        ...
