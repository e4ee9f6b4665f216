# SPDX-License-Identifier: Apache-2.0
"""`async with`: the same rules, the loop never blocked, cancellation at any moment."""

import asyncio
import threading

import pytest

import jitwi
from jitwi.audit.events import GrantEnded
from jitwi.errors import AccessDeniedError, GrantEndedError, OutOfScopeError, StateError
from jitwi.grants import EndCause
from jitwi.issuers import TaskTokens
from jitwi.testing import FixedIdentity


@pytest.mark.asyncio
async def test_the_async_twin_obeys_the_same_rules(make_jit, shop):
    """Check, credential, child, revoke and the error after the end, all awaited."""
    jit, sink = make_jit(issuers={"api": TaskTokens(audience="https://orders.example.org")})
    async with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl, max_uses=5) as grant:
        assert isinstance(grant, jitwi.AsyncGrant)
        assert (await grant.check("read", shop.order)).number == 1
        with pytest.raises(OutOfScopeError):
            await grant.check("read", shop.other)
        token = await grant.credential("api")
        token.headers("GET", "https://orders.example.org/x", "read", shop.order)
        async with grant.task("x", permissions={"read": shop.order}) as child:
            await child.check("read", shop.order)
    assert grant.ending.credentials[0].outcome is jitwi.Outcome.BY_CONSTRUCTION
    with pytest.raises(GrantEndedError):
        await grant.check("read", shop.order)
    assert len(sink.of(GrantEnded)) == 2


@pytest.mark.asyncio
async def test_a_denied_task_raises_in_the_coroutine(make_jit, shop):
    """A deny is an exception at `async with`."""
    jit, _ = make_jit()
    with pytest.raises(AccessDeniedError):
        async with jit.task("x", permissions={"cancel": shop.order}, ttl=shop.ttl):
            pass


class SlowIdentity(FixedIdentity):
    """Waits in `identity()` until the test lets it go."""

    def __init__(self, spiffe_id):
        super().__init__(spiffe_id)
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def peek(self):
        """Nothing yet."""
        return super().peek() if self.let_go.is_set() else None

    def identity(self, *, timeout):
        """Wait."""
        self.entered.set()
        self.let_go.wait(10)
        return super().identity(timeout=timeout)


@pytest.mark.asyncio
async def test_cancelled_while_opening_leaves_no_grant(make_jit, shop, wait_for):
    """The opening goes on in its thread and is undone there; CancelledError passes on."""
    identity = SlowIdentity("spiffe://example.org/ns/prod/refunds")
    jit, sink = make_jit(identity=identity)
    ran = []

    async def work():
        async with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
            ran.append(1)

    task = asyncio.create_task(work())
    await asyncio.to_thread(identity.entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    identity.let_go.set()
    await asyncio.to_thread(wait_for, lambda: sink.of(GrantEnded))
    assert ran == []
    assert jit.live_grants == ()
    assert sink.of(GrantEnded)[0].cause == EndCause.CANCELLED.value


@pytest.mark.asyncio
async def test_the_loop_runs_while_a_task_waits_for_its_identity(make_jit, shop):
    """Opening blocks a thread, never the loop."""
    identity = SlowIdentity("spiffe://example.org/ns/prod/refunds")
    jit, _ = make_jit(identity=identity)
    ticks = 0

    async def work():
        async with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
            return True

    task = asyncio.create_task(work())
    await asyncio.to_thread(identity.entered.wait, 10)
    for _ in range(50):
        await asyncio.sleep(0)
        ticks += 1
    identity.let_go.set()
    assert await task
    assert ticks == 50


@pytest.mark.parametrize("cancels", [1, 2, 3])
@pytest.mark.asyncio
async def test_cancelled_in_the_body_and_again_in_the_exit_still_ends(make_jit, shop, wait_for, cancels):
    """Once, twice, three times: the grant ends, and CancelledError comes out."""
    jit, sink = make_jit(issuers={"api": TaskTokens(audience="https://orders.example.org")})
    inside = asyncio.Event()

    async def work():
        async with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
            await grant.credential("api")
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await inside.wait()
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(wait_for, lambda: sink.of(GrantEnded))
    assert sink.of(GrantEnded)[0].cause == EndCause.CANCELLED.value
    assert jit.live_grants == ()


@pytest.mark.asyncio
async def test_a_timeout_and_a_task_group_end_their_grants(make_jit, shop, wait_for):
    """`asyncio.timeout` and a failing sibling cancel the body; nothing stays live."""
    jit, sink = make_jit()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
            await asyncio.sleep(60)

    async def hold():
        async with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
            await asyncio.sleep(60)

    async def fail():
        await asyncio.sleep(0.05)
        raise OSError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(hold())
            group.create_task(fail())
    await asyncio.to_thread(wait_for, lambda: len(sink.of(GrantEnded)) == 2)
    assert jit.live_grants == ()


def test_a_closed_loop_leaves_nothing_live(make_jit, shop, wait_for):
    """`asyncio.run` that ends with a task inside its block cancels it and the grant ends."""
    jit, sink = make_jit()

    async def main():
        inside = asyncio.Event()

        async def hold():
            async with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
                inside.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        await inside.wait()
        return task

    asyncio.run(main())
    wait_for(lambda: sink.of(GrantEnded))
    assert jit.live_grants == ()


@pytest.mark.asyncio
async def test_a_block_cannot_be_entered_twice_in_either_way(make_jit, shop):
    """Sync or async, once."""
    jit, _ = make_jit()
    block = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    async with block:
        with pytest.raises(StateError):
            async with block:
                pass


@pytest.mark.asyncio
async def test_many_tasks_at_once(make_jit, shop):
    """Two hundred concurrent tasks on one loop, each with its own count."""
    jit, sink = make_jit()

    async def work():
        async with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl, max_uses=2) as grant:
            await asyncio.sleep(0)
            await grant.check("read", shop.order)
            return grant.uses

    assert await asyncio.gather(*[work() for _ in range(200)]) == [1] * 200
    assert len(sink.of(GrantEnded)) == 200
    assert jit.live_grants == ()
