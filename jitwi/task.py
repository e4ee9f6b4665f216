# SPDX-License-Identifier: Apache-2.0
"""What is declared: entities, permissions and the task.

Holds frozen values with their bounds and the canonical digest of a task. Does not hold decisions, identities or time:
a task says what is wanted, never what is allowed.

Example:
    >>> from datetime import timedelta
    >>> from jitwi.task import Entity, Task
    >>> order = Entity("Shop::Order", "42")
    >>> task = Task.declare("refund-order", permissions={"refund": order}, ttl=timedelta(minutes=2))
    >>> task.permissions
    (Permission(action='refund', resource=Entity(type='Shop::Order', id='42'), max_uses=None),)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from operator import attrgetter
from typing import Any

import attrs

from jitwi.errors import InvalidTaskError

__all__ = [
    "DIGEST_VERSION",
    "MAX_NAME_BYTES",
    "MAX_PERMISSIONS",
    "MAX_TEXT_BYTES",
    "MAX_TTL",
    "MAX_USES",
    "Entity",
    "Permission",
    "Task",
    "TaskDigest",
    "Under",
    "canonical_json",
    "under",
]

DIGEST_VERSION = 1
MAX_DEPTH = 64
MAX_ENTITY_ID_BYTES = 512
MAX_ENTITY_TYPE_BYTES = 256
MAX_NAME_BYTES = 128
MAX_PERMISSIONS = 64
MAX_TEXT_BYTES = 1024
MIN_TTL = timedelta(seconds=1)
MAX_TTL = timedelta(hours=24)
MAX_USES = 2**31 - 1

_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(::[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*", re.ASCII)
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs"})


def _check_text(what: str, value: object, *, limit: int) -> None:
    if not isinstance(value, str):
        msg = f"{what} is `{type(value).__name__}`, not text"
        raise InvalidTaskError(msg, reasons=("type",))
    if not value:
        msg = f"{what} is empty"
        raise InvalidTaskError(msg, reasons=("empty",))
    if len(value) > limit or (not value.isascii() and len(value.encode("utf-8", "surrogatepass")) > limit):
        msg = f"{what} is longer than {limit} bytes"
        raise InvalidTaskError(msg, reasons=("too-long",))
    if not value.isprintable() and any(unicodedata.category(c) in _FORBIDDEN_CATEGORIES for c in value):
        msg = f"{what} {value[:80]!a} has a control character or a surrogate"
        raise InvalidTaskError(msg, reasons=("control-character",))


@attrs.frozen(order=True)
class Entity:
    """A Cedar entity uid: a type and an id. Attributes and parents come from the deciding side, never from here.

    Args:
        type: Cedar type with its namespace, for example `Shop::Order`.
        id: 1 to 512 bytes of Unicode without control characters and surrogates.

    Raises:
        InvalidTaskError: The type is not a Cedar name, or the id is out of bounds.
    """

    type: str = attrs.field()
    id: str = attrs.field()

    @type.validator
    def _check_type(self, _: object, value: object) -> None:
        _check_text("entity type", value, limit=MAX_ENTITY_TYPE_BYTES)
        if _TYPE.fullmatch(str(value)) is None:
            msg = f"entity type {ascii(value)[:80]} is not a Cedar type name"
            raise InvalidTaskError(msg, reasons=("entity-type",), remedy="write it as `Namespace::Type`")

    @id.validator
    def _check_id(self, _: object, value: object) -> None:
        _check_text("entity id", value, limit=MAX_ENTITY_ID_BYTES)

    def __str__(self) -> str:
        """Cedar's spelling, for people and logs; never parsed back."""
        return f'{self.type}::"{self.id}"'


@attrs.frozen(order=True)
class Under:
    """An entity and everything below it, by the deciding side's own hierarchy.

    Args:
        entity: The ancestor.

    Raises:
        InvalidTaskError: `entity` is not an `Entity`.
    """

    entity: Entity = attrs.field()

    @entity.validator
    def _check_entity(self, _: object, value: object) -> None:
        if not isinstance(value, Entity):
            msg = f"`under` takes an `Entity`, not `{type(value).__name__}`"
            raise InvalidTaskError(msg, reasons=("type",))

    def __str__(self) -> str:
        """For people and logs."""
        return f"under {self.entity}"


def under(entity: Entity) -> Under:
    """Return the scope "`entity` and everything below it".

    Raises:
        InvalidTaskError: `entity` is not an `Entity`.
    """
    return Under(entity)


def _check_max_uses(what: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{what} is a whole number, not `{type(value).__name__}`"
        raise InvalidTaskError(msg, reasons=("max-uses",))
    if not 1 <= value <= MAX_USES:
        msg = f"{what} must be from 1 to {MAX_USES}"
        raise InvalidTaskError(msg, reasons=("max-uses",))


_SCOPES = (Entity, Under)  # a union would be made anew at each check


@attrs.frozen
class Permission:
    """One action on one resource, or on everything under an entity.

    Args:
        action: A name as the policies know it (`"refund"`, `"Shop::refund"`), or the action's own uid as an `Entity`.
        resource: An `Entity`, or `under(entity)`.
        max_uses: How often it may be used in this task; None = only the task's own limit.

    Raises:
        InvalidTaskError: A field is out of bounds.
    """

    action: str | Entity = attrs.field()
    resource: Entity | Under = attrs.field()
    max_uses: int | None = None

    @action.validator
    def _check_action(self, _: object, value: object) -> None:
        if not isinstance(value, Entity):
            _check_text("action", value, limit=MAX_ENTITY_ID_BYTES)

    @resource.validator
    def _check_resource(self, _: object, value: object) -> None:
        if not isinstance(value, _SCOPES):
            msg = f"a resource is an `Entity` or `under(...)`, not `{type(value).__name__}`"
            raise InvalidTaskError(msg, reasons=("type",), remedy='write `jitwi.Entity("Shop::Order", "42")`')

    def __attrs_post_init__(self) -> None:
        """Check the limit."""
        _check_max_uses("`max_uses` of a permission", self.max_uses)

    def __str__(self) -> str:
        """For people and logs."""
        return f"{self.action} on {self.resource}"


@attrs.frozen
class TaskDigest:
    """The canonical digest of a task in one transaction.

    Args:
        value: base64url SHA-256 over the canonical JSON of the task.
        permissions: Salted hash of each permission, in the task's order: what a token shows of those it does not carry.
    """

    value: str
    permissions: tuple[str, ...]


def canonical_json(value: Any) -> bytes:
    """Return RFC 8785 JSON for values made of objects with ASCII keys, arrays, text, booleans, None and integers.

    Raises:
        InvalidTaskError: A value of another kind, a key that is not ASCII, an integer beyond 2**53, or a depth over 64.

    Source:
        RFC 8785 §3.2.
    """
    _check_canonical(value, MAX_DEPTH)
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=dict
    ).encode()


def _check_canonical(value: Any, depth: int) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            msg = "text with a surrogate has no canonical form"
            raise InvalidTaskError(msg, reasons=("surrogate",))
        return
    if isinstance(value, int):
        if abs(value) >= 2**53:
            msg = "an integer of 2**53 or more has no canonical form"
            raise InvalidTaskError(msg, reasons=("number",))
        return
    if not isinstance(value, Mapping | list | tuple):
        msg = f"a `{type(value).__name__}` has no canonical form"
        raise InvalidTaskError(msg, reasons=("type",))
    if not depth:
        msg = f"a value nested deeper than {MAX_DEPTH} has no canonical form here"
        raise InvalidTaskError(msg, reasons=("depth",))
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not key.isascii():
                shown = ascii(key[:80]) if isinstance(key, str) else f"of type `{type(key).__name__}`"
                msg = f"object key {shown} is not ASCII text"
                raise InvalidTaskError(msg, reasons=("key",))
            _check_canonical(item, depth - 1)
        return
    for item in value:
        _check_canonical(item, depth - 1)


def sha256_base64url(data: bytes) -> str:
    """Return base64url SHA-256 of `data` without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def permission_hash(action: Entity, resource: Entity | Under, max_uses: int | None, *, txn: str) -> str:
    """Return the salted hash that stands for a permission in a task's digest.

    Args:
        action: The action's uid.
        resource: The resource, or what it must be under.
        max_uses: The permission's own limit.
        txn: The transaction id, used as salt.
    """
    whole = isinstance(resource, Under)
    entity = resource.entity if isinstance(resource, Under) else resource
    return sha256_base64url(
        canonical_json(
            {
                "action": [action.type, action.id],
                "max_uses": max_uses,
                "resource": [entity.type, entity.id],
                "txn": txn,
                "under": whole,
            }
        )
    )


@attrs.frozen
class Task:
    """The declaration of one unit of work.

    Args:
        name: Name of its task class: letters, digits and `. _ : / -`, 1 to 128 bytes.
        permissions: At least one, at most 64, no two alike in action and resource.
        ttl: How long it may take, whole seconds from 1 s to 24 h.
        purpose: Why, for the record and for policies.
        max_uses: How many uses in all; None = not limited by number.
        owner: Who answers for this kind of task.
        on_behalf_of: For whom it is done, if for somebody else.
        agent: Which agent inside the process does it; a name for the record, not a boundary.

    Invariants:
        Frozen; every text is printable and bounded; equal declarations have equal digests in one transaction.

    Raises:
        InvalidTaskError: A field is out of bounds.
    """

    name: str = attrs.field()
    permissions: tuple[Permission, ...] = attrs.field()
    ttl: timedelta = attrs.field()
    purpose: str | None = None
    max_uses: int | None = None
    owner: str | None = None
    on_behalf_of: str | None = None
    agent: str | None = None

    @classmethod
    def declare(
        cls,
        name: str,
        *,
        permissions: Mapping[str, Any] | Iterable[Permission],
        ttl: timedelta,
        purpose: str | None = None,
        max_uses: int | None = None,
        owner: str | None = None,
        on_behalf_of: str | None = None,
        agent: str | None = None,
    ) -> Task:
        """Build a task from the front door's forms.

        Args:
            name: See the class.
            permissions: A mapping `action -> resource` or `action -> [resources]`, or an iterable of `Permission`.
            ttl: See the class.
            purpose: See the class.
            max_uses: See the class.
            owner: See the class.
            on_behalf_of: See the class.
            agent: See the class.

        Raises:
            InvalidTaskError: A field is out of bounds.
        """
        return cls(name, _permissions(permissions), ttl, purpose, max_uses, owner, on_behalf_of, agent)

    @name.validator
    def _check_name(self, _: object, value: object) -> None:
        _check_text("task name", value, limit=MAX_NAME_BYTES)
        if _NAME.fullmatch(str(value)) is None:
            msg = f"task name {ascii(value)[:80]} is not a name"
            raise InvalidTaskError(
                msg, reasons=("name",), remedy="use letters, digits and `. _ : / -`, for example `refund-order`"
            )

    @permissions.validator
    def _check_permissions(self, _: object, value: object) -> None:
        if not isinstance(value, tuple) or not all(isinstance(p, Permission) for p in value):
            msg = "`permissions` must be permissions"
            raise InvalidTaskError(msg, reasons=("type",), remedy="use `Task.declare(...)`")
        if not value:
            msg = "a task declares at least one permission"
            raise InvalidTaskError(msg, reasons=("no-permission",))
        if len(value) > MAX_PERMISSIONS:
            msg = f"a task declares at most {MAX_PERMISSIONS} permissions"
            raise InvalidTaskError(msg, reasons=("too-many",), remedy="declare `under(...)`, or split the task")
        if len(value) > 1:
            seen = {(p.action, p.resource) for p in value}
            if len(seen) != len(value):
                msg = "two permissions are alike in action and resource"
                raise InvalidTaskError(msg, reasons=("duplicate",), remedy="state one of them, with one `max_uses`")

    @ttl.validator
    def _check_ttl(self, _: object, value: object) -> None:
        if not isinstance(value, timedelta):
            msg = f"`ttl` is a `timedelta`, not `{type(value).__name__}`"
            raise InvalidTaskError(msg, reasons=("ttl",), remedy="write `timedelta(minutes=2)`")
        if value.microseconds or not MIN_TTL <= value <= MAX_TTL:
            msg = f"`ttl` must be whole seconds from 1 s to {MAX_TTL}, not {value}"
            raise InvalidTaskError(msg, reasons=("ttl",))

    def __attrs_post_init__(self) -> None:
        """Check the optional fields."""
        _check_max_uses("`max_uses`", self.max_uses)
        for what, value in (
            ("`purpose`", self.purpose),
            ("`owner`", self.owner),
            ("`on_behalf_of`", self.on_behalf_of),
            ("`agent`", self.agent),
        ):
            if value is not None:
                _check_text(what, value, limit=MAX_TEXT_BYTES)

    def with_actions(self, actions: Sequence[Entity]) -> Task:
        """Return the same task with the action of each permission named by its uid.

        Args:
            actions: One for each permission, in the task's order.

        Raises:
            InvalidTaskError: Two permissions that were spelt differently are alike.
        """
        named = tuple(
            [
                permission
                if permission.action is action
                else Permission(action, permission.resource, permission.max_uses)
                for permission, action in zip(self.permissions, actions, strict=True)
            ]
        )
        task = object.__new__(Task)  # not `evolve`: every other field was checked when this task was made
        for field, value in zip(_FIELDS, _values_of(self), strict=True):
            object.__setattr__(task, field, value)
        object.__setattr__(task, "permissions", named)
        if len(named) > 1:
            task._check_permissions(None, named)
        return task

    @property
    def ttl_seconds(self) -> int:
        """The ttl in whole seconds."""
        return self.ttl.days * 86400 + self.ttl.seconds

    def facts(self) -> dict[str, str | int]:
        """Return what policies may read as `context.task`; absent fields are left out."""
        facts: dict[str, str | int] = {"name": self.name, "ttl": self.ttl_seconds}
        for key in ("purpose", "owner", "on_behalf_of", "agent", "max_uses"):
            value = getattr(self, key)
            if value is not None:
                facts[key] = value
        return facts

    def digest(self, *, txn: str) -> TaskDigest:
        """Return the canonical digest within transaction `txn`.

        Args:
            txn: The transaction id, used as salt of the permission hashes.

        Raises:
            InvalidTaskError: A permission still names its action by text: resolve it against a schema first.
        """
        hashes = []
        for permission in self.permissions:
            if not isinstance(permission.action, Entity):
                msg = f"action `{permission.action}` is not resolved"
                raise InvalidTaskError(msg, reasons=("unresolved",))
            hashes.append(permission_hash(permission.action, permission.resource, permission.max_uses, txn=txn))
        return TaskDigest(digest_of(self.facts(), tuple(hashes), txn=txn), tuple(hashes))


_FIELDS = tuple(field.name for field in attrs.fields(Task))
_values_of = attrgetter(*_FIELDS)


def digest_of(facts: Mapping[str, str | int], permission_hashes: tuple[str, ...], *, txn: str) -> str:
    """Return the digest of a task from its facts and permission hashes: what a Guard recomputes from a token.

    Args:
        facts: `Task.facts()`.
        permission_hashes: `TaskDigest.permissions`.
        txn: The transaction id.

    Raises:
        InvalidTaskError: A value has no canonical form.
    """
    return sha256_base64url(
        canonical_json(
            {"permissions": list(permission_hashes), "task": dict(facts), "txn": txn, "version": DIGEST_VERSION}
        )
    )


def _permissions(given: Mapping[str, Any] | Iterable[Permission]) -> tuple[Permission, ...]:
    """Take one more than is allowed at most: enough for the refusal, and bounded."""
    if isinstance(given, Mapping):
        return tuple(islice(_of_mapping(given), MAX_PERMISSIONS + 1))
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        msg = f"`permissions` is a mapping or a list of `Permission`, not `{type(given).__name__}`"
        raise InvalidTaskError(msg, reasons=("type",))
    return tuple(islice(given, MAX_PERMISSIONS + 1))


def _of_mapping(given: Mapping[str, Any]) -> Iterator[Permission]:
    for action, resources in given.items():
        if isinstance(resources, _SETS):
            # An order that does not change from run to run; of too many any will do, they are refused.
            resources = sorted(islice(resources, MAX_PERMISSIONS + 1), key=str)  # noqa: PLW2901 - the same, in order
        for resource in resources if isinstance(resources, _LISTS) else (resources,):
            yield Permission(action, resource)


_SETS = (set, frozenset)
_LISTS = (list, tuple)
