# SPDX-License-Identifier: Apache-2.0
"""The life of a task: opened and ended, used, sync and async.

Holds the cycle and use rows. Every case audits to a real chain of files, unsynced as a use is, and decides in full.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import jitwi
from benchmarks.harness import Case, Row, each
from benchmarks.world import BOX, NAME, TASK

if TYPE_CHECKING:
    from benchmarks.world import World

ROWS = [
    Row("cycle: open + end, one permission, 10 policies", "cycle", "BASE_S", 1.9),
    Row("cycle, facts of the resource for the first time", "cycle with new facts", "BASE_S", 3.6),
    Row("cycle, the provider asked for facts it gave before", "cycle with known facts", "BASE_S"),
    Row("cycle at 10,000 policies / at 10", "cycle at many policies", "cycle", 1.1),
    Row("cycle, async / sync", "async cycle", "cycle", 1.15),
    Row("check at use: decision + audit", "use", "BASE_S", 1.5),
    Row("check at use, async / sync", "async use", "use"),
]


def _cycle(jit: jitwi.JIT, action: str, resource: jitwi.Entity) -> None:
    with jit.task(NAME, permissions={action: resource}, **TASK):
        pass


def cases(world: World) -> list[Case]:
    """Return the cases of the life of a task."""
    jit = world.jit
    large = world.make_jit("many", world.store(world.many))
    provided = world.make_jit("provided", world.store(10, with_provider=True))
    numbers = count()
    loop = asyncio.new_event_loop()
    world.at_end(loop.close)

    async def cycles(number: int) -> None:
        for _ in range(number):
            async with jit.task(NAME, permissions={"act0": BOX}, **TASK):
                pass

    grant: jitwi.Grant = world.own(jit.task(NAME, permissions={"act0": BOX}, **TASK))
    async_block: Any = jit.task(NAME, permissions={"act0": BOX}, **TASK)
    async_grant: jitwi.AsyncGrant = loop.run_until_complete(async_block.__aenter__())
    world.at_end(lambda: loop.run_until_complete(async_block.__aexit__(None, None, None)))

    async def uses(number: int) -> None:
        for _ in range(number):
            await async_grant.check("act0", BOX)

    return [
        Case("cycle", each(lambda: _cycle(jit, "act0", BOX))),
        Case(
            "cycle with new facts",
            each(lambda: _cycle(provided, "take", jitwi.Entity("Bench::Item", f"new-{next(numbers)}"))),
        ),
        Case("cycle with known facts", each(lambda: _cycle(provided, "take", jitwi.Entity("Bench::Item", "known")))),
        Case("cycle at many policies", each(lambda: _cycle(large, "act0", BOX))),
        Case("async cycle", lambda number: loop.run_until_complete(cycles(number))),
        Case("use", each(lambda: grant.check("act0", BOX))),
        Case("async use", lambda number: loop.run_until_complete(uses(number))),
    ]
