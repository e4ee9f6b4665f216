# SPDX-License-Identifier: Apache-2.0
"""The enforcement point on the resource side.

Holds `Guard`: its life cycle and the one numbered procedure that every call passes, top to bottom. Does not hold how
tokens and proofs are verified (`jitwi.tokens`), how Cedar is asked (`jitwi.policy`), what is remembered (`jitwi.state`)
or what a stranger is told (`answer.py`).

Example::

    guard = jitwi.Guard(audience="https://orders.example.org", policies="policies/")
    call = guard.check(request, "refund", order, input={"amount": 30})   # raises; what it returns may be executed
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from jitwi.audit.events import DecisionRecord, GuardAllowed, GuardDenied, Subject
from jitwi.clock import SystemClock, as_datetime
from jitwi.errors import (
    AccessDeniedError,
    ConfigurationError,
    JitwiError,
    OutOfScopeError,
)
from jitwi.guard import counting
from jitwi.guard.answer import Answer, answer
from jitwi.guard.call import Call, CallTask
from jitwi.guard.errors import (
    ForgottenError,
    ForgottenProofError,
    ReplayedProofError,
    TaskClassError,
    TaskEndedError,
)
from jitwi.guard.parts import Parts, Settings
from jitwi.guard.request import Request, evidence_of, origin_of, target_of
from jitwi.policy import Evidence, Facts, task_json
from jitwi.task import Entity, Permission, Under
from jitwi.tokens import ScopeMismatchError, verify_proof

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType

    from jitwi.audit.port import Audit
    from jitwi.clock import Clock
    from jitwi.identity import BundleSource
    from jitwi.policy import ActionShape, Decision, EntityProvider, PolicySnapshot, PolicyStore
    from jitwi.tokens import VerifiedProof, VerifiedTaskToken

__all__ = ["Guard"]

_SHOWN = 300
_SKEW_SECONDS = 30.0
"""How far the wall clock may run ahead of the machine's own run and still count as time that has passed."""


@attrs.define(slots=True, eq=False)
class _Trail:
    """How far one check has come: what the record of a refusal can say."""

    step: str = "start"
    token: VerifiedTaskToken | None = None
    proof: VerifiedProof | None = None
    owner: str | None = None
    record: DecisionRecord | None = None
    counts: counting.Reserved | None = None


class Guard:
    """Verifies the evidence of a request and decides by the resource's own policies. Thread-safe.

    Args:
        audience: Who this service is; a token for anybody else is refused. Compared exactly.
        policies: A folder of policies (this service's own), or a `PolicyStore`.
        identity: Where trust bundles come from; by default the Workload API at `SPIFFE_ENDPOINT_SOCKET`. What is given
            is started but not closed.
        state_dir: Folder of this user; the memory of proofs and counts is in its folder `guard`. By default
            `$JITWI_STATE_DIR` or `~/.local/state/jitwi`. All processes that serve this audience here must agree on it.
        endings_dir: Folder in which callers of this host publish endings; by default `endings` in the state folder.
        audit: Folder of the audit trail, or an audit log (you close it); by default `audit` in the state folder.
        origin: `https://host[:port]` as callers address this service; by default that of `audience`. Proofs must name
            it. The host of a request is never used.
        max_ttl: The longest life of a token that is accepted, whatever its task says.
        clock: The clock.
        provider: Entity provider for a `policies` folder.
        proof_window: How old a proof may be.

    Note:
        No I/O before `start()` or the first check. `with guard:` starts and closes it. A proof that was made before the
        end of its task is refused from the moment on when this host publishes the ending; for an ending elsewhere it
        can still arrive within `proof_window`. Where the wall clock is set back, what had expired at this Guard stays
        expired; what had not can live longer by as much as the clock went back.

    Raises:
        ConfigurationError: An argument is out of bounds, or no origin can be told.
    """

    def __init__(  # noqa: PLR0913 - every knob has a default
        self,
        audience: str,
        policies: str | os.PathLike[str] | PolicyStore,
        *,
        identity: BundleSource | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        endings_dir: str | os.PathLike[str] | None = None,
        audit: str | os.PathLike[str] | Audit | None = None,
        origin: str | None = None,
        max_ttl: timedelta = timedelta(hours=1),
        clock: Clock | None = None,
        provider: EntityProvider | None = None,
        proof_window: timedelta = timedelta(seconds=60),
    ) -> None:
        if not isinstance(audience, str) or not audience:
            raise ConfigurationError("`audience` is the name of this service, as text", reasons=("audience",))
        if not timedelta(seconds=1) <= proof_window <= timedelta(minutes=5):
            raise ConfigurationError("`proof_window` must be from 1 s to 5 min", reasons=("proof-window",))
        if not timedelta(seconds=1) <= max_ttl <= timedelta(hours=24):
            raise ConfigurationError("`max_ttl` must be from 1 s to 24 h", reasons=("max-ttl",))
        self._audience = audience
        self._origin = origin_of(audience, origin)
        self._window = proof_window.total_seconds()
        self._clock = clock or SystemClock()
        born = self._clock.now()
        self._offset = born.wall - born.boot
        self._passed = born.wall
        self._used_read: tuple[PolicySnapshot | None, bool] = None, False
        self._parts = Parts(
            Settings(
                audience=audience,
                policies=policies,
                identity=identity,
                state_dir=None if state_dir is None else Path(state_dir),
                endings_dir=None if endings_dir is None else Path(endings_dir),
                audit=audit,
                max_ttl=max_ttl,
                provider=provider,
            ),
            clock=self._clock,
        )

    @property
    def audience(self) -> str:
        """Who this service is."""
        return self._audience

    @property
    def origin(self) -> str:
        """The origin that proofs must name."""
        return self._origin

    def check(
        self,
        request: Request,
        action: str | Entity,
        resource: Entity,
        *,
        input: Mapping[str, Any] | None = None,
    ) -> Call:
        """Decide whether this request may do `action` to `resource` now, once.

        Args:
            request: The request.
            action: What the service is about to do; resolved by the Guard's own schema.
            resource: To what.
            input: What the service read from the request and is about to execute; compared with the caller's proof.

        Returns:
            The call, counted and on record. It stands for one execution.

        Raises:
            EvidenceError: The evidence does not hold; the class names the step.
            AccessDeniedError: This side's policies say no.
            ConfigurationError: `request` is no `Request`.
            SharedStateError: Replay, counts or endings cannot be told.
            AuditError: The decision could not be recorded.
            PolicyError: The policies are stale, or do not know the action.
            IdentityError: No bundle has arrived yet.
            StateError: The Guard is closed.

        Note:
            The order: what costs nothing and changes nothing comes first, so that a flood of bad requests is cheap and
            leaves no trace but its record. State changes at 9 and 10 only, after everything that evidence alone can
            tell. The proof is marked as seen (9) before uses are counted (10), so that a replay can never spend one,
            and it stays marked whatever follows: a proof that policy denied is worth nothing, or a denied request could
            be sent again once it would be allowed. Counts are what a task *did*: a deny, or a decision that could not
            be recorded, gives them back. The policies come after the counts as they may
            read `used`, and the record is last as it says what was decided. What is raised in between is a refusal.

        Source:
            RFC 9449 §4.3, §7.1, §11.1; design section 4.
        """
        trail = _Trail()
        parts = self._parts
        try:
            parts.start()
            now = self._wall()
            # 1 the request: exactly one token and one proof; the URL from our configuration and the request's path
            trail.step = "request"
            _require_request(request, resource)
            token_text, proof_text = evidence_of(request)
            url = target_of(request, self._origin)
            # 2 the token: form, chain by the current bundle of its own trust domain, audience, times, digest, scope
            trail.step = "token"
            token = trail.token = parts.verifier.verify(token_text, now=now)
            # 3 the proof: by the token's key, for this token, this method and URL, now
            trail.step = "proof"
            proof = trail.proof = verify_proof(
                proof_text, token=token, method=request.method, url=url, now=now, window=self._window
            )
            # 4 the use: what the proof was made for is what is about to be executed
            trail.step = "use"
            snapshot = parts.policies.snapshot
            shape = snapshot.action(action)
            proof.require_use(shape.action, resource, input=input)
            # 5 endings: neither the task nor its key is over before its time
            trail.step = "endings"
            _require_not_ended(parts, token)
            # 6 scope: the task declared it, by our own hierarchy
            trail.step = "scope"
            covering = _covering(snapshot, token, shape, resource)
            # 7 task class: ours, and its owner wins
            trail.step = "task-class"
            task = _require_class(snapshot, token)
            trail.owner = task.owner
            # 8 memory: our store is as old as what it must remember
            trail.step = "memory"
            is_used_read = self._is_used_read(snapshot)
            _require_remembered(parts.ledger.created_at, token, proof, is_used_read=is_used_read)
            # 9 replay: shown once, and never again whatever follows
            trail.step = "replay"
            _require_first(parts, proof)
            # 10 limits: reserved here, given back on a deny
            trail.step = "limits"
            counts = trail.counts = counting.reserve(parts.ledger, token, covering, count=is_used_read)
            # 11 decision: by our own policies and entities
            trail.step = "decision"
            facts = Facts(
                task_json=task_json(task.facts()),
                used=max(0, counts.number - 1),
                now=now,
                evidence=Evidence.TASK_TOKEN,
                input=input,
            )
            decision = snapshot.decide(token.spiffe_id, shape, resource, facts)
            record = trail.record = _record(decision, shape, resource, counts.permission, input)
            _require_allowed(decision, shape, resource)
            # 12 audit: on record before anything is executed
            trail.step = "audit"
            subject = _subject(token, task.owner)
            parts.audit.record(GuardAllowed(subject, proof.jti, self._audience, Evidence.TASK_TOKEN.value, record))
        except BaseException as error:
            if trail.counts is not None:
                trail.counts.give_back()
            self._record_refusal(trail, error, f"{_shown(action)} on {_shown(resource)}")
            raise
        return Call(
            workload=token.spiffe_id,
            task=task,
            txn=token.txn,
            jti=proof.jti,
            action=shape.action,
            resource=resource,
            permission=counts.permission,
            expires_at=as_datetime(token.expires_at),
            policy_ids=decision.policy_ids,
            chain=(token.spiffe_id,),
            number=counts.number,
        )

    async def acheck(
        self,
        request: Request,
        action: str | Entity,
        resource: Entity,
        *,
        input: Mapping[str, Any] | None = None,
    ) -> Call:
        """Do what `check` does, in a worker thread: nothing blocks the loop.

        Note:
            A cancelled check may still be counted; its proof is spent either way.
        """
        return await asyncio.to_thread(self.check, request, action, resource, input=input)

    @staticmethod
    def answer(error: BaseException) -> Answer:
        """Return what to answer a request that was refused with `error`; see `jitwi.guard.answer`."""
        return answer(error)

    def start(self) -> None:
        """Load policies, open the memory and follow the bundles, now instead of at the first check. Idempotent.

        Raises:
            JitwiError: Something is not as it must be: policies, folders, configuration. The next call tries again.
        """
        self._parts.start()

    def reload(self) -> None:
        """Load the policies anew; the last good ones stay if they are refused.

        Raises:
            InvalidPolicyError: They were refused.
        """
        self._parts.start()
        self._parts.policies.reload()

    def close(self) -> None:
        """Close what this Guard opened; idempotent."""
        self._parts.close()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """For whom."""
        return f"<Guard {self._audience}>"

    def _wall(self) -> float:
        """Return the wall clock; an instant that has passed here does not come back when the clock is set back.

        The clock of the machine's run says how far the wall clock can have come: one that was ahead by mistake and was
        corrected costs the skew at most, and does not close this Guard until its mistaken time has come.
        """
        wall, boot = self._clock.now()
        self._passed = max(self._passed, min(wall, boot + self._offset + _SKEW_SECONDS))
        return max(wall, self._passed)

    def _is_used_read(self, snapshot: PolicySnapshot) -> bool:
        """Whether the context of any action declares `used`: then uses of every action count, as it is of the task."""
        known, is_read = self._used_read
        if known is not snapshot:
            is_read = any("used" in each.keys for each in snapshot.actions)
            self._used_read = snapshot, is_read
        return is_read

    def _record_refusal(self, trail: _Trail, error: BaseException, asked: str) -> None:
        kind = error.code if isinstance(error, JitwiError) else type(error).__name__
        detail = error.message if isinstance(error, JitwiError) else "the check was cut short"
        audit: Audit | None = getattr(self._parts, "audit", None)
        if audit is None:  # it could not start, and says so to whoever starts it
            return
        audit.record_loss(
            GuardDenied(
                None if trail.token is None else _subject(trail.token, trail.owner),
                "" if trail.proof is None else trail.proof.jti,
                self._audience,
                trail.step,
                kind,
                f"{asked}: {detail[:_SHOWN]}",
                trail.record,
            )
        )


def _require_request(request: object, resource: object) -> None:
    if not isinstance(request, Request):
        raise ConfigurationError(
            f"a request is a `Request`, not `{type(request).__name__}`",
            reasons=("request",),
            remedy="build a `jitwi.guard.Request` from the framework's own",
        )
    if not isinstance(resource, Entity):
        raise OutOfScopeError(f"a resource is an `Entity`, not `{type(resource).__name__}`", reasons=("type",))


def _shown(what: object) -> str:
    """Name what the service asked for; other types by their names only."""
    return str(what)[:_SHOWN] if isinstance(what, str | Entity) else f"a `{type(what).__name__}`"


def _require_first(parts: Parts, proof: VerifiedProof) -> None:
    if not parts.ledger.first_seen(f"{proof.jkt} {proof.jti}", expires_at=proof.replay_until):
        raise ReplayedProofError(f"proof `{proof.jti}` was shown before", reasons=("replay",))


def _require_not_ended(parts: Parts, token: VerifiedTaskToken) -> None:
    for key in (f"txn:{token.txn}", f"jkt:{token.jkt}"):
        if parts.endings.is_ended(key):
            raise TaskEndedError("the task was ended before its time", reasons=(key.partition(":")[0],))


def _covering(
    snapshot: PolicySnapshot, token: VerifiedTaskToken, shape: ActionShape, resource: Entity
) -> tuple[Permission, ...]:
    """Return the declared permissions that hold this use; what this side's hierarchy does not know is not below."""
    found = tuple(
        permission
        for permission in token.permissions_for(shape.action)
        if permission.resource == resource
        or (isinstance(permission.resource, Under) and snapshot.is_under(resource, permission.resource.entity) is True)
    )
    if not found:
        raise ScopeMismatchError(f"the task does not declare `{shape.action}` on `{resource}`", reasons=("scope",))
    return found


def _require_class(snapshot: PolicySnapshot, token: VerifiedTaskToken) -> CallTask:
    """Return the task with the owner that this side's class has."""
    actions = [p.action for p in token.permissions if isinstance(p.action, Entity)]
    try:
        facts: Mapping[str, Any] = snapshot.check_task_facts(token.facts, actions)
    except AccessDeniedError as exc:
        raise TaskClassError(f"the task is refused here: {exc.message}", reasons=exc.reasons) from exc
    return CallTask(**facts, digest=token.task_digest)


def _require_remembered(
    created_at: float, token: VerifiedTaskToken, proof: VerifiedProof, *, is_used_read: bool
) -> None:
    """Require that nothing was made before the store; both sides of the comparison are whole seconds."""
    since = int(created_at)
    if proof.issued_at < since:
        raise ForgottenProofError(
            "the proof is older than this Guard's memory", reasons=("older-than-store",), remedy="make a fresh proof"
        )
    is_limited = token.max_uses is not None or any(p.max_uses is not None for p in token.permissions)
    if (is_limited or is_used_read) and token.issued_at < since:
        raise ForgottenError(
            "the token's uses are counted, and it is older than this Guard's memory",
            reasons=("older-than-store",),
            remedy="open a new task",
        )


def _record(
    decision: Decision, shape: ActionShape, resource: Entity, permission: Permission, given: Mapping[str, Any] | None
) -> DecisionRecord:
    return DecisionRecord(
        question="guard",
        action=str(shape.action),
        resource=str(resource),
        permission=str(permission),
        is_allowed=decision.is_allowed,
        reason=decision.reason,
        policy_ids=decision.policy_ids,
        errors=decision.errors,
        policy_digest=decision.policy_digest,
        entities_digest=decision.entities_digest,
        context=decision.context,
        input=given,
    )


def _require_allowed(decision: Decision, shape: ActionShape, resource: Entity) -> None:
    if not decision.is_allowed:
        raise AccessDeniedError(
            f"`{shape.action}` on `{resource}` is denied ({decision.reason})",
            reasons=(decision.reason,),
            policy_ids=decision.policy_ids,
        )


def _subject(token: VerifiedTaskToken, owner: str | None) -> Subject:
    facts: Mapping[str, Any] = token.facts
    return Subject(
        txn=token.txn,
        grant_id="",
        workload=str(token.spiffe_id),
        task=facts["name"],
        task_digest=token.task_digest,
        owner=owner or facts.get("owner"),
        on_behalf_of=facts.get("on_behalf_of"),
        agent=facts.get("agent"),
    )
