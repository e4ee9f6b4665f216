# SPDX-License-Identifier: Apache-2.0
"""The SQLite journal: durable, shared, bounded, private, and never anything but `JournalError`."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import attrs
import pytest

import jitwi.journal.sqlite
from jitwi.errors import JournalError
from jitwi.journal import LeaseStatus, SqliteJournal, journal_path
from jitwi.journal.rows import MAX_RECIPE_BYTES, MAX_RECIPE_ENTRIES, MAX_TEXT_BYTES
from jitwi.secret import Secret


def reason(caught) -> str:
    """The machine-readable reason."""
    return caught.value.reasons[0]


def test_no_io_in_the_constructor(path, clock):
    """Nothing is made before the first call (rule 13)."""
    SqliteJournal(path, clock=clock).close()
    assert not path.parent.exists()


def test_round_trip(journal, record):
    """What is written is what is read."""
    written = record(detail="", recipe={"role": "r", "é": "ü\n"})
    journal.intend(written)
    assert journal.open_leases() == (written,)
    assert journal.lookup([written.lease_id, "jitwi-none"]) == {written.lease_id: written}


def test_life_of_a_record(journal, record, clock):
    """Intended, active, ending, ended; each step keeps what was known, and the recipe grows."""
    lease = record()
    journal.intend(lease)
    journal.activate(lease.lease_id, recipe={"oid": "7"}, expires_at=lease.expires_at + 1)
    (seen,) = journal.open_leases()
    assert (seen.status, seen.recipe) == (LeaseStatus.ACTIVE, {"role": "r", "oid": "7"})
    assert seen.expires_at == lease.expires_at + 1
    for attempt in (1, 2):
        journal.ending(lease.lease_id, detail="down\nagain", next_attempt_at=clock.wall + attempt)
        (seen,) = journal.open_leases()
        assert (seen.status, seen.attempts, seen.detail) == (LeaseStatus.ENDING, attempt, "down\\nagain")
        assert journal.pending_count("orders-db") == 1
    journal.ended(lease.lease_id, outcome="verified")
    assert journal.open_leases() == ()
    assert journal.pending_count("orders-db") == 0
    assert journal.lookup([lease.lease_id])[lease.lease_id].outcome == "verified"


def test_ending_is_idempotent(journal, record):
    """The first outcome stays; a late failure or activation does not reopen what is over."""
    lease = record()
    journal.intend(lease)
    journal.ended(lease.lease_id, outcome="verified")
    journal.ended(lease.lease_id, outcome="expires_at")
    journal.ending(lease.lease_id, detail="late", next_attempt_at=0)
    with pytest.raises(JournalError) as caught:
        journal.activate(lease.lease_id, recipe={}, expires_at=1)
    assert reason(caught) == "being-ended"
    seen = journal.lookup([lease.lease_id])[lease.lease_id]
    assert (seen.status, seen.outcome, seen.attempts) == (LeaseStatus.ENDED, "verified", 0)


def test_unknown_lease(journal):
    """A lease that the journal does not know cannot be activated or noted as pending; ended it is."""
    with pytest.raises(JournalError) as caught:
        journal.activate("jitwi-none", recipe={}, expires_at=1)
    assert reason(caught) == "unknown-lease"
    with pytest.raises(JournalError) as caught:
        journal.ending("jitwi-none", detail="", next_attempt_at=1)
    assert reason(caught) == "unknown-lease"
    journal.ended("jitwi-none", outcome="verified")


def test_one_id_one_record(journal, record):
    """An id cannot be intended twice."""
    lease = record()
    journal.intend(lease)
    with pytest.raises(JournalError) as caught:
        journal.intend(lease)
    assert reason(caught) == "duplicate"


def test_a_claimed_lease_is_not_activated(journal, record, me, clock):
    """Once a reaper has taken a lease its credential is not handed out any more."""
    lease = record()
    journal.intend(lease)
    taken = journal.claim(lease.lease_id, by=me, now=clock.wall, until=clock.wall + 5, is_gone=lambda _: False)
    assert taken is not None
    assert taken.status is LeaseStatus.ENDING
    with pytest.raises(JournalError) as caught:
        journal.activate(lease.lease_id, recipe={}, expires_at=1)
    assert reason(caught) == "being-ended"


def test_claims(journal, record, me, clock):
    """A claim holds until it lapses, its reaper is gone, or the try is written down; then the next waits its turn."""
    lease = record()
    journal.intend(lease)
    other = attrs.evolve(me, token="other")

    def claim(by, *, gone=False):
        now = clock.wall
        return journal.claim(lease.lease_id, by=by, now=now, until=now + 5, is_gone=lambda _: gone) is not None

    assert claim(me)
    assert not claim(other)
    assert claim(other, gone=True)
    clock.wall += 4.9
    assert not claim(me)
    clock.wall += 0.2
    assert claim(me)
    journal.ending(lease.lease_id, detail="", next_attempt_at=clock.wall + 3)
    assert not claim(other)
    clock.wall += 3
    assert claim(other)
    clock.wall -= 86400  # set back: a claim from the future is not believed
    assert claim(me)
    journal.ended(lease.lease_id, outcome="verified")
    assert not claim(other)


def test_heartbeats(journal, record, me):
    """Intending counts as a heartbeat; later ones replace it."""
    lease = record()
    journal.intend(lease)
    assert journal.heartbeats() == {me.token: lease.created_at}
    journal.heartbeat(me, now=lease.created_at + 5)
    assert journal.heartbeats() == {me.token: lease.created_at + 5}


def test_adopt(journal, record):
    """A lease that nobody answers for is written down, or reopened; a live record stays as it is."""
    new, ended, live = record(), record(), record()
    for lease in (ended, live):
        journal.intend(lease)
    journal.ended(ended.lease_id, outcome="verified")
    for lease in (new, ended, live):
        journal.adopt(attrs.evolve(lease, recipe={}))
    seen = journal.lookup([new.lease_id, ended.lease_id, live.lease_id])
    assert seen[new.lease_id].status is LeaseStatus.INTENDED
    assert (seen[ended.lease_id].status, seen[ended.lease_id].outcome) == (LeaseStatus.ENDING, "")
    assert seen[ended.lease_id].recipe == ended.recipe
    assert seen[live.lease_id] == live


def test_prune(journal, record, clock):
    """Only what has been over for long is forgotten, never what is open."""
    old, young, open_one = record(ends_in=1), record(ends_in=1), record(ends_in=1)
    for lease in (old, young, open_one):
        journal.intend(lease)
    journal.ended(old.lease_id, outcome="verified")
    clock.wall += 1000
    journal.ended(young.lease_id, outcome="verified")
    assert journal.prune(ended_before=clock.wall - 500) == 1
    assert set(journal.lookup([old.lease_id, young.lease_id, open_one.lease_id])) == {
        young.lease_id,
        open_one.lease_id,
    }
    assert journal.heartbeats() != {}


@pytest.mark.parametrize(
    "fields",
    [
        {"recipe": {"a": Secret("hunter2")}},
        {"recipe": {"a": 1}},
        {"recipe": {1: "a"}},
        {"recipe": {str(n): "" for n in range(MAX_RECIPE_ENTRIES + 1)}},
        {"recipe": {"a": "x" * MAX_RECIPE_BYTES}},
        {"workload": "x" * (MAX_TEXT_BYTES + 1)},
        {"task": "\ud800"},
        {"issuer": None},
        {"lease_id": ""},
        {"expires_at": float("inf")},
        {"created_at": float("nan")},
        {"expires_at": True},
        {"expires_at": "1"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_bounds(journal, record, fields):
    """A record out of bounds, or with anything but text in its recipe, is refused before it is written."""
    with pytest.raises(JournalError) as caught:
        journal.intend(record(**fields))
    assert reason(caught) == "bounds"
    assert "hunter2" not in str(caught.value)
    assert journal.open_leases() == ()


def test_bounds_are_exact(journal, record):
    """What is just within bounds is taken."""
    size = MAX_RECIPE_BYTES - len(json.dumps({"a": ""}, separators=(",", ":")))
    journal.intend(record(recipe={"a": "x" * size}, workload="x" * MAX_TEXT_BYTES))
    journal.intend(record(recipe={str(n): "" for n in range(MAX_RECIPE_ENTRIES)}))
    assert len(journal.open_leases()) == 2


@pytest.mark.parametrize("recipe", ["", "[1]", '{"a": 1}', "{", "[" * 100_000, "null"])
def test_an_unreadable_recipe_does_not_hide_the_lease(journal, path, record, recipe):
    """A damaged recipe is an empty one, said in the detail: the lease is still ended by its id."""
    lease = record()
    journal.intend(lease)
    with sqlite3.connect(path) as other:
        other.execute("UPDATE leases SET recipe = ?", (recipe,))
    other.close()
    (seen,) = journal.open_leases()
    assert (seen.lease_id, seen.recipe, seen.detail) == (lease.lease_id, {}, "its recipe cannot be read")


def test_private(journal, path, record):
    """Folder 0700, files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        journal.intend(record())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("damage", ["symlink", "hardlink", "folder-symlink", "file-mode", "folder-mode", "directory"])
def test_bent_places_are_refused(path, clock, record, tmp_path, damage):
    """A link, a second name or a place that others can read or write to is refused."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if damage == "folder-symlink":
        path.parent.symlink_to(elsewhere)
    else:
        path.parent.mkdir(mode=0o700)
    if damage == "symlink":
        path.symlink_to(elsewhere / "file")
    elif damage == "hardlink":
        (elsewhere / "file").touch(0o600)
        path.hardlink_to(elsewhere / "file")
    elif damage == "file-mode":
        path.touch()
        path.chmod(0o644)
    elif damage == "folder-mode":
        path.parent.chmod(0o755)
    elif damage == "directory":
        path.mkdir()
    with pytest.raises(JournalError) as caught:
        SqliteJournal(path, clock=clock).intend(record())
    assert reason(caught) in {"link", "file-mode", "folder-mode"}
    assert list(elsewhere.iterdir()) == ([elsewhere / "file"] if damage == "hardlink" else [])


def test_newer_version_is_refused(journal, path, clock, record):
    """A journal of an unknown version is neither read nor changed."""
    journal.intend(record())
    journal.close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 2")
    other.close()
    with pytest.raises(JournalError) as caught:
        SqliteJournal(path, clock=clock).open_leases()
    assert reason(caught) == "schema-version"


def test_foreign_database_is_refused(path, clock, record):
    """Somebody else's database is left alone."""
    path.parent.mkdir(mode=0o700)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (a)")
    other.close()
    path.chmod(0o600)
    with pytest.raises(JournalError) as caught:
        SqliteJournal(path, clock=clock).intend(record())
    assert reason(caught) == "foreign"


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be taken for one" * 100, b"SQLite format 3\0"]
)
def test_damaged_file(path, clock, record, content):
    """A damaged file is a `JournalError`, not a traceback of SQLite."""
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(JournalError) as caught:
        SqliteJournal(path, clock=clock).intend(record())
    assert reason(caught) == "sqlite"


def test_unwritable_folder(tmp_path, clock, record):
    """A folder that cannot be made is a `JournalError`."""
    (tmp_path / "file").touch()
    with pytest.raises(JournalError) as caught:
        SqliteJournal(tmp_path / "file" / "x" / "journal", clock=clock).intend(record())
    assert reason(caught) in {"file", "folder"}


def test_full_disk(journal, path, record):
    """When nothing can be written any more `intend` says so: no credential."""
    journal.intend(record())
    with journal._connected() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill():
        for _ in range(1000):
            journal.intend(record(recipe={"a": "x" * 4000}))

    with pytest.raises(JournalError) as caught:
        fill()
    assert reason(caught) == "sqlite"


def test_locked_file_is_a_bounded_wait(journal, path, record, monkeypatch):
    """Another process that holds the lock costs a bounded wait, then an error."""
    monkeypatch.setattr("jitwi.journal.sqlite.BUSY_SECONDS", 0.2)
    journal.intend(record())
    journal.close()
    short = SqliteJournal(path, clock=journal._clock)
    short.open_leases()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    before = time.monotonic()
    with pytest.raises(JournalError) as caught:
        short.intend(record())
    assert reason(caught) == "busy"
    assert time.monotonic() - before < 30
    other.execute("ROLLBACK")
    other.close()
    short.intend(record())
    short.close()


def test_closed(journal, record):
    """A closed journal says so."""
    journal.intend(record())
    journal.close()
    journal.close()
    with pytest.raises(JournalError) as caught:
        journal.open_leases()
    assert reason(caught) == "closed"


def test_interrupted_before_it_is_made():
    """What an interrupt left half made is collected without a word."""
    half = object.__new__(jitwi.journal.sqlite._PerProcess)
    half.__del__()


def test_closed_in_the_middle_of_a_call(journal, record, monkeypatch):
    """`close()` does not wait for ever for a thread that uses the connection: that one closes it then."""
    monkeypatch.setattr("jitwi.journal.sqlite.BUSY_SECONDS", 0.05)
    journal.intend(record())
    (ours,) = journal._processes.values()
    with journal._connected() as connection:
        closer = threading.Thread(target=journal.close)
        closer.start()
        closer.join(60)
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert ours.connection is None
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")


@pytest.mark.parametrize("victim", ["file", "folder"])
def test_deleted_while_open(journal, path, record, victim):
    """A journal that was taken away is noticed: what is intended from now on is at the path again."""
    journal.intend(record())
    for found in list(path.parent.iterdir()):
        found.unlink()
    if victim == "folder":
        path.parent.rmdir()
    lease = record()
    journal.intend(lease)
    other = SqliteJournal(path, clock=journal._clock)
    assert [found.lease_id for found in other.open_leases()] == [lease.lease_id]
    other.close()


def test_interrupted_transaction_is_rolled_back(journal, record, monkeypatch):
    """An interrupt inside a write leaves nothing half written and the journal usable."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SqliteJournal, "_beat", staticmethod(interrupt))
    with pytest.raises(KeyboardInterrupt):
        journal.intend(record())
    monkeypatch.undo()
    assert journal.open_leases() == ()
    journal.intend(record())


def test_intend_is_synced(journal, record):
    """What announces a credential is synced; what only says that one is over is not."""
    levels = {}
    lease = record()
    journal.intend(lease)
    with journal._connected() as connection:
        levels["intend"] = connection.execute("PRAGMA synchronous").fetchone()[0]
    journal.ended(lease.lease_id, outcome="verified")
    with journal._connected() as connection:
        levels["ended"] = connection.execute("PRAGMA synchronous").fetchone()[0]
        levels["mode"] = connection.execute("PRAGMA journal_mode").fetchone()[0]
    assert levels == {"intend": 2, "ended": 1, "mode": "wal"}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork(journal, record):
    """A forked child uses a connection of its own, the lock of its parent does not hang it, the parent goes on."""
    journal.intend(record())
    (ours,) = journal._processes.values()
    ours.lock.acquire()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            journal.intend(record())
            code = 0 if len(journal.open_leases()) == 2 else 2
            inherited = ours.connection
            journal._processes.clear()
            del ours
            code = code or (0 if inherited in jitwi.journal.sqlite._INHERITED else 3)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    ours.lock.release()
    assert os.waitstatus_to_exitcode(status) == 0
    journal.intend(record())
    assert len(journal.open_leases()) == 3


def test_threads(journal, record):
    """Eight threads on one journal: every record is there."""
    leases = [[record() for _ in range(10)] for _ in range(8)]

    def work(mine):
        for lease in mine:
            journal.intend(lease)
            journal.activate(lease.lease_id, recipe={}, expires_at=lease.expires_at)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = journal.open_leases()
    assert {lease.lease_id for lease in found} == {lease.lease_id for mine in leases for lease in mine}
    assert {lease.status for lease in found} == {LeaseStatus.ACTIVE}


WRITER = """
import sys, time
from jitwi.clock import SystemClock
from jitwi.journal import LeaseRecord, SqliteJournal, new_lease_id, this_owner
journal, me = SqliteJournal(sys.argv[1], clock=SystemClock()), this_owner()
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    now = time.time()
    lease_id = new_lease_id(ends_at=now + 60)
    journal.intend(LeaseRecord(lease_id, "g", "t", "orders-db", "k", "w", "n", {}, me, now, now + 60))
    journal.activate(lease_id, recipe={"n": str(number)}, expires_at=now + 60)
    if number % 2:
        journal.ended(lease_id, outcome="verified")
    print(lease_id, flush=True)
"""


def test_four_processes(path, journal):
    """Four processes open a new journal at the same moment and write: no error, nothing lost."""
    count = 20
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    written = set()
    for process in processes:
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        written |= set(output.split())
    assert len(written) == 4 * count
    records = journal.lookup(written)
    assert set(records) == written
    assert len(journal.open_leases()) == 2 * count


def test_killed_writer_leaves_whole_records(path, journal):
    """A writer that is killed leaves every record that it announced, and a file that others use at once."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "100000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdin.write("go\n")
    process.stdin.flush()
    written = {process.stdout.readline().strip() for _ in range(10)}
    process.kill()
    written |= set(process.communicate(timeout=60)[0].split("\n")[:-1])
    assert written <= set(journal.lookup(written))


def test_journal_path():
    """The place of the journal in a state folder is one for all."""
    assert str(journal_path("/s")) == "/s/journal/journal.sqlite3"
