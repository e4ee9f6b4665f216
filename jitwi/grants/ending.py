# SPDX-License-Identifier: Apache-2.0
"""Ending a grant: children first, then what lives in this process, then the backends, then the record.

Holds `Ending` and the procedure in two halves: the first makes a grant dead at once and never waits for anybody, the
second ends its credentials one by one and may wait for backends. Both can be done again after an interrupt. Does not
hold how one credential is ended and proven: that is `jitwi.credentials.ending`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from jitwi.audit.events import CredentialEnded, GrantEnded
from jitwi.clock import as_datetime
from jitwi.credentials import CredentialEnding, Outcome, end_lease
from jitwi.credentials.bounded import describe_failure
from jitwi.errors import JitwiError
from jitwi.grants.lease import EndCause, LeaseState

if TYPE_CHECKING:
    from datetime import datetime

    from jitwi.grants.grant import Grant
    from jitwi.grants.slot import Slot

__all__ = ["Ending", "complete", "complete_now", "destroy", "end_now", "end_slot", "ending_of", "stop"]

_log = logging.getLogger("jitwi")


@attrs.frozen
class Ending:
    """How a grant ended, as known at one moment.

    Args:
        cause: Why.
        ended_at: When it stopped being usable.
        credentials: How each of its credentials ended.
    """

    cause: EndCause
    ended_at: datetime
    credentials: tuple[CredentialEnding, ...] = ()

    @property
    def is_pending(self) -> bool:
        """True if some credential's end is not proven yet and is still being worked on."""
        return any(c.outcome is Outcome.PENDING for c in self.credentials)


def ending_of(grant: Grant) -> Ending | None:
    """Return how a grant ended, as known now; None while it lives."""
    lease = grant.lease
    if lease.state not in (LeaseState.ENDING, LeaseState.ENDED) or lease.cause is None or grant.ended_at is None:
        return None
    known = tuple(slot.ending or _not_yet(slot) for slot in grant.slots.values())
    return Ending(lease.cause, as_datetime(grant.ended_at.wall), known)


def _not_yet(slot: Slot) -> CredentialEnding:
    return CredentialEnding(
        lease_id=slot.lease_id,
        issuer=slot.name,
        kind=slot.plan.kind,
        outcome=Outcome.PENDING,
        proof="",
        detail="not tried yet",
        expires_at=slot.ref.expires_at,
    )


def stop(grant: Grant, cause: EndCause) -> None:
    """Make a grant and everything below it dead at once; the rest of the ending is done in the background."""
    is_first = True
    try:
        is_first = _stop(grant, cause)
    finally:
        if is_first:
            grant.runtime.watchdog.work(lambda: complete(grant, cause))


def end_now(grant: Grant, cause: EndCause, detail: str = "") -> Ending:
    """End a grant and wait for its backends, each as long as the settings allow.

    Args:
        grant: Which.
        cause: Why; a cause that was there first stays.
        detail: For the record.

    Returns:
        The ending as known then.
    """
    complete_now(grant, cause, detail)
    return ending_of(grant) or Ending(cause, as_datetime(grant.runtime.clock.now().wall))


def complete_now(grant: Grant, cause: EndCause, detail: str = "") -> None:
    """Do as `end_now` does, for a caller who does not ask how it went."""
    try:
        complete(grant, cause, detail)
    except BaseException:
        grant.runtime.watchdog.work(lambda: complete(grant, cause, detail))
        raise


def complete(grant: Grant, cause: EndCause, detail: str = "") -> None:
    """Do all of an ending that is still to be done, from wherever an interrupt has left it."""
    _stop(grant, cause)
    _finish(grant, detail)


def _stop(grant: Grant, cause: EndCause) -> bool:
    with grant.lock:
        if grant.ended_at is None:
            grant.ended_at = grant.runtime.clock.now()
        first = grant.lease.begin_end(cause)
    interrupt: BaseException | None = None
    for child in reversed(grant.children):
        try:
            _stop(child, EndCause.PARENT_ENDED)
        except BaseException as error:  # noqa: BLE001 - passed on once everything is dead
            interrupt = error
    for slot in list(grant.slots.values()):
        try:
            destroy(slot)
        except BaseException as error:  # noqa: BLE001 - the same
            interrupt = error
    if interrupt is not None:
        raise interrupt
    return first


def destroy(slot: Slot) -> None:
    """Drop what lives in this process; a handle that fails in it stops nothing else."""
    if slot.handle is None:
        return
    try:
        slot.handle.destroy()
    except Exception as error:  # noqa: BLE001 - somebody else's code
        _log.error("handle of %s was not destroyed: %s", slot.lease_id, describe_failure(error))


def _is_destroyed(slot: Slot) -> bool:
    try:
        return slot.handle is None or slot.handle.is_destroyed
    except Exception as error:  # noqa: BLE001 - somebody else's code
        _log.error("handle of %s does not answer: %s", slot.lease_id, describe_failure(error))
        return False


def _finish(grant: Grant, detail: str = "") -> None:
    """One thread at a time; a step that an interrupt cut short is done again, so the record may say a thing twice."""
    for child in reversed(grant.children):
        _finish(child)
    with grant.finish_lock:
        if grant.lease.state is LeaseState.ENDED:
            return
        runtime = grant.runtime
        slots = list(grant.slots.values())
        for slot in reversed(slots):
            _publish(grant, slot)
            if slot.ending is None:
                end_slot(grant, slot)
        _report(grant, slots, detail)
        if grant.parent is not None:
            grant.parent.forget(grant)
        runtime.registry.remove(grant.id)
        grant.lease.finish_end()
    _call_back(grant)


def _publish(grant: Grant, slot: Slot) -> None:
    """Tell the Guards of this host; those that do not see it miss the proof instead, as the key is gone."""
    if slot.handle is None:
        return
    try:
        for key in slot.handle.public_ids:
            grant.runtime.endings.publish(key, expires_at=slot.ref.expires_at)
    except Exception as error:  # noqa: BLE001 - somebody else's code
        _log.warning("ending of %s was not published: %s", slot.lease_id, describe_failure(error))


def end_slot(grant: Grant, slot: Slot) -> None:
    """End one credential, prove it, and write down how it went; what is pending is tried again later."""
    now = grant.runtime.clock.now().wall
    if not _is_destroyed(slot):
        destroy(slot)
    end_lease(
        slot.issuer,
        slot.plan,
        slot.ref,
        now=now,
        timeout=grant.runtime.settings.end_timeout,
        key_destroyed=_is_destroyed(slot),
        record=lambda ended: _note(grant, slot, ended, now),
    )


def _note(grant: Grant, slot: Slot, ended: CredentialEnding, now: float) -> None:
    """Write down how one credential ended; done before an interrupt that came meanwhile goes on."""
    runtime = grant.runtime
    if slot.is_being_made and ended.outcome in (Outcome.VERIFIED, Outcome.BY_CONSTRUCTION):
        ended = attrs.evolve(ended, outcome=Outcome.PENDING, proof="", detail="its issuer is still making it")
    slot.ending = ended
    pending = ended.outcome is Outcome.PENDING
    if slot.plan.has_outside_effects:
        try:
            if pending:
                runtime.journal.ending(slot.lease_id, detail=ended.detail, next_attempt_at=now)
            else:
                runtime.journal.ended(slot.lease_id, outcome=ended.outcome.value)
        except JitwiError as error:
            _log.error("journal: %s", error)
    runtime.audit.record_loss(
        CredentialEnded(
            grant.subject,
            slot.lease_id,
            slot.name,
            ended.outcome.value,
            ended.proof,
            ended.detail,
            ended.expires_at,
        ),
        durable=not pending,
    )
    if pending:
        _log.error("credential %s of issuer `%s` is not ended yet: %s", slot.lease_id, slot.name, ended.detail)
        runtime.watchdog.owe(grant, slot)
    elif slot.ref.secret is not None:
        slot.ref.secret.destroy()


def _report(grant: Grant, slots: list[Slot], detail: str) -> None:
    runtime = grant.runtime
    lease = grant.lease
    cause = lease.cause or EndCause.REVOKED
    outcomes = tuple([s.ending.outcome.value for s in slots if s.ending is not None]) if slots else ()
    runtime.audit.record_loss(GrantEnded(grant.subject, cause.value, detail, lease.used, outcomes), durable=bool(slots))


def _call_back(grant: Grant) -> None:
    callback = grant.runtime.settings.on_ending
    ending = None if callback is None else ending_of(grant)
    if callback is None or ending is None:
        return
    try:
        callback(grant, ending)
    except Exception:  # noqa: BLE001 - the user's code must not stop an ending
        _log.exception("`on_ending` raised")
