# SPDX-License-Identifier: Apache-2.0
"""The shop of the vocabulary: a schema, policies and entities that every test here starts from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jitwi.clock import Instant
from jitwi.policy import Evidence, Facts, PolicyStore, task_json
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity

SCHEMA = """namespace Shop {
  entity Customer;
  entity Order in [Customer] = { total: Long };
  entity Till;
  action writes;
  action read appliesTo { principal: [Jitwi::Workload], resource: [Order], context: { task: Jitwi::Task } };
  action refund in [writes] appliesTo { principal: [Jitwi::Workload], resource: [Order],
    context: { task: Jitwi::Task, approval?: Jitwi::Approval, input: { amount: Long } } };
  action open appliesTo { principal: [Jitwi::Workload], resource: [Till], context: { task: Jitwi::Task } };
}
"""
POLICIES = """@id("shop.read")
permit (principal in Jitwi::Path::"example.org/ns/prod", action == Shop::Action::"read", resource is Shop::Order);

@id("shop.refund")
permit (principal in Jitwi::Path::"example.org/ns/prod", action == Shop::Action::"refund", resource is Shop::Order)
when { context.task.name == "refund-order" && context.task has owner && context.input.amount <= resource.total }
unless { context.input.amount > 100 && !(context has approval && context.approval.groups.contains("finance")) };

@id("shop.open")
permit (principal, action == Shop::Action::"open", resource);
"""
ENTITIES = json.dumps(
    [
        {
            "uid": {"type": "Shop::Order", "id": "42"},
            "attrs": {"total": 250},
            "parents": [{"type": "Shop::Customer", "id": "c1"}],
        },
        {"uid": {"type": "Shop::Order", "id": "43"}, "attrs": {"total": 10}, "parents": []},
    ]
)
CALLER = SpiffeId.parse("spiffe://example.org/ns/prod/refunds")
ORDER = Entity("Shop::Order", "42")
TASK = task_json({"name": "refund-order", "ttl": 120, "owner": "team-payments", "purpose": "customer request"})


class SetClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.instant = Instant(1_700_000_000.0, 1000.0)

    def now(self) -> Instant:
        """Return the instant it stands at."""
        return self.instant

    def advance(self, seconds: float) -> None:
        """Move both clocks on."""
        self.instant = Instant(self.instant.wall + seconds, self.instant.boot + seconds)


def make_facts(**changes: Any) -> Facts:
    """Facts of a use by a task of the shop."""
    given: dict[str, Any] = {"task_json": TASK, "used": 0, "now": 1_700_000_000.25, "evidence": Evidence.LOCAL}
    return Facts(**{**given, **changes})


def make_store(**changes: Any) -> PolicyStore:
    """A store of the shop's texts."""
    return PolicyStore.from_text(**{"policies": POLICIES, "schema": SCHEMA, "entities": ENTITIES, **changes})


@pytest.fixture
def clock() -> SetClock:
    """A clock that stands still."""
    return SetClock()


@pytest.fixture
def shop():
    """Texts and values of the shop, and makers for stores and facts."""

    class Shop:
        schema, policies, entities = SCHEMA, POLICIES, ENTITIES
        caller, order, task = CALLER, ORDER, TASK
        store = staticmethod(make_store)
        facts = staticmethod(make_facts)

        @staticmethod
        def decide(snapshot, action, resource=ORDER, principal=CALLER, **facts):
            return snapshot.decide(principal, snapshot.action(action), resource, make_facts(**facts))

    return Shop
