# SPDX-License-Identifier: Apache-2.0
"""The reaper over a real backend: killed processes, many reapers, a lost journal, an absent backend; the commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from jitwi.audit.events import LeaseReaped
from jitwi.cli.leases import leases as leases_command
from jitwi.cli.leases import reap as reap_command
from jitwi.clock import SystemClock
from jitwi.config import load_config
from jitwi.credentials.reaping import IssuerBackend, make_reaper
from jitwi.errors import ConfigurationError, IssuanceError
from jitwi.journal import LeaseRecord, SqliteJournal, journal_path, new_lease_id, this_owner
from jitwi.testing.backend import TestingBackend, call_backend
from jitwi.testing.backend_issuer import BackendIssuer
from jitwi.testing.kill_point import KILL_AT_VARIABLE

NAME = "orders-db"
ROOT = str(Path(__file__).resolve().parents[3])

WORKER = """
import sys, time
from datetime import timedelta
from jitwi.clock import SystemClock
from jitwi.credentials import LeaseRef, Order, end_lease
from jitwi.identity import SvidKind
from jitwi.journal import LeaseRecord, SqliteJournal, new_lease_id, this_owner
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity, Permission, Task
from jitwi.testing.backend_issuer import BackendIssuer
from jitwi.testing.kill_point import Mortal
from jitwi.secret import Secret
path, address, token, ttl, count, wait = sys.argv[1:]
journal = Mortal(SqliteJournal(path, clock=SystemClock()), "journal")
issuer = Mortal(BackendIssuer(address, Secret(token), timeout=5.0), "issuer")
me, who = this_owner(), SpiffeId.parse("spiffe://example.org/w")
permissions = (Permission(Entity("Shop::Action", "read"), Entity("Shop::Order", "42")),)
made = []
for _ in range(int(count)):
    now = time.time()
    ends_at = now + float(ttl)
    task = Task("refund-order", permissions, timedelta(seconds=60))
    order = Order("orders-db", new_lease_id(ends_at=ends_at), "txn", task, permissions, who, SvidKind.X509, now,
                  ends_at, now + 3600)
    plan = issuer.plan(order)
    print("intent", order.lease_id, flush=True)
    journal.intend(LeaseRecord(order.lease_id, "g", "txn", "orders-db", plan.kind, str(who), task.name, plan.recipe, me,
                               now, ends_at, strength=plan.strength.value))
    issued = issuer.issue(order, plan)
    journal.activate(order.lease_id, recipe=issued.recipe, expires_at=issued.expires_at)
    print("issued", order.lease_id, flush=True)
    made.append((plan, LeaseRef(order.lease_id, "orders-db", plan.kind, plan.recipe, ends_at, issued.secret)))
if wait == "wait":
    sys.stdin.read()
for plan, ref in made:
    ending = end_lease(issuer, plan, ref, now=time.time(), timeout=10)
    journal.ended(ref.lease_id, outcome=ending.outcome.value)
print("over", flush=True)
"""
KILL_POINTS = [
    *(f"journal.{method}.{when}" for method in ("intend", "activate", "ended") for when in ("before", "after")),
    *(f"issuer.{method}.{when}" for method in ("plan", "issue", "end", "probe") for when in ("before", "after")),
    *(f"backend.{method}.{when}" for method in ("issue", "end", "probe") for when in ("before", "after")),
    *("journal.intend.after:2", "backend.issue.after:2", "journal.activate.before:2", "backend.end.after:2"),
    *("issuer.probe.after:2", "journal.ended.before:2"),
]


class RecordingAudit:
    """Keeps events."""

    def __init__(self) -> None:
        self.events = []

    def record_loss(self, event, *, durable=False):
        """Keep it."""
        self.events.append((event, durable))


@pytest.fixture(scope="module")
def shared():
    """One backend for the module; each test uses leases of its own."""
    with TestingBackend() as running:
        yield running


@pytest.fixture
def issuer(shared):
    """Its issuer."""
    return BackendIssuer(shared.address, shared.admin_token, timeout=2.0)


@pytest.fixture
def book(tmp_path):
    """A journal on the machine's clock."""
    opened = SqliteJournal(tmp_path / "journal" / "journal.sqlite3", clock=SystemClock())
    yield opened
    opened.close()


def work(book, backend, *, ttl=60.0, count=2, kill_at="", wait=False):
    """Start a process that issues and ends."""
    command = [sys.executable, "-c", WORKER, str(book.path), backend.address, backend.admin_token.reveal()]
    return subprocess.Popen(
        [*command, str(ttl), str(count), "wait" if wait else ""],
        env={**os.environ, KILL_AT_VARIABLE: kill_at, "PYTHONPATH": ROOT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition, *, seconds=30):
    """Wait until `condition()` is true."""
    over = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < over
        time.sleep(0.05)


@pytest.mark.parametrize("kill_at", KILL_POINTS)
def test_killed_anywhere(shared, issuer, book, kill_at):
    """Wherever a process is killed, one round of a reaper leaves no credential and no open record (bar 2)."""
    process = work(book, shared, kill_at=kill_at)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    audit = RecordingAudit()
    report = make_reaper(book, {NAME: issuer}, clock=SystemClock(), audit=audit).run_once()
    intended = {line.split()[1] for line in output.splitlines() if line.startswith("intent")}
    assert report.pending == ()
    assert intended.isdisjoint(shared.leases())
    assert book.open_leases() == ()
    assert {one.ending.outcome for one in report.reaped} <= {"verified"}
    assert [event.lease_id for event, _ in audit.events] == [one.record.lease_id for one in report.reaped]


def test_killed_and_the_journal_deleted(shared, issuer, book):
    """With the journal gone as well, nothing outlives its time by more than a few seconds."""
    process = work(book, shared, ttl=3, wait=True)
    while "issued" not in process.stdout.readline():
        pass
    until(lambda: len(shared.leases()) >= 2)
    mine = set(shared.leases())
    process.kill()
    process.communicate(timeout=30)
    book.close()
    for found in book.path.parent.iterdir():
        found.unlink()
    fresh = SqliteJournal(book.path, clock=SystemClock())
    reaper = make_reaper(fresh, {NAME: issuer}, clock=SystemClock())
    assert mine <= set(reaper.run_once().waiting)
    reaped = set()
    until(lambda: reaped.update(one.record.lease_id for one in reaper.run_once().ended) or mine <= reaped)
    assert mine.isdisjoint(issuer.outstanding())
    fresh.close()


REAPER = """
import sys
from jitwi.clock import SystemClock
from jitwi.credentials.reaping import make_reaper
from jitwi.journal import SqliteJournal
from jitwi.secret import Secret
from jitwi.testing.backend_issuer import BackendIssuer
path, address, token = sys.argv[1:]
clock = SystemClock()
issuer = BackendIssuer(address, Secret(token))
reaper = make_reaper(SqliteJournal(path, clock=clock), {"orders-db": issuer}, clock=clock)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    report = reaper.run_once()
    assert not report.errors, report.errors
    print(*(one.record.lease_id for one in report.ended), flush=True)
"""


def test_many_reapers(shared, book):
    """Four reapers at once end every lease of a dead process, each exactly once."""
    process = work(book, shared, count=24, wait=True)
    mine = set()
    while len(mine) < 24:
        word, _, lease_id = process.stdout.readline().strip().partition(" ")
        if word == "issued":
            mine.add(lease_id)
    process.kill()
    process.communicate(timeout=30)
    command = [sys.executable, "-c", REAPER, str(book.path), shared.address, shared.admin_token.reveal()]
    reapers = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ROOT},
        )
        for _ in range(4)
    ]
    for reaper in reapers:
        assert reaper.stdout.readline() == "ready\n"
    for reaper in reapers:
        reaper.stdin.write("go\n")
        reaper.stdin.flush()
    ended = []
    for reaper in reapers:
        output, errors = reaper.communicate(timeout=60)
        assert reaper.returncode == 0, errors
        ended += output.split()
    assert sorted(ended) == sorted(mine)
    assert sorted(one for one in shared.ends() if one in mine) == sorted(mine)
    assert book.open_leases() == ()


def test_backend_away(book):
    """With the backend down endings are pending and counted; once it is back they are done soon (bar 6)."""
    with TestingBackend() as backend:
        issuer = BackendIssuer(backend.address, backend.admin_token, timeout=1.0)
        process = work(book, backend, wait=True)
        while sum("issued" in process.stdout.readline() for _ in range(2)) < 1:
            pass
        until(lambda: len(backend.leases()) == 2)
        backend.kill()
        process.kill()
        process.communicate(timeout=30)
        for _ in range(2):
            reaper = make_reaper(book, {NAME: issuer}, clock=SystemClock())
            until(lambda reaper=reaper: reaper.run_once().reaped)
        assert book.pending_count(NAME) == 2
        backend.start()
        back = time.monotonic()
        until(lambda: reaper.run_once() and not book.open_leases())
        assert time.monotonic() - back < 20
        assert backend.leases() == []
        assert backend.sessions() == []


def test_late_creation_is_found(book, shared, issuer):
    """A half-answered issue that comes true after it was ended is found in the listing and ended again."""
    now = time.time()
    lease_id = new_lease_id(ends_at=now + 60)
    book.intend(LeaseRecord(lease_id, "g", "t", NAME, "k", "w", "n", {}, this_owner(), now, now + 60))
    book.ended(lease_id, outcome="verified")
    body = {"lease_id": lease_id, "permissions": [], "max_uses": None, "expires_at": now + 60}
    call_backend(shared.address, "create", body, admin=shared.admin_token)
    report = make_reaper(book, {NAME: issuer}, clock=SystemClock()).run_once()
    assert [(one.record.lease_id, one.why) for one in report.ended] == [(lease_id, "orphan")]
    assert lease_id not in shared.leases()


def test_audit_of_a_reaped_lease(book, shared, issuer, nobody):
    """Each try is recorded, durably, with outcome, proof and reason."""
    now = time.time()
    lease = LeaseRecord(new_lease_id(ends_at=now + 60), "g", "t", NAME, "k", "w", "n", {}, nobody, now, now + 60)
    book.intend(lease)
    audit = RecordingAudit()
    make_reaper(book, {NAME: issuer}, clock=SystemClock(), audit=audit).run_once()
    ((event, durable),) = audit.events
    assert isinstance(event, LeaseReaped)
    assert durable
    assert (event.lease_id, event.outcome, event.proof, event.detail) == (
        lease.lease_id,
        "verified",
        "listed",
        "owner-gone",
    )
    assert (event.subject.txn, event.subject.task) == ("t", "n")


@pytest.mark.parametrize("answer", [None, "jitwi-x", ["a", 1], {"a": 1}, ValueError("hunter2"), KeyboardInterrupt()])
def test_listing_of_a_bad_issuer(answer):
    """An issuer that lists nonsense or raises anything is an `IssuanceError`."""

    class Bad:
        """A stand-in of this test."""

        def outstanding(self):
            """As the test needs it."""
            if isinstance(answer, BaseException):
                raise answer
            return answer

    with pytest.raises(IssuanceError) as caught:
        IssuerBackend("bad", Bad(), clock=SystemClock()).outstanding()
    assert "hunter2" not in str(caught.value)


# --- configuration and commands -----------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The entry point of the testing backend, as an installed package would announce it."""
    info = tmp_path / "site" / "entry-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: entry\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[jitwi.issuers]\ntesting-backend-here = jitwi.testing.backend_issuer:BackendIssuer\n"
    )
    monkeypatch.syspath_prepend(str(info.parent))


@pytest.fixture
def config(tmp_path, shared, installed):
    """A configuration file for the testing backend."""
    token = tmp_path / "token"
    token.write_text(shared.admin_token.reveal())
    file = tmp_path / "jitwi.toml"
    file.write_text(
        'policies = "policies"\nstate_dir = "state"\n\n[identity]\nspiffe_id = "spiffe://example.org/w"\n\n'
        '[issuers.orders-db]\ntype = "testing-backend-here"\nserves = ["read"]\n'
        f'address = "{shared.address}"\nadmin_token_file = "{token}"\n'
    )
    return file


@pytest.fixture
def left_over(tmp_path, nobody):
    """A lease that a dead process left in the state folder of the configuration."""
    now = time.time()
    book = SqliteJournal(journal_path(tmp_path / "state"), clock=SystemClock())
    lease = LeaseRecord(new_lease_id(ends_at=now + 60), "g", "t", NAME, "k", "w", "n\x1b", {}, nobody, now, now + 60)
    book.intend(lease)
    yield lease
    book.close()


def test_config(config, tmp_path, shared):
    """A file becomes the arguments of `JIT`: places relative to it, issuers made."""
    arguments = load_config(config).jit_arguments()
    assert arguments["policies"] == tmp_path / "policies"
    assert arguments["state_dir"] == tmp_path / "state"
    assert arguments["spiffe_id"] == "spiffe://example.org/w"
    assert arguments["issuers"][NAME].serves == frozenset({"read"})


@pytest.mark.parametrize(
    "text",
    [
        "policies = 7",
        "polices = 'x'",
        "[identity]\nagent = 'x'",
        "[issuers.a]\naddress = 'x'",
        "[issuers]\na = 7",
        "not toml",
        "\xff",
        "x = '" + "y" * 300_000 + "'",
    ],
    ids=lambda text: text[:20],
)
def test_bad_config(tmp_path, text):
    """A wrong file names itself and what is wrong."""
    file = tmp_path / "jitwi.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"jitwi\.toml"):
        load_config(file)


@pytest.mark.parametrize(
    "text",
    [
        "[issuers.a]\ntype = 'unknown'",
        "[issuers.a]\ntype = 'testing-backend-here'\naddress = 'x'",
        "[issuers.a]\ntype = 'testing-backend-here'\nhost = 'x'",
    ],
)
def test_bad_issuer_in_config(tmp_path, installed, text):
    """An unknown type or option names the issuer."""
    file = tmp_path / "jitwi.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="issuer `a`"):
        load_config(file).issuers()


def test_no_config(monkeypatch, tmp_path):
    """No file named and a missing file are our errors."""
    monkeypatch.delenv("JITWI_CONFIG", raising=False)
    with pytest.raises(ConfigurationError):
        load_config()
    with pytest.raises(ConfigurationError):
        load_config(tmp_path / "none")


def test_leases_command(config, left_over, tmp_path):
    """`leases` shows what is open and whose it is, without control characters, and as JSON."""
    run = CliRunner().invoke
    shown = run(leases_command, ["--state-dir", str(tmp_path / "state"), "--json"])
    assert shown.exit_code == 0, shown.output
    (row,) = json.loads(shown.output)
    assert (row["lease_id"], row["status"], row["owner"]) == (left_over.lease_id, "intended", "gone")
    table = run(leases_command, ["--config", str(config)], env={"COLUMNS": "300"})
    assert left_over.lease_id in table.output
    assert "\x1b" not in table.output
    assert run(leases_command, ["--config", str(config), "--issuer", "other"]).output == "no open leases\n"
    assert run(leases_command, ["--state-dir", str(tmp_path / "none")]).output == "no open leases\n"
    assert not (tmp_path / "none").exists()


def test_reap_command(config, left_over, tmp_path):
    """`reap` ends what is left, says how, and has nothing to do the second time; the audit has it."""
    run = CliRunner().invoke
    first = run(reap_command, ["--config", str(config), "--json"])
    assert first.exit_code == 0, first.output
    assert [(one["lease_id"], one["outcome"]) for one in json.loads(first.output)["reaped"]] == [
        (left_over.lease_id, "verified")
    ]
    second = run(reap_command, ["--config", str(config), "--once"])
    assert second.exit_code == 0
    assert left_over.lease_id not in second.output
    trail = "".join(found.read_text() for found in (tmp_path / "state" / "audit").rglob("*") if found.is_file())
    assert "lease.reaped" in trail
    assert left_over.lease_id in trail


def test_reap_command_says_what_is_left(config, left_over, shared):
    """What could not be ended is exit code 1, a wrong configuration 2."""
    run = CliRunner().invoke
    shared.fault("end", "fail", times=1)
    try:
        done = run(reap_command, ["--config", str(config)])
    finally:
        shared.heal()
    assert done.exit_code == 1
    assert "pending" in done.output
    assert run(reap_command, ["--config", "/nowhere/jitwi.toml"]).exit_code == 2


def test_reap_loop(config, left_over, shared, tmp_path):
    """`reap --loop` goes on until SIGTERM."""
    program = "from jitwi.cli.leases import reap; reap()"
    path = os.pathsep.join([ROOT, str(tmp_path / "site")])
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--config", str(config), "--loop", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    line = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert left_over.lease_id in line + rest
