# SPDX-License-Identifier: Apache-2.0
"""Whose lease it is, when it is due, what its id says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitwi.errors import JournalError
from jitwi.journal import LeaseStatus, ends_at_of, is_alive, new_lease_id, this_owner
from jitwi.journal.due import (
    BACKOFF_BASE_SECONDS,
    BACKOFF_CAP_SECONDS,
    MAX_DELAY_SECONDS,
    OVERDUE_GRACE_SECONDS,
    backoff,
    is_due,
    must_end_at,
)
from jitwi.journal.lease_id import is_lease_id
from jitwi.journal.owner import HEARTBEAT_STALE_SECONDS, Sighting, host_id, look_up

NOW = 1_800_000_000.0
STALE = HEARTBEAT_STALE_SECONDS


def test_this_owner_is_seen():
    """This process finds itself, and every token is new."""
    me = this_owner()
    assert (me.pid, me.host) == (os.getpid(), host_id())
    assert me.started_at > 0
    assert look_up(me) is Sighting.PRESENT
    assert this_owner().token != me.token


@pytest.mark.parametrize(
    ("change", "sighting"),
    [
        ({}, Sighting.PRESENT),
        ({"token": "other"}, Sighting.PRESENT),
        ({"started_at": 1}, Sighting.ABSENT),
        ({"pid": 4_194_305}, Sighting.ABSENT),
        ({"host": "another-boot/1"}, Sighting.UNKNOWN),
        ({"host": ""}, Sighting.UNKNOWN),
        ({"started_at": 0}, Sighting.UNKNOWN),
        ({"pid": 0}, Sighting.UNKNOWN),
        ({"pid": 1, "started_at": 10**12}, Sighting.ABSENT),
    ],
    ids=str,
)
def test_look_up(change, sighting):
    """A pid alone is nothing: start time, boot and pid namespace must match."""
    assert look_up(attrs.evolve(this_owner(), **change)) is sighting


@pytest.mark.parametrize(
    ("sighting", "beat", "alive"),
    [
        (Sighting.PRESENT, NOW, True),
        (Sighting.PRESENT, NOW - STALE, True),
        (Sighting.PRESENT, NOW - STALE - 1, False),
        (Sighting.PRESENT, NOW + STALE + 1, False),
        (Sighting.PRESENT, None, False),
        (Sighting.ABSENT, NOW, False),
        (Sighting.ABSENT, None, False),
        (Sighting.UNKNOWN, NOW, True),
        (Sighting.UNKNOWN, NOW - STALE - 1, False),
        (Sighting.UNKNOWN, None, False),
    ],
    ids=str,
)
def test_is_alive(sighting, beat, alive):
    """Known to be gone is gone; otherwise a young heartbeat is needed, from another boot above all."""
    assert is_alive(this_owner(), beat, NOW, sighting=sighting) is alive


def test_real_processes():
    """A stopped process is there, a zombie and a reaped one are not, and its command name cannot forge its fields."""
    program = (
        "import ctypes, time\n"
        "ctypes.CDLL(None).prctl(15, b'x) Z 1 (', 0, 0, 0)\n"
        "from jitwi.journal import this_owner\n"
        "me = this_owner(); print(me.pid, me.started_at, flush=True); time.sleep(100)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid, started_at = map(int, child.stdout.readline().split())
    owner = attrs.evolve(this_owner(), pid=pid, started_at=started_at)
    assert look_up(owner) is Sighting.PRESENT
    child.send_signal(signal.SIGSTOP)
    assert look_up(owner) is Sighting.PRESENT
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert look_up(owner) is Sighting.ABSENT
    child.communicate()
    assert look_up(owner) is Sighting.ABSENT


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_another_owner():
    """After a fork the child has a name of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            mine = this_owner()
            os.write(write, f"{mine.pid} {mine.token}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as pipe:
        assert pipe.read().split()[0] == str(pid)


@given(st.floats(0, 2**35 - 2))
def test_lease_id_tells_its_end(ends_at):
    """An id says when the lease must be over: never before, a second after at most."""
    lease_id = new_lease_id(ends_at=ends_at)
    assert len(lease_id) == len("jitwi-") + 26
    assert is_lease_id(lease_id)
    assert ends_at <= ends_at_of(lease_id) <= ends_at + 1


@pytest.mark.parametrize("ends_at", [-1, float("nan"), float("inf"), 2.0**35, 1e300])
def test_lease_id_bounds(ends_at):
    """A time that does not fit makes no id."""
    with pytest.raises(JournalError):
        new_lease_id(ends_at=ends_at)


@pytest.mark.parametrize(
    "text",
    ["", "jitwi-", "jitwi-" + "0" * 25, "jitwi-" + "0" * 27, "jitwi-1" + "0" * 25, "JITWI-" + "0" * 26]
    + ["jitwi-0" + bad * 25 for bad in ("i", "l", "o", "u", "A", "\u0660", "\n")]
    + ["jitwi-" + "0" * 26 + "\n", "jitwi_" + "0" * 26, None, 7],
)
def test_not_a_lease_id(text):
    """Anything else is no id of ours and tells no time."""
    assert not is_lease_id(text)
    assert ends_at_of(text) is None


DUE = [
    # status, owner alive, next_attempt_at, ends_in -> due
    (LeaseStatus.ENDED, False, 0, -100, False),
    (LeaseStatus.INTENDED, True, 0, 60, False),
    (LeaseStatus.ACTIVE, True, 0, 60, False),
    (LeaseStatus.INTENDED, False, 0, 60, True),
    (LeaseStatus.ACTIVE, False, 0, 60, True),
    (LeaseStatus.ACTIVE, False, NOW + 1, 60, False),
    (LeaseStatus.ACTIVE, True, 0, -OVERDUE_GRACE_SECONDS, True),
    (LeaseStatus.INTENDED, True, 0, -OVERDUE_GRACE_SECONDS, True),
    (LeaseStatus.ACTIVE, True, 0, -OVERDUE_GRACE_SECONDS + 0.001, False),
    (LeaseStatus.ENDING, True, 0, 60, True),
    (LeaseStatus.ENDING, True, NOW, 60, True),
    (LeaseStatus.ENDING, True, NOW + 0.001, 60, False),
    (LeaseStatus.ENDING, False, NOW + MAX_DELAY_SECONDS, -100, False),
    (LeaseStatus.ENDING, False, NOW + MAX_DELAY_SECONDS + 1, -100, True),
]


@pytest.mark.parametrize(("status", "alive", "next_attempt_at", "ends_in", "due"), DUE, ids=str)
def test_is_due(record, status, alive, next_attempt_at, ends_in, due):
    """Begun endings are anybody's; the rest is its owner's while that lives; a clock set back delays nothing."""
    lease = record(lease_id="jitwi-other", status=status, next_attempt_at=next_attempt_at, expires_at=NOW + ends_in)
    assert is_due(lease, owner_is_alive=alive, now=NOW) is due


def test_the_id_bounds_the_record(record):
    """A backend's own later expiry does not keep a lease beyond the end of its task."""
    lease = record(ends_in=10, expires_at=NOW + 3600)
    assert must_end_at(lease) == NOW + 10


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_backoff(attempts, jitter):
    """Tries get rarer up to a cap and never stop."""
    delay = backoff(attempts, jitter=jitter)
    assert BACKOFF_BASE_SECONDS / 2 <= delay <= BACKOFF_CAP_SECONDS
    assert backoff(attempts + 1, jitter=jitter) >= delay
