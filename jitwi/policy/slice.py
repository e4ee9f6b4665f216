# SPDX-License-Identifier: Apache-2.0
"""Which policies a request can concern, by their scopes alone.

Holds keys of scopes, the index over them, and the keys that a request has. Pure: no engine, no texts, no caches; those
are in `slices.py`. A scope cannot fail to evaluate, and a policy whose scope is false neither fires nor raises an
error: leaving it out changes neither the decision nor its reasons nor its errors. So an index may name too many
policies, and never too few.

Source: Cedar's language specification, "policy evaluation semantics"; its formal model proves sound slicing.

Example:
    >>> from jitwi.policy.slice import ANY, Scope, ScopeIndex, eq_key, request_keys
    >>> index = ScopeIndex([Scope(eq_key(("User", "ann")), (ANY,), ANY), Scope(eq_key(("User", "bob")), (ANY,), ANY)])
    >>> index.candidates(*(request_keys(uid, ()) for uid in (("User", "bob"), ("Action", "read"), ("Doc", "1"))))
    (1,)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "ANY",
    "ANY_SCOPE",
    "Key",
    "Scope",
    "ScopeIndex",
    "Uid",
    "ancestors",
    "eq_key",
    "in_key",
    "is_in_key",
    "is_key",
    "request_keys",
]

Uid = tuple[str, str]
"""Type and id."""
Key = str
"""What one position of a scope asks for. Names of types hold no space, so that two keys are never spelt alike; text,
since a large set has many and the garbage collector does not have to look at them."""
_T = TypeVar("_T")

ANY: Key = ""


def eq_key(uid: Uid) -> Key:
    """`== uid`."""
    return f"== {uid[0]} {uid[1]}"


def in_key(uid: Uid) -> Key:
    """`in uid`."""
    return f"in {uid[0]} {uid[1]}"


def is_key(kind: str) -> Key:
    """`is kind`."""
    return f"is {kind}"


def is_in_key(kind: str, uid: Uid) -> Key:
    """`is kind in uid`."""
    return f"is-in {kind} {uid[0]} {uid[1]}"


class Scope(NamedTuple):
    """What one policy asks for.

    Attributes:
        principal: Its key.
        actions: One key for each member of a list; none if the policy never matches.
        resource: Its key.
    """

    principal: Key
    actions: tuple[Key, ...]
    resource: Key


ANY_SCOPE = Scope(ANY, (ANY,), ANY)
"""For everything that is not understood."""


def ancestors(uid: Uid, parents: Mapping[Uid, Iterable[Uid]]) -> set[Uid]:
    """Return `uid` and everything above it.

    Args:
        uid: Where to start; one that nobody described has only itself.
        parents: What each entity is in, directly or not.
    """
    found = {uid}
    stack = [uid]
    while stack:
        for parent in parents.get(stack.pop(), ()):
            if parent not in found:
                found.add(parent)
                stack.append(parent)
    return found


def request_keys(uid: Uid, above: Iterable[Uid]) -> frozenset[Key]:
    """Return every key that is true of `uid` in its position.

    Args:
        uid: The principal, action or resource of a request.
        above: Its ancestors; itself may be among them.
    """
    kind = uid[0]
    keys = {ANY, is_key(kind), eq_key(uid)}
    for each in (uid, *above):
        keys.add(in_key(each))
        keys.add(is_in_key(kind, each))
    return frozenset(keys)


class ScopeIndex:
    """Positions of policies by their scopes; never changed after it was built.

    Args:
        scopes: Of every policy of the set, in its order.
    """

    __slots__ = ("_tree",)

    def __init__(self, scopes: Sequence[Scope]) -> None:
        tree: dict[Key, dict[Key, dict[Key, int | list[int]]]] = {}
        for position, scope in enumerate(scopes):
            for action in scope.actions:
                by_resource = tree.setdefault(action, {}).setdefault(scope.principal, {})
                known = by_resource.setdefault(scope.resource, position)
                if isinstance(known, list):
                    known.append(position)
                elif known != position:
                    by_resource[scope.resource] = [known, position]
        self._tree = tree

    def candidates(
        self, principal: frozenset[Key], action: frozenset[Key], resource: frozenset[Key]
    ) -> tuple[int, ...]:
        """Return the positions of all policies whose scope is true of a request, in the order of the set.

        Args:
            principal: Keys of the principal.
            action: Keys of the action.
            resource: Keys of the resource.
        """
        found: set[int] = set()
        for by_principal in _present(self._tree, action):
            for by_resource in _present(by_principal, principal):
                for position in _present(by_resource, resource):
                    if isinstance(position, int):
                        found.add(position)
                    else:
                        found.update(position)
        return tuple(sorted(found))


def _present(node: Mapping[Key, _T], keys: frozenset[Key]) -> Iterator[_T]:
    """Values of the keys that are there, at the cost of the smaller side."""
    if len(node) < len(keys):
        return (value for key, value in node.items() if key in keys)
    return (node[key] for key in keys if key in node)
