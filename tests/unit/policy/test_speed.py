# SPDX-License-Identifier: Apache-2.0
"""What a decision costs beside the engine's own call; ratios of one run only."""

from __future__ import annotations

import gc
import random
import statistics
import time

import cedarpy
import pytest

ROUNDS, CALLS = 25, 60


@pytest.mark.timing
def test_a_decision_costs_little_more_than_the_engine(shop) -> None:
    """`decide` is at most 1.45 times the bare call for the same request, 1.6 with the slack of a shared machine."""
    many = "".join(
        f"action a{number} appliesTo {{ principal: Jitwi::Workload, resource: R, context: {{ task: Jitwi::Task }} }};"
        for number in range(46)
    )
    snapshot = shop.store(schema=shop.schema + f"namespace Many {{ entity R; {many} }}").load()
    shape, facts = snapshot.action("read"), shop.facts()
    assert snapshot.decide(shop.caller, shape, shop.order, facts).is_allowed
    (ready,) = snapshot._ready.values()
    request = {
        "principal": dict(ready.principal),
        "action": {"type": "Shop::Action", "id": "read"},
        "resource": {"type": shop.order.type, "id": shop.order.id},
        "context": f'{{"task":{shop.task}}}',
    }

    def bare() -> bool:
        return cedarpy.is_authorized(request, snapshot._whole.handle, ready.handle, snapshot._schema).allowed

    def ours() -> bool:
        return snapshot.decide(shop.caller, shape, shop.order, facts).is_allowed

    samples: dict[str, list[float]] = {"bare": [], "ours": []}
    calls = [("bare", bare), ("ours", ours)]
    gc.disable()
    try:
        for _ in range(ROUNDS):
            random.shuffle(calls)
            for name, call in calls:
                start = time.perf_counter()
                for _ in range(CALLS):
                    assert call()
                samples[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    assert statistics.median(samples["ours"]) / statistics.median(samples["bare"]) <= 1.6
