# SPDX-License-Identifier: Apache-2.0
"""What a load hands to a snapshot, as values.

Holds `PolicyInfo`, `Asked` and `Loaded`. Does not hold the load (`loader.py`) or the answers (`snapshot.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitwi.policy import engine
    from jitwi.policy.context import ContextBuilder
    from jitwi.policy.decision import ActionShape
    from jitwi.policy.entities import EntityStore
    from jitwi.policy.schema import Schema
    from jitwi.policy.slice import ScopeIndex
    from jitwi.policy.task_classes import TaskClasses
    from jitwi.task import Entity

__all__ = ["Asked", "Loaded", "PolicyInfo"]


@attrs.frozen
class PolicyInfo:
    """One policy of a set, for lint, explain and the record.

    Args:
        id: Its `@id`, or `file:position` where it has none.
        effect: `permit` or `forbid`.
        path: Its file.
        line: Its line.
        is_built_in: True for those that jitwi brings.
    """

    id: str
    effect: str
    path: str
    line: int
    is_built_in: bool = False


@attrs.frozen
class Asked:
    """What is ready for questions about one action."""

    shape: ActionShape
    request: Mapping[str, str]
    context: ContextBuilder
    with_facts: frozenset[str]


@attrs.frozen(eq=False)
class Loaded:
    """Everything that a load produces.

    Args:
        policies: Handle.
        policy_infos: In the engine's order: `policy0`, `policy1`, ...
        texts: Of each policy, in the same order; empty where there is no index.
        index: Which policies a request can concern, or None where the set is too small to need one.
        unsliced: Positions of policies that are only ever evaluated as part of the whole set.
        schema: Handle.
        shape: What the schema says.
        entities: The store's own records.
        literals: Entities that conditions of policies name.
        actions: What can be asked.
        action_names: Every spelling of an action's name -> actions.
        task_classes: Registered classes.
        digest: Of policies, schema and task classes.
        schema_digest: Of the schema alone.
        entities_digest: Of the store's own records.
        warnings: What is allowed and still worth a look.
    """

    policies: engine.PoliciesHandle
    policy_infos: tuple[PolicyInfo, ...]
    texts: tuple[str, ...]
    index: ScopeIndex | None
    unsliced: frozenset[int]
    schema: engine.SchemaHandle
    shape: Schema
    entities: EntityStore
    literals: tuple[Entity, ...]
    actions: Mapping[Entity, Asked]
    action_names: Mapping[str, tuple[Entity, ...]]
    task_classes: TaskClasses
    digest: str
    schema_digest: str
    entities_digest: str
    warnings: tuple[str, ...]
