# SPDX-License-Identifier: Apache-2.0
"""Bars 6, 7, 26 and 27: backends that are down, lie or hang, issuers that raise anything, and repeated revokes.

What must hold: an ending is never reported as better than it is, it is never given up, the other credentials of the
same grant end whatever one of them does, and the user's own error comes out.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

import jitwi
import jitwi.testing.backend_issuer
from jitwi.audit.events import CredentialEnded, GrantEnded
from jitwi.clock import SystemClock
from jitwi.credentials import CredentialHandle, Issued, Outcome, Plan, ProbeResult, Strength, make_reaper
from jitwi.errors import GrantError, IssuanceError, JitwiError
from jitwi.grants import EndCause, watchdog
from jitwi.issuers import TaskTokens
from jitwi.journal import SqliteJournal, journal_path, new_lease_id
from jitwi.policy import PolicyStore
from jitwi.secret import Secret
from jitwi.testing import BackendIssuer, RecordingSink, TestingBackend
from jitwi.testing import jit as make_jit

PROGRAM = Path(__file__).parent / "programs" / "holds_ten.py"
REVOKES = int(os.environ.get("JITWI_REVOKES", "1000"))
SCHEMA = """namespace S { entity O;
action a, r, t appliesTo { principal: [Jitwi::Workload], resource: [O], context: { task: Jitwi::Task } }; }"""
ORDER = jitwi.Entity("S::O", "1")
TTL = timedelta(minutes=5)


class BodyError(Exception):
    """What a test's block raises."""


def wait_for(condition, *, seconds=15.0):
    """Wait until `condition()` holds; returns whether it did."""
    pause = threading.Event()
    for _ in range(int(seconds * 50)):
        if condition():
            return True
        pause.wait(0.02)
    return condition()


def new_jit(issuers, folder, **settings):
    """Return a started `JIT` and what it records."""
    sink = RecordingSink()
    store = PolicyStore.from_text(policies="permit (principal, action, resource);", schema=SCHEMA)
    settings.setdefault("end_timeout", timedelta(seconds=1))
    jit = make_jit("spiffe://example.org/a", store, issuers=issuers, audit=sink, state_dir=folder, **settings)
    return jit.start(), sink


def open_task(jit, **more):
    """Return a block for all three actions."""
    return jit.task("x", permissions={"a": ORDER, "r": ORDER, "t": ORDER}, ttl=TTL, **more)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    """A hundred cases wait for a second try each: it comes soon."""
    monkeypatch.setattr(watchdog, "_FIRST_RETRY", 0.1)
    monkeypatch.setattr(watchdog, "_TICK", 0.05)


@pytest.fixture
def folder():
    """Return a short folder."""
    folder = Path(tempfile.mkdtemp(prefix="jw"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def backend():
    """Return a running backend."""
    with TestingBackend() as backend:
        yield backend


# -- bar 6: the backend is down ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["killed", "paused"])
def test_ten_endings_survive_an_outage_and_the_death_of_their_process(backend, folder, outage):
    """All ten say pending; the process is killed too; a reaper has them over within 10 s of the backend's return."""
    issuer = BackendIssuer(backend.address, backend.admin_token, timeout=0.5)
    holder = subprocess.Popen(
        [sys.executable, str(PROGRAM), backend.address, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JITWI_ADMIN": backend.admin_token.reveal()},
    )
    with holder:
        assert holder.stdout.readline() == "holding\n"
        assert len(issuer.outstanding()) == 10
        if outage == "killed":
            backend.kill()
        else:
            backend.pause()
        holder.stdin.write("leave\n")
        holder.stdin.flush()
        said = [holder.stdout.readline().strip() for _ in range(10 if outage == "killed" else 5)]
        holder.kill()
    assert set(said) == {"pending"}

    clock = SystemClock()
    journal = SqliteJournal(journal_path(folder), clock=clock)
    reaper = make_reaper(journal, {"backend": issuer}, clock=clock, timeout=2.0)
    stop = threading.Event()
    loop = threading.Thread(target=reaper.run, args=(stop,), kwargs={"interval": 0.3})
    loop.start()
    try:
        stop.wait(3)
        assert len(journal.open_leases()) == 10
        if outage == "killed":
            backend.start()
        else:
            backend.resume()
        back_at = time.monotonic()
        assert wait_for(lambda: issuer.outstanding() == () and journal.open_leases() == ())
        assert time.monotonic() - back_at <= 10.0
    finally:
        stop.set()
        loop.join(20)
        journal.close()
    assert backend.sessions() == []


@pytest.mark.slow
def test_the_living_process_finishes_ten_endings_after_the_outage(backend, folder):
    """Pending while it is down, verified within 10 s of its return, and nobody else had to do it."""
    issuer = BackendIssuer(backend.address, backend.admin_token, serves=["a"], timeout=0.5)
    jit, sink = new_jit({"backend": issuer}, folder)
    with jit:
        grants = []
        for _ in range(10):
            with open_task(jit) as grant:
                grant.credential("backend").open_session()
                grants.append(grant)
                if len(grants) == 10:
                    backend.kill()
            if len(grants) < 10:
                assert grant.ending.credentials[0].outcome is Outcome.VERIFIED
        with pytest.raises(JitwiError), open_task(jit) as grant:
            grant.credential("backend")
        assert grants[-1].ending.is_pending
        assert "verified" not in [e.outcome for e in sink.of(CredentialEnded) if e.subject is grants[-1].subject]
        threading.Event().wait(3)
        backend.start()
        back_at = time.monotonic()
        assert wait_for(lambda: not grants[-1].ending.is_pending and issuer.outstanding() == ())
        assert time.monotonic() - back_at <= 10.0


def test_the_waiting_time_between_two_tries_is_capped_below_ten_seconds(folder):
    """However long the outage was, the next try comes within a few seconds: never a minute after the return."""
    rogue = Memory(fault=("end", OSError, 10**6))
    jit, _ = new_jit({"rogue": rogue}, folder)
    with jit:
        with open_task(jit) as grant:
            grant.credential("rogue")
        runtime = grant.runtime
        runtime.watchdog._try_again(3600.0, grant, grant.slots["rogue"])
        now = runtime.clock.now().boot
        assert [entry[0] - now <= 5.0 for entry in runtime.watchdog._owed] == [True]
        rogue.heal()


# -- bar 7: "revoked", but access lives ----------------------------------------------------------------------------

LIES = [
    # (operation, fault) -> what may be said at once; after it is lifted everything must be verified
    ((), Outcome.VERIFIED),
    (("end", "slow"), Outcome.VERIFIED),
    (("end", "fail"), Outcome.PENDING),
    (("end", "hang"), Outcome.PENDING),
    (("end", "cut"), Outcome.PENDING),
    (("end", "lie"), Outcome.PENDING),
    (("end", "hide"), Outcome.PENDING),
    (("end", "keep-sessions"), Outcome.PENDING),
    (("check", "fail"), Outcome.PENDING),
    (("check", "hang"), Outcome.PENDING),
    (("list", "fail"), Outcome.PENDING),
    (("list", "hang"), Outcome.PENDING),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "said"), LIES, ids=lambda v: "-".join(v) or "none" if isinstance(v, tuple) else None)
def test_verified_is_said_only_after_credential_and_session_are_dead(backend, folder, fault, said):
    """Whatever the backend says, hides or leaves open: pending until it was tried; then both are refused at once."""
    issuer = BackendIssuer(backend.address, backend.admin_token, serves=["a"], timeout=0.5)
    jit, _ = new_jit({"backend": issuer}, folder)
    with jit:
        with open_task(jit) as grant:
            handle = grant.credential("backend")
            secret = Secret(handle._secret.reveal())
            session = handle.open_session()
            if fault:
                backend.fault(*fault, seconds=0.2)
        assert grant.ending.credentials[0].outcome is said
        backend.heal()
        assert wait_for(lambda: grant.ending.credentials[0].outcome is Outcome.VERIFIED)
        assert (backend.leases(), backend.sessions()) == ([], [])
        with pytest.raises(JitwiError):
            session.unsafe_use_without_gate(str(jitwi.Entity("S::Action", "a")), str(ORDER))
        thief = jitwi.testing.backend_issuer.BackendCredential(None, backend.address, secret)
        with pytest.raises(JitwiError):
            thief.open_session()


# -- bar 26: an issuer that raises anything ------------------------------------------------------------------------


class OwnError(BaseException):
    """Somebody's own BaseException."""


class Memory:
    """An issuer with effects outside the process, kept in a dictionary, that can misbehave at any call.

    Args:
        fault: Method, exception type or `hang`, how often. `issue-after` and `end-after` do their work first.
        is_local: As in the port.
        serves: As in the port.
    """

    kind = "memory"

    def __init__(self, *, fault=None, is_local=False, serves=("r",)):
        self.is_local = is_local
        self.serves = frozenset(serves)
        self.live = set()
        self.calls = Counter()
        self._fault = fault
        self._left = 0 if fault is None else fault[2]
        self.healed = threading.Event()

    def heal(self):
        """Behave from now on."""
        self._left = 0
        self.healed.set()

    def trip(self, place):
        """Misbehave, if this is the place."""
        self.calls[place] += 1
        if self._fault is None or self._fault[0] != place or self._left <= 0:
            return
        self._left -= 1
        if self._fault[1] == "hang":
            self.healed.wait(30)
            return
        raise self._fault[1]("told to")

    def start(self, services):
        """Nothing."""

    def plan(self, order):
        """Plan."""
        self.trip("plan")
        return Plan(
            kind=self.kind,
            strength=Strength.REFUSED_AT_NEXT_USE,
            is_bearer=True,
            expires_at=order.ends_at,
            has_outside_effects=True,
        )

    def issue(self, order, plan):
        """Make it."""
        self.trip("issue")
        self.live.add(order.lease_id)
        self.trip("issue-after")
        return Issued(plan.expires_at, Secret(order.lease_id))

    def handle(self, order, plan, issued, gate):
        """Wrap it."""
        self.trip("handle")
        return MemoryHandle(gate, self)

    def end(self, lease):
        """End it."""
        self.trip("end")
        self.live.discard(lease.lease_id)
        self.trip("end-after")

    def probe(self, lease, permission=None):
        """Look."""
        self.trip("probe")
        return ProbeResult.ALLOWED if lease.lease_id in self.live else ProbeResult.REFUSED

    def outstanding(self):
        """List."""
        self.trip("outstanding")
        return tuple(self.live)


class MemoryHandle(CredentialHandle):
    """A handle that can misbehave where the grant ends it."""

    __slots__ = ("_issuer",)

    def __init__(self, gate, issuer):
        super().__init__(gate, kind=issuer.kind)
        self._issuer = issuer

    @property
    def public_ids(self):
        """None, or trouble."""
        self._issuer.trip("public_ids")
        return ()

    @property
    def is_destroyed(self):
        """The truth, or trouble."""
        self._issuer.trip("is_destroyed")
        return super().is_destroyed

    def destroy(self):
        """Drop it, or trouble."""
        self._issuer.trip("destroy")
        super().destroy()


RAISED = [ValueError, IssuanceError, KeyboardInterrupt, SystemExit, OwnError]
WHILE_MAKING = ["plan", "issue", "issue-after", "handle"]
WHILE_ENDING = ["end", "end-after", "probe", "destroy", "public_ids", "is_destroyed"]
SOME_INTERRUPTS = (KeyboardInterrupt, SystemExit, OwnError)


def kinds_of_trouble(places, never_hang=()):
    """Return every place with every exception and a hang, for issuers in a thread and local ones."""
    raised = [(place, one, is_local) for place in places for one in RAISED for is_local in (False, True)]
    return raised + [(place, "hang", False) for place in places if place not in never_hang]


def name_of(value):
    """Name a parameter."""
    return value.__name__ if isinstance(value, type) else None


@pytest.mark.parametrize(("place", "raised", "is_local"), kinds_of_trouble(WHILE_MAKING), ids=name_of)
def test_an_issuer_that_fails_in_any_way_while_making_leaves_nothing(folder, place, raised, is_local):
    """The error is ours (an interrupt stays one), the half-made credential ends, the others work on and end too."""
    rogue = Memory(fault=(place, raised, 1), is_local=is_local)
    good = Memory(serves=["a"])
    tokens = TaskTokens("https://orders.example.org", serves=["t"])
    jit, sink = new_jit(
        {"good": good, "rogue": rogue, "api": tokens}, folder, issuer_timeout=timedelta(milliseconds=300)
    )
    with jit:
        with pytest.raises(BodyError), open_task(jit) as grant:
            first, token = grant.credential("good"), grant.credential("api")
            with pytest.raises(BaseException) as failed:  # noqa: PT011 - interrupts too
                grant.credential("rogue")
            is_interrupt = is_local and raised in SOME_INTERRUPTS
            assert isinstance(failed.value, raised if is_interrupt else JitwiError)
            assert grant.is_live
            assert not first.is_destroyed
            token.headers("GET", "https://orders.example.org/1", "t", ORDER)
            raise BodyError
        rogue.heal()
        assert wait_for(lambda: not grant.ending.is_pending)
        assert wait_for(lambda: not (rogue.live | good.live))
        assert jit.live_grants == ()
        assert grant.ending.cause is EndCause.BLOCK_FAILED
        assert len(sink.of(GrantEnded)) == 1
        outcomes = {c.issuer: c.outcome for c in grant.ending.credentials}
        assert (outcomes["good"], outcomes["api"]) == (Outcome.VERIFIED, Outcome.BY_CONSTRUCTION)
        assert grant.runtime.watchdog._thread.is_alive()
        assert wait_for(lambda: grant.runtime.journal.open_leases() == ())
        with open_task(jit) as again:
            again.credential("rogue")
    assert rogue.live == set()


@pytest.mark.parametrize(
    ("place", "raised", "is_local"),
    kinds_of_trouble(WHILE_ENDING, {"destroy", "public_ids", "is_destroyed"}),
    ids=name_of,
)
def test_an_issuer_that_fails_in_any_way_while_ending_stops_nothing_else(folder, place, raised, is_local):
    """The body's error comes out, the others are over, this one is pending at most, and in the end it is over too."""
    rogue = Memory(fault=(place, raised, 1), is_local=is_local)
    good = Memory(serves=["a"])
    tokens = TaskTokens("https://orders.example.org", serves=["t"])
    # the rogue is ended between the other two
    jit, sink = new_jit({"good": good, "rogue": rogue, "api": tokens}, folder, end_timeout=timedelta(milliseconds=300))
    with jit:
        came_out = None
        try:
            with open_task(jit) as grant:
                for name in ("good", "rogue", "api"):
                    grant.credential(name)
                raise BodyError
        except BaseException as error:  # noqa: BLE001 - it is looked at
            came_out = error
        in_our_thread = is_local or place in {"destroy", "public_ids", "is_destroyed"}
        if in_our_thread and raised in SOME_INTERRUPTS:  # could be a real one: it is passed on, with ours behind it
            assert type(came_out) in {BodyError, raised}
            assert type(came_out) is BodyError or type(came_out.__context__) is BodyError
        else:
            assert type(came_out) is BodyError
        rogue.heal()
        assert wait_for(lambda: grant.lease.state.value == "ended")
        assert jit.live_grants == ()
        assert wait_for(lambda: not grant.ending.is_pending)
        outcomes = {c.issuer: c.outcome for c in grant.ending.credentials}
        assert outcomes == {"good": Outcome.VERIFIED, "rogue": Outcome.VERIFIED, "api": Outcome.BY_CONSTRUCTION}
        assert rogue.live | good.live == set()
        assert {event.cause for event in sink.of(GrantEnded)} == {EndCause.BLOCK_FAILED.value}
        assert grant.runtime.watchdog._thread.is_alive()
        assert wait_for(lambda: grant.runtime.journal.open_leases() == ())


@pytest.mark.parametrize("raised", [*RAISED, "hang"], ids=name_of)
@pytest.mark.parametrize("place", ["outstanding", "end", "probe"])
def test_a_reaper_goes_on_whatever_one_issuer_does(folder, place, raised):
    """One issuer fails in its listing, end or proof: the other one's leftovers are ended in the same round."""
    rogue, good = Memory(fault=(place, raised, 1)), Memory()
    clock = SystemClock()
    overdue = new_lease_id(ends_at=clock.now().wall - 60)
    rogue.live, good.live = {overdue}, {new_lease_id(ends_at=clock.now().wall - 60)}
    journal = SqliteJournal(journal_path(folder), clock=clock)
    reaper = make_reaper(journal, {"rogue": rogue, "good": good}, clock=clock, timeout=0.3)
    report = reaper.run_once()
    assert good.live == set()
    assert "rogue" in report.errors or [one.ending.outcome for one in report.pending] == ["pending"]
    rogue.heal()
    assert wait_for(lambda: not reaper.run_once().pending and journal.open_leases() == ())
    assert rogue.live == set()
    journal.close()


def test_a_handle_that_hangs_blocks_neither_the_watchdog_nor_other_grants(folder):
    """While one issuer hangs in `handle`, another task's ttl and revoke still work, and so does this one's."""
    rogue = Memory(fault=("handle", "hang", 1))
    jit, _ = new_jit({"rogue": rogue}, folder, issuer_timeout=timedelta(seconds=20))
    with jit:
        block = open_task(jit)
        grant = block.__enter__()
        refused = []

        def obtain():
            try:
                grant.credential("rogue")
            except JitwiError as error:
                refused.append(error)

        stuck = threading.Thread(target=obtain)
        stuck.start()
        assert wait_for(lambda: rogue.calls["handle"] == 1)
        with open_task(jit) as other:
            pass
        assert other.ending is not None
        revoked = threading.Thread(target=grant.revoke, daemon=True)
        revoked.start()
        revoked.join(10)
        assert not grant.is_live
        assert not revoked.is_alive()
        rogue.heal()
        stuck.join(10)
        assert len(refused) == 1
        block.__exit__(None, None, None)
        assert wait_for(lambda: not rogue.live)


def test_an_answer_that_comes_after_the_deadline_is_ended_too(folder):
    """`issue` makes its credential after its deadline, when its ending was proven already: it is ended once more."""
    rogue = Memory(fault=("issue", "hang", 1))
    jit, _ = new_jit({"rogue": rogue}, folder, issuer_timeout=timedelta(milliseconds=200))
    with jit:
        with open_task(jit) as grant, pytest.raises(IssuanceError):
            grant.credential("rogue")
        assert rogue.live == set()
        rogue.heal()
        assert wait_for(lambda: rogue.calls["issue-after"] == 1)
        assert wait_for(lambda: rogue.live == set())
        assert wait_for(lambda: not grant.ending.is_pending)


# -- bar 27: duplicate, concurrent, unknown ------------------------------------------------------------------------


@pytest.mark.slow
def test_concurrent_revokes_have_one_effect_at_the_backend(backend, folder):
    """Many threads revoke, leave and stop the same grants, a reaper beside them: each credential is ended once."""
    issuer = BackendIssuer(backend.address, backend.admin_token, serves=["a"])
    counted = Memory()
    jit, sink = new_jit({"backend": issuer, "counted": counted}, folder, end_timeout=timedelta(seconds=10))
    threads_per_grant = 25
    with jit:
        lease_ids = []
        for _ in range(REVOKES // threads_per_grant):
            block = open_task(jit)
            grant = block.__enter__()
            for name in ("backend", "counted"):
                grant.credential(name)
            lease_ids += [slot.lease_id for slot in grant.slots.values()]
            start = threading.Barrier(threads_per_grant)
            endings = []

            def revoke(number, grant=grant, block=block, start=start, endings=endings):
                start.wait(20)
                if number == 0:
                    block.__exit__(None, None, None)
                    endings.append(grant.ending)
                else:
                    endings.append(grant.revoke())

            threads = [threading.Thread(target=revoke, args=(n,)) for n in range(threads_per_grant)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert len(endings) == threads_per_grant
            assert all(ending == endings[0] for ending in endings)
            assert grant.revoke() == endings[0]
        assert Counter(backend.ends()) == Counter(dict.fromkeys([i for i in lease_ids if i in backend.ends()], 1))
        assert len(backend.ends()) == len(lease_ids) // 2
        assert counted.calls["end"] == len(lease_ids) // 2
        assert len(sink.of(GrantEnded)) == REVOKES // threads_per_grant


def test_a_reaper_beside_the_owner_has_no_second_effect(backend, folder):
    """Overdue for a reaper while its owner is ending it: both try, the backend sees one end that does something."""
    issuer = BackendIssuer(backend.address, backend.admin_token, serves=["a"])
    jit, _ = new_jit({"backend": issuer}, folder)
    clock = SystemClock()
    with jit:
        for _ in range(10):
            with open_task(jit) as grant:
                grant.credential("backend")
                (record,) = grant.runtime.journal.open_leases()
                grant.runtime.journal.ending(record.lease_id, detail="somebody began", next_attempt_at=0.0)
                journal = SqliteJournal(journal_path(folder), clock=clock)
                reaper = make_reaper(journal, {"backend": issuer}, clock=clock)
                beside = threading.Thread(target=reaper.run_once)
                beside.start()
                grant.revoke()
                beside.join(20)
                journal.close()
            assert grant.ending.credentials[0].outcome is Outcome.VERIFIED
    assert set(Counter(backend.ends()).values()) == {1}
    assert len(backend.ends()) == 10


def test_unknown_and_repeated_ends_are_no_errors(backend, folder):
    """A lease that never was: its end is proven like any other; a revoke after the end changes nothing."""
    issuer = BackendIssuer(backend.address, backend.admin_token, serves=["a"])
    jit, sink = new_jit({"backend": issuer}, folder)
    with jit:
        with open_task(jit) as grant:
            handle = grant.credential("backend")
        before = grant.ending
        for _ in range(20):
            assert grant.revoke("again") == before
        with pytest.raises(GrantError):
            handle.use("a", ORDER)
        clock = SystemClock()
        journal = SqliteJournal(journal_path(folder), clock=clock)
        for lease_id in (new_lease_id(ends_at=clock.now().wall), grant.slots["backend"].lease_id):
            journal.ended(lease_id, outcome="verified")
        report = make_reaper(journal, {"backend": issuer}, clock=clock).run_once()
        assert (report.reaped, report.errors) == ((), {})
        journal.close()
    assert len(backend.ends()) == 1
    assert len(sink.of(CredentialEnded)) == 1
