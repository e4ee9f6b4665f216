# SPDX-License-Identifier: Apache-2.0
"""A caller's `JIT` without an agent: real policies, real audit, real stores, a fixed identity."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

import jitwi
from jitwi.policy import PolicyStore
from jitwi.testing import RecordingSink
from jitwi.testing import jit as make_test_jit

WORKLOAD = "spiffe://example.org/ns/prod/refunds"
SCHEMA = """
namespace Shop {
  entity Customer;
  entity Order;
  entity Folder in [Folder];
  action read   appliesTo { principal: [Jitwi::Workload], resource: [Order], context: { task: Jitwi::Task } };
  action list   appliesTo { principal: [Jitwi::Workload], resource: [Folder], context: { task: Jitwi::Task } };
  action count  appliesTo { principal: [Jitwi::Workload], resource: [Order],
                            context: { task: Jitwi::Task, used: Long } };
  action cancel appliesTo { principal: [Jitwi::Workload], resource: [Order], context: { task: Jitwi::Task } };
  action refund appliesTo { principal: [Jitwi::Workload], resource: [Order],
                            context: { task: Jitwi::Task, input: { amount: Long } } };
}
"""
POLICIES = """
@id("read") permit (principal in Jitwi::Path::"example.org/ns/prod", action == Shop::Action::"read", resource);
@id("list") permit (principal, action == Shop::Action::"list", resource);
@id("count") permit (principal, action == Shop::Action::"count", resource) when { context.used < 3 };
@id("refund") permit (principal, action == Shop::Action::"refund", resource)
when { context.task.name == "refund-order" && context.input.amount > 0 && context.input.amount <= 100 };
@id("obtain") permit (principal, action == Jitwi::Action::"obtain", resource == Jitwi::Issuer::"backend");
@id("never") forbid (principal, action == Shop::Action::"cancel", resource);
"""
ENTITIES = """[
 {"uid": {"type": "Shop::Folder", "id": "root"}, "attrs": {}, "parents": []},
 {"uid": {"type": "Shop::Folder", "id": "a"}, "attrs": {}, "parents": [{"type": "Shop::Folder", "id": "root"}]},
 {"uid": {"type": "Shop::Folder", "id": "b"}, "attrs": {}, "parents": [{"type": "Shop::Folder", "id": "a"}]}
]"""


class Shop:
    """Names of the test policies."""

    order = jitwi.Entity("Shop::Order", "42")
    other = jitwi.Entity("Shop::Order", "43")
    root = jitwi.Entity("Shop::Folder", "root")
    inner = jitwi.Entity("Shop::Folder", "b")
    ttl = timedelta(minutes=1)


@pytest.fixture
def shop():
    """Return the names of the test policies."""
    return Shop


@pytest.fixture
def policy_folder(tmp_path):
    """Return a folder with the test policies."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "shop.cedarschema").write_text(SCHEMA)
    (folder / "shop.cedar").write_text(POLICIES)
    return folder


@pytest.fixture
def make_jit():
    """Return a maker of (`JIT`, recorded events); every `JIT` is closed at the end."""
    made = []

    def make(policies=POLICIES, *, tasks=None, provider=None, **arguments):
        sink = arguments.pop("audit", None) or RecordingSink()
        store = PolicyStore.from_text(
            policies=policies,
            schema=SCHEMA,
            entities=ENTITIES,
            tasks=tasks,
            provider=provider,
            clock=arguments.get("clock"),
        )
        jit = make_test_jit(WORKLOAD, store, audit=sink, **arguments)
        made.append(jit)
        return jit, sink

    yield make
    for jit in made:
        jit.close()


@pytest.fixture
def jit(make_jit):
    """Return a `JIT` without issuers."""
    return make_jit()[0]


def wait_for(condition, *, seconds=10.0):
    """Wait until `condition()` holds, or fail."""
    for _ in range(int(seconds * 100)):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen in time")


@pytest.fixture(name="wait_for")
def wait_for_fixture():
    """Return the waiter."""
    return wait_for
