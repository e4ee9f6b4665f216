# SPDX-License-Identifier: Apache-2.0
"""A Guard with real tokens, a test authority, a clock moved by hand, and policies that a test can read through."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
import pytest

import jitwi.guard
from jitwi.errors import PolicyEvaluationError
from jitwi.policy import ActionShape, Decision
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity, under
from jitwi.testing.audit import RecordingSink
from jitwi.testing.ca import TestCa
from jitwi.testing.clock import FakeClock
from jitwi.testing.guard import CaBundles, Caller, identity_of

NOW = 1_800_000_000.0
AUDIENCE = "https://orders.example.org"
ME = "spiffe://example.org/ns/prod/refunds"
ORDER = Entity("Shop::Order", "42")
OTHER = Entity("Shop::Order", "43")
SHOP = Entity("Shop::Shop", "1")


class Policies:
    """A policy store whose answers a test sets and whose questions it can read."""

    ACTIONS = ("read", "refund", "close")

    def __init__(self) -> None:
        self.allow = True
        self.below: dict[tuple[Entity, Entity], bool | None] = {}
        self.questions: list[tuple[SpiffeId, Entity, Entity, Any]] = []
        self.keys: dict[str, bool] = {"task": True}
        self.keys_of: dict[str, dict[str, bool]] = {}
        self.refuse_task: Exception | None = None
        self.owner: str | None = None
        self.broken: Exception | None = None
        self.reloads = 0

    @property
    def snapshot(self) -> Policies:
        """Itself, or the error that was set."""
        if self.broken is not None:
            raise self.broken
        return self

    def load(self) -> None:
        """Nothing to load."""

    def reload(self) -> None:
        """Count."""
        self.reloads += 1

    def action(self, name: str | Entity) -> ActionShape:
        """Resolve by id."""
        wanted = name.id if isinstance(name, Entity) else name
        if wanted not in self.ACTIONS:
            raise PolicyEvaluationError(f"unknown action `{wanted}`", reasons=("unknown-action",))
        return ActionShape(
            Entity("Shop::Action", wanted), self.keys_of.get(wanted, self.keys), frozenset({"Shop::Order"})
        )

    @property
    def actions(self) -> tuple[ActionShape, ...]:
        """All of them."""
        return tuple(self.action(name) for name in self.ACTIONS)

    def is_under(self, resource: Entity, ancestor: Entity) -> bool | None:
        """Answer from the table; None for what it does not know."""
        return self.below.get((resource, ancestor))

    def check_task_facts(self, facts: Any, actions: Any = ()) -> Any:
        """Refuse, or give the task its class's owner."""
        if self.refuse_task is not None:
            raise self.refuse_task
        return dict(facts) if self.owner is None else dict(facts) | {"owner": self.owner}

    def decide(self, principal: SpiffeId, action: ActionShape, resource: Entity, facts: Any) -> Decision:
        """Answer as the test said."""
        self.questions.append((principal, action.action, resource, facts))
        allow = self.allow(facts) if callable(self.allow) else self.allow
        return Decision(
            is_allowed=allow,
            reason="allow" if allow else "forbid",
            policy_ids=("orders.allow",) if allow else ("secret-policy-name",),
            errors=(),
            policy_digest="p",
            entities_digest="e",
        )


@attrs.define(eq=False)
class Lab:
    """Everything around one Guard."""

    folder: Path
    clock: FakeClock
    ca: TestCa
    bundles: CaBundles
    policies: Policies
    trail: RecordingSink
    guard: jitwi.guard.Guard
    guards: list[jitwi.guard.Guard]

    def another_guard(self, **changes: Any) -> jitwi.guard.Guard:
        """Return a Guard on the same folder, as another process has it."""
        told: dict[str, Any] = {
            "identity": self.bundles,
            "state_dir": self.folder,
            "audit": self.trail,
            "clock": self.clock,
        }
        guard = jitwi.guard.Guard(
            changes.pop("audience", AUDIENCE), changes.pop("policies", self.policies), **(told | changes)
        )
        self.guards.append(guard)
        return guard

    def caller(self, permissions: Any = None, *, as_: str = ME, guard: Any = None, **task: Any) -> Caller:
        """Return a workload with a task."""
        declared = {"refund": ORDER, "read": under(SHOP)} if permissions is None else permissions
        return Caller(guard or self.guard, self.identity(as_), declared, task="refund-order", **task)

    def identity(self, as_: str = ME, *, ca: TestCa | None = None) -> Any:
        """Return an SVID of a CA, whatever its trust domain."""
        return identity_of((ca or self.ca).issue(as_), clock=self.clock)


@pytest.fixture(scope="session")
def ca() -> TestCa:
    """The authority of example.org."""
    return TestCa("example.org", clock=FakeClock(wall=NOW))


@pytest.fixture
def folder():
    """A folder of our own."""
    folder = Path(tempfile.mkdtemp(prefix="jw"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def lab(ca, folder):
    """A Guard and all around it."""
    lab = Lab(folder, FakeClock(wall=NOW), ca, CaBundles(ca), Policies(), RecordingSink(), None, [])  # type: ignore[arg-type]
    lab.guard = lab.another_guard()
    yield lab
    for guard in lab.guards:
        guard.close()
