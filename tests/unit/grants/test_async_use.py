# SPDX-License-Identifier: Apache-2.0
"""A handle used by an asynchronous client: the same rules, and the loop goes on."""

import asyncio
import threading

import httpx
import pytest

from jitwi.errors import OutOfScopeError
from jitwi.integrations.httpx import HandleAuth
from jitwi.issuers import TaskTokens

ORIGIN = "https://orders.example.org"


class Waiting:
    """A handle whose check waits until a coroutine lets it go on."""

    def __init__(self, *, may_block):
        self.may_block = may_block
        self.asked, self.go_on = threading.Event(), threading.Event()

    def headers(self, method, url, action, resource, input=None):
        """Wait, then refuse or answer."""
        self.asked.set()
        assert self.may_block is False or self.go_on.wait(10)
        if action == "other":
            raise OutOfScopeError("not declared")
        return {"DPoP": f"{method} {url}"}


async def _get(handle, action, resource):
    sent = []

    def answer(request):
        sent.append(request.headers.get("dpop"))
        return httpx.Response(200)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        try:
            await client.get(f"{ORIGIN}/", auth=HandleAuth(handle, action, resource))
        except OutOfScopeError:
            sent.append("refused")
    return sent


@pytest.mark.parametrize("may_block", [True, False])
def test_the_loop_runs_while_a_request_waits_for_its_decision(shop, may_block):
    """Other coroutines run meanwhile; the request carries its proof, and a refused one is not sent."""
    asyncio.run(_requests(shop, may_block=may_block))


async def _requests(shop, *, may_block):
    for action, expected in (("read", [f"GET {ORIGIN}/"]), ("other", ["refused"])):
        handle = Waiting(may_block=may_block)
        getting = asyncio.create_task(_get(handle, action, shop.order))
        await asyncio.sleep(0.05)  # a turn of the loop that comes back only if nothing holds it
        handle.go_on.set()
        assert await asyncio.wait_for(getting, 20) == expected


@pytest.mark.parametrize("has_provider", [True, False])
def test_a_handle_knows_whether_its_decisions_may_wait(make_jit, shop, has_provider):
    """Only an entity provider makes a decision wait."""

    class Nothing:
        def entities(self, uids):
            return ()

    jit, _ = make_jit(
        issuers={"tokens": TaskTokens(ORIGIN)},
        **({"provider": Nothing()} if has_provider else {}),
    )
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        assert grant.credential("tokens").may_block is has_provider
