# SPDX-License-Identifier: Apache-2.0
"""MAY: what Cedar is asked, and its answers.

Holds the vocabulary of questions, the loading of policies, schema, entities and task classes, and the decisions. Does
not hold grants or credentials, and never asks who is calling: an identity comes in as a value.
"""

from jitwi.policy.context import NO_TASK, bounded_json, task_json
from jitwi.policy.decision import ActionShape, Decision, DecisionPoint, Evidence, Facts, Question
from jitwi.policy.entities import EntityRecord
from jitwi.policy.folder import write_manifest
from jitwi.policy.loaded import PolicyInfo
from jitwi.policy.provider import EntityProvider
from jitwi.policy.snapshot import PolicySnapshot
from jitwi.policy.store import PolicyEvent, PolicyStore
from jitwi.policy.task_classes import TaskClass, TaskClasses

__all__ = [
    "NO_TASK",
    "ActionShape",
    "Decision",
    "DecisionPoint",
    "EntityProvider",
    "EntityRecord",
    "Evidence",
    "Facts",
    "PolicyEvent",
    "PolicyInfo",
    "PolicySnapshot",
    "PolicyStore",
    "Question",
    "TaskClass",
    "TaskClasses",
    "bounded_json",
    "task_json",
    "write_manifest",
]
