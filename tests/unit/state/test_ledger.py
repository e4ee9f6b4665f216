# SPDX-License-Identifier: Apache-2.0
"""The Guard's memory: exactly once, exact counts, and nothing that was forgotten is accepted again."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jitwi.state.sqlite
from jitwi.clock import SystemClock
from jitwi.errors import SharedStateError
from jitwi.state import ProofLedger, SqliteProofLedger
from jitwi.state.sqlite import SKEW_SECONDS

SALTS = itertools.count()
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def ledger(folder, clock):
    """A ledger on an empty folder."""
    ledger = SqliteProofLedger(folder, clock=clock)
    yield ledger
    ledger.close()


def _together(count, work):
    """Run `work(number)` in `count` threads that start at one moment, and return the results."""
    gate, results = threading.Barrier(count), []

    def run(number: int) -> None:
        gate.wait(60)
        results.append(work(number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(results) == count
    return results


def _remember(gate) -> None:
    """In a process of the pool: keep the gate at which all start at one moment, and be patient on a slow machine."""
    _race.gate = gate
    jitwi.state.sqlite.BUSY_SECONDS = 30.0


def _race(folder, threads, each, keys, limit):
    """Run in another process: spend `limit` uses and show each key, from several threads."""
    ledger = SqliteProofLedger(folder, clock=SystemClock())
    end = SystemClock().now().wall + 600
    _race.gate.wait(60)

    def work(_: int) -> tuple[int, int]:
        counted = sum(bool(ledger.reserve("task", limit=limit, expires_at=end)) for _ in range(each))
        return counted, sum(ledger.first_seen(f"proof-{key}", expires_at=end) for key in range(keys))

    results = _together(threads, work)
    ledger.close()
    return sum(r[0] for r in results), sum(r[1] for r in results)


def test_it_is_the_port(ledger) -> None:
    """The store has every method of the port."""
    assert all(hasattr(ledger, name) for name in vars(ProofLedger) if not name.startswith("_"))


def test_no_io_before_first_use(folder, clock) -> None:
    """The constructor touches no file (rule 13)."""
    SqliteProofLedger(folder, clock=clock).close()
    assert not folder.exists()


def test_once(ledger, clock) -> None:
    """A key is first once, whoever asks."""
    end = clock.wall + 65
    assert [ledger.first_seen("a", expires_at=end) for _ in range(3)] == [True, False, False]
    assert ledger.first_seen("b", expires_at=end)


def test_survives_a_restart(folder, ledger, clock) -> None:
    """What one process saw, the next one on that folder knows."""
    assert ledger.first_seen("a", expires_at=clock.wall + 65)
    ledger.close()
    with closing(SqliteProofLedger(folder, clock=clock)) as later:
        assert not later.first_seen("a", expires_at=clock.wall + 65)


def test_count_is_exact(ledger, clock) -> None:
    """Uses are numbered from 1, the one after the limit gets 0, and one given back can be had again."""
    end = clock.wall + 60
    assert [ledger.reserve("k", limit=2, expires_at=end) for _ in range(3)] == [1, 2, 0]
    ledger.release("k")
    assert [ledger.reserve("k", limit=2, expires_at=end) for _ in range(2)] == [2, 0]


def test_release_never_goes_below_zero(ledger, clock) -> None:
    """Giving back what was never taken wins nothing."""
    ledger.release("k")
    assert ledger.reserve("k", limit=1, expires_at=clock.wall + 60) == 1
    for _ in range(3):
        ledger.release("k")
    assert [ledger.reserve("k", limit=1, expires_at=clock.wall + 60) for _ in range(2)] == [1, 0]


def test_count_outlives_the_first_token(ledger, clock) -> None:
    """A count lives as long as the latest token that it was asked for, so a re-minted token starts no new count."""
    assert ledger.reserve("k", limit=1, expires_at=clock.wall + 60) == 1
    assert ledger.reserve("k", limit=1, expires_at=clock.wall + 600) == 0
    clock.forward(60 + SKEW_SECONDS + 20)
    assert ledger.first_seen("prune now", expires_at=clock.wall + 60)
    assert ledger.reserve("k", limit=1, expires_at=clock.wall + 300) == 0


def test_pruned_only_after_end_and_skew(ledger, clock) -> None:
    """An entry goes when its end and the skew have passed, not before."""
    end = clock.wall + 65
    assert ledger.first_seen("a", expires_at=end)
    for past_end, left in ((SKEW_SECONDS - 1, 1), (SKEW_SECONDS, 0)):
        clock.wall = end + past_end
        clock.boot += 60
        ledger.first_seen(f"other {past_end}", expires_at=clock.wall + 65)
        with sqlite3.connect(ledger.path) as reader:
            query = "SELECT count(*) FROM seen WHERE expires_at = ?"
            assert reader.execute(query, (end,)).fetchone() == (left,)
        reader.close()


def test_clock_set_back_revives_nothing(ledger, clock) -> None:
    """What was pruned is refused after the clock was set back, although its row is gone."""
    start = clock.wall
    assert ledger.first_seen("a", expires_at=start + 65)
    assert ledger.reserve("k", limit=1, expires_at=start + 65) == 1
    clock.forward(3600)
    ledger.first_seen("prune now", expires_at=clock.wall + 65)
    clock.wall = start
    assert not ledger.first_seen("a", expires_at=start + 65)
    assert ledger.reserve("k", limit=1, expires_at=start + 65) == 0


def test_new_store_dates_from_its_maker(folder, clock) -> None:
    """A store is as old as the object that made it at its first use, and keeps that date for who comes later."""
    born = clock.wall
    with closing(SqliteProofLedger(folder, clock=clock)) as first:
        clock.forward(100)
        assert first.created_at == born
        with closing(SqliteProofLedger(folder, clock=clock)) as later:
            assert later.created_at == born


def test_store_taken_away_is_noticed(folder, ledger, clock) -> None:
    """If the file is removed under a running Guard, the next use makes a store that dates from now."""
    end = clock.wall + 1000
    assert ledger.first_seen("a", expires_at=end)
    clock.forward(10)
    for file in folder.iterdir():
        file.unlink()
    ledger.first_seen("b", expires_at=end)
    assert ledger.created_at == clock.wall


def test_store_that_somebody_else_made_anew_is_noticed(folder, ledger, clock) -> None:
    """A store that was taken away is missed also where an older object, that knew nothing of it, made the next one."""
    older = SqliteProofLedger(folder, clock=clock, since=clock.wall)
    clock.forward(50)
    end = clock.wall + 1000
    assert ledger.first_seen("a", expires_at=end)
    for file in folder.iterdir():
        file.unlink()
    clock.forward(10)
    with closing(older):
        assert older.created_at == clock.wall - 60
        assert ledger.created_at == clock.wall
        assert older.created_at == clock.wall
        clock.forward(10)
        assert ledger.first_seen("b", expires_at=end)
        assert older.created_at == ledger.created_at == clock.wall - 10
    ledger.close()
    with closing(SqliteProofLedger(folder, clock=clock)) as later:
        assert later.created_at == clock.wall - 10


@pytest.mark.parametrize("change", ["DELETE FROM meta", "UPDATE meta SET value = 'x'", "UPDATE meta SET value = NULL"])
@pytest.mark.parametrize("is_open", [True, False])
def test_damaged_store_is_a_deny(folder, ledger, clock, change, is_open) -> None:
    """A store without its own marks, or with odd ones, answers with our error, or as a new one; nothing else leaves."""
    end = clock.wall + 100
    assert ledger.first_seen("a", expires_at=end)
    if not is_open:
        ledger.close()
    with closing(sqlite3.connect(folder / "proofs.sqlite3")) as writer:
        writer.execute(change)
        writer.commit()
    with closing(ledger if is_open else SqliteProofLedger(folder, clock=clock)) as found:
        for ask in (
            lambda: found.created_at,
            lambda: found.first_seen("a", expires_at=end),
            lambda: found.reserve("k", limit=1, expires_at=end),
        ):
            with contextlib.suppress(SharedStateError):
                assert ask() in (False, 1, clock.wall)


def test_restart_of_the_machine_makes_it_new(folder, ledger, clock) -> None:
    """After a boot the last entries may be lost, so the store dates from this start, with its counts kept."""
    assert ledger.reserve("k", limit=1, expires_at=clock.wall + 600) == 1
    ledger.close()
    with sqlite3.connect(folder / "proofs.sqlite3") as writer:
        writer.execute("UPDATE meta SET value = 'another boot' WHERE name = 'boot'")
    writer.close()
    clock.forward(50)
    with closing(SqliteProofLedger(folder, clock=clock)) as later:
        assert later.created_at == clock.wall
        assert later.reserve("k", limit=1, expires_at=clock.wall + 600) == 0


def test_folder_is_made_private(folder, ledger) -> None:
    """The folder gets mode 0700, the file 0600."""
    assert ledger.created_at
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def _link_folder(folder):
    (folder.parent / "real").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "real")


def _file_in_place(folder):
    folder.write_text("")


def _group_writes(folder):
    folder.mkdir()
    folder.chmod(0o720)


def _world_writes(folder):
    folder.mkdir()
    folder.chmod(0o702)


def _link_file(folder):
    folder.mkdir(mode=0o700)
    (folder / "proofs.sqlite3").symlink_to("/dev/null")


def _hard_link(folder):
    folder.mkdir(mode=0o700)
    (folder / "proofs.sqlite3").write_bytes(b"")
    (folder / "proofs.sqlite3").chmod(0o600)
    os.link(folder / "proofs.sqlite3", folder.parent / "second-name")


def _open_file(folder):
    folder.mkdir(mode=0o700)
    (folder / "proofs.sqlite3").write_bytes(b"")
    (folder / "proofs.sqlite3").chmod(0o622)


def _folder_in_place(folder):
    (folder / "proofs.sqlite3").mkdir(parents=True)
    folder.chmod(0o700)


def _garbage(folder):
    folder.mkdir(mode=0o700)
    (folder / "proofs.sqlite3").write_bytes(b"not a database, but long enough to be looked at" * 40)
    (folder / "proofs.sqlite3").chmod(0o600)


def _other_version(folder):
    folder.mkdir(mode=0o700)
    with sqlite3.connect(folder / "proofs.sqlite3") as writer:
        writer.execute("PRAGMA user_version=99")
    writer.close()
    (folder / "proofs.sqlite3").chmod(0o600)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (_link_folder, "state-folder-link"),
        (_file_in_place, "state-folder"),
        (_group_writes, "state-folder-mode"),
        (_world_writes, "state-folder-mode"),
        (_link_file, "state-file-link"),
        (_hard_link, "state-file-link"),
        (_open_file, "state-file-owner"),
        (_folder_in_place, "state-file-link"),
        (_garbage, "state-failed"),
        (_other_version, "state-version"),
    ],
)
def test_unfit_places_are_refused(folder, clock, prepare, reason) -> None:
    """A folder or file that is a link, or that others may write to, is refused with the way out, in every call."""
    prepare(folder)
    ledger = SqliteProofLedger(folder, clock=clock)
    for call in (
        lambda: ledger.created_at,
        lambda: ledger.first_seen("a", expires_at=clock.wall + 60),
        lambda: ledger.reserve("a", limit=1, expires_at=clock.wall + 60),
        lambda: ledger.release("a"),
    ):
        with pytest.raises(SharedStateError) as refused:
            call()
        assert refused.value.reasons == (reason,)
        assert refused.value.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_somebody_elses_folder_is_refused(folder, clock) -> None:
    """A folder of another user is no memory of ours."""
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(SharedStateError) as refused:
        SqliteProofLedger(folder, clock=clock).first_seen("a", expires_at=clock.wall + 60)
    assert refused.value.reasons == ("state-folder-owner",)


def test_folder_opened_to_others_later_is_refused(folder, ledger, clock) -> None:
    """A file that becomes writable by others under a running Guard ends its use."""
    assert ledger.first_seen("a", expires_at=clock.wall + 60)
    ledger.path.chmod(0o666)
    with pytest.raises(SharedStateError):
        ledger.first_seen("b", expires_at=clock.wall + 60)


def test_waits_are_bounded(folder, ledger, clock, monkeypatch) -> None:
    """A writer that holds the file for too long is an error within the deadline, and the next call works again."""
    monkeypatch.setattr("jitwi.state.sqlite.BUSY_SECONDS", 0.05)
    assert ledger.first_seen("a", expires_at=clock.wall + 60)
    blocker = sqlite3.connect(ledger.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(SharedStateError) as refused:
        ledger.first_seen("b", expires_at=clock.wall + 60)
    assert refused.value.reasons == ("state-busy",)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert ledger.first_seen("b", expires_at=clock.wall + 60)


def test_opening_waits_no_longer(folder, clock, monkeypatch) -> None:
    """A file that somebody holds while it is opened for the first time is an error within the same deadline."""
    monkeypatch.setattr("jitwi.state.sqlite.BUSY_SECONDS", 0.1)
    with closing(SqliteProofLedger(folder, clock=clock)) as first:
        first.first_seen("a", expires_at=clock.wall + 60)
    blocker = sqlite3.connect(folder / "proofs.sqlite3", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with closing(SqliteProofLedger(folder, clock=clock)) as ledger:
        began = time.monotonic()
        with pytest.raises(SharedStateError) as refused:
            ledger.first_seen("b", expires_at=clock.wall + 60)
        assert time.monotonic() - began < 10
        assert refused.value.reasons == ("state-busy",)
        blocker.execute("ROLLBACK")
        blocker.close()
        assert ledger.first_seen("b", expires_at=clock.wall + 60)


def test_a_thread_waits_no_longer(ledger, clock, monkeypatch) -> None:
    """A thread that holds the connection for too long is an error for the others, within the deadline."""
    monkeypatch.setattr("jitwi.state.sqlite.BUSY_SECONDS", 0.05)
    with ledger._connected():
        (error,) = _together(1, lambda _: _error_of(lambda: ledger.first_seen("a", expires_at=clock.wall + 60)))
    assert error.reasons == ("state-busy",)


def test_interrupted_before_it_is_made() -> None:
    """What an interrupt left half made is collected without a word."""
    half = object.__new__(jitwi.state.sqlite._PerProcess)
    half.__del__()


def test_closed_in_the_middle_of_a_call(ledger, monkeypatch) -> None:
    """`close()` does not wait for ever for a thread that uses the connection: that one closes it then."""
    monkeypatch.setattr("jitwi.state.sqlite.BUSY_SECONDS", 0.05)
    with ledger._connected() as connection:
        _together(1, lambda _: ledger.close())
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")


def _error_of(work):
    try:
        work()
    except SharedStateError as error:
        return error
    return None


def test_interrupted_transaction_is_rolled_back(ledger, clock) -> None:
    """Whatever ends a transaction early leaves nothing of it, and the next call works."""
    assert ledger.reserve("k", limit=1, expires_at=clock.wall + 60) == 1
    with pytest.raises(KeyboardInterrupt), ledger._transaction() as connection:
        connection.execute("DELETE FROM counts")
        raise KeyboardInterrupt
    assert ledger.reserve("k", limit=1, expires_at=clock.wall + 60) == 0


def test_system_without_a_boot_id(ledger, clock, monkeypatch) -> None:
    """A system that does not name its boots is served as one long boot."""
    monkeypatch.setattr("jitwi.state.folder._BOOT_ID", "/nowhere/boot_id")
    assert ledger.first_seen("a", expires_at=clock.wall + 60)
    assert ledger.created_at == clock.wall


def test_a_full_disk_is_a_deny(ledger, clock) -> None:
    """What SQLite cannot write is never counted as seen for the first time."""
    assert ledger.created_at
    with ledger._connected() as connection:
        connection.execute("PRAGMA max_page_count=1")

    def fill() -> None:
        for number in range(10_000):
            ledger.first_seen(f"{number}", expires_at=clock.wall + 60)

    with pytest.raises(SharedStateError) as refused:
        fill()
    assert refused.value.reasons == ("state-failed",)


def test_closed_is_an_error(ledger, clock) -> None:
    """A closed ledger answers nothing."""
    ledger.close()
    ledger.close()
    with pytest.raises(SharedStateError) as refused:
        ledger.first_seen("a", expires_at=clock.wall + 60)
    assert refused.value.reasons == ("state-closed",)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(1, 4)), max_size=25))
def test_counts_like_a_counter(ledger, clock, steps) -> None:
    """The store counts as a dictionary would."""
    salt = next(SALTS)
    model: dict[str, int] = {}
    for name, is_reserve, limit in steps:
        key = f"{salt}-{name}"
        used = model.get(key, 0)
        if is_reserve:
            number = used + 1 if used < limit else 0
            assert ledger.reserve(key, limit=limit, expires_at=clock.wall + 60) == number
            model[key] = number or used
        else:
            ledger.release(key)
            model[key] = max(0, used - 1)


def test_once_under_a_thousand_threads(folder, monkeypatch) -> None:
    """One proof shown by 1,000 threads at once is first for exactly one of them (bar 19)."""
    monkeypatch.setattr("jitwi.state.sqlite.BUSY_SECONDS", 30.0)
    ledger = SqliteProofLedger(folder, clock=SystemClock())
    end = SystemClock().now().wall + 600
    threading.stack_size(256 * 1024)
    try:
        results = _together(1000, lambda _: ledger.first_seen("proof", expires_at=end))
    finally:
        threading.stack_size(0)
    assert sum(results) == 1
    ledger.close()


def test_exact_under_processes_and_threads(folder) -> None:
    """4 processes with 2 threads each get exactly the limit, and each proof is first for one (bars 19, 29)."""
    limit, keys = 1000, 40
    with SPAWN.Pool(4, _remember, (SPAWN.Barrier(4),)) as pool:
        results = pool.starmap(_race, [(folder, 2, 200, keys, limit)] * 4, chunksize=1)
    assert sum(r[0] for r in results) == limit
    assert sum(r[1] for r in results) == keys


FORKED = """
import os, sys
import jitwi.state.sqlite
from jitwi.clock import SystemClock
from jitwi.state import SqliteProofLedger
ledger = SqliteProofLedger(sys.argv[1], clock=SystemClock())
end = SystemClock().now().wall + 60
assert ledger.first_seen("parent", expires_at=end)
for which in ("hooks", "libc"):
    if which == "hooks":
        pid = os.fork()
    else:
        import ctypes
        pid = ctypes.PyDLL(None).fork()
    if not pid:
        good = not ledger.first_seen("parent", expires_at=end) and ledger.first_seen(which, expires_at=end)
        inherited = ledger._processes.pop(os.getppid()).connection
        os._exit(0 if good and jitwi.state.sqlite._INHERITED == [inherited] else 1)
    assert os.waitpid(pid, 0)[1] == 0, which
    assert not ledger.first_seen(which, expires_at=end)
    assert ledger.reserve(which, limit=1, expires_at=end) == 1
print("good")
"""


def test_fork(folder) -> None:
    """A forked child, made by whatever call, uses a connection of its own; the parent's goes on (bar 11)."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("good\n", 0), done.stderr


def test_fork_while_a_thread_holds_the_lock(folder) -> None:
    """A child forked in the middle of another thread's call does not wait for that thread."""
    code = """
import os, sys, threading
from jitwi.clock import SystemClock
from jitwi.state import SqliteProofLedger
ledger = SqliteProofLedger(sys.argv[1], clock=SystemClock())
end = SystemClock().now().wall + 60
ledger.first_seen("parent", expires_at=end)
held, go = threading.Event(), threading.Event()
def hold():
    with ledger._connected():
        held.set()
        go.wait(60)
thread = threading.Thread(target=hold)
thread.start()
held.wait(60)
pid = os.fork()
if not pid:
    os._exit(0 if ledger.first_seen("child", expires_at=end) else 1)
status = os.waitpid(pid, 0)[1]
go.set()
thread.join(60)
print(status)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "0\n", done.stderr
