# SPDX-License-Identifier: Apache-2.0
"""Naming a task's actions by their uids keeps everything else, and every rule."""

from __future__ import annotations

from datetime import timedelta

import attrs
import pytest

from jitwi.errors import InvalidTaskError
from jitwi.task import Entity, Permission, Task

ORDER = Entity("Shop::Order", "42")
READ, REFUND = Entity("Shop::Action", "read"), Entity("Shop::Action", "refund")


def declared(**more):
    """A task with every field set."""
    return Task.declare(
        "refund-order",
        permissions=[Permission("read", ORDER, 3), Permission("refund", ORDER)],
        ttl=timedelta(minutes=2),
        purpose="customer request",
        max_uses=5,
        owner="team-payments",
        on_behalf_of="alice",
        agent="worker-1",
        **more,
    )


def test_it_equals_the_task_made_field_by_field():
    """The result is what `attrs.evolve`, which checks every field again, would have made."""
    named = tuple(
        Permission(a, p.resource, p.max_uses) for p, a in zip(declared().permissions, (READ, REFUND), strict=True)
    )
    made = declared().with_actions([READ, REFUND])
    assert made == attrs.evolve(declared(), permissions=named)
    assert made.digest(txn="t") == attrs.evolve(declared(), permissions=named).digest(txn="t")
    assert hash(made) == hash(attrs.evolve(declared(), permissions=named))
    assert made.with_actions([READ, REFUND]) == made


def test_the_declaration_stays_as_it_is():
    """The task that was declared is frozen and not changed."""
    task = declared()
    task.with_actions([READ, REFUND])
    assert task == declared()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        task.with_actions([READ, REFUND]).name = "x"


def test_two_spellings_of_one_action_are_alike():
    """Two permissions that name the same action in two ways are found once both are named by the uid."""
    task = Task.declare("x", permissions={"read": ORDER, "Shop::read": ORDER}, ttl=timedelta(minutes=1))
    with pytest.raises(InvalidTaskError) as caught:
        task.with_actions([READ, READ])
    assert caught.value.reasons == ("duplicate",)


@pytest.mark.parametrize("actions", [[], [READ], [READ, REFUND, READ]])
def test_each_permission_needs_its_action(actions):
    """One action too few or too many is a mistake of the caller, never a permission lost."""
    with pytest.raises(ValueError, match="zip"):
        declared().with_actions(actions)
