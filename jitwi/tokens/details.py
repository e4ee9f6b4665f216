# SPDX-License-Identifier: Apache-2.0
"""`authorization_details`: one permission of a token, or the one use of a proof, as JSON.

Holds the mapping in both directions. The common fields of RFC 9396 carry what they mean there, each array with one
member, so that nothing is ever quoted into or parsed out of Cedar text. Does not hold signatures or decisions.

Example:
    >>> from jitwi.task import Entity, Permission
    >>> from jitwi.tokens.details import permission_entry
    >>> entry = permission_entry(Permission(Entity("Shop::Action", "refund"), Entity("Shop::Order", "42"), 2))
    >>> entry["actions"], entry["datatypes"], entry["identifier"], entry["max_uses"]
    (['refund'], ['Shop::Order'], '42', 2)
"""

from __future__ import annotations

from typing import Any

from jitwi.errors import InvalidTaskError
from jitwi.task import Entity, Permission, Under
from jitwi.tokens import names

__all__ = ["parse_permission", "parse_use", "permission_entry", "use_entry"]


def _entry(kind: str, action: Entity, resource: Entity) -> dict[str, Any]:
    return {
        names.TYPE: kind,
        names.ACTION_TYPE: action.type,
        names.ACTIONS: [action.id],
        names.DATATYPES: [resource.type],
        names.IDENTIFIER: resource.id,
    }


def permission_entry(permission: Permission) -> dict[str, Any]:
    """Return a permission as one entry of a token's `authorization_details`.

    Raises:
        InvalidTaskError: Its action is not resolved.
    """
    if not isinstance(permission.action, Entity):
        raise InvalidTaskError(f"action `{permission.action}` is not resolved", reasons=("unresolved",))
    whole = permission.resource if isinstance(permission.resource, Under) else None
    resource = permission.resource.entity if isinstance(permission.resource, Under) else permission.resource
    entry = _entry(names.PERMISSION_TYPE, permission.action, resource)
    if whole is not None:
        entry[names.UNDER] = True
    if permission.max_uses is not None:
        entry[names.MAX_USES] = permission.max_uses
    return entry


def use_entry(action: Entity, resource: Entity, input_digest: str | None) -> dict[str, Any]:
    """Return one use as the entry of a proof's `authorization_details`."""
    entry = _entry(names.USE_TYPE, action, resource)
    if input_digest is not None:
        entry[names.INPUT] = input_digest
    return entry


def _only(value: object) -> Any:
    if not isinstance(value, list) or len(value) != 1:
        raise ValueError("not an array of one")
    return value[0]


def _parse(entry: object, kind: str, required: frozenset[str], optional: frozenset[str]) -> tuple[Entity, Entity]:
    if not isinstance(entry, dict):
        raise ValueError("an entry is not an object")  # noqa: TRY004 - one error for one cause
    if not required <= entry.keys() <= required | optional:
        raise ValueError("an entry lacks a member, or has one that is not known")
    if entry[names.TYPE] != kind:
        raise ValueError("an entry is of another type")
    try:
        action = Entity(entry[names.ACTION_TYPE], _only(entry[names.ACTIONS]))
        return action, Entity(_only(entry[names.DATATYPES]), entry[names.IDENTIFIER])
    except InvalidTaskError as exc:
        raise ValueError(exc.message) from exc


def parse_permission(entry: object) -> Permission:
    """Read one entry of a token.

    Raises:
        ValueError: It has another shape, an unknown member, or a value out of bounds.
    """
    action, resource = _parse(entry, names.PERMISSION_TYPE, names.PERMISSION_REQUIRED, names.PERMISSION_OPTIONAL)
    given: dict[str, Any] = entry  # type: ignore[assignment]
    max_uses = given.get(names.MAX_USES)
    if given.get(names.UNDER, True) is not True or (names.MAX_USES in given and max_uses is None):
        raise ValueError("an optional member is present without saying anything")
    try:
        return Permission(action, Under(resource) if names.UNDER in given else resource, max_uses)
    except InvalidTaskError as exc:
        raise ValueError(exc.message) from exc


def parse_use(entry: object) -> tuple[Entity, Entity, str | None]:
    """Read the entry of a proof: action, resource, digest of the input or None.

    Raises:
        ValueError: It has another shape, an unknown member, or a value out of bounds.
    """
    action, resource = _parse(entry, names.USE_TYPE, names.USE_REQUIRED, names.USE_OPTIONAL)
    given: dict[str, Any] = entry  # type: ignore[assignment]
    digest = given.get(names.INPUT)
    if names.INPUT in given and (not isinstance(digest, str) or len(digest) != names.DIGEST_CHARS):
        raise ValueError("`input` is not a digest")
    return action, resource, digest
