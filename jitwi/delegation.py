# SPDX-License-Identifier: Apache-2.0
"""Narrowing: a child is a subset of its parent.

Holds the rule for child tasks, pure. Does not hold signatures or chains across processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from jitwi.errors import OutOfScopeError
from jitwi.task import Entity, Permission, Task, Under

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["covering_permissions", "inherit", "narrowed"]


def inherit(declaration: dict[str, Any], parent: Task) -> dict[str, Any]:
    """Return a child's declaration with what it leaves out taken from its parent.

    Args:
        declaration: Fields of `Task.declare` as given for the child.
        parent: The parent's task.
    """
    inherited = {name: getattr(parent, name) for name in ("ttl", "max_uses", "owner", "on_behalf_of", "agent")}
    return {**inherited, **{name: value for name, value in declaration.items() if value is not None}}


def narrowed(child: Task, parent: Task, *, is_under: Callable[[Entity, Entity], bool]) -> tuple[Task, tuple[int, ...]]:
    """Return `child` as a subset of `parent`, and for each permission the index of the parent's that it is a part of.

    Permissions must be covered one by one; the ttl, `max_uses` of the task and of each permission must not be larger;
    what the parent names (owner, on_behalf_of) the child may repeat but not change. A permission without a limit of
    its own takes that of the parent's.

    Args:
        child: The narrower task, actions resolved.
        parent: The wider task, actions resolved.
        is_under: Whether the first entity is the second or below it, by this side's own hierarchy; anything but True is
            a no.

    Raises:
        OutOfScopeError: Something is wider; the reasons say what.
    """
    if child.ttl > parent.ttl:
        raise _wider("ttl", f"its ttl of {child.ttl} is longer than the parent's {parent.ttl}")
    _check_uses("max-uses", child.max_uses, parent.max_uses)
    for name in ("owner", "on_behalf_of"):
        theirs, ours = getattr(parent, name), getattr(child, name)
        if theirs is not None and ours != theirs:
            raise _wider(name.replace("_", "-"), f"its `{name}` is not the parent's")
    indexes = covering_permissions(child, parent, is_under=is_under)
    limited = []
    for permission, index in zip(child.permissions, indexes, strict=True):
        limit = parent.permissions[index].max_uses
        if permission.max_uses is None and limit is not None:
            permission = attrs.evolve(permission, max_uses=limit)  # noqa: PLW2901 - the narrowed one is meant
        _check_uses("permission-max-uses", permission.max_uses, limit)
        limited.append(permission)
    return attrs.evolve(child, permissions=tuple(limited)), indexes


def covering_permissions(child: Task, parent: Task, *, is_under: Callable[[Entity, Entity], bool]) -> tuple[int, ...]:
    """Return, for each of the child's permissions, the index of the parent's permission that it is a part of.

    An exact one comes before an `under(...)`.

    Args:
        child: The narrower task, actions resolved.
        parent: The wider task, actions resolved.
        is_under: Whether the first entity is the second or below it; anything but True is a no.

    Raises:
        OutOfScopeError: The parent holds no such permission.
    """
    found = []
    for permission in child.permissions:
        covering = [i for i, p in enumerate(parent.permissions) if _covers(p, permission, is_under)]
        if not covering:
            raise _wider("permission", f"the parent does not hold `{permission}`")
        exact = [i for i in covering if parent.permissions[i].resource == permission.resource]
        found.append((exact or covering)[0])
    return tuple(found)


def _covers(wide: Permission, narrow: Permission, is_under: Callable[[Entity, Entity], bool]) -> bool:
    if wide.action != narrow.action:
        return False
    if wide.resource == narrow.resource:
        return True
    if not isinstance(wide.resource, Under):
        return False
    inner = narrow.resource.entity if isinstance(narrow.resource, Under) else narrow.resource
    return is_under(inner, wide.resource.entity) is True


def _check_uses(reason: str, child: int | None, parent: int | None) -> None:
    if parent is not None and (child is None or child > parent):
        shown = "unlimited" if child is None else child
        raise _wider(reason, f"its `max_uses` ({shown}) is more than the parent's {parent}")


def _wider(reason: str, why: str) -> OutOfScopeError:
    return OutOfScopeError(
        f"a child task must be a subset of its parent: {why}", reasons=("child-wider", reason), remedy="declare less"
    )
