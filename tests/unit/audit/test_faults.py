# SPDX-License-Identifier: Apache-2.0
"""A sink that fails stops what announces access and never what ends it (rule 4, bar 18)."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from jitwi.audit import ChainStatus, files, read, verify
from jitwi.audit.events import AuditGap, CredentialIntended, GrantEnded, UseAllowed
from jitwi.audit.spool import MAX_HELD
from jitwi.errors import AuditError

DEADLINE = 0.1
REFUSED_WITHIN = 3.0
"""Wide: the machine is shared. A hang would be a minute."""


@pytest.fixture
def intent(make_subject, make_decision):
    """A record that announces access."""
    return CredentialIntended(make_subject(), "lease-1", "orders-api", {}, "", make_decision())


@pytest.fixture
def use(make_subject, make_decision):
    """A record that is not synced."""
    return UseAllowed(make_subject(), "lease-1", 1, make_decision())


@pytest.fixture
def ending(make_subject):
    """A record of lost access."""
    return GrantEnded(make_subject(), "block", "", 1, ())


class Blocked:
    """A system call that hangs until it is let go, then does what it should."""

    def __init__(self, call):
        self.call = call
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, *args):
        """Hang."""
        self.entered.set()
        if not self.go.wait(60):
            raise OSError(errno.EIO, "the test forgot to let it go")
        return self.call(*args)


def full(fd, data):
    """Write to a device that is full: the kernel's own error."""
    device = os.open("/dev/full", os.O_WRONLY)
    try:
        return os.write(device, data)
    finally:
        os.close(device)


def broken(*_):
    """Fail as a disk with a bad block does."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def half(fd, data):
    """Write a part, as on the last block of a disk."""
    return os.write(fd, data[: len(data) // 2])


def chain_of(log):
    """Return the path of the open chain."""
    return log.folder / log._writer.head[0]


def chain_of_closed(folder):
    """Return the name of the only closed chain."""
    (name,) = (report.name for report in verify(folder).chains if report.status is ChainStatus.CLOSED)
    return name


def to_fifo(log, monkeypatch):
    """Put a FIFO without a reader in the chain's place."""
    path = chain_of(log)
    path.unlink()
    os.mkfifo(path)
    return path.unlink


def write_full(log, monkeypatch):
    """Make every write fail with ENOSPC."""
    monkeypatch.setattr(files, "_write", full)
    return lambda: monkeypatch.setattr(files, "_write", os.write)


def write_half(log, monkeypatch):
    """Make every write a partial one."""
    monkeypatch.setattr(files, "_write", half)
    return lambda: monkeypatch.setattr(files, "_write", os.write)


def sync_broken(log, monkeypatch):
    """Make every sync fail with EIO."""
    monkeypatch.setattr(files, "_sync", broken)
    return lambda: monkeypatch.setattr(files, "_sync", os.fdatasync)


def made_read_only(log, monkeypatch):
    """Take the right to write away."""
    path = chain_of(log)
    path.chmod(0o400)
    return lambda: path.chmod(0o600)


def writable_by_others(log, monkeypatch):
    """Let everybody write to the chain."""
    path = chain_of(log)
    path.chmod(0o666)
    return lambda: path.chmod(0o600)


def file_deleted(log, monkeypatch):
    """Delete the chain."""
    chain_of(log).unlink()
    return lambda: None


def folder_deleted(log, monkeypatch):
    """Delete the folder and put a file in its place."""
    shutil.rmtree(log.folder)
    log.folder.write_text("in the way")
    return log.folder.unlink


def folder_renamed(log, monkeypatch):
    """Move the folder away and put a link in its place."""
    away = log.folder.with_name("away")
    log.folder.rename(away)
    log.folder.symlink_to(away)
    return log.folder.unlink


def sync_hangs(log, monkeypatch):
    """Make the sync hang."""
    blocked = Blocked(os.fdatasync)
    monkeypatch.setattr(files, "_sync", blocked)

    def repair():
        monkeypatch.setattr(files, "_sync", os.fdatasync)
        blocked.go.set()

    return repair


def write_hangs(log, monkeypatch):
    """Make the write hang in the writer's thread."""
    blocked = Blocked(os.write)
    monkeypatch.setattr(files, "_write", blocked)
    log._writer.close_short_way()  # as it is after 100 ms

    def repair():
        monkeypatch.setattr(files, "_write", os.write)
        blocked.go.set()

    return repair


LASTING = [write_full, write_half, sync_broken, folder_deleted, folder_renamed, sync_hangs, write_hangs]
TOUCHED = {
    file_deleted: ChainStatus.MISSING,
    to_fifo: ChainStatus.MISSING,
    made_read_only: ChainStatus.OPEN,
    writable_by_others: ChainStatus.OPEN,
}


def wait_at_most(log, seconds):
    """Change the deadline of a log that works: a busy machine may need long to get it there."""
    log._patience = log._writer._patience = seconds


def timed(call):
    """Return what `call` raised, or None, and how long it took."""
    before = time.monotonic()
    try:
        call()
    except AuditError as exc:
        return exc, time.monotonic() - before
    return None, time.monotonic() - before


def until(call):
    """Repeat a record until it succeeds: the disk is back, the writer may still be finishing."""
    for _ in range(200):
        if timed(call)[0] is None:
            return
        time.sleep(0.05)
    raise AssertionError


@pytest.mark.parametrize("fault", LASTING, ids=lambda fault: fault.__name__)
def test_fault(folder, open_log, monkeypatch, intent, use, ending, fault):
    """Access is refused and not hung, endings go on at once, and once the sink is back the gap is counted (bar 18)."""
    log = open_log()
    log.record(intent, durable=True)
    wait_at_most(log, DEADLINE)
    repair = fault(log, monkeypatch)
    for number in range(10):
        error, seconds = timed(lambda: log.record(intent, durable=True))
        assert error is not None, number
        assert seconds < REFUSED_WITHIN
    error, seconds = timed(lambda: log.record(use))
    assert error is not None
    assert error.remedy
    assert seconds < REFUSED_WITHIN
    assert log.is_failing
    for durable in (True, False):
        error, seconds = timed(lambda durable=durable: log.record_loss(ending, durable=durable))
        assert error is None
        assert seconds < REFUSED_WITHIN
    repair()
    wait_at_most(log, 20)
    until(lambda: log.record(use))
    log.close()
    records = list(read(folder))
    gaps = [record for record in records if record["kind"] == AuditGap.kind]
    assert sum(gap["refused"] for gap in gaps) >= 11
    assert sum(gap["lost"] for gap in gaps) == 0
    assert sum(record["kind"] == GrantEnded.kind for record in records) >= 2
    assert UseAllowed.kind in {record["kind"] for record in records}
    if fault not in {folder_deleted, folder_renamed}:
        verify(folder).require_intact()


@pytest.mark.parametrize("fault", TOUCHED, ids=lambda fault: fault.__name__)
def test_chain_that_was_touched_is_given_up(folder, open_log, monkeypatch, intent, use, fault):
    """A chain that somebody deleted or replaced refuses the next record, then a new one states the gap."""
    log = open_log()
    log.record(intent, durable=True)
    path = chain_of(log)
    fault(log, monkeypatch)
    assert timed(lambda: log.record(intent, durable=True))[0] is not None
    assert timed(lambda: log.record(use))[0] is None
    assert chain_of(log) != path
    log.close()
    kinds = [record["kind"] for record in read(folder / chain_of_closed(folder))]
    assert kinds == ["chain.opened", AuditGap.kind, UseAllowed.kind, "chain.closed"]
    statuses = {report.name: report.status for report in verify(folder).chains}
    assert statuses[path.name] is TOUCHED[fault]


def test_unsynced_records_notice_it_too(open_log, use):
    """Lines that are not synced are refused as well once the chain is gone: the place is looked at as time goes on."""
    log = open_log()
    log.record(use)
    chain_of(log).unlink()
    errors = []
    for _ in range(100):
        errors.append(timed(lambda: log.record(use))[0])
        if errors[-1] is not None:
            break
        time.sleep(0.01)
    assert errors[-1] is not None


def test_refusals_are_immediate_once_the_disk_is_known_to_hang(open_log, monkeypatch, intent, ending):
    """Only the first caller waits for its deadline: those after it, and every ending, do not wait at all."""
    log = open_log()
    log.record(intent, durable=True)
    wait_at_most(log, 1)
    repair = sync_hangs(log, monkeypatch)
    assert timed(lambda: log.record(intent, durable=True))[1] >= 1
    before = time.monotonic()
    for _ in range(100):
        assert timed(lambda: log.record(intent, durable=True))[0] is not None
        log.record_loss(ending, durable=True)
    assert time.monotonic() - before < 1
    repair()


def test_a_thread_that_hangs_in_the_short_way_holds_nobody_else(open_log, monkeypatch, intent, use, ending):
    """If the disk begins to hang under an unsynced line, every other thread is refused within its deadline."""
    log = open_log()
    log.record(intent, durable=True)
    wait_at_most(log, DEADLINE)
    blocked = Blocked(os.write)
    log._writer.short_way_until = float("inf")
    monkeypatch.setattr(files, "_write", blocked)
    stuck = threading.Thread(target=log.record, args=(use,))
    stuck.start()
    assert blocked.entered.wait(20)
    for durable in (False, True):
        error, seconds = timed(lambda durable=durable: log.record(intent, durable=durable))
        assert error is not None
        assert seconds < REFUSED_WITHIN
        error, seconds = timed(lambda durable=durable: log.record_loss(ending, durable=durable))
        assert (error, seconds < REFUSED_WITHIN) == (None, True)
    monkeypatch.setattr(files, "_write", os.write)
    blocked.go.set()
    stuck.join(20)
    wait_at_most(log, 20)
    until(lambda: log.record(use))
    log.close()
    verify(log.folder).require_intact()


def test_slow_disk_is_no_failure(open_log, monkeypatch, intent):
    """A disk that is slow but answers within the deadline is waited for."""

    def slow(fd):
        time.sleep(0.03)
        os.fdatasync(fd)

    log = open_log()
    monkeypatch.setattr(files, "_sync", slow)
    for _ in range(10):
        log.record(intent, durable=True)
    assert not log.is_failing


def test_spool_is_bounded_and_exact(folder, open_log, monkeypatch, intent, ending):
    """Beyond its bounds the spool drops, and the gap has the exact number of what was dropped."""
    log = open_log()
    log.record(intent, durable=True)
    wait_at_most(log, DEADLINE)
    repair = write_full(log, monkeypatch)
    assert timed(lambda: log.record(intent))[0] is not None
    threads = [
        threading.Thread(target=lambda: [log.record_loss(ending) for _ in range(MAX_HELD // 4 + 25)]) for _ in range(4)
    ]
    monkeypatch.setattr(log._writer, "wait", lambda *_: False)  # 4,196 times 0.1 s are not what is tested
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    monkeypatch.undo()
    repair()
    wait_at_most(log, 20)
    until(lambda: log.record(intent, durable=True))
    log.close()
    records = list(read(folder))
    lost = sum(record["lost"] for record in records if record["kind"] == AuditGap.kind)
    written = sum(record["kind"] == GrantEnded.kind for record in records)
    assert (written, lost) == (MAX_HELD, 100)
    verify(folder).require_intact()


def test_spool_is_written_without_another_record(open_log, monkeypatch, intent, ending):
    """What is held is written by itself soon after the disk is back."""
    log = open_log()
    log.record(intent, durable=True)
    wait_at_most(log, DEADLINE)
    repair = write_full(log, monkeypatch)
    log.record_loss(ending, durable=True)
    repair()
    for _ in range(200):
        if not log.is_failing:
            break
        time.sleep(0.05)
    kinds = [record["kind"] for record in read(log.folder)]
    assert kinds[-2:] == [AuditGap.kind, GrantEnded.kind]


def test_after_a_failed_sync_the_chain_is_given_up(folder, open_log, monkeypatch, intent):
    """The kernel reports a lost page once: what follows goes to a new chain, and the old one is left as not closed."""
    log = open_log()
    log.record(intent, durable=True)
    repair = sync_broken(log, monkeypatch)
    with pytest.raises(AuditError) as caught:
        log.record(intent, durable=True)
    assert caught.value.reasons == ("eio",)
    repair()
    log.record(intent, durable=True)
    log.close()
    found = verify(folder)
    assert found.is_intact
    assert sorted(chain.status.value for chain in found.chains) == [ChainStatus.CLOSED.value, ChainStatus.OPEN.value]


def test_nothing_is_left_of_a_chain_that_cannot_be_opened(folder, open_log, monkeypatch, intent):
    """A chain whose opening fails leaves no file and no entry."""
    repair = write_full(None, monkeypatch)
    log = open_log()
    with pytest.raises(AuditError):
        log.open()
    assert list(folder.glob("chain-*")) == []
    repair()
    log.record(intent, durable=True)
    log.close()
    verify(folder).require_intact()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777, 0o707])
def test_folder_of_others_is_refused(folder, open_log, mode):
    """A folder that others can read or write is refused."""
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(AuditError, match="alone"):
        open_log().open()


def test_made_private(folder, open_log, intent):
    """The folder is made 0700 and its files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        open_log().record(intent, durable=True)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("kind", ["folder link", "index link", "index fifo", "index of others"])
def test_links_and_pipes_are_refused(folder, open_log, kind):
    """A link or a pipe in the place of folder or index is refused at once, and what it points to is not touched."""
    target = folder.parent / "target"
    if kind == "folder link":
        target.mkdir(mode=0o700)
        folder.symlink_to(target)
    else:
        folder.mkdir(mode=0o700)
        if kind == "index link":
            target.write_text("")
            (folder / "index.jsonl").symlink_to(target)
        elif kind == "index fifo":
            os.mkfifo(folder / "index.jsonl")
        else:
            (folder / "index.jsonl").touch()
            (folder / "index.jsonl").chmod(0o666)
    error, seconds = timed(open_log().open)
    assert error is not None
    assert seconds < REFUSED_WITHIN
    assert not target.exists() or (target.is_dir() and list(target.iterdir()) == []) or target.read_text() == ""


FILE_SIZE = """
import resource, sys
from jitwi.audit import AuditLog, read, verify
from jitwi.audit.events import GrantEnded
from jitwi.errors import AuditError
log = AuditLog(sys.argv[1])
log.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
refused = 0
for number in range(40):
    try:
        log.record(GrantEnded(None, "block", "x" * 100, number, ()), durable=number % 2 == 0)
    except AuditError as exc:
        assert exc.reasons in {("efbig",), ("enospc",)}, exc.reasons
        refused += 1
log.record_loss(GrantEnded(None, "lost", "", 0, ()))
verify(sys.argv[1]).require_intact()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.close()
verify(sys.argv[1]).require_intact()
records = list(read(sys.argv[1]))
written = sum(record.get("cause") == "block" for record in records)
(gap,) = [record for record in records if record["kind"] == "audit.gap"]
assert written + refused == 40, (written, refused)
assert gap["refused"] == refused > 20, gap
assert gap["held"] == 1 and records[-2]["cause"] == "lost", records[-2]
print("ok")
"""


def test_file_size_limit(folder):
    """A write that the kernel cuts short (RLIMIT_FSIZE) leaves a whole chain, and everything is counted exactly."""
    command = [sys.executable, "-c", FILE_SIZE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ok\n", done.stderr[-3000:]


def test_full_file_system(open_log, folder, intent, ending):
    """On a real file system that is full nothing is issued; when there is room again, the gap is recorded (bar 18)."""
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "jitwi-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        log = open_log()
        log.record(intent, durable=True)
        ballast = folder / "chain-ballast.jsonl"
        with pytest.raises(OSError, match="space"):
            ballast.write_bytes(b"x" * 100_000)
        errors = [timed(lambda: log.record(intent, durable=True))[0] for _ in range(12)]
        refused = [error for error in errors if error is not None]
        assert len(refused) >= 1  # the last block has room for a few lines
        assert {error.reasons for error in refused} <= {("enospc",)}
        log.record_loss(ending, durable=True)
        ballast.unlink()
        until(lambda: log.record(intent, durable=True))
        log.close()
        verify(folder).require_intact()
        kinds = [record["kind"] for record in read(folder)]
        assert {AuditGap.kind, GrantEnded.kind} <= set(kinds)
    finally:
        log.close()
        subprocess.run(["umount", str(folder)], check=True)
