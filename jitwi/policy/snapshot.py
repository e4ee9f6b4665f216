# SPDX-License-Identifier: Apache-2.0
"""One set of policies, schema, entities and task classes, and its answers.

Holds `PolicySnapshot`: nothing in it changes after it was built but bounded caches, which die with it. Does not hold
loading (`loader.py`) or the choice of the current snapshot (`store.py`).
"""

from __future__ import annotations

import copy
import hashlib
import re
from typing import TYPE_CHECKING

import attrs

from jitwi.errors import JitwiError, PolicyEvaluationError, PolicyStaleError
from jitwi.policy import engine
from jitwi.policy.context import ContextError
from jitwi.policy.decision import Decision
from jitwi.policy.entities import MAX_CLOSURE, Record, RecordError, check_ancestry, compile_record, workload_record
from jitwi.policy.provider import ProviderError
from jitwi.policy.slice import ancestors
from jitwi.policy.slices import PolicySlice, PolicySlices
from jitwi.policy.vocabulary import ISSUER, OBTAIN
from jitwi.task import Entity, Task

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from jitwi.clock import Clock
    from jitwi.policy.decision import ActionShape, Facts
    from jitwi.policy.loaded import Asked, Loaded, PolicyInfo
    from jitwi.policy.provider import EntityProvider, ProviderThreads
    from jitwi.policy.slice import Uid
    from jitwi.policy.task_classes import TaskClasses
    from jitwi.spiffe_id import SpiffeId

__all__ = ["PolicySnapshot"]

MAX_HANDLES = 256
"""Entities handles of one generation; two generations are kept."""
MAX_ROUNDS = 16
"""How often a provider is asked for one decision, each time for what the last answer referred to."""
_VALUE = re.compile(r"`[-0-9\"{\[].*`", re.DOTALL)
"""Values that the engine quotes: they may come from `input`, which is not for every reader of a record."""


@attrs.frozen(eq=False)
class _Ready:
    """Entities handle of one principal and one set of facts."""

    handle: engine.EntitiesHandle
    principal: Mapping[str, str]
    digest: str
    _above: list[Mapping[Uid, tuple[Uid, ...]]] = attrs.field(factory=list, init=False)

    def ancestors(self, uid: Uid) -> set[Uid]:
        """What `uid` is in, by this very handle: it alone holds the action groups as the engine sees them."""
        if not self._above:
            self._above.append(engine.parents_of(self.handle))
        return ancestors(uid, self._above[0])


class _DeniedError(Exception):
    """Leaves `_decide` as a deny."""

    def __init__(self, reason: str, error: str = "") -> None:
        super().__init__(reason, error)
        self.reason = reason
        self.error = error


class PolicySnapshot:
    """One immutable set; implements `DecisionPoint`.

    Args:
        loaded: What the load produced.
        clock: Where instants come from.
        provider: Facts of resources that the store does not hold, or None.
        threads: Where the provider runs.
        provider_timeout: Seconds for all questions to the provider of one decision.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        clock: Clock,
        provider: EntityProvider | None = None,
        threads: ProviderThreads | None = None,
        provider_timeout: float = 1.0,
    ) -> None:
        self._loaded = loaded
        self._schema = loaded.schema
        self._actions = loaded.actions
        self._clock = clock
        self._provider = provider
        self._threads = threads
        self._provider_timeout = provider_timeout
        self._whole = PolicySlice(loaded.policies, tuple(info.id for info in loaded.policy_infos))
        self._slices = None if loaded.index is None else PolicySlices(loaded, loaded.index, self._whole)
        self._is_stale = False
        # Two generations and no lock: a lock would outlive a fork, and losing an entry costs one rebuild.
        self._ready: dict[tuple[str, str, str], _Ready] = {}
        self._older: dict[tuple[str, str, str], _Ready] = {}

    def __repr__(self) -> str:
        return f"<PolicySnapshot {self.digest[:12]} policies={self.policy_count}{' stale' if self._is_stale else ''}>"

    @property
    def digest(self) -> str:
        """Digest of policies, schema and task classes."""
        return self._loaded.digest

    @property
    def schema_digest(self) -> str:
        """Digest of the merged schema."""
        return self._loaded.schema_digest

    @property
    def entities_digest(self) -> str:
        """Digest of the store's own entities."""
        return self._loaded.entities_digest

    @property
    def policies(self) -> tuple[PolicyInfo, ...]:
        """Every policy, the built-in ones included."""
        return self._loaded.policy_infos

    @property
    def policy_count(self) -> int:
        """How many policies, the built-in ones included."""
        return len(self._loaded.policy_infos)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and still worth a look."""
        return self._loaded.warnings

    @property
    def task_classes(self) -> TaskClasses:
        """Registered task classes."""
        return self._loaded.task_classes

    @property
    def actions(self) -> tuple[ActionShape, ...]:
        """Every action that can be declared in a task."""
        return tuple(asked.shape for uid, asked in self._actions.items() if uid != OBTAIN)

    @property
    def obtain(self) -> ActionShape:
        """The action of the `obtain` question."""
        return self._actions[OBTAIN].shape

    @property
    def is_stale(self) -> bool:
        """True if reloads have failed for longer than the limit: everything is denied."""
        return self._is_stale

    def as_stale(self) -> PolicySnapshot:
        """Return the same set, denying everything."""
        stale = copy.copy(self)
        vars(stale)["_is_stale"] = True
        return stale

    def action(self, name: str | Entity) -> ActionShape:
        """Resolve an action's name.

        Args:
            name: Its uid, `Shop::Action::"refund"`, `Shop::refund`, or `refund` where only one action has that id.

        Raises:
            PolicyEvaluationError: Unknown, or more than one action has that id; lists the candidates.
        """
        if not isinstance(name, str | Entity):
            what = f"an action is a name or an `Entity`, not `{type(name).__name__}`"
            raise PolicyEvaluationError(what, reasons=("type",))
        if isinstance(name, Entity):
            candidates: tuple[Entity, ...] = (name,) if name in self._actions and name != OBTAIN else ()
        else:
            candidates = self._loaded.action_names.get(name, ())
        if len(candidates) == 1:
            return self._actions[candidates[0]].shape
        shown = ", ".join(f"`{uid}`" for uid in (candidates or [shape.action for shape in self.actions])[:20])
        what = "is the id of more than one action" if candidates else "is no action of the schema"
        raise PolicyEvaluationError(
            f"action {ascii(str(name))[:120]} {what}: {shown}",
            reasons=("ambiguous-action" if candidates else "unknown-action",),
            remedy="name one of them, with its namespace",
        )

    def is_under(self, resource: Entity, ancestor: Entity) -> bool | None:
        """Whether `resource` is `ancestor` or below it; None if this side does not know the resource.

        Args:
            resource: What is asked about.
            ancestor: What it may be in.
        """
        if resource.type not in self._loaded.shape.entities:
            return None
        try:
            found = self._facts(resource)
        except (_DeniedError, JitwiError):
            return None
        if resource == ancestor:
            return True
        seen: set[Entity] = set()
        stack = [resource]
        while stack:
            record = found.get(stack.pop())
            for parent in record.parents if record else ():
                if parent == ancestor:
                    return True
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return False

    def knows(self, entity: Entity) -> bool:
        """True if this side can say what `entity` is and what it is in.

        Args:
            entity: A resource, or what a permission is `under`.
        """
        return self.is_under(entity, entity) is True

    def check_task(self, task: Task) -> Task:
        """Hold a declaration against its task class.

        Args:
            task: The declaration.

        Returns:
            The task with its class's owner.

        Raises:
            AccessDeniedError: Not registered, another owner, a field missing, an action outside of the class.
            LimitExceededError: Over a ceiling.
            PolicyEvaluationError: An action's name does not resolve.
            PolicyStaleError: This set is stale.
        """
        self.require_fresh()
        actions = [a if isinstance(a := p.action, Entity) else self.action(a).action for p in task.permissions]
        if not self._loaded.task_classes.is_registered:
            return task
        owner = self.check_task_facts(task.facts(), actions).get("owner")
        return task if owner == task.owner else attrs.evolve(task, owner=str(owner))

    def check_task_facts(
        self, facts: Mapping[str, str | int], actions: Collection[Entity] = ()
    ) -> dict[str, str | int]:
        """Hold the facts of a task against its class: at a Guard, from verified evidence.

        Args:
            facts: As `Task.facts()` gives them.
            actions: The actions declared, or the one that is used.

        Returns:
            The facts with the class's owner.

        Raises:
            AccessDeniedError: Not registered, another owner, a field missing, an action outside of the class.
            LimitExceededError: Over a ceiling.
            PolicyStaleError: This set is stale.
        """
        self.require_fresh()
        return self._loaded.task_classes.check_facts(facts, actions)

    def require_fresh(self) -> None:
        """Raise if this set is stale.

        Raises:
            PolicyStaleError: Reloads have failed for longer than the limit.
        """
        if self._is_stale:
            raise PolicyStaleError(
                "no reload of the policies has succeeded for longer than the limit",
                reasons=("stale",),
                remedy="correct the policies and reload",
            )

    def decide_obtain(self, principal: SpiffeId, issuer: str, facts: Facts) -> Decision:
        """Answer whether a planned credential may be obtained.

        Args:
            principal: Who asks.
            issuer: Name of the configured issuer.
            facts: With `credential`, the issuer's plan.
        """
        try:
            resource = Entity(ISSUER, issuer)
        except JitwiError as exc:
            return self._deny("bad-request", str(exc))
        return self.decide(principal, self.obtain, resource, facts)

    def decide(self, principal: SpiffeId, action: ActionShape, resource: Entity, facts: Facts) -> Decision:
        """Answer one question; never raises for a bad request: that is a deny with its reason.

        Args:
            principal: The authenticated actor.
            action: As `action()` resolved it.
            resource: Its uid; its facts come from this side.
            facts: What a context may be built from.
        """
        context = ""
        try:
            asked = self._actions.get(action.action)
            if self._is_stale:
                return self._deny("stale", "no reload has succeeded for longer than the limit")
            if asked is None:
                return self._deny("unknown-action", f"`{action.action}` is no action of this set")
            if resource.type not in asked.shape.resource_types:
                return self._deny("not-applicable", f"`{action.action}` does not apply to a `{resource.type}`")
            sent, context = asked.context.build(facts)
            ready = self._entities(principal, resource, has_facts=resource.type in asked.with_facts)
            whole, slices = self._whole, self._slices
            used = whole if slices is None else slices.choose(ready, action.action, resource)
            answer = engine.ask(
                {
                    "principal": ready.principal,
                    "action": asked.request,
                    "resource": {"type": resource.type, "id": resource.id},
                    "context": sent,
                },
                used.handle,
                ready.handle,
                self._schema,
            )
            if answer.errors or answer.reason == "no-decision":
                return self._failed(answer, used, asked, facts, ready.digest, context)
            return Decision(
                answer.is_allowed,
                answer.reason,
                used.named(answer.determining, answer.annotated),
                (),
                self._loaded.digest,
                ready.digest,
                context,
            )
        except _DeniedError as exc:
            return self._deny(exc.reason, exc.error, context)
        except ContextError as exc:
            return self._deny(exc.reasons[0], exc.message, context)
        except engine.EngineError as exc:
            return self._deny("no-decision", exc.message, context)
        except Exception as exc:  # noqa: BLE001 - whatever a request provokes is a deny
            return self._deny("bad-request", type(exc).__name__, context)

    def _failed(
        self, answer: engine.Answer, used: PolicySlice, asked: Asked, facts: Facts, digest: str, context: str
    ) -> Decision:
        """A deny by errors, told in the reader's words."""
        errors = tuple(used.told(_VALUE.sub("`...`", error)) for error in answer.errors)
        reason = answer.reason
        if reason == "no-decision" and (why := asked.context.explain(facts)):
            reason, errors = "bad-input", (why,)
        named = used.named(answer.determining, answer.annotated)
        return Decision(False, reason, named, errors, self._loaded.digest, digest, context)  # noqa: FBT003

    def _deny(self, reason: str, error: str = "", context: str = "") -> Decision:
        errors = (error[: engine.MAX_ERROR_CHARS],) if error else ()
        return Decision(False, reason, (), errors, self._loaded.digest, "", context)  # noqa: FBT003

    def _entities(self, principal: SpiffeId, resource: Entity, *, has_facts: bool) -> _Ready:
        """The entities handle of one request: built only where the resource brings facts of its own."""
        who = str(principal)
        key = (who, resource.type, resource.id) if has_facts else (who, "", "")
        ready = self._ready.get(key) or self._kept(key)
        if ready is not None:
            return ready
        if not principal.path:
            raise _DeniedError("not-a-workload", "the principal is a trust domain")
        found = self._facts(resource if has_facts else None)
        own = workload_record(principal)
        texts = sorted(record.json for record in (own, *found.values()) if record is own or record.uid != own.uid)
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        if self._provider is not None and any(self._loaded.entities.get(uid) is None for uid in found):
            key = (who, "", digest)
            ready = self._ready.get(key) or self._kept(key)
            if ready is not None:
                return ready
        handle = engine.parse_entities(f"[{','.join(texts)}]", self._schema)
        ready = _Ready(handle, {"type": own.uid.type, "id": who}, digest)
        self._keep(key, ready)
        return ready

    def _kept(self, key: tuple[str, str, str]) -> _Ready | None:
        ready = self._older.get(key)
        if ready is not None:
            self._keep(key, ready)
        return ready

    def _keep(self, key: tuple[str, str, str], ready: _Ready) -> None:
        if len(self._ready) >= MAX_HANDLES:
            self._older, self._ready = self._ready, {}
        self._ready[key] = ready

    def _facts(self, resource: Entity | None) -> dict[Entity, Record]:
        """Everything that evaluation can reach, from the store and the provider.

        Raises:
            _DeniedError: Something that the resource refers to is unknown, or the provider failed.
        """
        store = self._loaded.entities
        roots = self._loaded.literals if resource is None else (resource, *self._loaded.literals)
        try:
            found, missing = store.closure(roots)
            more: dict[Entity, Record] = {}
            if missing and self._provider is not None:
                self._ask_provider(missing, roots, more)
                found, missing = store.closure(roots, more)
                check_ancestry(found, store.get)
            if resource is not None and missing:
                _, unknown = store.closure((resource,), more)
                if unknown:
                    raise _DeniedError("unknown-resource", f"nobody on this side describes `{unknown[0]}`")
        except RecordError as exc:
            raise _DeniedError("provider-failed" if self._provider else "unknown-resource", exc.message) from exc
        return found

    def _ask_provider(self, missing: Iterable[Entity], roots: Iterable[Entity], more: dict[Entity, Record]) -> None:
        provider, threads = self._provider, self._threads
        if provider is None or threads is None:
            return
        store = self._loaded.entities
        end = self._clock.now().boot + self._provider_timeout
        asked: set[Entity] = set()
        for _ in range(MAX_ROUNDS):
            wanted = tuple(uid for uid in missing if uid not in asked)
            if not wanted:
                return
            asked.update(wanted)
            left = min(self._provider_timeout, end - self._clock.now().boot)
            try:
                records = threads.ask(provider, wanted, timeout=left, limit=MAX_CLOSURE)
            except ProviderError as exc:
                raise _DeniedError("provider-failed", exc.message) from exc
            for record in records:
                ready = compile_record(record, self._loaded.shape)
                if more.setdefault(ready.uid, ready).json != ready.json:
                    raise _DeniedError("provider-failed", f"`{ready.uid}` is described twice")
            _, missing = store.closure(roots, more)
        raise _DeniedError("provider-failed", f"still unknown entities after {MAX_ROUNDS} rounds")
