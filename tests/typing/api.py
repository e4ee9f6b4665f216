# SPDX-License-Identifier: Apache-2.0
"""The front door as a user's type checker sees it. Never run: mypy reads it in strict mode."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, assert_type

import jitwi
from jitwi.errors import AccessDeniedError, JitwiError
from jitwi.issuers import JwtSvid, TaskTokens

if TYPE_CHECKING:
    from jitwi.spiffe_id import SpiffeId

order = jitwi.Entity("Shop::Order", "42")
jit = jitwi.JIT(
    policies="policies/",
    issuers={
        "orders-api": TaskTokens(audience="https://orders.example.org"),
        "reports": JwtSvid(audience="https://reports.example.org"),
    },
)


def with_block() -> None:
    """A task in a `with` block yields a `Grant`."""
    with jit.task("refund-order", permissions={"refund": order}, ttl=timedelta(minutes=2), max_uses=5) as grant:
        assert_type(grant, jitwi.Grant)
        grant.check("refund", order, input={"amount": 30})
        with grant.task("read-order", permissions={"read": order}, ttl=timedelta(seconds=30)) as child:
            assert_type(child, jitwi.Grant)
        grant.revoke()


async def async_block() -> None:
    """A task in an `async with` block yields an `AsyncGrant`."""
    permissions = [jitwi.Permission("read", jitwi.under(order), max_uses=2)]
    async with jit.task("read-order", permissions=permissions, ttl=timedelta(minutes=2)) as grant:
        assert_type(grant, jitwi.AsyncGrant)


@jit.task(
    "refund-order",
    permissions=lambda order_id: {"refund": jitwi.Entity("Shop::Order", order_id)},
    ttl=timedelta(minutes=1),
)
def decorated(order_id: str) -> int:
    """A decorated function keeps its signature."""
    return len(order_id)


@jit.task("refund-order", permissions={"refund": order}, ttl=timedelta(minutes=1))
async def decorated_coroutine(order_id: str) -> int:
    """A decorated coroutine function keeps its signature."""
    return len(order_id)


async def decorators_keep_types() -> None:
    """What decorated callables return is what they returned before."""
    assert_type(decorated("42"), int)
    assert_type(await decorated_coroutine("42"), int)


def guarded(guard: jitwi.Guard, headers: list[tuple[str, str]]) -> SpiffeId | None:
    """A Guard raises or returns the verified call."""
    request = jitwi.Request("POST", "https://orders.example.org/orders/42/refund", headers)
    try:
        call = guard.check(request, "refund", order, input={"amount": 30})
    except AccessDeniedError as error:
        assert_type(error.policy_ids, tuple[str, ...])
        return None
    except JitwiError as error:
        assert_type(error.reasons, tuple[str, ...])
        return None
    return call.workload
