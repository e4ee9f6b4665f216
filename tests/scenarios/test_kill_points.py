# SPDX-License-Identifier: Apache-2.0
"""Bar 2: a process is killed with -9 anywhere between opening a task and leaving it, and nothing of it stays alive.

Every call of the journal, the audit, the issuers, the endings and the handles is a place to die, before and after it.
Each death is followed by one round of a reaper, by a new start of the same program, or by a reaper that has lost the
journal and sees the backend's own listing only.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jitwi.audit import AuditLog, verify
from jitwi.audit.events import PolicyLoaded
from jitwi.clock import SystemClock
from jitwi.credentials import make_reaper
from jitwi.issuers import TaskTokens
from jitwi.journal import SqliteJournal, journal_path
from jitwi.testing import BackendIssuer, TestingBackend

PROGRAM = Path(__file__).parent / "programs" / "kill_walk.py"
REPEATS = int(os.environ.get("JITWI_KILL_REPEATS", "1"))
PROCESSES = 2
SIGKILL = 9
LEAST_POINTS = 60


class Walker:
    """A program that forks one mortal process for each job."""

    def __init__(self, backend):
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), backend.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JITWI_ADMIN": backend.admin_token.reveal()},
        )

    def do(self, state, at="", **more):
        """Have one process do its work and die; returns what became of it."""
        self.process.stdin.write(json.dumps({"state": str(state), "at": at, **more}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        """End the program; its children are dead already."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


class Lab:
    """A backend, walkers, and a folder for every death."""

    def __init__(self, folder, backend):
        self.folder = folder
        self.backend = backend
        self.issuer = BackendIssuer(backend.address, backend.admin_token)
        self.walkers = [Walker(backend) for _ in range(PROCESSES)]
        self._lock = threading.Lock()
        self._count = 0

    def new_state(self):
        """Return a new folder of state."""
        with self._lock:
            self._count += 1
            state = self.folder / f"s{self._count}"
        state.mkdir(0o700)
        return state

    def points(self, **more):
        """Return every kill point of the walk in order of its first passing, second passings behind them."""
        passed = self.walkers[0].do(self.new_state(), "?", **more)["points"]
        return [*passed, *[f"{name}:2" for name, count in passed.items() if count > 1]]

    def share(self, jobs, work):
        """Do `work(walker, job)` for all jobs, one thread for each walker; returns the complaints."""
        lists = [jobs[number :: len(self.walkers)] for number in range(len(self.walkers))]

        def run(walker, its):
            return [f"{job}: {complaint}" for job in its for complaint in work(walker, job)]

        with ThreadPoolExecutor(len(self.walkers)) as pool:
            return [complaint for found in pool.map(run, self.walkers, lists) for complaint in found]

    def reap(self, state):
        """One round of a reaper on this state, in this process."""
        clock = SystemClock()
        journal = SqliteJournal(journal_path(state), clock=clock)
        audit = AuditLog(state / "audit", clock=clock)
        issuers = {"backend": self.issuer, "api": TaskTokens("https://orders.example.org")}
        try:
            report = make_reaper(journal, issuers, clock=clock, audit=audit).run_once()
            return report, journal.open_leases()
        finally:
            audit.close()
            journal.close()

    def created(self):
        """Ids of all credentials that the backend ever made."""
        entries = [json.loads(line) for line in (self.folder / "backend").read_text().splitlines()]
        return {entry["lease_id"] for entry in entries if entry["op"] == "create"}

    def complaints_after_reaping(self, state):
        """Reap once, then say what is wrong with what a dead process left."""
        report, still_open = self.reap(state)
        mine = intents(state)
        left = mine & (set(self.issuer.outstanding()) | set(self.backend.sessions()) | set(self.backend.leases()))
        if left:
            yield f"alive after the reaper: {left}"
        if still_open:
            yield f"open in the journal: {still_open}"
        if report.errors or report.unknown:
            yield f"the reaper failed: {report.errors} {report.unknown}"
        if not {one.record.lease_id for one in report.reaped} <= mine:
            yield "the reaper ended what was not its own"
        complaint = audit_complaint(state / "audit")
        if complaint:
            yield complaint


def audit_complaint(folder):
    """Say what is wrong with a trail; one whose first process died while it made the folder has no record to lose."""
    if not folder.exists():
        return ""
    found = verify(folder)
    is_unborn = found.records <= 1 and all(chain.is_intact for chain in found.chains)
    if found.is_intact or (is_unborn and not found.index.records):
        return ""
    return f"the audit is broken: {[r for r in (found.index, *found.chains) if not r.is_intact]}"


def intents(state):
    """Ids of all credentials whose intent is on record."""
    found = set()
    for chain in (state / "audit").glob("chain-*"):
        for line in chain.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the line that the death cut short: nothing had been done for it yet
            if record["kind"] == "credential.intended":
                found.add(record["lease_id"])
    return found


@pytest.fixture
def lab():
    """Return a lab of its own for each test."""
    folder = Path(tempfile.mkdtemp(prefix="jw"))
    with TestingBackend(folder / "backend") as backend:
        lab = Lab(folder, backend)
        yield lab
        for walker in lab.walkers:
            walker.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900 if REPEATS > 1 else 240)
def test_killed_at_any_point_one_round_of_the_reaper_leaves_nothing(lab):
    """At every kill point: no credential or session is left, none was without intent, the audit verifies."""
    points = lab.points()
    assert len({point.partition(":")[0] for point in points}) >= LEAST_POINTS

    def work(walker, point):
        state = lab.new_state()
        died = walker.do(state, point)
        if died["signal"] != SIGKILL:
            yield f"it did not die there: {died}"
        yield from lab.complaints_after_reaping(state)

    assert lab.share(points * REPEATS, work) == []
    assert lab.created() <= set().union(*[intents(state) for state in lab.folder.glob("s*")])
    assert len(lab.created()) > len(points) / 2


@pytest.mark.slow
def test_killed_from_outside_at_any_time_the_reaper_leaves_nothing(lab):
    """The same at instants that nobody chose, in the middle of whatever it was."""

    def work(walker, milliseconds):
        state = lab.new_state()
        walker.do(state, after=milliseconds / 1000)
        time.sleep(0.05)  # a request that was on its way when its sender died
        yield from lab.complaints_after_reaping(state)

    assert lab.share(list(range(10, 250, max(1, 12 // REPEATS))), work) == []


@pytest.mark.slow
def test_with_the_journal_lost_the_listing_alone_ends_what_is_overdue(lab):
    """Killed, the journal deleted: the command line ends everything no later than 5 s after the task's time was up."""
    names = [name for name in lab.points() if name.startswith(("backend.", "journal.", "session.", "body.", "child."))]

    def work(walker, point):
        state = lab.new_state()
        walker.do(state, point, ttl=2)
        shutil.rmtree(state / "journal", ignore_errors=True)
        return ()

    lab.share(names, work)
    time_is_up = time.time() + 2.0
    assert lab.issuer.outstanding() != ()
    token = lab.folder / "token"
    token.touch(0o600)
    token.write_text(lab.backend.admin_token.reveal())
    config = lab.folder / "reaper.toml"
    config.write_text(
        f'state_dir = "{lab.folder / "reaper"}"\n[issuers.backend]\ntype = "testing-backend"\n'
        f'address = "{lab.backend.address}"\nadmin_token_file = "{token}"\n'
    )
    command = [sys.executable, "-m", "jitwi", "reap", "--once", "--config", str(config), "--json"]
    while time.time() < time_is_up + 30.0 and lab.issuer.outstanding():
        subprocess.run(command, capture_output=True, check=False, timeout=60)
        needed = time.time() - time_is_up
    assert lab.issuer.outstanding() == ()
    assert lab.backend.sessions() == []
    assert needed <= 5.0
    assert verify(lab.folder / "reaper" / "audit").is_intact


@pytest.mark.slow
def test_a_new_start_of_the_program_ends_what_the_last_one_left(lab):
    """Without any reaper: the next process on the same state recovers while it does its own work."""

    def work(walker, point):
        state = lab.new_state()
        walker.do(state, point)
        dead = intents(state)
        walker.do(state, hold=0.7)
        left = dead & (set(lab.issuer.outstanding()) | set(lab.backend.sessions()))
        if left:
            yield f"alive after the new start: {left}"
        if intents(state) & set(lab.issuer.outstanding()):
            yield "the new process left something of its own"

    points = ["issuer.issue.after", "journal.activate.after", "body.obtained", "session.use.after", "issuer.end.before"]
    assert lab.share(points, work) == []


@pytest.mark.slow
def test_a_reaper_that_is_killed_too_is_finished_by_the_next_one(lab):
    """Killed in each step of its own round: the claim of a dead reaper holds nobody up."""
    state = lab.new_state()
    lab.walkers[0].do(state, "body.ends")
    points = lab.walkers[0].do(state, "?", do="reap")["points"]
    assert lab.issuer.outstanding() == ()
    chosen = [name for name in points if name.startswith(("journal.", "issuer.", "backend.", "audit.lease"))]
    assert "journal.claim.after" in chosen

    def work(walker, point):
        state = lab.new_state()
        walker.do(state, "body.ends")
        died = walker.do(state, point, do="reap")
        if died["signal"] != SIGKILL:
            yield f"the reaper did not die there: {died}"
        yield from lab.complaints_after_reaping(state)

    assert lab.share(chosen, work) == []


def test_a_chain_that_was_killed_before_its_first_line_is_no_tampering(tmp_path):
    """An empty chain that the index does not name was never used: said, and the trail around it stays intact."""
    log = AuditLog(tmp_path / "audit")
    log.record(PolicyLoaded(None, "x", 1), durable=True)
    log.close()
    (chain,) = (tmp_path / "audit").glob("chain-*")
    unborn = chain.with_name(f"{chain.name.rpartition('-')[0]}-{'0' * 16}.jsonl")
    unborn.touch(0o600)
    found = verify(tmp_path / "audit")
    assert found.is_intact
    assert [report.problem for report in found.chains if report.name == unborn.name] == [
        "never used: stopped while it was being opened"
    ]
    chain.write_bytes(b"")
    assert not verify(tmp_path / "audit").is_intact
