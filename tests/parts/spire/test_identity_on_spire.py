# SPDX-License-Identifier: Apache-2.0
"""What becomes of tasks when the real agent withdraws, replaces, doubles or rotates an identity, hangs or dies."""

from __future__ import annotations

import itertools
import time
from datetime import timedelta

import pytest
from spirestack.process import wait_until

import jitwi
from jitwi.audit import read, verify
from jitwi.errors import IdentityUnavailableError

pytestmark = pytest.mark.spire

AFTER_THE_ANSWER = 3.0
BACK_AGAIN = 5.0
MAX_STALENESS = 2.0
DEADLINE = 2.0
numbers = itertools.count()


def boot():
    """Seconds since boot, the same in every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.fixture(scope="module")
def workload(jitwi_spire, start_program, policies):
    """Return a starter of callers: `workload(path, ...)` is (program, persona, entry ids) with one entry per path."""

    def start(*paths, hints=None, **entry):
        persona = jitwi_spire.add_persona(f"caller{next(numbers)}")
        hints = hints or [""] * len(paths)
        entries = [
            jitwi_spire.add_entry(path, persona, hint=hint, **entry) for path, hint in zip(paths, hints, strict=True)
        ]
        # No service is needed here: a task token is minted for an origin that nobody listens to.
        config = {"policies": str(policies["caller"]), "origin": "http://127.0.0.1:9"}
        return start_program(persona, "caller.py", **config), persona, entries

    return start


@pytest.fixture(scope="module")
def steady(workload):
    """Return a caller whose entry nobody touches, with a short staleness limit."""
    program, _, _ = workload("/refunds/steady")
    program.ask("make", max_staleness=MAX_STALENESS)
    program.ask("serving", seconds=20)
    return program


@pytest.fixture
def agent(jitwi_spire):
    """Return the stack for a test that stops or kills the agent; it runs again afterwards."""
    yield jitwi_spire
    if not jitwi_spire.process("agent").is_running():
        jitwi_spire.start_agent()
    jitwi_spire.resume_agent()


def open_and_use(program, name, jit="main"):
    """Open a task and let its key exist."""
    program.ask("open", name=name, permissions=[["read", 42]], jit=jit)
    return program.ask("headers", name=name, path="/orders/42/read", action="read", number=42)


def test_deleted_entry_ends_running_tasks(jitwi_spire, workload):
    """The agent says PermissionDenied: tasks end by that cause within 3 s, nothing new opens, and it is on record."""
    program, persona, (entry,) = workload("/refunds/deleted")
    program.ask("make")
    open_and_use(program, "running")
    program.begin("await_end", name="running", seconds=20)
    jitwi_spire.delete_entry(entry)
    answered = boot()
    ended = program.collect()["ok"]
    assert ended is not None
    assert ended - answered <= AFTER_THE_ANSWER
    assert program.ask("ending", name="running")["cause"] == "identity-withdrawn"
    refused = program.refused("headers", name="running", path="/orders/42/read", action="read", number=42)
    assert (refused["error"], refused["cause"]) == ("GrantRevokedError", "identity-withdrawn")
    assert program.refused("check", name="running", action="read", number=42)["error"] == "GrantRevokedError"
    refused = program.refused("open", name="new", permissions=[["read", 42]])
    assert refused["error"] == "IdentityWithdrawnError"
    assert program.ask("leave", name="running")["credentials"] == {"orders": "by_construction"}
    trail = program.folder / "state" / "main" / "audit"
    changes = [line["change"] for line in read(trail) if line["kind"] == "identity.changed"]
    assert changes.count("withdrawn") == 1
    assert "rotated" not in changes[changes.index("withdrawn") :]
    (end,) = [line for line in read(trail) if line["kind"] == "grant.ended"]
    assert end["cause"] == "identity-withdrawn"
    verify(trail).require_intact()
    jitwi_spire.add_entry("/refunds/deleted", persona)
    began = boot()
    assert program.ask("serving", seconds=20) - began <= BACK_AGAIN


def test_replaced_identity_ends_running_tasks(jitwi_spire, workload):
    """A second SVID changes nothing for who was pinned; once the pinned one is gone its tasks end, and none reopens."""
    program, persona, (first,) = workload("/refunds/first")
    program.ask("make")
    open_and_use(program, "running")
    version = program.ask("identity")["version"]
    jitwi_spire.add_entry("/refunds/second", persona)
    jitwi_spire.touch_entry(first)
    assert program.ask("identity", version=version + 1, seconds=10)["state"] == "ready"
    opened = program.ask("open", name="more", permissions=[["read", 42]])
    assert opened["workload"] == jitwi_spire.spiffe_id("/refunds/first")
    program.begin("await_end", name="running", seconds=20)
    jitwi_spire.delete_entry(first)
    answered = boot()
    ended = program.collect()["ok"]
    assert ended is not None
    assert ended - answered <= AFTER_THE_ANSWER
    for name in ("running", "more"):
        program.ask("await_end", name=name, seconds=5)
        assert program.ask("ending", name=name)["cause"] == "identity-replaced"
    assert program.refused("open", name="new", permissions=[["read", 42]])["error"] == "IdentityReplacedError"
    program.ask("make", name="chosen-anew", spiffe_id=jitwi_spire.spiffe_id("/refunds/second"))
    opened = program.ask("open", name="anew", permissions=[["read", 42]], jit="chosen-anew")
    assert opened["workload"] == jitwi_spire.spiffe_id("/refunds/second")


def test_two_identities_need_a_choice(jitwi_spire, workload):
    """Without a choice the error lists both; by SPIFFE ID or hint it is the right one; a wrong choice is none."""
    program, _, entries = workload("/refunds/blue", "/reports/green", hints=["blue", "green"])
    blue, green = (jitwi_spire.spiffe_id(path) for path in ("/refunds/blue", "/reports/green"))
    program.ask("make", name="none")
    refused = program.refused("open", name="x", permissions=[["read", 42]], jit="none")
    assert refused["error"] == "AmbiguousIdentityError"
    assert sorted(map(tuple, refused["candidates"])) == [(blue, "blue"), (green, "green")]
    for number, (choice, expected) in enumerate(
        [
            ({"spiffe_id": blue}, blue),
            ({"spiffe_id": green}, green),
            ({"hint": "green"}, green),
            ({"hint": "blue"}, blue),
        ]
    ):
        name = f"choice{number}"
        program.ask("make", name=name, **choice)
        assert program.ask("open", name=name, permissions=[["read", 42]], jit=name)["workload"] == expected
    program.ask("make", name="wrong", spiffe_id=jitwi_spire.spiffe_id("/refunds/red"))
    refused = program.refused("open", name="x", permissions=[["read", 42]], jit="wrong")
    assert refused["error"] in {"IdentityReplacedError", "IdentityUnavailableError"}
    jitwi_spire.delete_entry(entries[1])
    assert program.ask("await_end", name="choice1", seconds=AFTER_THE_ANSWER) is not None
    assert program.ask("ending", name="choice1")["cause"] == "identity-replaced"
    assert program.ask("ending", name="choice0") is None
    assert program.ask("serving", seconds=10, jit="none") > 0


def took(refused):
    """Seconds that a refused `open` took."""
    return float(refused["reasons"][-1].split()[1])


def test_halted_agent(agent, steady):
    """SIGSTOP: who has no identity fails closed within the deadline, running tasks go on, new ones only until stale."""
    open_and_use(steady, "running")
    agent.pause_agent()
    steady.ask("make", name="newcomer")
    refused = steady.refused("open", name="x", permissions=[["read", 42]], jit="newcomer")
    assert refused["error"] == "IdentityUnavailableError"
    assert took(refused) <= DEADLINE + 1.5
    refused = steady.refused("refusing", seconds=MAX_STALENESS + 10)
    assert (refused["error"], "stale" in refused["reasons"]) == ("IdentityUnavailableError", True)
    made = steady.ask("headers", name="running", path="/orders/42/read", action="read", number=42)
    assert made["DPoP"]
    assert steady.ask("check", name="running", action="read", number=42) > 0
    began = boot()
    agent.resume_agent()
    assert steady.ask("serving", seconds=20) - began <= BACK_AGAIN
    assert steady.ask("serving", seconds=20, jit="newcomer") - began <= BACK_AGAIN
    assert steady.ask("leave", name="running")["cause"] == "block-ended"


def test_killed_agent(agent, steady):
    """SIGKILL: running tasks go on, new ones only until stale, and 5 s after the agent is back all is as before."""
    open_and_use(steady, "running")
    version = steady.ask("identity")["version"]
    agent.kill_agent()
    refused = steady.refused("refusing", seconds=MAX_STALENESS + 10)
    assert (refused["error"], "stale" in refused["reasons"]) == ("IdentityUnavailableError", True)
    assert steady.ask("check", name="running", action="read", number=42) > 0
    agent.start_agent()
    began = boot()
    assert steady.ask("serving", seconds=20) - began <= BACK_AGAIN
    assert steady.ask("identity", version=version + 1, seconds=10)["version"] > version
    assert steady.ask("headers", name="running", path="/orders/42/read", action="read", number=42)
    assert steady.ask("leave", name="running")["cause"] == "block-ended"


@pytest.mark.parametrize("fault", ["cut", "drop", "slow"])
def test_trouble_on_the_way_to_the_agent(jitwi_spire, policies, tmp_path, fault):
    """Bar 12: connections cut, swallowed or slowed down: bounded refusals, running tasks go on, back within 5 s."""
    persona = jitwi_spire.add_persona(f"caller{next(numbers)}")
    jitwi_spire.add_entry("/refunds/relayed", persona)
    settings = {"endpoint": persona.socket, "max_staleness": timedelta(seconds=MAX_STALENESS)}
    order = jitwi.Entity("Shop::Order", "42")
    declared = {"permissions": {"read": order}, "ttl": timedelta(minutes=1)}
    trouble = {"cut": persona.cut, "drop": persona.drop, "slow": lambda: persona.delay(4)}

    def make(name):
        return jitwi.JIT(policies["caller"], state_dir=tmp_path / name, **settings)

    def is_refused(jit):
        try:
            with jit.task("x", **declared):
                return False
        except IdentityUnavailableError:
            return True

    with make("steady") as jit, jit.task("x", **declared) as grant:
        trouble[fault]()
        try:
            began = boot()
            with make("newcomer") as newcomer:
                assert is_refused(newcomer)
            assert boot() - began <= DEADLINE + 3
            wait_until(lambda: is_refused(jit), "a stale identity", timeout=MAX_STALENESS + 10)
            assert grant.check("read", order).number == 1
        finally:
            persona.ok()
        began = boot()
        wait_until(lambda: not is_refused(jit), "new tasks again", timeout=20, poll=0.05)
        assert boot() - began <= BACK_AGAIN
        assert grant.check("read", order).number == 2


def test_jwt_svid_as_identity(workload):
    """A JWT-SVID decides, is renewed at half life, and a task outlives it; task tokens say that they cannot serve."""
    program, _, _ = workload("/refunds/jwt")
    program.ask("make", identity="jwt-svid")
    program.ask("open", name="running", permissions=[["read", 42], ["refund", 42]])
    first = program.ask("identity")
    assert program.ask("check", name="running", action="read", number=42) == 1
    assert program.ask("check", name="running", action="refund", number=42, input={"amount": 30}) == 2
    assert program.refused("check", name="running", action="refund", number=42, input={"amount": 1001})["error"] == (
        "AccessDeniedError"
    )
    refused = program.refused("credential", name="running", issuer="orders")
    assert (refused["error"], refused["reasons"]) == ("IssuanceError", ["no-svid-key"])
    renewed = program.ask("identity", version=first["version"] + 2, seconds=20)
    assert renewed["not_after"] > first["not_after"]
    time.sleep(max(0.0, first["not_after"] - time.time()))
    assert program.ask("check", name="running", action="read", number=42) == 3
    assert program.ask("leave", name="running")["cause"] == "block-ended"


def test_jwt_svid_identity_is_withdrawn_too(jitwi_spire, workload):
    """Entry deleted: the tasks of a JWT-SVID end like those of an X.509-SVID."""
    program, _, (entry,) = workload("/refunds/jwt-gone")
    program.ask("make", identity="jwt-svid")
    program.ask("open", name="running", permissions=[["read", 42]])
    program.begin("await_end", name="running", seconds=20)
    jitwi_spire.delete_entry(entry)
    answered = boot()
    ended = program.collect()["ok"]
    assert ended is not None
    assert program.ask("ending", name="running")["cause"] == "identity-withdrawn"
    assert ended - answered <= AFTER_THE_ANSWER
