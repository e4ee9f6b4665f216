# SPDX-License-Identifier: Apache-2.0
"""The decorator: a new task at each call, with the call's own arguments."""

import inspect

import pytest

import jitwi
from jitwi.errors import ConfigurationError, GrantEndedError


def test_permissions_get_the_bound_arguments_and_the_function_its_grant(jit, shop):
    """Each call opens a task for its own order; callers do not pass `grant`."""
    kept = []

    @jit.task("x", permissions=lambda order_id: {"read": jitwi.Entity("Shop::Order", order_id)}, ttl=shop.ttl)
    def read(order_id, *, grant):
        kept.append(grant)
        return grant.check("read", jitwi.Entity("Shop::Order", order_id)).resource.id

    assert [read("1"), read(order_id="2")] == ["1", "2"]
    assert list(inspect.signature(read).parameters) == ["order_id"]
    with pytest.raises(GrantEndedError):
        kept[0].check("read", jitwi.Entity("Shop::Order", "1"))


@pytest.mark.asyncio
async def test_coroutine_functions_are_wrapped_as_such(jit, shop):
    """The wrapper is a coroutine function and yields an `AsyncGrant`."""

    @jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    async def read(grant):
        return await grant.check("read", shop.order)

    assert inspect.iscoroutinefunction(read)
    assert (await read()).number == 1
    assert (await read()).number == 1


def test_a_function_need_not_use_its_grant(jit, shop):
    """The gate alone is a use of the decorator: may this task run at all?"""

    @jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    def work(a, b=2):
        return a + b

    assert work(1) == 3


def test_generator_functions_are_refused_with_the_reason(jit, shop):
    """Their body runs after the call has returned."""
    block = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)

    def generator():
        yield 1

    async def async_generator():
        yield 1

    for function in (generator, async_generator):
        with pytest.raises(ConfigurationError, match="generator"):
            block(function)


def test_a_callable_needs_arguments_so_it_is_no_block(jit, shop):
    """`with` on a declaration that waits for arguments is an error that says so."""
    with pytest.raises(ConfigurationError, match="decorator"), jit.task("x", permissions=dict, ttl=shop.ttl):
        pass
