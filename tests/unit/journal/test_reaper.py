# SPDX-License-Identifier: Apache-2.0
"""The reaper: what it ends, what it leaves alone, what it does when nothing works."""

from __future__ import annotations

import itertools
import threading
import time

import attrs
import pytest

from jitwi.errors import JournalError
from jitwi.journal import LeaseStatus, Owner, Reaper, new_lease_id
from jitwi.journal.due import BACKOFF_CAP_SECONDS, OVERDUE_GRACE_SECONDS
from jitwi.journal.reaper import MAX_FAILURES_IN_A_ROW, UNTIMED_ORPHAN_SECONDS

NAME = "orders-db"


@pytest.fixture
def reaped():
    """What the audit was told."""
    return []


@pytest.fixture
def reaper(journal, backend, clock, reaped):
    """A reaper over one backend."""
    return Reaper(journal, {NAME: backend}, clock=clock, on_reaped=reaped.append)


@pytest.fixture
def open_lease(journal, backend, record):
    """Write a lease down and make its credential."""

    def make(owner=None, *, activate=True, make_it=True, **fields):
        lease = record(owner, **fields) if owner is not None else record(**fields)
        journal.intend(lease)
        if make_it:
            backend.live.add(lease.lease_id)
        if activate:
            journal.activate(lease.lease_id, recipe={}, expires_at=lease.expires_at)
        return lease.lease_id

    return make


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("make_it", [True, False])
def test_gone_owner(reaper, backend, journal, open_lease, nobody, reaped, activate, make_it):
    """What a dead process left is ended, half-answered issues too."""
    lease_id = open_lease(nobody, activate=activate, make_it=make_it)
    report = reaper.run_once()
    assert [(one.record.lease_id, one.why, one.ending.outcome) for one in report.reaped] == [
        (lease_id, "owner-gone", "verified")
    ]
    assert report.ended == report.reaped
    assert list(report.reaped) == reaped
    assert (backend.live, backend.gone) == (set(), [True])
    assert journal.open_leases() == ()
    assert reaper.run_once().reaped == ()


def test_live_owner_is_left_alone(reaper, backend, journal, open_lease, me, clock):
    """A live process keeps its leases, whatever the backend lists, until they are overdue."""
    lease_id = open_lease(me, ends_in=60)
    assert reaper.run_once().reaped == ()
    clock.wall += 60 + OVERDUE_GRACE_SECONDS - 0.1
    journal.heartbeat(me, now=clock.wall)
    assert reaper.run_once().reaped == ()
    clock.wall += 0.1
    (one,) = reaper.run_once().reaped
    assert (one.record.lease_id, one.why) == (lease_id, "overdue")
    assert backend.gone == [False]


def test_stalled_owner(reaper, open_lease, me, clock):
    """A process that is there and does not move loses its leases."""
    open_lease(me, ends_in=3600)
    clock.wall += 61
    assert [one.why for one in reaper.run_once().reaped] == ["owner-gone"]


def test_recover_is_for_gone_owners_only(reaper, backend, open_lease, me, nobody, clock):
    """At a start only what earlier processes left is ended, and no backend is asked for its listing."""
    open_lease(me, ends_in=1)
    gone = open_lease(nobody)
    backend.live.add(new_lease_id(ends_at=clock.wall - 100))
    clock.wall += 10
    assert [one.record.lease_id for one in reaper.recover().reaped] == [gone]


def test_pending_is_tried_for_ever(reaper, backend, journal, open_lease, nobody, clock, reaped):
    """A backend that is down is asked again with growing, capped pauses, until it answers."""
    lease_id = open_lease(nobody)
    backend.fault = "down"
    reaper.run_once()
    assert len(backend.calls) == 1
    reaper.run_once()
    assert len(backend.calls) == 1
    tries = []
    for _ in range(4000):
        clock.wall += 0.25
        before = len(backend.calls)
        reaper.run_once()
        if len(backend.calls) > before:
            tries.append(clock.wall)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert len(tries) > 150
    assert max(gaps) <= BACKOFF_CAP_SECONDS + 0.5
    (pending,) = journal.open_leases()
    assert (pending.status, pending.attempts, pending.detail) == (LeaseStatus.ENDING, len(backend.calls), "down")
    assert journal.pending_count(NAME) == 1
    backend.fault = ""
    clock.wall += BACKOFF_CAP_SECONDS
    assert [one.record.lease_id for one in reaper.run_once().ended] == [lease_id]
    assert [one.ending.outcome for one in reaped].count("verified") == 1


def test_unfinished_endings_of_a_live_owner(reaper, journal, open_lease, me, clock):
    """An ending that a live process began and could not finish is anybody's to finish."""
    lease_id = open_lease(me)
    journal.ending(lease_id, detail="down", next_attempt_at=clock.wall + 1)
    assert reaper.run_once().reaped == ()
    clock.wall += 1
    assert [one.why for one in reaper.run_once().reaped] == ["unfinished"]


def test_a_silent_backend_is_not_asked_a_hundred_times(reaper, backend, open_lease, nobody):
    """After some calls without an answer the rest waits for the next round."""
    for _ in range(MAX_FAILURES_IN_A_ROW * 3):
        open_lease(nobody)
    backend.fault = "silent"
    report = reaper.run_once()
    assert len(backend.calls) == MAX_FAILURES_IN_A_ROW
    assert NAME in report.errors


def test_what_fails_does_not_hold_up_the_rest(reaper, backend, open_lease, nobody, clock):
    """Leases that fail again and again come last."""
    bad = {open_lease(nobody) for _ in range(5)}
    backend.poison = bad
    reaper.run_once()
    clock.wall += BACKOFF_CAP_SECONDS
    good = open_lease(nobody)
    backend.calls.clear()
    reaper.run_once()
    assert backend.calls[0] == good


def test_unknown_issuer_is_reported_and_left_alone(reaper, backend, open_lease, nobody):
    """A record is data: for an issuer that is not configured nothing is called."""
    lease_id = open_lease(nobody, issuer="evil")
    report = reaper.run_once()
    assert report.unknown == (lease_id,)
    assert lease_id not in backend.calls


def test_lost_journal(reaper, backend, clock, open_lease, path, me, nobody):
    """With the journal deleted, what the backend lists is ended as soon as its id says that its time is up."""
    for owner in (me, nobody):
        open_lease(owner, ends_in=60)
    leases = set(backend.live)
    for found in path.parent.iterdir():
        found.unlink()
    report = reaper.run_once()
    assert set(report.waiting) == leases
    assert backend.calls == []
    clock.wall += 60 + OVERDUE_GRACE_SECONDS
    report = reaper.run_once()
    assert {one.record.lease_id for one in report.ended} == leases
    assert {one.why for one in report.reaped} == {"orphan"}
    assert backend.live == set()


def test_another_journals_lease_is_left_alone(reaper, backend, clock):
    """A lease that some other journal answers for is not touched before its end, and not by its looks."""
    lease_id = new_lease_id(ends_at=clock.wall + 60)
    backend.live |= {lease_id, "jitwi-other-format", "postgres"}
    for _ in range(5):
        report = reaper.run_once()
        clock.wall += 10
    assert set(report.waiting) == {lease_id, "jitwi-other-format"}
    assert backend.calls == []


def test_untimed_orphan(reaper, backend, clock):
    """An id under our prefix that tells no time is ended once no lease can be that old; others never."""
    backend.live |= {"jitwi-other-format", "postgres"}
    reaper.run_once()
    clock.wall += UNTIMED_ORPHAN_SECONDS - 1
    assert reaper.run_once().reaped == ()
    clock.wall += 1
    assert [one.record.lease_id for one in reaper.run_once().ended] == ["jitwi-other-format"]
    assert backend.live == {"postgres"}


def test_it_came_true_later(reaper, backend, journal, open_lease, me, reaped):
    """A credential whose record says ENDED and that the backend lists again is ended again at once."""
    lease_id = open_lease(me, activate=False, make_it=False)
    journal.ended(lease_id, outcome="verified")
    assert reaper.run_once().reaped == ()
    backend.live.add(lease_id)
    assert [(one.why, one.ending.is_over) for one in reaper.run_once().reaped] == [("orphan", True)]
    assert backend.live == set()
    assert journal.open_leases() == ()


def test_what_lives_until_its_expiry_is_no_orphan(reaper, backend, journal, open_lease, nobody, clock):
    """`expires_at` said that it lives until then: it is an orphan only afterwards."""
    open_lease(nobody, ends_in=60)
    backend.fault = "expires"
    assert [one.ending.outcome for one in reaper.run_once().reaped] == ["expires_at"]
    backend.fault = ""
    assert reaper.run_once().reaped == ()
    clock.wall += 60
    assert [one.why for one in reaper.run_once().reaped] == ["orphan"]


def test_created_between_listing_and_journal(reaper, backend, open_lease, me, monkeypatch):
    """A lease that is made while the reaper looks is never taken for an orphan: the listing is read first."""
    order = []
    listing, lookup = backend.outstanding, reaper._journal.lookup
    monkeypatch.setattr(backend, "outstanding", lambda: (order.append("listing"), listing())[1])
    monkeypatch.setattr(reaper._journal, "lookup", lambda ids: (order.append("journal"), lookup(ids))[1])
    open_lease(me)
    assert reaper.run_once().reaped == ()
    assert order == ["listing", "journal"]


def test_no_journal_no_excuse(backend, clock, reaped, journal, monkeypatch):
    """Without a usable journal, what is overdue by its id is ended all the same, and it is said."""
    lease_id = new_lease_id(ends_at=clock.wall - 10)
    backend.live.add(lease_id)

    def broken(*_, **__):
        raise JournalError("broken")

    for name in ("open_leases", "heartbeats", "lookup", "adopt", "claim", "ended", "ending", "prune"):
        monkeypatch.setattr(journal, name, broken)
    report = Reaper(journal, {NAME: backend}, clock=clock, on_reaped=reaped.append).run_once()
    assert report.errors == {"journal": "broken"}
    assert [one.record.lease_id for one in reaped] == [lease_id]
    assert backend.live == set()


def test_lost_audit_blocks_nothing(journal, backend, clock, open_lease, nobody):
    """A sink that fails does not stop an ending."""
    open_lease(nobody)

    def broken(_):
        raise OSError

    report = Reaper(journal, {NAME: backend}, clock=clock, on_reaped=broken).run_once()
    assert report.errors == {"audit": "OSError"}
    assert backend.live == set()
    assert journal.open_leases() == ()


def test_two_reapers_one_end(journal, backend, clock, open_lease, nobody, path):
    """While one reaper ends a lease another one leaves it alone."""
    open_lease(nobody)
    backend.fault = "hold"
    first = threading.Thread(target=Reaper(journal, {NAME: backend}, clock=clock).run_once)
    first.start()
    assert backend.entered.wait(20)
    second = Reaper(journal, {NAME: backend}, clock=clock).run_once()
    backend.release.set()
    first.join(20)
    assert second.reaped == ()
    assert len(backend.calls) == 1
    assert journal.open_leases() == ()


def test_a_dead_reapers_claim_is_void(journal, backend, clock, open_lease, nobody, reaper):
    """A reaper that was killed in the middle holds up nobody."""
    lease_id = open_lease(nobody)
    dead = attrs.evolve(nobody, token="dead reaper")
    assert journal.claim(lease_id, by=dead, now=clock.wall, until=clock.wall + 30, is_gone=lambda _: False)
    assert [one.record.lease_id for one in reaper.run_once().ended] == [lease_id]


def test_a_far_reapers_claim_lapses(journal, backend, clock, open_lease, nobody, reaper, me):
    """A claim of a process that cannot be looked up holds until it lapses."""
    lease_id = open_lease(nobody)
    far = Owner("elsewhere", 7, 7, "far")
    assert journal.claim(lease_id, by=far, now=clock.wall, until=clock.wall + 30, is_gone=lambda _: False)
    assert reaper.run_once().reaped == ()
    clock.wall += 30
    assert [one.record.lease_id for one in reaper.run_once().ended] == [lease_id]


def test_loop(journal, backend, clock, open_lease, nobody):
    """`run` goes on until it is told to stop; a silent backend does not delay another one."""

    class Other(type(backend)):
        """A stand-in of this test."""

    quick = Other()
    backend.fault = "hold"
    reaper = Reaper(journal, {NAME: backend, "quick": quick}, clock=clock)
    open_lease(nobody)
    lease = open_lease(nobody, issuer="quick", make_it=False)
    stop = threading.Event()
    reports = []
    loop = threading.Thread(target=reaper.run, args=(stop,), kwargs={"interval": 0.02, "on_round": reports.append})
    loop.start()
    assert backend.entered.wait(20)
    over = time.monotonic() + 20
    while lease not in quick.calls:
        assert time.monotonic() < over
        time.sleep(0.01)
    backend.release.set()
    over = time.monotonic() + 20
    while journal.open_leases():
        assert time.monotonic() < over
        time.sleep(0.01)
    stop.set()
    loop.join(20)
    assert not loop.is_alive()
    assert reports


def test_old_records_are_forgotten(reaper, journal, open_lease, nobody, clock):
    """Records that have been over for a week are dropped."""
    lease_id = open_lease(nobody)
    reaper.run_once()
    clock.wall += 6 * 86400
    reaper.run_once()
    assert lease_id in journal.lookup([lease_id])
    clock.wall += 2 * 86400
    reaper.run_once()
    assert journal.lookup([lease_id]) == {}
