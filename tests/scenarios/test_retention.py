# SPDX-License-Identifier: Apache-2.0
"""Bars 1 and 28: whatever is kept of a task, by whichever route, is worth nothing after it, here and at the Guard."""

import asyncio
import contextvars
import copy
import functools
import pickle
import queue
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest

import jitwi
from jitwi.errors import GrantError, StateError
from jitwi.issuers import TaskTokens

ORDER = jitwi.Entity("Shop::Order", "42")
KEPT = []


@pytest.fixture(scope="module")
def jit(guarded):
    """Return a caller on its agent."""
    issuer = TaskTokens(guarded.audience, origin=guarded.url)
    with jitwi.JIT(
        guarded.policies,
        issuers={"orders-api": issuer},
        endpoint=guarded.agent.socket,
        state_dir=guarded.folder / "caller",
    ) as jit:
        yield jit


def open_task(jit, **more):
    """Return a block for reading the order."""
    return jit.task(
        "refund-order", permissions={"read": ORDER}, ttl=timedelta(minutes=2), max_uses=10, purpose="a test", **more
    )


def by_global(handle):
    """A module global."""
    KEPT.append(handle)
    return KEPT.pop


def by_closure(handle):
    """A closure's cell."""
    return lambda: handle


def by_list(handle):
    """A list in a list."""
    outer = [[handle]]
    return lambda: outer[0][0]


def by_thread(handle):
    """Another thread that waits with it."""
    asked, answers = queue.SimpleQueue(), queue.SimpleQueue()

    def hold():
        asked.get(timeout=30)
        answers.put(handle)

    threading.Thread(target=hold, daemon=True).start()

    def take():
        asked.put(1)
        return answers.get(timeout=30)

    return take


def by_child_task(handle):
    """An asyncio task that outlives the block."""

    def take():
        async def hold():
            return handle

        return asyncio.run(hold())

    return take


def by_executor(handle):
    """A job in an executor."""
    pool = ThreadPoolExecutor(1)
    go = threading.Event()
    job = pool.submit(lambda: go.wait(30) and handle)

    def take():
        go.set()
        found = job.result(30)
        pool.shutdown()
        return found

    return take


def by_generator(handle):
    """A suspended generator's frame."""

    def hold():
        mine = handle
        yield
        yield mine

    suspended = hold()
    next(suspended)
    return lambda: next(suspended)


def by_context(handle):
    """A copied context."""
    variable = contextvars.ContextVar("handle")
    variable.set(handle)
    context = contextvars.copy_context()
    variable.set(None)
    return lambda: context[variable]


def by_weakref(handle):
    """A weak reference while somebody else holds on."""
    reference, holder = weakref.ref(handle), [handle]
    return lambda: holder and reference()


def by_partial(handle):
    """A partial of a bound method."""
    bound = functools.partial(handle.headers)
    return lambda: bound.func.__self__


def by_traceback(handle):
    """The frame of a kept exception."""
    try:
        raise ValueError
    except ValueError as error:
        kept = error
    return lambda: kept.__traceback__.tb_frame.f_locals["handle"]


def by_pickle(handle):
    """Pickled or copied: that is refused right away."""
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(StateError, match="cannot be copied"):
            attempt(handle)
    return lambda: handle


ROUTES = [
    by_global, by_closure, by_list, by_thread, by_child_task, by_executor, by_generator, by_context, by_weakref,
    by_partial, by_traceback, by_pickle,
]  # fmt: skip
EXITS = [None, ValueError, KeyboardInterrupt, asyncio.CancelledError]


@pytest.mark.parametrize("left_by", EXITS, ids=lambda e: "return" if e is None else e.__name__)
@pytest.mark.parametrize("route", ROUTES, ids=lambda r: r.__name__)
def test_a_kept_handle_and_a_kept_proof_are_refused_after_the_end(jit, guarded, route, left_by):
    """The handle raises; a proof that was made before the end and never sent is refused by the Guard."""
    url = f"{guarded.url}/orders/42"
    try:
        with open_task(jit) as grant:
            handle = grant.credential("orders-api")
            take = route(handle)
            unsent = handle.headers("GET", url, "read", ORDER)
            if left_by is not None:
                raise left_by
    except BaseException as error:  # noqa: BLE001 - the table has interrupts
        assert type(error) is left_by
    kept = take()
    assert kept is handle
    for _ in range(3):
        with pytest.raises(GrantError):
            kept.headers("GET", url, "read", ORDER)
    answer = httpx.get(url, headers=unsent, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["X-Demo-Reason"].startswith("TaskEndedError")


def test_random_uses_after_random_ends_are_all_refused(jit):
    """Ten thousand uses of handles and grants whose task has ended in some way: none is allowed."""
    chance = random.Random(1)
    over = []
    for number in range(20):
        block = open_task(jit)
        grant = block.__enter__()
        over.append((grant, grant.credential("orders-api")))
        if number % 2:
            grant.revoke()
        block.__exit__(None, None, None)
    accepted = 0
    for _ in range(10_000):
        grant, handle = chance.choice(over)
        try:
            if chance.random() < 0.5:
                grant.check("read", ORDER)
            else:
                handle.headers("GET", "http://127.0.0.1/orders/42", "read", ORDER)
        except jitwi.JitwiError:
            continue
        accepted += 1
    assert accepted == 0


def in_generator(jit):
    """A generator that opens a task and is suspended inside it."""
    with open_task(jit) as grant:
        yield grant


async def in_async_generator(jit):
    """The same, asynchronous."""
    async with open_task(jit) as grant:
        yield grant


def test_a_suspended_generator_gives_its_caller_no_ambient_task(jit):
    """A task opened by the caller meanwhile is its own, and closing the generator ends the inner one."""
    suspended = in_generator(jit)
    inner = next(suspended)
    with open_task(jit) as mine:
        assert mine.parent is None
        assert mine.txn != inner.txn
    suspended.close()
    with pytest.raises(GrantError) as error:
        inner.check("read", ORDER)
    assert error.value.cause == "cancelled"


def test_an_abandoned_generator_ends_its_task(jit):
    """Dropped while suspended: the interpreter closes it, and the task is over."""
    suspended = in_generator(jit)
    inner = next(suspended)
    del suspended
    with pytest.raises(GrantError):
        inner.check("read", ORDER)


def test_an_abandoned_async_generator_ends_its_task(jit):
    """The loop's shutdown closes it."""
    kept = []

    async def main():
        suspended = in_async_generator(jit)
        kept.append(await anext(suspended))

    asyncio.run(main())
    assert kept[0].ending is not None


@pytest.mark.parametrize("route", ["thread", "executor", "child", "context"])
def test_a_scope_elsewhere_sees_no_current_task(jit, route):
    """A thread, executor, child task or copied context inside the block opens tasks of its own, never children."""

    def elsewhere():
        with open_task(jit) as grant:
            return grant.parent

    with open_task(jit):
        if route == "thread":
            with ThreadPoolExecutor(1) as pool:
                found = pool.submit(elsewhere).result(30)
        elif route == "executor":
            found = asyncio.run(asyncio.to_thread(elsewhere))
        elif route == "child":

            async def child():
                return elsewhere()

            found = asyncio.run(child())
        else:
            found = contextvars.copy_context().run(elsewhere)
    assert found is None
