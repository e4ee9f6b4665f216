# SPDX-License-Identifier: Apache-2.0
"""Does the walk of one task again and again, each time in a fork of its own that dies by SIGKILL at one named place.

A job is one line of JSON on standard input: `state` (folder), `at` (kill point, `""` = none, `?` = tell all points
passed), `do` (`walk` or `reap`), `ttl` (whole seconds), `after` (seconds until it is killed from outside), `hold`
(seconds that the walk waits at the end of its block). The answer is one line: `signal` (what it died of) and `points`
(for `?`). Arguments: address of the testing backend. The admin token comes from the environment. The imports are done
before the fork, so that a death costs little.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from datetime import timedelta

import jitwi
import jitwi.jit
import jitwi.testing.backend_issuer
import jitwi.testing.kill_point
from jitwi.audit import AuditLog
from jitwi.clock import SystemClock
from jitwi.credentials import make_reaper
from jitwi.issuers import TaskTokens
from jitwi.journal import SqliteJournal, journal_path
from jitwi.policy import PolicyStore
from jitwi.secret import Secret
from jitwi.state import SqliteEndings
from jitwi.testing import BackendIssuer, FixedIdentity
from jitwi.testing.kill_point import KILL_AT_VARIABLE, Mortal

SCHEMA = """namespace S { entity O;
action a, b, t appliesTo { principal: [Jitwi::Workload], resource: [O], context: { task: Jitwi::Task } }; }"""
POLICIES = "permit (principal, action, resource);"
ORDER = jitwi.Entity("S::O", "1")
URL = "https://orders.example.org/1"
ADDRESS = sys.argv[1]


def kill_point(name):
    """Pass a place of the walk; looked up at each call, so that the recording run sees it too."""
    jitwi.testing.kill_point.kill_point(name)


class MortalAudit(Mortal):
    """Passes a kill point for each kind of event, beside those of the methods."""

    def __getattr__(self, attribute):
        call = super().__getattr__(attribute)
        if attribute not in {"record", "record_loss"}:
            return call

        def record(event, **settings):
            kill_point(f"audit.{event.kind}.before")
            call(event, **settings)
            kill_point(f"audit.{event.kind}.after")

        return record


def make_issuers():
    """Return the issuers, mortal."""
    admin = Secret(os.environ["JITWI_ADMIN"], kind="admin token")
    return {
        "backend": Mortal(BackendIssuer(ADDRESS, admin, serves=["a", "b"]), "issuer"),
        "api": Mortal(TaskTokens(URL, origin="https://orders.example.org", serves=["t"]), "tokens"),
    }


def reap(job):
    """Be a reaper that is killed in the middle of it."""
    journal = Mortal(SqliteJournal(journal_path(job["state"]), clock=SystemClock()), "journal")
    audit = MortalAudit(AuditLog(f"{job['state']}/audit"), "audit")
    make_reaper(journal, make_issuers(), clock=SystemClock(), audit=audit).run_once()
    audit.close()


def walk(job):
    """Open a task with two kinds of credential and a child, use everything, and leave."""
    state, ttl = job["state"], job.get("ttl", 60)
    jitwi.jit.SqliteJournal = lambda *a, **k: Mortal(SqliteJournal(*a, **k), "journal")
    jitwi.jit.SqliteEndings = lambda *a, **k: Mortal(SqliteEndings(*a, **k), "endings")
    jit = jitwi.JIT(
        PolicyStore.from_text(policies=POLICIES, schema=SCHEMA),
        issuers=make_issuers(),
        identity=FixedIdentity("spiffe://example.org/walk"),
        audit=MortalAudit(AuditLog(f"{state}/audit"), "audit"),
        state_dir=state,
    )
    with jit:
        with jit.task("walk", permissions={"a": ORDER, "b": ORDER, "t": ORDER}, ttl=timedelta(seconds=ttl)) as grant:
            kill_point("body.opened")
            handle = Mortal(grant.credential("backend"), "handle")
            kill_point("body.obtained")
            handle.use("a", ORDER)
            session = Mortal(handle.open_session(), "session")
            session.use("a", ORDER)
            Mortal(grant.credential("api"), "token").headers("GET", URL, "t", ORDER)
            with grant.task("child", permissions={"b": ORDER}) as child:
                Mortal(child.credential("backend"), "child").use("b", ORDER)
                kill_point("child.used")
            kill_point("child.left")
            handle.use("b", ORDER)
            kill_point("body.ends")
            time.sleep(job.get("hold", 0))
        kill_point("block.left")
    kill_point("closed")


def record_points(work, job):
    """Do the work once and return every kill point that it passes, and how often."""
    passed = Counter()

    def note(name):
        passed[name] += 1

    jitwi.testing.kill_point.kill_point = note
    jitwi.testing.backend_issuer.kill_point = note
    work(job)
    return dict(passed)


def child(job, pipe):
    """Be the process that dies."""
    work = {"walk": walk, "reap": reap}[job.get("do", "walk")]
    if job["at"] == "?":
        os.write(pipe, json.dumps(record_points(work, job)).encode())
        return
    os.environ[KILL_AT_VARIABLE] = job["at"]
    work(job)


def main():
    """Serve jobs until standard input ends."""
    for line in sys.stdin:
        job = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(job, writer)
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        if job.get("after") is not None:
            time.sleep(job["after"])
            os.kill(pid, signal.SIGKILL)
        said = b""
        while part := os.read(reader, 65536):
            said += part
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        died_of = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        print(json.dumps({"signal": died_of, "points": json.loads(said or b"{}")}), flush=True)


main()
