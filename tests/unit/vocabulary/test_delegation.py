# SPDX-License-Identifier: Apache-2.0
"""Narrowing: whatever is declared, a child is never wider than its parent, over whole chains."""

from __future__ import annotations

import random
from datetime import timedelta

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.delegation import covering_permissions, inherit, narrowed
from jitwi.errors import OutOfScopeError
from jitwi.task import Entity, Permission, Task, Under, under

READ, WRITE = Entity("Repo::Action", "read"), Entity("Repo::Action", "write")
ORG, REPO, FILE, OTHER = (Entity("Repo::Node", name) for name in ("org", "org/repo", "org/repo/file", "other"))
BELOW = {(FILE, REPO), (FILE, ORG), (REPO, ORG)}
MINUTE = timedelta(minutes=1)


def _is_under(entity, ancestor) -> bool:
    return entity == ancestor or (entity, ancestor) in BELOW


def _task(*permissions, ttl=MINUTE, **fields) -> Task:
    return Task.declare("work", permissions=permissions, ttl=ttl, **fields)


PARENT = _task(
    Permission(READ, under(ORG)),
    Permission(READ, OTHER, 2),
    Permission(WRITE, under(REPO), 3),
    max_uses=10,
    owner="team",
    on_behalf_of="alice",
    agent="planner",
)
NAMED = {"max_uses": 10, "owner": "team", "on_behalf_of": "alice"}


@pytest.mark.parametrize(
    ("permission", "index"),
    [
        (Permission(READ, ORG), 0),
        (Permission(READ, FILE), 0),
        (Permission(READ, under(ORG)), 0),
        (Permission(READ, under(REPO), 5), 0),
        (Permission(READ, OTHER), 1),
        (Permission(READ, OTHER, 2), 1),
        (Permission(WRITE, FILE, 3), 2),
        (Permission(WRITE, under(FILE), 1), 2),
    ],
    ids=str,
)
def test_a_part_of_the_parents_is_kept(permission, index):
    """A permission inside one of the parent's is kept, with the parent's limit where it states none."""
    child, indexes = narrowed(_task(permission, **NAMED), PARENT, is_under=_is_under)
    limit = PARENT.permissions[index].max_uses
    kept = permission if permission.max_uses or limit is None else attrs.evolve(permission, max_uses=limit)
    assert (child.permissions, indexes) == ((kept,), (index,))


@pytest.mark.parametrize(
    ("permission", "reason"),
    [
        (Permission(Entity("Repo::Action", "delete"), FILE), "permission"),
        (Permission(Entity("Other::Action", "read"), FILE), "permission"),
        (Permission("read", FILE), "permission"),
        (Permission(WRITE, ORG), "permission"),
        (Permission(WRITE, under(ORG)), "permission"),
        (Permission(WRITE, OTHER), "permission"),
        (Permission(READ, under(OTHER)), "permission"),
        (Permission(READ, Entity("Repo::Node2", "org")), "permission"),
        (Permission(READ, Entity("Repo::Node", "unknown")), "permission"),
        (Permission(READ, OTHER, 3), "permission-max-uses"),
        (Permission(WRITE, FILE, 4), "permission-max-uses"),
    ],
    ids=str,
)
def test_what_the_parent_does_not_hold_is_refused(permission, reason):
    """Another action, another or wider resource, everything under one resource, more uses: refused with the reason."""
    with pytest.raises(OutOfScopeError) as caught:
        narrowed(_task(permission, **NAMED), PARENT, is_under=_is_under)
    assert caught.value.reasons == ("child-wider", reason)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ttl": MINUTE + timedelta(seconds=1)}, "ttl"),
        ({"max_uses": 11}, "max-uses"),
        ({"max_uses": None}, "max-uses"),
        ({"owner": "other"}, "owner"),
        ({"owner": None}, "owner"),
        ({"on_behalf_of": "bob"}, "on-behalf-of"),
        ({"on_behalf_of": None}, "on-behalf-of"),
    ],
)
def test_wider_fields_are_refused(fields, reason):
    """A longer ttl, more uses, another owner or another person: refused with the reason."""
    with pytest.raises(OutOfScopeError) as caught:
        narrowed(_task(Permission(READ, FILE), **NAMED | fields), PARENT, is_under=_is_under)
    assert caught.value.reasons == ("child-wider", reason)


@pytest.mark.parametrize(
    "fields", [{"ttl": timedelta(seconds=1)}, {"max_uses": 1}, {"agent": "worker"}, {"purpose": "x"}]
)
def test_narrower_and_free_fields_are_kept(fields):
    """A child may be shorter, used less, done by another agent and have a purpose of its own."""
    declared = _task(Permission(READ, FILE), **NAMED | fields)
    assert narrowed(declared, PARENT, is_under=_is_under)[0] == declared


def test_a_child_may_name_what_the_parent_left_open():
    """Where the parent names no owner and nobody to act for, the child may."""
    parent, child = _task(Permission(READ, FILE)), _task(Permission(READ, FILE), owner="team", on_behalf_of="alice")
    assert narrowed(child, parent, is_under=_is_under)[0] == child


def test_exact_comes_before_under():
    """Of two permissions that cover it, the one that names the resource itself counts, wherever it stands."""
    for first, second in ((0, 1), (1, 0)):
        both = (Permission(READ, under(ORG)), Permission(READ, FILE, 1))
        parent = _task(both[first], both[second])
        child, indexes = narrowed(_task(Permission(READ, FILE)), parent, is_under=_is_under)
        assert indexes == (parent.permissions.index(both[1]),)
        assert child.permissions[0].max_uses == 1


@pytest.mark.parametrize("answer", [None, 1, "yes", "unknown", object(), [True]], ids=repr)
def test_only_true_is_a_yes(answer):
    """A hierarchy that does not know, or does not say True, covers nothing."""
    with pytest.raises(OutOfScopeError):
        covering_permissions(_task(Permission(READ, FILE)), PARENT, is_under=lambda entity, ancestor: answer)


def test_a_hierarchy_that_fails_covers_nothing():
    """An exception of the hierarchy is not swallowed into a yes."""

    def fail(entity, ancestor):
        raise LookupError(entity)

    with pytest.raises(LookupError):
        narrowed(_task(Permission(READ, FILE), **NAMED), PARENT, is_under=fail)


def test_inherit_fills_what_was_left_out():
    """A child that states only permissions has its parent's ttl, uses, owner, person and agent, not its purpose."""
    parent = attrs.evolve(PARENT, purpose="parent's")
    filled = inherit({"permissions": {"read": FILE}, "ttl": None, "max_uses": None}, parent)
    names = ("ttl", "max_uses", "owner", "on_behalf_of", "agent")
    assert filled == {"permissions": {"read": FILE}, **{name: getattr(parent, name) for name in names}}


def test_inherit_keeps_what_was_stated():
    """What the child states stays, wider or not: the refusal is for `narrowed`."""
    stated = {"ttl": 2 * MINUTE, "max_uses": 99, "owner": "x", "on_behalf_of": "y", "agent": "z", "purpose": "p"}
    assert inherit(stated, PARENT) == stated


# ------------------------------------------------------------------------------------- random tasks against a set model


@attrs.frozen
class Forest:
    """Entities that hang below one another; `parents[i]` is a smaller index or None."""

    parents: tuple[int | None, ...]

    @property
    def entities(self) -> list[Entity]:
        """All of them."""
        return [Entity("N", str(number)) for number in range(len(self.parents))]

    def is_under(self, entity, ancestor) -> bool:
        """Whether the first is the second or below it."""
        here: int | None = int(entity.id)
        while here is not None:
            if str(here) == ancestor.id:
                return True
            here = self.parents[here]
        return False

    def expand(self, permission) -> set[object]:
        """Everything that a permission allows; below each entity there may be one that nobody knows yet."""
        resource = permission.resource
        if isinstance(resource, Entity):
            return {(permission.action, resource.id)}
        inside = [e.id for e in self.entities if self.is_under(e, resource.entity)]
        return {(permission.action, key) for name in inside for key in (name, f"{name}/not born yet")}


def _rank(limit) -> float:
    return float("inf") if limit is None else limit


def _expected(child, parent, forest) -> tuple[int, ...] | None:
    """Return the index of the covering permission for each of the child's, or None if the child is wider."""
    if child.ttl > parent.ttl or _rank(child.max_uses) > _rank(parent.max_uses):
        return None
    if any(getattr(parent, name) not in (None, getattr(child, name)) for name in ("owner", "on_behalf_of")):
        return None
    indexes = []
    for permission in child.permissions:
        wanted = forest.expand(permission)
        covering = [i for i, p in enumerate(parent.permissions) if wanted <= forest.expand(p)]
        covering.sort(key=lambda i: parent.permissions[i].resource != permission.resource)
        if not covering:
            return None
        if permission.max_uses is not None and permission.max_uses > _rank(parent.permissions[covering[0]].max_uses):
            return None
        indexes.append(covering[0])
    return tuple(indexes)


def _require_narrower(child, indexes, parent, forest) -> None:
    assert child.ttl <= parent.ttl
    assert _rank(child.max_uses) <= _rank(parent.max_uses)
    for permission, index in zip(child.permissions, indexes, strict=True):
        wide = parent.permissions[index]
        assert forest.expand(permission) <= forest.expand(wide)
        assert _rank(permission.max_uses) <= _rank(wide.max_uses)
    for name in ("owner", "on_behalf_of"):
        assert getattr(parent, name) in (None, getattr(child, name))


def _random_task(rng, forest, near=None) -> Task:
    """Return a task; one that is often a part of `near`, if given."""
    found = {}
    for _ in range(rng.randint(1, 4)):
        entity = rng.choice(forest.entities)
        action, limit = rng.choice([READ, WRITE]), rng.choice([None, None, 1, 2, 3])
        if near is not None and rng.random() < 0.9:
            of = rng.choice(near.permissions)
            action = of.action
            if isinstance(of.resource, Entity):
                entity = of.resource
            else:
                entity = rng.choice([e for e in forest.entities if forest.is_under(e, of.resource.entity)])
            limit = rng.choice([None, 1, of.max_uses])
        whole = rng.random() < (0.6 if near is None else 0.4)
        found[action, whole, entity] = Permission(action, Under(entity) if whole else entity, limit)
    fields = {
        "ttl": timedelta(seconds=rng.randint(50, 60)),
        "max_uses": rng.choice([None, 5, 6]),
        "owner": rng.choice([None, "a", "b"]),
        "on_behalf_of": rng.choice([None, "x"]),
    }
    if near is not None:
        for name in fields:
            if rng.random() < 0.9:
                fields[name] = getattr(near, name)
    return _task(*found.values(), **fields)


def _random_forest(rng) -> Forest:
    return Forest(tuple(rng.choice([None, *range(number)]) for number in range(rng.randint(1, 8))))


def _narrow_or_agree(child, parent, forest):
    """Narrow; both ways it must be what the model says."""
    expected = _expected(child, parent, forest)
    try:
        narrow, indexes = narrowed(child, parent, is_under=forest.is_under)
    except OutOfScopeError as error:
        if expected is not None:
            pytest.fail(f"refused although it is a part: {error}")
        return None
    assert indexes == expected
    _require_narrower(narrow, indexes, parent, forest)
    assert [(p.action, p.resource) for p in narrow.permissions] == [(p.action, p.resource) for p in child.permissions]
    assert attrs.evolve(narrow, permissions=child.permissions) == child
    assert narrowed(narrow, parent, is_under=forest.is_under) == (narrow, indexes)
    return narrow, indexes


@given(seed=st.integers(0, 2**64))
@settings(max_examples=200)
def test_a_child_is_exactly_what_the_model_says(seed):
    """Accepted children are subsets in action, resource, ttl and uses, and a subset is never refused."""
    rng = random.Random(seed)
    forest = _random_forest(rng)
    parent = _random_task(rng, forest)
    _narrow_or_agree(_random_task(rng, forest), parent, forest)
    _narrow_or_agree(_random_task(rng, forest, near=parent), parent, forest)
    assert narrowed(parent, parent, is_under=forest.is_under)[0] == parent


def test_chains_never_widen():
    """In a thousand random chains, no descendant is wider than any of its ancestors, the first one included."""
    rng = random.Random(24)
    steps = deep = 0
    for _ in range(1_000):
        forest = _random_forest(rng)
        chain = [(_random_task(rng, forest), ())]
        for _ in range(6):
            narrow = _narrow_or_agree(_random_task(rng, forest, near=chain[-1][0]), chain[-1][0], forest)
            if narrow is None:
                continue
            chain.append(narrow)
            steps += 1
            indexes = narrow[1]
            for level in range(len(chain) - 2, -1, -1):
                _require_narrower(narrow[0], indexes, chain[level][0], forest)
                if level:
                    indexes = tuple(chain[level][1][index] for index in indexes)
        deep += len(chain) > 3
    assert steps > 1_000
    assert deep > 200
