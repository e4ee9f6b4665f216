# SPDX-License-Identifier: Apache-2.0
"""Both sides together: a `JIT` that issues task tokens and a Guard that checks them, on one host."""

from __future__ import annotations

from datetime import timedelta

import pytest

import jitwi.guard as g
import jitwi.testing
from jitwi.errors import GrantError
from jitwi.guard import Guard, Request
from jitwi.issuers import TaskTokens
from jitwi.policy import PolicyStore
from jitwi.task import Entity
from jitwi.testing.audit import RecordingSink
from jitwi.testing.guard import CaBundles

AUDIENCE = "https://orders.example.org"
URL = f"{AUDIENCE}/orders/42/refunds"
ORDER = Entity("Shop::Order", "42")
SCHEMA = """
namespace Shop {
  entity Order;
  action refund appliesTo { principal: [Jitwi::Workload], resource: [Order],
                            context: { task: Jitwi::Task, input: { amount: Long } } };
}
"""


@pytest.fixture
def both(folder):
    """A caller and a Guard with one state folder."""
    ca = jitwi.testing.TestCa("example.org")
    caller = jitwi.testing.jit(
        "spiffe://example.org/ns/prod/refunds",
        PolicyStore.from_text(policies="permit (principal, action, resource);", schema=SCHEMA),
        issuers={"orders-api": TaskTokens(AUDIENCE)},
        ca=ca,
        state_dir=folder / "state",
        audit=RecordingSink(),
    )
    theirs = PolicyStore.from_text(
        policies='permit (principal, action == Shop::Action::"refund", resource) when { context.input.amount < 100 };',
        schema=SCHEMA,
    )
    with (
        caller,
        Guard(AUDIENCE, theirs, identity=CaBundles(ca), state_dir=folder / "state", audit=RecordingSink()) as guard,
    ):
        yield caller, guard


def _request(grant, amount: int) -> Request:
    token = grant.credential("orders-api")
    return Request("POST", URL, token.headers("POST", URL, "refund", ORDER, {"amount": amount}))


def test_the_walk(both) -> None:
    """What the caller's handle sends, the Guard allows once, for the declared input, and counts as the caller does."""
    jit, guard = both
    with jit.task(
        "refund-order",
        permissions={"refund": ORDER},
        ttl=timedelta(minutes=2),
        max_uses=3,
        owner="team-payments",
        purpose="customer request",
    ) as grant:
        request = _request(grant, 30)
        with pytest.raises(g.InputMismatchError):
            guard.check(request, "refund", ORDER, input={"amount": 30000})
        call = guard.check(request, "refund", ORDER, input={"amount": 30})
        assert (call.owner, call.number) == ("team-payments", 1)
        with pytest.raises(g.ReplayedProofError):
            guard.check(request, "refund", ORDER, input={"amount": 30})
        assert guard.check(_request(grant, 31), "refund", ORDER, input={"amount": 31}).number == 2


def test_a_request_held_back_is_refused_after_the_end(both) -> None:
    """A proof made before the end and shown after it is refused at the next check, as both share the state folder."""
    jit, guard = both
    with jit.task("refund-order", permissions={"refund": ORDER}, ttl=timedelta(minutes=2)) as grant:
        assert guard.check(_request(grant, 30), "refund", ORDER, input={"amount": 30})
        held_back = _request(grant, 30)
    with pytest.raises(g.TaskEndedError):
        guard.check(held_back, "refund", ORDER, input={"amount": 30})
    with pytest.raises(GrantError):
        _request(grant, 30)
