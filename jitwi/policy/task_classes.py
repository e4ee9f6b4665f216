# SPDX-License-Identifier: Apache-2.0
"""Task classes: the registered kinds of tasks, from `tasks.toml`.

Holds owner, required fields, ceilings and triggers of each class, and the check of a declaration against them.
Optional; once the file is there, a name that it does not register is refused. Over a ceiling is refused, never clamped.

Example of a file::

    [tasks.refund-order]
    owner = "team-payments"
    required = ["purpose"]
    max_ttl = 300
    max_uses = 5
    permissions = ["Shop::read", "Shop::refund"]
    triggers = ["ttl", "max_uses", "identity"]
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import attrs

from jitwi.errors import AccessDeniedError, InvalidTaskError, LimitExceededError, PolicyEvaluationError
from jitwi.policy.text import line_at, refusal
from jitwi.task import MAX_TTL, MAX_USES, Entity, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["TRIGGERS", "TaskClass", "TaskClasses", "read_task_classes"]

TRIGGERS = frozenset(
    {"identity", "max_uses", "parent-ended", "policy-change", "process-stop", "refused-uses", "revoke", "ttl"}
)
"""What ends a task in this version; a class that counts on anything else is refused."""
REQUIRABLE = frozenset({"agent", "max_uses", "on_behalf_of", "purpose"})
_MEMBERS = frozenset({"approval", "max_ttl", "max_uses", "owner", "permissions", "required", "triggers"})
_MAX_SECONDS = int(MAX_TTL.total_seconds())


@attrs.frozen
class TaskClass:
    """One registered kind of task.

    Args:
        name: Name that its tasks declare.
        owner: Who answers for it.
        required: Optional fields that its tasks must fill in.
        max_ttl: Ceiling in seconds, or None.
        max_uses: Ceiling, or None. A task that is not limited by number is over it.
        permissions: Actions that its tasks may declare, or None for any.
        triggers: Triggers it counts on, all of them honoured.
        line: Where it is registered.
    """

    name: str
    owner: str
    required: frozenset[str] = frozenset()
    max_ttl: int | None = None
    max_uses: int | None = None
    permissions: frozenset[Entity] | None = None
    triggers: frozenset[str] = frozenset()
    line: int = 0


class TaskClasses:
    """All registered classes.

    Args:
        classes: By name; None where there is no file, which lets every name pass.
    """

    __slots__ = ("_classes",)

    def __init__(self, classes: Mapping[str, TaskClass] | None) -> None:
        self._classes = classes

    @property
    def is_registered(self) -> bool:
        """True if there is a file, so that unregistered names are refused."""
        return self._classes is not None

    def get(self, name: str) -> TaskClass | None:
        """Return the class of that name, or None."""
        return None if self._classes is None else self._classes.get(name)

    def check_facts(
        self, facts: Mapping[str, str | int], actions: Collection[Entity | str] = ()
    ) -> dict[str, str | int]:
        """Return the facts of a task with its class's owner; the same rules at a Guard as at home.

        Args:
            facts: As `Task.facts()` gives them.
            actions: Actions that are declared, or the one that is used.

        Raises:
            AccessDeniedError: Not registered, another owner, a field missing, an action outside of the class.
            LimitExceededError: Over a ceiling.
        """
        checked = dict(facts)
        if self._classes is None:
            return checked
        name = str(facts.get("name", ""))
        kind = self._classes.get(name)
        if kind is None:
            raise AccessDeniedError(
                f"task class {ascii(name)[:80]} is not registered",
                reasons=("unregistered-task",),
                remedy="register it in `tasks.toml`, with an owner",
            )
        if checked.setdefault("owner", kind.owner) != kind.owner:
            raise AccessDeniedError(
                f"task class `{name}` has another owner than the declared one",
                reasons=("owner",),
                remedy=f"leave `owner` out, or declare `{kind.owner}`",
            )
        if lacking := kind.required - checked.keys():
            raise AccessDeniedError(
                f"task class `{name}` requires `{min(lacking)}`", reasons=("required-field",), remedy="declare it"
            )
        _check_ceilings(kind, checked, actions)
        return checked


def _check_ceilings(kind: TaskClass, facts: Mapping[str, str | int], actions: Collection[Entity | str]) -> None:
    for field, ceiling in (("ttl", kind.max_ttl), ("max_uses", kind.max_uses)):
        if ceiling is None:
            continue
        declared = facts.get(field)
        if not isinstance(declared, int) or isinstance(declared, bool) or declared > ceiling:
            shown = "no limit" if declared is None else f"`{declared}`"
            raise LimitExceededError(
                f"task class `{kind.name}` allows `{field}` up to {ceiling}, not {shown}",
                reasons=("ceiling", field),
                remedy=f"declare `{field}` within the ceiling",
            )
    if kind.permissions is not None:
        for action in actions:
            if action not in kind.permissions:
                raise AccessDeniedError(
                    f"task class `{kind.name}` has no permission for `{action}`",
                    reasons=("ceiling", "permissions"),
                    remedy="declare the actions of the class, or register this one",
                )


def read_task_classes(text: str, path: str, resolve: Callable[[str], Entity]) -> TaskClasses:
    """Read `tasks.toml`.

    Args:
        text: The file.
        path: Its place.
        resolve: Action name -> uid; raises PolicyEvaluationError.

    Raises:
        InvalidPolicyError: Not TOML, an unknown member, an unknown action, or an approval path or trigger that this
            version cannot honour.
    """
    import tomllib  # needed at a load only

    try:
        value = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        found = re.search(r"at line (\d+)", str(exc))
        raise refusal(
            f"not TOML: {str(exc)[:120]}",
            path=path,
            line=int(found[1]) if found else 0,
            reason="task-class",
            remedy="correct the line",
        ) from exc
    if unknown := value.keys() - {"tasks"}:
        raise refusal(
            f"unknown member {ascii(min(unknown))[:80]}", path=path, reason="task-class", remedy="write `[tasks.name]`"
        )
    tasks = value.get("tasks", {})
    if not isinstance(tasks, dict):
        raise refusal("`tasks` is not a table", path=path, reason="task-class", remedy="write `[tasks.name]`")
    return TaskClasses({name: _Reader(name, text, path).read(table, resolve) for name, table in tasks.items()})


class _Reader:
    """One table of the file."""

    def __init__(self, name: str, text: str, path: str) -> None:
        self._name = name
        self._path = path
        quoted = re.escape(name)
        found = re.search(rf"""^\s*\[\s*tasks\s*\.\s*["']?{quoted}["']?\s*\]""", text, re.MULTILINE)
        self._line = line_at(text, found.end()) if found else 0

    def _refuse(self, message: str, remedy: str) -> Exception:
        return refusal(
            f"task class {ascii(self._name)[:80]}: {message}",
            path=self._path,
            line=self._line,
            reason="task-class",
            remedy=remedy,
        )

    def read(self, table: Any, resolve: Callable[[str], Entity]) -> TaskClass:
        if not isinstance(table, dict):
            raise self._refuse("not a table", "write `[tasks.name]`")
        if unknown := table.keys() - _MEMBERS:
            raise self._refuse(f"unknown member {ascii(min(unknown))[:80]}", f"use {', '.join(sorted(_MEMBERS))}")
        if "approval" in table:
            raise self._refuse(
                "this version cannot honour an approval path",
                "remove `approval`, and leave `approval?` to the policies, which deny without one",
            )
        owner = table.get("owner")
        try:
            # The declaration's own rules, put to a sample: what could never be declared is not registered.
            Task.declare(self._name, permissions={"any": Entity("Any", "any")}, ttl=MAX_TTL, owner=owner)
        except InvalidTaskError as exc:
            raise self._refuse(exc.message, "correct the name or `owner`") from exc
        if owner is None:
            raise self._refuse("no `owner`", 'name who answers for it: `owner = "team"`')
        return TaskClass(
            self._name,
            owner,
            self._names(table, "required", REQUIRABLE),
            self._number(table, "max_ttl", _MAX_SECONDS),
            self._number(table, "max_uses", MAX_USES),
            self._permissions(table, resolve),
            self._names(table, "triggers", TRIGGERS),
            self._line,
        )

    def _list(self, table: dict[str, Any], member: str) -> list[str]:
        value = table.get(member, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._refuse(f"`{member}` is not a list of texts", f'write `{member} = ["..."]`')
        return value

    def _names(self, table: dict[str, Any], member: str, known: frozenset[str]) -> frozenset[str]:
        names = frozenset(self._list(table, member))
        if unknown := names - known:
            raise self._refuse(
                f"this version cannot honour {ascii(min(unknown))[:80]} in `{member}`",
                f"use {', '.join(sorted(known))}",
            )
        return names

    def _number(self, table: dict[str, Any], member: str, limit: int) -> int | None:
        value = table.get(member)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise self._refuse(f"`{member}` is not a whole number from 1 to {limit}", "correct the ceiling")
        return value

    def _permissions(self, table: dict[str, Any], resolve: Callable[[str], Entity]) -> frozenset[Entity] | None:
        if "permissions" not in table:
            return None
        try:
            return frozenset(resolve(name) for name in self._list(table, "permissions"))
        except PolicyEvaluationError as exc:
            raise self._refuse(exc.message, exc.remedy) from exc
