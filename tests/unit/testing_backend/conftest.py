# SPDX-License-Identifier: Apache-2.0
"""A running backend, its issuer, and credentials made without a grant."""

from __future__ import annotations

import itertools
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest

from jitwi.clock import Deadline, Instant, SystemClock
from jitwi.credentials import LeaseRef, Order
from jitwi.credentials.gate import Use
from jitwi.identity import SvidKind
from jitwi.journal import new_lease_id
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity, Permission, Task
from jitwi.testing.backend import TestingBackend
from jitwi.testing.backend_issuer import BackendIssuer

READ = Entity("Shop::Action", "read")
REFUND = Entity("Shop::Action", "refund")
ORDER = Entity("Shop::Order", "42")
WORKLOAD = SpiffeId.parse("spiffe://example.org/ns/prod/refunds")


class FakeGate:
    """A gate that lets everything pass until it is closed; for tests without a grant."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.lease_id = order.lease_id
        self.error = None
        self._numbers = itertools.count(1)

    def check(self, action, resource, *, input=None):
        """Let it pass, or raise."""
        if self.error is not None:
            raise self.error
        permission = Permission(action, resource)
        return Use(action, resource, permission, next(self._numbers), input, self.now())

    def now(self) -> Instant:
        """The machine's clock."""
        return SystemClock().now()

    @property
    def deadline(self) -> Deadline:
        """The end of the order."""
        return Deadline.at_wall(self.order.ends_at, now=self.now())


def make_order(*, seconds: float = 60.0, max_uses: int | None = None, permissions=None, lease_id: str = "") -> Order:
    """An order for one credential, ending in `seconds`."""
    now = time.time()
    permissions = permissions or (Permission(READ, ORDER), Permission(REFUND, ORDER, max_uses=1))
    task = Task("refund-order", tuple(permissions), timedelta(seconds=60), max_uses=max_uses)
    return Order(
        issuer="orders-db",
        lease_id=lease_id or new_lease_id(ends_at=now + seconds),
        txn="txn-1",
        task=task,
        permissions=task.permissions,
        spiffe_id=WORKLOAD,
        svid_kind=SvidKind.X509,
        issued_at=now,
        ends_at=now + seconds,
        svid_ends_at=now + 3600,
    )


@pytest.fixture
def backend():
    """A backend in a process of its own."""
    with TestingBackend() as running:
        yield running


@pytest.fixture
def issuer(backend):
    """Its issuer."""
    return BackendIssuer(backend.address, backend.admin_token, timeout=2.0)


@pytest.fixture
def make(issuer):
    """Make a credential: order, plan, what was issued, its ref, its handle."""

    def make_one(issuer=issuer, **how):
        order = make_order(**how)
        plan = issuer.plan(order)
        issued = issuer.issue(order, plan)
        ref = LeaseRef(order.lease_id, order.issuer, plan.kind, plan.recipe, issued.expires_at, issued.secret)
        gate = FakeGate(order)
        handle = issuer.handle(order, plan, issued, gate)
        return SimpleNamespace(order=order, plan=plan, issued=issued, ref=ref, gate=gate, handle=handle)

    make_one.order = make_order
    return make_one


@pytest.fixture
def crashed():
    """A lease as a reaper sees it: without its secret."""

    def forget(ref: LeaseRef) -> LeaseRef:
        return LeaseRef(ref.lease_id, ref.issuer, ref.kind, ref.recipe, ref.expires_at)

    return forget
