# SPDX-License-Identifier: Apache-2.0
"""The types that jitwi brings to Cedar, and what a user's schema must say to be asked with them.

Holds the package data (schema and built-in `obtain` policy) and the rules for the context of an action. Does not build
contexts: that is `context.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitwi.policy.schema import ActionType, Primitive, RecordOf, Schema, Type, holds_entities
from jitwi.policy.text import refusal
from jitwi.task import Entity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jitwi.policy.schema_text import SchemaText

__all__ = [
    "BUILT_IN_POLICIES",
    "ISSUER",
    "NAMESPACE",
    "OBTAIN",
    "PATH",
    "TRUST_DOMAIN",
    "WORKLOAD",
    "built_in_policies",
    "built_in_schema",
    "check_schema",
]

NAMESPACE = "Jitwi"
WORKLOAD = "Jitwi::Workload"
PATH = "Jitwi::Path"
TRUST_DOMAIN = "Jitwi::TrustDomain"
ISSUER = "Jitwi::Issuer"
OBTAIN = Entity("Jitwi::Action", "obtain")
BUILT_IN_POLICIES = "jitwi/obtain.cedar"

_RECORDS = {"task": "Jitwi::Task", "approval": "Jitwi::Approval", "delegation": "Jitwi::Delegation"}
_PRIMITIVES = {"used": "Long", "now": "datetime", "risk": "Long", "evidence": "String"}
_OPTIONAL = frozenset({"approval", "delegation"})
_OWN = frozenset({"input", "posture"})


def built_in_schema() -> str:
    """Return the text of our own schema."""
    return _packaged("jitwi.cedarschema")


def built_in_policies() -> str:
    """Return the text of the policies that are part of every set."""
    return _packaged("obtain.cedar")


def _packaged(name: str) -> str:
    from importlib.resources import files  # slow to import, needed at a load only

    return files("jitwi.policy").joinpath(name).read_text(encoding="utf-8")


def check_namespaces(schemas: Sequence[SchemaText]) -> None:
    """Refuse a user's schema that adds to our namespace.

    Raises:
        InvalidPolicyError: It defines `Jitwi` or a namespace below it.
    """
    for schema in schemas:
        for name, line in schema.namespaces.items():
            if name == NAMESPACE or name.startswith(f"{NAMESPACE}::"):
                raise refusal(
                    f"the schema defines the namespace `{name}`",
                    path=schema.path,
                    line=line,
                    reason="reserved-namespace",
                    remedy="jitwi brings it; use its types as `Jitwi::Workload`, `Jitwi::Task`, and name your own",
                )


def check_schema(merged: Schema, ours: Schema, places: Mapping[tuple[str, str, str], tuple[str, int]]) -> list[str]:
    """Hold a merged schema against the vocabulary.

    Args:
        merged: The user's schema with ours.
        ours: Our schema alone.
        places: (namespace, kind, name) -> file and line of a declaration.

    Returns:
        Warnings: actions that jitwi will never ask about.

    Raises:
        InvalidPolicyError: An action's context breaks a rule of the vocabulary.
    """
    for name, entity in ours.entities.items():
        if merged.entities.get(name) != entity:
            raise _changed(name)
    for name, kind in ours.types.items():
        if merged.types.get(name) != kind:
            raise _changed(name)
    own = {action.uid: action for action in ours.actions}
    warnings: list[str] = []
    for action in merged.actions:
        if action.uid in own:
            if action != own[action.uid]:
                raise _changed(str(action.uid))
            continue
        path, line = places.get((action.namespace, "action", action.uid.id), ("", 0))
        if others := action.principals - {WORKLOAD}:
            warnings.append(
                f"{path}:{line}: action `{action.uid}` applies to `{min(others)}`: jitwi never asks it for such a "
                f"principal, only for `{WORKLOAD}`"
            )
        if WORKLOAD in action.principals:
            _check_context(action, ours, path, line)
    return warnings


def _changed(name: str) -> Exception:
    return refusal(
        f"the schema changes what `{name}` means",
        path="",
        reason="reserved-name",
        remedy="do not redefine names that jitwi's own schema uses",
    )


def _check_context(action: ActionType, ours: Schema, path: str, line: int) -> None:
    def refuse(message: str, remedy: str) -> Exception:
        return refusal(f"action `{action.uid}`: {message}", path=path, line=line, reason="context-key", remedy=remedy)

    if action.context.field("task") is None:
        raise refuse("its context lacks `task`", "add `task: Jitwi::Task` to the context")
    for key, kind, is_required in action.context.fields:
        if key in _RECORDS:
            if kind != ours.types[_RECORDS[key]]:
                raise refuse(f"`{key}` has another type than `{_RECORDS[key]}`", f"write `{key}: {_RECORDS[key]}`")
        elif key in _PRIMITIVES:
            if kind != Primitive(_PRIMITIVES[key]):
                raise refuse(
                    f"`{key}` has another type than `{_PRIMITIVES[key]}`", f"write `{key}: {_PRIMITIVES[key]}`"
                )
        elif key not in _OWN:
            raise refuse(
                f"nobody supplies the context key `{key}`",
                "put facts of the caller below `input`, facts of a probe below `posture`, facts of the resource into "
                "its attributes",
            )
        elif not isinstance(kind, RecordOf):
            raise refuse(f"`{key}` is not a record", f"write `{key}: {{ ... }}`")
        else:
            _check_own(key, kind, refuse)
        if key in _OPTIONAL and is_required:
            raise refuse(f"`{key}` is required", f"write `{key}?: {_RECORDS[key]}`")
        if key == "task" and not is_required:
            raise refuse("`task` is optional", "write `task: Jitwi::Task`")


def _check_own(key: str, kind: Type, refuse: object) -> None:
    if holds_entities(kind):
        raise refuse(  # type: ignore[operator]
            f"`{key}` refers to an entity", "let it carry text; what an entity is comes from this side's own store"
        )
