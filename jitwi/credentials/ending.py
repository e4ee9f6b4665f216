# SPDX-License-Identifier: Apache-2.0
"""How one credential ends: the one procedure for grants, watchdog and reaper, and the value that says how it went.

Holds `end_lease`, `Outcome` and `CredentialEnding`. Does not hold who asks, when it is tried again, or where it is
written down. Nothing is remembered between two calls, so ending twice is ending once.

Example:
    >>> from jitwi.credentials.ending import Outcome
    >>> Outcome.PENDING.is_over
    False
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

import attrs

from jitwi.credentials.bounded import BoundedCall, describe_failure
from jitwi.credentials.plan import Plan, Strength
from jitwi.credentials.port import ProbeResult
from jitwi.errors import IssuanceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitwi.credentials.port import Issuer, LeaseRef

__all__ = ["CredentialEnding", "Outcome", "end_lease"]


class Outcome(enum.Enum):
    """How a credential ended, best first. Never better than what was seen."""

    VERIFIED = "verified"
    BY_CONSTRUCTION = "by_construction"
    EXPIRES_AT = "expires_at"
    PENDING = "pending"

    @property
    def is_over(self) -> bool:
        """True if there is nothing left to try; EXPIRES_AT is over for us, and alive until its instant."""
        return self is not Outcome.PENDING


@attrs.frozen
class CredentialEnding:
    """How one credential ended.

    Args:
        lease_id: Our id.
        issuer: The configured name of the issuer.
        kind: Kind of credential.
        outcome: How.
        proof: What the outcome rests on: `tried`, `listed`, `key-destroyed`, `expiry`; empty where nothing is proven.
        detail: What went wrong in one line, no secret; empty if nothing did.
        expires_at: When it ends by itself, seconds since the epoch.
        is_silent: True if the issuer did not answer in time.
    """

    lease_id: str
    issuer: str
    kind: str
    outcome: Outcome
    proof: str = ""
    detail: str = ""
    expires_at: float = 0.0
    is_silent: bool = False


@attrs.define
class _Steps:
    """How far the issuer came; written in its thread, read by ours."""

    end_returned: bool = False
    probe: object = None
    proof: str = ""


def end_lease(
    issuer: Issuer,
    plan: Plan | Strength,
    lease: LeaseRef,
    *,
    now: float,
    timeout: float,
    key_destroyed: bool = False,
    record: Callable[[CredentialEnding], object] | None = None,
) -> CredentialEnding:
    """End one credential, ask whether it is dead, and say what was seen.

    Call it before the secret of `lease` is destroyed: without the secret the end can be `listed` but not `tried`.
    An issuer that is local is called here, every other one in a thread that is left behind
    when it hangs.

    Args:
        issuer: Who made it.
        plan: Its plan, or the strength alone where only that is known (after a crash).
        lease: What is known of it.
        now: Seconds since the epoch.
        timeout: Seconds that all of it may take.
        key_destroyed: True if the caller has destroyed the key, or the process that held it is gone.
        record: Called once with the ending, before this function returns or passes an interrupt on.

    Returns:
        The ending. An issuer that fails, hangs or raises whatever is `pending`, never an exception.

    Raises:
        BaseException: An interrupt of the calling thread (KeyboardInterrupt, SystemExit, cancellation), after
            `record`. The first one starts the wait anew, the second one ends it.
    """
    strength = plan.strength if isinstance(plan, Plan) else plan
    wants_probe = strength in {Strength.SESSIONS_CLOSED, Strength.REFUSED_AT_NEXT_USE}
    if strength is Strength.EXPIRES_ONLY:
        wants_probe = _has_secret(lease) and now >= lease.expires_at
    steps = _Steps()

    def run() -> None:
        issuer.end(lease)
        steps.end_returned = True
        if wants_probe:
            could_try = _has_secret(lease)
            probed = issuer.probe(lease)
            steps.proof = "tried" if could_try and _has_secret(lease) else "listed"
            steps.probe = probed

    if issuer.is_local:
        (failure, interrupt), is_silent = _run_here(run), False
    else:
        failure, interrupt, is_silent = _run_bounded(lease.issuer, run, timeout=timeout)
    outcome, proof, detail = _judge(strength, lease, steps, failure, now=now, key_destroyed=key_destroyed)
    ending = CredentialEnding(
        lease.lease_id, lease.issuer, lease.kind, outcome, proof, detail, lease.expires_at, is_silent
    )
    if record is not None:
        record(ending)
    if interrupt is not None:
        raise interrupt
    return ending


def _has_secret(lease: LeaseRef) -> bool:
    return lease.secret is not None and not lease.secret.is_destroyed


def _run_here(run: Callable[[], None]) -> tuple[str, BaseException | None]:
    try:
        run()
    except Exception as exc:  # noqa: BLE001 - an issuer may raise anything; it is said, not passed on
        return describe_failure(exc), None
    except BaseException as exc:  # noqa: BLE001 - an interrupt: recorded first, then raised
        return describe_failure(exc), exc
    return "", None


def _run_bounded(name: str, run: Callable[[], None], *, timeout: float) -> tuple[str, BaseException | None, bool]:
    call = BoundedCall(name, run)
    interrupt: BaseException | None = None
    try:
        call.start()
    except IssuanceError as exc:
        if exc.reasons == ("no-thread",):  # the interpreter is shutting down: here or nowhere in this process
            return (*_run_here(run), False)
        return describe_failure(exc), None, True
    while True:
        try:
            if call.wait(timeout) or not call.abandon():
                break
        except BaseException as exc:  # noqa: BLE001 - held back until the ending is recorded
            if interrupt is None:
                interrupt = exc
                continue
            call.abandon()
            return "the wait for it was interrupted", interrupt, True
        return f"it did not answer within {timeout:g} s", interrupt, True
    try:
        call.result()
    except Exception as exc:  # noqa: BLE001 - as above
        return describe_failure(exc), interrupt, False
    return "", interrupt, False


def _judge(
    strength: Strength,
    lease: LeaseRef,
    steps: _Steps,
    failure: str,
    *,
    now: float,
    key_destroyed: bool,
) -> tuple[Outcome, str, str]:
    """Say what was seen, never more (design rule 5)."""
    if steps.probe is ProbeResult.ALLOWED:
        return Outcome.PENDING, "", f"it was ended and is still {'honoured' if steps.proof == 'tried' else 'listed'}"
    if strength is Strength.EXPIRES_ONLY:
        if not (math.isfinite(lease.expires_at) and lease.expires_at > 0):
            return Outcome.PENDING, "", "it cannot be revoked and its expiry is not known"
        if steps.probe is ProbeResult.REFUSED and not failure:
            return Outcome.VERIFIED, steps.proof, ""
        return Outcome.EXPIRES_AT, "expiry" if now >= lease.expires_at else "", failure
    if not steps.end_returned:
        return Outcome.PENDING, "", failure or "it was not ended"
    if strength is Strength.KEY_DESTROYED:
        if not key_destroyed:
            return Outcome.PENDING, "", "its key is not known to be destroyed"
        return Outcome.BY_CONSTRUCTION, "key-destroyed", failure
    if failure:
        return Outcome.PENDING, "", f"ended, not proven: {failure}"
    if steps.probe is ProbeResult.REFUSED:
        return Outcome.VERIFIED, steps.proof, ""
    return Outcome.PENDING, "", "ended, not proven: the backend could not be asked"
