# SPDX-License-Identifier: Apache-2.0
"""What cannot be repeated thousands of times: rotations, imports, ten thousand live grants.

Holds measurements that state a figure and its bar themselves.
"""

from __future__ import annotations

import gc
import random
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING

import attrs

import jitwi
from benchmarks.world import BOX, NAME, TASK, WORKLOAD
from jitwi.identity import IdentityEvent, IdentityEventKind, WorkloadApiSource
from jitwi.testing.workload_api import FakeWorkloadApi

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Case
    from benchmarks.world import World

_WAIT = 20.0
_PAUSE = 0.15
_IMPORTS = {
    "jitwi": "import jitwi",
    "both": "import cedarpy, attrs",
    "nothing": "pass",
    "front door": "from jitwi import JIT",
}


@attrs.frozen
class Figure:
    """One line of the table that is no ratio of two cases.

    Args:
        name: What is stated.
        value: The figure.
        unit: Its unit.
        bar: What it must not exceed, or None.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None


def follow(world: World) -> tuple[WorkloadApiSource, FakeWorkloadApi]:
    """Return a source that follows an agent of `jitwi.testing` over gRPC, and the agent."""
    api = world.own(FakeWorkloadApi(WORKLOAD))
    source = WorkloadApiSource(api.socket)
    world.at_end(source.close)
    source.start()
    source.identity(timeout=_WAIT)
    return source, api


def rotation(world: World, rounds: int) -> Figure:
    """From the agent's push until the new SVID is in the snapshot: stream, parse, every check, the chain."""
    source, api = follow(world)
    seen = threading.Event()

    def hear(event: IdentityEvent) -> None:
        if event.kind is IdentityEventKind.ROTATED:
            seen.set()

    stop = source.subscribe(hear)
    taken = []
    for _ in range(rounds):
        seen.clear()
        start = time.perf_counter()
        api.rotate()
        if not seen.wait(_WAIT):
            msg = "the rotation was not seen"
            raise RuntimeError(msg)
        taken.append(time.perf_counter() - start)
    stop()
    return Figure("SVID rotation, from the push to the snapshot", 1000 * statistics.median(taken), "ms", 10.0)


def imports(rounds: int) -> list[Figure]:
    """Processes that import and nothing else; the bare interpreter's time is taken off."""
    taken: dict[str, list[float]] = {name: [] for name in _IMPORTS}
    for _ in range(rounds):
        order = list(_IMPORTS)
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", _IMPORTS[name]], check=True)
            taken[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    both = medians["both"] - medians["nothing"]
    return [
        Figure("import jitwi / import cedarpy, attrs", (medians["jitwi"] - medians["nothing"]) / both, "x", 1.3),
        Figure("from jitwi import JIT / the same", (medians["front door"] - medians["nothing"]) / both, "x"),
    ]


def after_a_pause(world: World, base: Case, rounds: int) -> list[Figure]:
    """One cycle and one use, each after a pause: the processor's caches are cold, and the audit looks at its file."""
    jit = world.jit
    grant: jitwi.Grant = world.own(jit.task(NAME, permissions={"act0": BOX}, **TASK))

    def cycle() -> None:
        with jit.task(NAME, permissions={"act0": BOX}, **TASK):
            pass

    calls: dict[str, Callable[[], object]] = {
        "BASE_S": lambda: base.run(1),
        "cycle": cycle,
        "use": lambda: grant.check("act0", BOX),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            time.sleep(_PAUSE)
            start = time.perf_counter()
            calls[name]()
            taken[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return [
        Figure(f"BASE_S, after a pause of {_PAUSE:g} s", 1e6 * medians["BASE_S"], "us"),
        Figure("cycle / BASE_S, each after a pause", medians["cycle"] / medians["BASE_S"], "x"),
        Figure("check at use / BASE_S, each after a pause", medians["use"] / medians["BASE_S"], "x"),
    ]


def live_grants(world: World, count: int) -> list[Figure]:
    """Memory and threads of `count` live grants, each with a resource of its own."""
    store = world.store(10)
    grants = world.make_jit("live", store)

    def enter() -> jitwi.grants.TaskBlock:
        block = grants.task(NAME, permissions={"act0": jitwi.Entity("Bench::Box", "b0")}, **TASK)
        block.__enter__()
        return block

    blocks: list[jitwi.grants.TaskBlock | None] = [enter() for _ in range(10)]
    threads = {thread.ident for thread in threading.enumerate()}
    blocks += [None] * count
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for place in range(10, len(blocks)):
        blocks[place] = enter()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    found = [thread for thread in threading.enumerate() if thread.ident not in threads]
    more = [thread.name for thread in found if not thread.name.startswith("fake-workload-api")]
    for block in blocks:
        if block is not None:
            block.__exit__(None, None, None)
    return [
        Figure(f"memory of a live grant, {count:,} at once", (after - before) / count / 1024, "KB", 1.5),
        Figure(f"threads that {count:,} live grants add {' '.join(more)}".rstrip(), len(more), "", 0),
    ]
