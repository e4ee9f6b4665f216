# SPDX-License-Identifier: Apache-2.0
"""One chain per process: threads, forks, kills, signals, sinks, closing."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from jitwi.audit import Audit, AuditLog, ChainStatus, files, read, verify
from jitwi.audit.events import AuditGap, GrantEnded, GuardDenied, PolicyLoaded
from jitwi.clock import Instant
from jitwi.errors import AuditError, ConfigurationError
from jitwi.testing.audit import RecordingSink


@pytest.fixture
def event():
    """A small event."""
    return PolicyLoaded(None, "sha256-x", 3)


def kinds(folder):
    """Return the kinds of all records."""
    return [record["kind"] for record in read(folder)]


def test_it_is_the_port(folder):
    """The log and the recording sink are both the port."""
    audits: list[Audit] = [AuditLog(folder), RecordingSink()]
    assert len(audits) == 2


def test_constructor_does_nothing(folder):
    """Nothing is opened or started before the first record (rule 13)."""
    threads = threading.active_count()
    log = AuditLog(folder)
    log.close()
    assert not folder.exists()
    assert threading.active_count() == threads


@pytest.mark.parametrize("seconds", [0, -1, 61])
def test_deadline_is_bounded(folder, seconds):
    """A deadline that would not end, or never began, is refused."""
    with pytest.raises(ConfigurationError):
        AuditLog(folder, deadline=timedelta(seconds=seconds))


def test_every_kind_is_recorded(folder, open_log, events_of_every_kind):
    """Events come out in the order they went in, between opening and closing record."""
    log = open_log()
    for number, one in enumerate(events_of_every_kind):
        (log.record if number % 2 else log.record_loss)(one, durable=number % 3 == 0)
    log.close()
    expected = [one.kind for one in events_of_every_kind]
    assert kinds(folder) == ["chain.opened", *expected, "chain.closed"]
    first, *_, last = read(folder)
    assert (first["pid"], first["format"], first["chain"].startswith("chain-")) == (os.getpid(), 1, True)
    assert last["records"] == len(expected) + 2


def test_instants_come_from_the_clock(folder, open_log, event):
    """The time of a record is the injected clock's, with microseconds, also where that clock says nonsense."""

    class Frozen:
        wall = 1_800_000_000.25

        def now(self):
            return Instant(self.wall, 5.0)

    clock = Frozen()
    log = open_log(clock=clock)
    log.record(event)
    for clock.wall in (float("nan"), float("inf"), -1e300, 1e300):
        log.record(event)
    log.close()
    times = [record["at"] for record in read(folder)]
    assert times[:3] == ["2027-01-15T08:00:00.250000Z"] * 2 + ["0001-01-01T00:00:00.000000Z"]
    verify(folder).require_intact()


def test_durable_is_synced_before_it_returns(open_log, monkeypatch, event):
    """A durable record is on disk when the call returns; one that is not durable does not wait for the disk."""
    log = open_log()
    log.open()
    synced = []
    monkeypatch.setattr(files, "_sync", lambda fd: synced.append(os.fstat(fd).st_size))
    log.record(event)
    assert synced == []
    log.record(event, durable=True)
    (path,) = log.folder.glob("chain-*")
    assert synced == [path.stat().st_size]


def test_group_commit(folder, open_log, monkeypatch, event):
    """Eight threads that need the disk share syncs; every record is on disk once, in one chain."""
    log = open_log()
    log.open()
    syncs = []
    gate = threading.Event()

    def counting(fd):
        gate.wait(20)
        syncs.append(fd)
        os.fdatasync(fd)

    monkeypatch.setattr(files, "_sync", counting)
    threads = [threading.Thread(target=lambda: [log.record(event, durable=True) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(60)
    log.close()
    assert kinds(folder).count("policy.loaded") == 400
    assert len(syncs) < 400
    verify(folder).require_intact()


def test_threads_share_one_chain(folder, open_log, event):
    """Eight threads writing in all ways at once leave one whole chain with each record once."""
    log = open_log()

    def work(number):
        for count in range(300):
            one = PolicyLoaded(None, f"{number}-{count}", count)
            if count % 50 == 0:
                log.record(one, durable=True)
            elif count % 3:
                log.record(one)
            else:
                log.record_loss(one)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    log.close()
    records = list(read(folder))
    seen = [record["policy_digest"] for record in records if record["kind"] == "policy.loaded"]
    assert sorted(seen) == sorted(f"{number}-{count}" for number in range(8) for count in range(300))
    for number in range(8):
        own = [text for text in seen if text.startswith(f"{number}-")]
        assert own == [f"{number}-{count}" for count in range(300)]
    assert AuditGap.kind not in {record["kind"] for record in records}
    verify(folder).require_intact()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_a_chain_of_its_own(folder, open_log, event):
    """A child never writes into its parent's chain; both chains are whole, and the index names both."""
    log = open_log()
    log.record(event, durable=True)
    stop = threading.Event()

    def noise():
        while not stop.is_set():
            log.record(event)

    busy = threading.Thread(target=noise)  # holds locks at the moment of forking
    busy.start()
    children = []
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                log.record(GrantEnded(None, "child", "", os.getpid(), ()), durable=True)
                log.record_loss(GrantEnded(None, "child", "", os.getpid(), ()))
                log.close()
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    stop.set()
    busy.join(20)
    log.record(event, durable=True)
    log.close()
    assert statuses == [0] * 5
    found = verify(folder)
    found.require_intact()
    assert [chain.status for chain in found.chains] == [ChainStatus.CLOSED] * 6
    for chain in found.chains:
        records = list(read(folder / chain.name))
        by_child = {record["uses"] for record in records if record["kind"] == GrantEnded.kind}
        assert by_child in (set(), {records[0]["pid"]})


def test_many_processes_share_one_folder(folder):
    """Processes that open their chains at once leave one index that names them all."""
    code = (
        "import sys; from jitwi.audit import AuditLog; from jitwi.audit.events import PolicyLoaded\n"
        "for _ in range(5):\n"
        "    log = AuditLog(sys.argv[1]); log.record(PolicyLoaded(None, 'x', 1), durable=True); log.close()"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(folder)]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    found = verify(folder)
    found.require_intact()
    assert len(found.chains) == 15


KILLED = """
import sys
from jitwi.audit import AuditLog
from jitwi.audit.events import GrantEnded
log = AuditLog(sys.argv[1])
number = 0
while True:
    log.record(GrantEnded(None, "block", "x" * (number % 5000), number, ()), durable=number % 50 == 0)
    if number % 50 == 0:
        print(number, flush=True)
    number += 1
"""


def test_sigkill_leaves_a_chain_that_verifies(folder):
    """A process killed at any moment leaves a chain that is open or torn, never tampered; what was durable is there."""
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True)
        durable = [int(process.stdout.readline()) for _ in range(3)][-1]
        process.send_signal(signal.SIGKILL)
        durable = max([durable, *map(int, process.stdout.read().split("\n")[:-1])])
        process.wait(20)
        process.stdout.close()
        found = verify(folder)
        found.require_intact()
        (chain,) = (one for one in folder.glob(f"chain-*-{process.pid}-*"))
        numbers = [record["uses"] for record in read(chain) if record["kind"] == GrantEnded.kind]
        assert numbers == list(range(len(numbers)))
        assert durable in numbers
    assert {chain.status for chain in found.chains} <= {ChainStatus.OPEN, ChainStatus.TORN}


class _Storm(Exception):  # noqa: N818 - what a signal raises in the middle of anything
    """Raised by a signal."""


def test_exceptions_at_any_instruction(folder, open_log, event):
    """Signals that raise inside `record` never break the chain, never lock it up, never double a number (bar 8)."""
    log = open_log()
    log.open()

    def raise_it(*_):
        raise _Storm

    before = signal.signal(signal.SIGALRM, raise_it)
    hit = done = 0
    end = time.monotonic() + 60
    while hit < 300 and time.monotonic() < end:
        try:  # one alarm each; it may also come in the lines around
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00005 + (done % 97) / 1e6)
                for _ in range(20):
                    log.record(event)
                    done += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _Storm:
            hit += 1
    signal.signal(signal.SIGALRM, before)
    assert hit >= 300
    log.record(event, durable=True)
    log.close()
    found = verify(folder)
    found.require_intact()
    (chain,) = found.chains
    assert chain.status is ChainStatus.CLOSED
    assert done <= kinds(folder).count("policy.loaded") <= done + hit + 1
    assert AuditGap.kind not in kinds(folder)


def test_record_from_a_signal_handler(folder, open_log, event):
    """A handler that records an ending in the middle of another record of its own thread neither hangs nor loses it."""
    log = open_log()
    log.open()
    handled = []

    def handler(*_):
        log.record_loss(GrantEnded(None, "signal", "", len(handled), ()))
        handled.append(1)

    before = signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + 60
    done = 0
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
        while len(handled) < 400 and time.monotonic() < end:
            log.record(event)
            done += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    log.close()
    assert len(handled) >= 400
    counted = kinds(folder)
    assert counted.count(GrantEnded.kind) == len(handled)
    assert counted.count("policy.loaded") == done
    verify(folder).require_intact()


def test_closed_log_refuses(folder, open_log, event, caplog):
    """After `close` a record is refused, a loss is logged and not raised, and closing again does nothing."""
    log = open_log()
    log.record(event)
    log.close()
    log.close()
    for durable in (True, False):
        with pytest.raises(AuditError) as caught:
            log.record(event, durable=durable)
        assert caught.value.reasons == ("closed",)
    log.record_loss(event)
    assert "after the log was closed" in caplog.text
    assert kinds(folder).count("policy.loaded") == 1
    assert repr(log) == f"<AuditLog {str(folder)!r}, closed>"


def test_threads_end_with_the_log(open_log, event):
    """Closing ends the writer's thread and those of the sinks."""
    threads = set(threading.enumerate())
    log = open_log(sinks=[RecordingSink()])
    log.record(event)
    assert set(threading.enumerate()) > threads
    log.close()
    assert set(threading.enumerate()) <= threads


def test_log_that_nobody_closed(folder, event):
    """A log that becomes garbage has its chain closed and its thread ended."""
    threads = set(threading.enumerate())
    log = AuditLog(folder)
    log.record(event)
    (thread,) = set(threading.enumerate()) - threads
    del log
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()
    assert kinds(folder) == ["chain.opened", "policy.loaded", "chain.closed"]


def test_two_threads_close(folder, open_log, event, caplog):
    """Closing from several threads closes once and complains of nothing."""
    log = open_log()
    log.record(event)
    threads = [threading.Thread(target=log.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert caplog.text == ""
    assert kinds(folder).count("chain.closed") == 1


def test_flood_of_denials(folder, open_log):
    """A flood of denied calls is counted to the last one and takes no memory (bar 36)."""
    log = open_log()
    denial = GuardDenied(None, "jti", "https://orders.example.org", "proof", "replayed", "x" * 200)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    for _ in range(1000):
        log.record_loss(denial)
    before = resident()
    for _ in range(20_000):
        log.record_loss(denial)
    assert resident() - before <= 10 * 1024 * 1024
    log.close()
    assert kinds(folder).count(GuardDenied.kind) == 21_000


class Raising:
    """A sink that always fails."""

    name = "raising"

    def write(self, line):
        """Fail."""
        raise ValueError(line)


class Hanging:
    """A sink that hangs until it is let go."""

    name = "hanging"

    def __init__(self):
        self.go = threading.Event()

    def write(self, line):
        """Hang."""
        self.go.wait(60)


def test_sinks_cannot_harm_the_chain(folder, open_log, event, caplog):
    """A sink that raises or hangs has no effect on the chain or on other sinks; it is logged once and counted."""
    hanging, good = Hanging(), RecordingSink()
    log = open_log(sinks=[Raising(), hanging, good], deadline=timedelta(seconds=1))
    with caplog.at_level(logging.ERROR):
        for number in range(50):
            log.record(event, durable=number % 10 == 0)
        with pytest.raises(AuditError, match="sink"):
            log.flush()
    assert len([record for record in caplog.records if "raising" in record.getMessage()]) == 1
    assert log._feeds[0].failed == 51
    hanging.go.set()
    log.flush()
    log.close()
    assert good.kinds == ["chain.opened", *["policy.loaded"] * 50, "chain.closed"]
    assert good.records == list(read(folder))
    verify(folder).require_intact()


def test_full_queue_of_a_sink_is_counted(open_log, event):
    """What does not fit into the queue of a sink is counted, not waited for."""
    hanging = Hanging()
    log = open_log(sinks=[hanging], deadline=timedelta(seconds=1))
    for _ in range(5000):
        log.record(event)
    assert log._feeds[0].failed >= 5000 - 4096
    hanging.go.set()


def test_recording_sink():
    """The recording sink keeps events and records, fails on demand, and counts what was lost meanwhile."""
    sink = RecordingSink()
    event = PolicyLoaded(None, "x", 1)
    sink.record(event, durable=True)
    sink.is_failing = True
    with pytest.raises(AuditError):
        sink.record(event)
    with pytest.raises(AuditError):
        sink.write("{}")
    sink.record_loss(event)
    assert (sink.events, sink.durable, sink.lost, sink.kinds) == ([event], [True], [event], ["policy.loaded"])
    assert sink.of(PolicyLoaded) == [event]
    assert sink.of(GrantEnded) == []
    sink.clear()
    assert sink.records == []
    sink.is_failing = False
    sink.close()
    with pytest.raises(AuditError):
        sink.record(event)
