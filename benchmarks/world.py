# SPDX-License-Identifier: Apache-2.0
"""The world that is measured: a schema of fifty actions, policies that each fit one workload, one caller.

Holds the reference point BASE_S (one bare decision of the engine, with schema) and the makers of what the other modules
measure. The request of every jitwi case has the shape of the vocabulary: a task record of five facts in the context.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import cedarpy

import jitwi
from benchmarks.harness import Case, each
from jitwi.policy import PolicyStore
from jitwi.policy.entities import EntityRecord
from jitwi.testing import FixedIdentity, TestCa
from jitwi.testing import jit as make_test_jit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from jitwi.testing.guard import Caller

ACTIONS = 50
WORKLOAD = "spiffe://example.org/ns/prod/sa/svc-0"
BOX = jitwi.Entity("Bench::Box", "b0")
"""A resource without facts of its own."""
TASK: dict[str, Any] = {
    "ttl": timedelta(minutes=5),
    "purpose": "customer request",
    "owner": "team-payments",
    "agent": "worker-1",
}
"""With its name, the five facts of a task."""
NAME = "nightly-report"
AUDIENCE = "https://boxes.example.org"


class Facts:
    """An entity provider that knows every `Bench::Item`, at once."""

    def entities(self, uids: Collection[jitwi.Entity]) -> Iterable[EntityRecord]:
        """Return a record with one attribute and one parent each."""
        return [EntityRecord(uid, {"owner": "team0"}, (jitwi.Entity("Bench::Box", "b0"),)) for uid in uids]


def schema() -> str:
    """Fifty actions on boxes, which are their uid only, and one more on items, which have facts."""
    context = "context: { task: Jitwi::Task }"
    boxes = "".join(
        f"  action act{i} appliesTo {{ principal: [Jitwi::Workload], resource: [Box], {context} }};\n"
        for i in range(ACTIONS - 1)
    )
    items = f"  action take appliesTo {{ principal: [Jitwi::Workload], resource: [Item], {context} }};\n"
    return f"namespace Bench {{\n  entity Box;\n  entity Item in [Box] = {{ owner: String }};\n{boxes}{items}}}\n"


def policies(count: int) -> str:
    """`count` selective policies, one for each workload, action and box; the last one is about items instead."""
    lines = [
        f'@id("p{i}") permit (principal == Jitwi::Workload::"spiffe://example.org/ns/prod/sa/svc-{i}",'
        f' action == Bench::Action::"act{i % (ACTIONS - 1)}", resource == Bench::Box::"b{i}")'
        f' when {{ context.task.ttl <= 300 && context.task.name == "{NAME}" }};'
        for i in range(count - 1)
    ]
    lines.append(
        f'@id("items") permit (principal == Jitwi::Workload::"{WORKLOAD}", action == Bench::Action::"take",'
        ' resource in Bench::Box::"b0") when { context.task.ttl <= 300 && resource.owner == "team0" };'
    )
    return "\n".join(lines)


def base_s() -> Case:
    """BASE_S: one selective policy, its two entities, a context of two keys, and a schema of fifty actions."""
    actions = "".join(
        f'action "act-{i}" appliesTo {{ principal: [Workload], resource: [Obj],'
        " context: { ttl: Long, task: String } };\n"
        for i in range(ACTIONS)
    )
    text = (
        f"entity Workload = {{ ns: String }};\nentity Bucket;\nentity Obj in [Bucket] = {{ owner: String }};\n{actions}"
    )
    handle = cedarpy.Schema.from_str(text)
    policy = cedarpy.PolicySet.from_str(
        '@id("p0") permit(principal == Workload::"spiffe://example.org/ns/prod/sa/svc-0",'
        ' action == Action::"act-0", resource in Bucket::"b0")'
        ' when { context.ttl <= 300 && resource.owner == "team0" };'
    )
    entities = cedarpy.Entities.from_json_str(json.dumps(list(_base_entities())), handle)
    request = {
        "principal": {"type": "Workload", "id": WORKLOAD},
        "action": {"type": "Action", "id": "act-0"},
        "resource": {"type": "Obj", "id": "o0"},
        "context": {"ttl": 60, "task": "nightly"},
    }
    if not cedarpy.is_authorized(request, policy, entities, handle).allowed:
        msg = "the reference decision is not an allow"
        raise RuntimeError(msg)
    return Case("BASE_S", each(lambda: cedarpy.is_authorized(request, policy, entities, handle).allowed))


def _base_entities() -> Iterable[dict[str, Any]]:
    for i in range(3):
        bucket = {"type": "Bucket", "id": f"b{i}"}
        workload = {"type": "Workload", "id": f"spiffe://example.org/ns/prod/sa/svc-{i}"}
        yield {"uid": workload, "attrs": {"ns": "prod"}, "parents": []}
        yield {"uid": {"type": "Obj", "id": f"o{i}"}, "attrs": {"owner": f"team{i}"}, "parents": [bucket]}
        yield {"uid": bucket, "attrs": {}, "parents": []}


class World:
    """Everything that is built once before the first round; `with` closes it.

    Args:
        many: How many policies the large set has.
    """

    def __init__(self, many: int = 10_000) -> None:
        self.many = many
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="jw-bench-")))
        self.ca = TestCa("example.org")
        self.identity = FixedIdentity(WORKLOAD, ca=self.ca)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def own(self, context: Any) -> Any:
        """Enter a context that the world leaves at its end."""
        return self._stack.enter_context(context)

    def at_end(self, job: Callable[[], object]) -> None:
        """Do something when the world closes, the latest first."""
        self._stack.callback(job)

    def store(self, count: int, *, with_provider: bool = False) -> PolicyStore:
        """Return a store of `count` policies."""
        return PolicyStore.from_text(
            policies=policies(count), schema=schema(), provider=Facts() if with_provider else None
        )

    def make_jit(self, name: str, store: PolicyStore, **settings: Any) -> jitwi.JIT:
        """Return a running `JIT` with a real audit chain and a warm identity."""
        jit = make_test_jit(WORKLOAD, store, identity=self.identity, state_dir=self.folder / name, **settings)
        return self.own(jit)  # type: ignore[no-any-return]

    @cached_property
    def jit(self) -> jitwi.JIT:
        """Ten policies."""
        return self.make_jit("ten", self.store(10))

    @cached_property
    def caller(self) -> Caller:
        """A caller of a Guard with a real store, audit chain and policies."""
        from jitwi.testing.guard import CaBundles, Caller, identity_of

        guard = self.own(
            jitwi.Guard(AUDIENCE, self.store(10), identity=CaBundles(self.ca), state_dir=self.folder / "guard")
        )
        identity = identity_of(self.ca.issue(WORKLOAD, ttl=3600), clock=guard._clock)  # noqa: SLF001 - one project
        return Caller(guard, identity, {"act0": BOX}, task=NAME, **TASK)
