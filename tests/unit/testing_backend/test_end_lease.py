# SPDX-License-Identifier: Apache-2.0
"""An ending is never reported as better than it is: every behaviour of an issuer, and the outcome it must get."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from jitwi.credentials import LeaseRef, Outcome, Plan, ProbeResult, Strength, end_lease
from jitwi.credentials.bounded import MAX_HUNG_PER_NAME, BoundedCall, call_bounded
from jitwi.errors import IssuanceError
from jitwi.secret import Secret

NOW = 1_800_000_000.0
LATER = NOW + 60
CANARY = "hunter2-canary"

FINE, LISTED, TRIED = "", "listed", "tried"


class Scripted:
    """An issuer that does what the row says."""

    def __init__(self, end=None, probe=ProbeResult.REFUSED, *, is_local: bool = False) -> None:
        self._end, self._probe = end, probe
        self.is_local = is_local
        self.calls: list[str] = []
        self.release = threading.Event()

    def _act(self, behaviour):
        if isinstance(behaviour, BaseException) or (
            isinstance(behaviour, type) and issubclass(behaviour, BaseException)
        ):
            raise behaviour
        if behaviour == "hang":
            self.release.wait(30)
            return None
        return behaviour

    def end(self, lease):
        """Act."""
        self.calls.append("end")
        self._act(self._end)

    def probe(self, lease, permission=None):
        """Act."""
        self.calls.append("probe")
        return self._act(self._probe)


def ref(*, secret: bool = False, expires_at: float = LATER, name: str = "orders-db") -> LeaseRef:
    """A lease, with or without its secret."""
    return LeaseRef("jitwi-x", name, "k", {}, expires_at, Secret(CANARY) if secret else None)


BACKEND = (Strength.SESSIONS_CLOSED, Strength.REFUSED_AT_NEXT_USE)
# behaviour of end, of probe, secret still there -> outcome, proof
TABLE = [
    (None, ProbeResult.REFUSED, True, Outcome.VERIFIED, "tried"),
    (None, ProbeResult.REFUSED, False, Outcome.VERIFIED, "listed"),
    (None, ProbeResult.ALLOWED, True, Outcome.PENDING, ""),
    (None, ProbeResult.ALLOWED, False, Outcome.PENDING, ""),
    (None, ProbeResult.UNREACHABLE, True, Outcome.PENDING, ""),
    (None, None, True, Outcome.PENDING, ""),
    (None, "refused", True, Outcome.PENDING, ""),
    (None, True, True, Outcome.PENDING, ""),
    (None, IssuanceError("down"), True, Outcome.PENDING, ""),
    (None, ValueError(CANARY), True, Outcome.PENDING, ""),
    (None, KeyboardInterrupt, True, Outcome.PENDING, ""),
    (None, SystemExit, True, Outcome.PENDING, ""),
    (None, GeneratorExit, True, Outcome.PENDING, ""),
    (None, "hang", True, Outcome.PENDING, ""),
    (IssuanceError("down"), ProbeResult.REFUSED, True, Outcome.PENDING, ""),
    (ValueError(CANARY), ProbeResult.REFUSED, True, Outcome.PENDING, ""),
    (KeyboardInterrupt, ProbeResult.REFUSED, True, Outcome.PENDING, ""),
    (SystemExit, ProbeResult.REFUSED, True, Outcome.PENDING, ""),
    (BaseException, ProbeResult.REFUSED, True, Outcome.PENDING, ""),
    ("hang", ProbeResult.REFUSED, True, Outcome.PENDING, ""),
]


@pytest.mark.parametrize("strength", BACKEND)
@pytest.mark.parametrize(("end", "probe", "secret", "outcome", "proof"), TABLE, ids=str)
def test_backend_outcomes(strength, end, probe, secret, outcome, proof):
    """`verified` only after it was refused or is not listed; every failure, lie, hang and exception is `pending`."""
    issuer = Scripted(end, probe)
    recorded = []
    ending = end_lease(issuer, strength, ref(secret=secret), now=NOW, timeout=0.2, record=recorded.append)
    issuer.release.set()
    assert (ending.outcome, ending.proof) == (outcome, proof)
    assert recorded == [ending]
    assert bool(ending.detail) is (outcome is Outcome.PENDING)
    assert CANARY not in repr(ending)
    assert ending.is_silent is ("hang" in (end, probe))


@pytest.mark.parametrize(
    ("end", "key_destroyed", "outcome"),
    [
        (None, True, Outcome.BY_CONSTRUCTION),
        (None, False, Outcome.PENDING),
        (ValueError, True, Outcome.PENDING),
        ("hang", True, Outcome.PENDING),
    ],
    ids=str,
)
def test_by_construction_only_with_the_key_gone(end, key_destroyed, outcome):
    """`by_construction` is said only where a key was destroyed; nothing is probed, as nothing can be signed."""
    issuer = Scripted(end)
    ending = end_lease(issuer, Strength.KEY_DESTROYED, ref(), now=NOW, timeout=0.2, key_destroyed=key_destroyed)
    issuer.release.set()
    assert ending.outcome is outcome
    assert ending.proof == ("key-destroyed" if outcome is Outcome.BY_CONSTRUCTION else "")
    assert issuer.calls == ["end"]


@pytest.mark.parametrize(
    ("expires_at", "secret", "end", "probe", "outcome", "proof"),
    [
        (LATER, True, None, ProbeResult.REFUSED, Outcome.EXPIRES_AT, ""),
        (LATER, False, None, None, Outcome.EXPIRES_AT, ""),
        (LATER, False, ValueError, None, Outcome.EXPIRES_AT, ""),
        (NOW, False, None, None, Outcome.EXPIRES_AT, "expiry"),
        (NOW, True, None, ProbeResult.REFUSED, Outcome.VERIFIED, "tried"),
        (NOW, True, None, ProbeResult.UNREACHABLE, Outcome.EXPIRES_AT, "expiry"),
        (NOW, True, None, ProbeResult.ALLOWED, Outcome.PENDING, ""),
        (float("inf"), False, None, None, Outcome.PENDING, ""),
        (float("nan"), False, None, None, Outcome.PENDING, ""),
        (0.0, False, None, None, Outcome.PENDING, ""),
    ],
    ids=str,
)
def test_expires_only(expires_at, secret, end, probe, outcome, proof):
    """What cannot be revoked ends at a stated instant, however good its probe looks before it; never without one."""
    issuer = Scripted(end, probe)
    ending = end_lease(issuer, Strength.EXPIRES_ONLY, ref(secret=secret, expires_at=expires_at), now=NOW, timeout=5)
    assert (ending.outcome, ending.proof) == (outcome, proof)
    assert ending.expires_at == expires_at or expires_at != expires_at  # noqa: PLR0124 - NaN


def test_a_secret_destroyed_meanwhile_is_not_tried():
    """A secret that goes away while it is probed proves a listing at most."""
    lease = ref(secret=True)

    class Destroying(Scripted):
        """A stand-in of this test."""

        def probe(self, lease, permission=None):
            """As the test needs it."""
            lease.secret.destroy()
            return ProbeResult.REFUSED

    ending = end_lease(Destroying(), Strength.SESSIONS_CLOSED, lease, now=NOW, timeout=5)
    assert (ending.outcome, ending.proof) == (Outcome.VERIFIED, "listed")


def test_local_issuer_needs_no_thread():
    """A local issuer is called in the calling thread."""
    threads = []

    class Local(Scripted):
        """A stand-in of this test."""

        def end(self, lease):
            """As the test needs it."""
            threads.append(threading.current_thread())

    end_lease(Local(is_local=True), Strength.KEY_DESTROYED, ref(), now=NOW, timeout=5, key_destroyed=True)
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupt_in_a_local_issuer_is_recorded_first(interrupt):
    """An interrupt of the calling thread is passed on, after `pending` was recorded."""
    recorded = []
    with pytest.raises(interrupt):
        end_lease(
            Scripted(interrupt, is_local=True),
            Strength.KEY_DESTROYED,
            ref(),
            now=NOW,
            timeout=5,
            key_destroyed=True,
            record=recorded.append,
        )
    assert [ending.outcome for ending in recorded] == [Outcome.PENDING]


def test_ctrl_c_while_waiting_does_not_stop_the_ending():
    """The first KeyboardInterrupt waits for the backend, then passes on with the true outcome recorded."""
    issuer = Scripted("hang")
    recorded = []

    def interrupt():
        while "end" not in issuer.calls:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        issuer.release.set()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        end_lease(issuer, Strength.SESSIONS_CLOSED, ref(), now=NOW, timeout=20, record=recorded.append)
    assert [ending.outcome for ending in recorded] == [Outcome.VERIFIED]


def test_hanging_calls_are_bounded():
    """Only so many calls to one issuer are left behind; others are not affected, and it is called again later."""
    issuer = Scripted("hang")
    for _ in range(MAX_HUNG_PER_NAME):
        assert end_lease(issuer, BACKEND[0], ref(name="hung"), now=NOW, timeout=0.01).is_silent
    before = len(issuer.calls)
    ending = end_lease(issuer, BACKEND[0], ref(name="hung"), now=NOW, timeout=0.01)
    assert (ending.outcome, ending.is_silent) == (Outcome.PENDING, True)
    assert len(issuer.calls) == before
    assert end_lease(Scripted(), BACKEND[0], ref(name="other"), now=NOW, timeout=5).outcome is Outcome.VERIFIED
    issuer.release.set()
    over = time.monotonic() + 20
    while end_lease(issuer, BACKEND[0], ref(name="hung"), now=NOW, timeout=5).outcome is not Outcome.VERIFIED:
        assert time.monotonic() < over
        time.sleep(0.01)


def test_ending_is_idempotent():
    """Ending twice is ending once: same outcome, and the issuer decides what is left to do."""
    issuer = Scripted()
    first = end_lease(issuer, BACKEND[0], ref(), now=NOW, timeout=5)
    assert end_lease(issuer, BACKEND[0], ref(), now=NOW, timeout=5) == first


def test_late_answer_is_handed_over():
    """What an issuer answers after its deadline is given to `on_late`, so that it can be ended too."""
    release, late = threading.Event(), threading.Event()
    got = []

    def slow():
        release.wait(20)
        return "late"

    with pytest.raises(IssuanceError) as caught:
        call_bounded("late", slow, timeout=0.05, on_late=lambda answer: (got.append(answer), late.set()))
    assert caught.value.reasons == ("deadline",)
    release.set()
    assert late.wait(20)
    assert got == ["late"]


@pytest.mark.parametrize("error", [ValueError(CANARY), KeyboardInterrupt(CANARY), SystemExit(CANARY)])
def test_only_our_errors_leave(error):
    """Whatever an issuer raises in its thread arrives as our own error, without the text of the stranger."""

    def fail():
        raise error

    with pytest.raises(IssuanceError) as caught:
        call_bounded("failing", fail, timeout=5)
    assert caught.value.__cause__ is error
    assert CANARY not in str(caught.value)


def test_abandon_after_the_end_is_none():
    """A call that has finished cannot be given up: its answer counts."""
    call = BoundedCall("quick", lambda: 7)
    call.start()
    assert call.wait(20)
    assert not call.abandon()
    assert call.result() == 7


def test_plan_or_strength():
    """A plan and its strength alone give the same ending."""
    plan = Plan("k", Strength.SESSIONS_CLOSED, is_bearer=True, expires_at=LATER, has_outside_effects=True)
    given = [end_lease(Scripted(), how, ref(), now=NOW, timeout=5) for how in (plan, plan.strength)]
    assert given[0] == given[1]


# --- with the real backend ---------------------------------------------------------------------------------------


def _end(issuer, made, ref, **how):
    return end_lease(issuer, made.plan, ref, now=time.time(), timeout=how.get("timeout", 10))


def test_verified_by_trying(backend, issuer, make):
    """With its secret at hand the end is tried: refused."""
    made = make()
    session = made.handle.open_session()
    ending = _end(issuer, made, made.ref)
    assert (ending.outcome, ending.proof) == (Outcome.VERIFIED, "tried")
    assert (backend.leases(), backend.sessions()) == ([], [])
    with pytest.raises(Exception, match="refused"):
        session.unsafe_use_without_gate(str(made.order.permissions[0].action), str(made.order.permissions[0].resource))


def test_verified_by_listing(issuer, make, crashed):
    """Without its secret the backend's listing is asked."""
    made = make()
    ending = _end(issuer, made, crashed(made.ref))
    assert (ending.outcome, ending.proof) == (Outcome.VERIFIED, "listed")


@pytest.mark.parametrize(
    ("operation", "fault", "with_secret", "outcome"),
    [
        ("end", "lie", True, Outcome.PENDING),
        ("end", "lie", False, Outcome.PENDING),
        ("end", "hide", True, Outcome.PENDING),
        ("end", "keep-sessions", True, Outcome.PENDING),
        ("end", "keep-sessions", False, Outcome.PENDING),
        ("end", "fail", True, Outcome.PENDING),
        ("end", "hang", True, Outcome.PENDING),
        ("end", "cut", True, Outcome.PENDING),
        ("end", "die", True, Outcome.PENDING),
        ("end", "late", True, Outcome.VERIFIED),
        ("check", "fail", True, Outcome.PENDING),
        ("check", "hang", True, Outcome.PENDING),
        ("list", "fail", True, Outcome.PENDING),
        ("list", "hang", False, Outcome.PENDING),
    ],
)
def test_misbehaviour_is_detected(backend, issuer, make, crashed, operation, fault, with_secret, outcome):
    """A backend that lies, fails, hangs or dies never gets a `verified` that it did not earn; later it does."""
    made = make()
    made.handle.open_session()
    backend.fault(operation, fault, seconds=0.2)
    lease = made.ref if with_secret else crashed(made.ref)
    ending = _end(issuer, made, lease)
    assert ending.outcome is outcome
    if fault == "die":
        backend.wait_until_dead()
        backend.start()
    else:
        backend.heal()
    assert _end(issuer, made, lease).outcome is Outcome.VERIFIED
    assert (backend.leases(), backend.sessions()) == ([], [])


def test_backend_down_is_pending(backend, issuer, make):
    """With the backend gone an ending is pending; once it is back it is verified."""
    made = make()
    backend.kill()
    assert _end(issuer, made, made.ref).outcome is Outcome.PENDING
    backend.start()
    assert backend.leases() == [made.order.lease_id]
    assert _end(issuer, made, made.ref).outcome is Outcome.VERIFIED


def test_unknown_lease_is_over(issuer, make):
    """What does not exist is over: a half-answered issue that never happened is verified by listing."""
    order = make.order()
    lease = LeaseRef(order.lease_id, order.issuer, "testing-backend", {}, order.ends_at)
    ending = end_lease(issuer, Strength.SESSIONS_CLOSED, lease, now=time.time(), timeout=10)
    assert (ending.outcome, ending.proof) == (Outcome.VERIFIED, "listed")
