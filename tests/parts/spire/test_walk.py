# SPDX-License-Identifier: Apache-2.0
"""The walk of one task on a real SPIRE: caller, guarded service and thief are processes with their own IDs."""

from __future__ import annotations

import itertools
import json
import signal
import time
from typing import ClassVar

import pytest
from spirestack.process import wait_until

from jitwi.audit import read, verify

pytestmark = pytest.mark.spire

ORIGINAL = {"input": {"amount": 30}}
numbers = itertools.count()


@pytest.fixture(scope="module")
def walk(jitwi_spire, start_program, policies, tmp_path_factory):
    """Return stack, entries and the three processes, all with an identity and a `JIT` or Guard that works."""

    class Walk:
        stack = jitwi_spire
        entries: ClassVar = {}

        @classmethod
        def start(cls, name, spiffe_id, script, **config):
            persona = cls.stack.add_persona(name)
            cls.entries[name] = cls.stack.add_entry(spiffe_id, persona)
            return start_program(persona, script, **config)

    endings = tmp_path_factory.mktemp("caller-state") / "main" / "endings"
    Walk.endings = endings
    Walk.service = Walk.start(
        "orders",
        "/orders",
        "service.py",
        policies=str(policies["service"]),
        endings=str(endings),
        reports_audience="https://reports.example.test",
        trust_domain=Walk.stack.trust_domain,
    )
    Walk.callers_config = {"policies": str(policies["caller"]), "origin": Walk.service.greeting["origin"]}
    Walk.caller = Walk.start(
        "refunds", "/refunds/worker", "caller.py", state=str(endings.parent.parent), **Walk.callers_config
    )
    Walk.other = Walk.start("reports", "/reports/worker", "caller.py", **Walk.callers_config)
    for program in (Walk.caller, Walk.other):
        program.ask("make")
        program.ask("serving", seconds=20)
    return Walk


@pytest.fixture
def task(walk):
    """Return the name of a fresh task of the caller that may read order 42 and refund it; left at the end."""
    name = f"task{next(numbers)}"
    walk.caller.ask("open", name=name, permissions=[["refund", 42], ["read", 42]])
    yield name
    if walk.caller.ask("ending", name=name) is None:
        walk.caller.ask("leave", name=name)


def last(walk):
    """What the service did with the last request."""
    return walk.service.ask("last")


def test_allowed_use(walk, task):
    """What was declared is done, once per request, for the workload that the SVID names."""
    assert walk.caller.ask("use", name=task, path="/orders/42/refund", action="refund", number=42, **ORIGINAL) == 200
    done = last(walk)
    assert (done["done"], done["workload"]) == ("refund", walk.stack.spiffe_id("/refunds/worker"))
    assert done["input"] == {"amount": 30}
    assert walk.caller.ask("use", name=task, path="/orders/42/read", action="read", number=42) == 200
    assert last(walk)["txn"] == done["txn"]


@pytest.mark.parametrize(
    ("path", "action", "number", "body", "status", "refusal"),
    [
        ("/orders/42/cancel", "refund", 42, None, 401, "UseMismatchError"),
        ("/orders/43/refund", "refund", 42, None, 401, "UseMismatchError"),
        ("/billing/42/refund", "refund", 42, None, 401, "WrongAudienceError"),
        ("/orders/42/refund", "refund", 42, {"amount": 30000}, 401, "InputMismatchError"),
        ("/orders/42/refund", "refund", 42, {"amount": 31}, 401, "InputMismatchError"),
    ],
    ids=["action", "resource", "audience", "input", "input-by-one"],
)
def test_worth_nothing_elsewhere(walk, task, path, action, number, body, status, refusal):
    """Another action, resource, audience or input than proven: refused by the service, each for its own reason."""
    arguments = {"path": path, "action": action, "number": number, "body": body, **ORIGINAL}
    assert walk.caller.ask("use", name=task, **arguments) == status
    assert last(walk)["refused"] == refusal


@pytest.mark.parametrize(
    ("action", "number"), [("cancel", 42), ("refund", 43), ("report", "r1")], ids=["action", "resource", "issuer"]
)
def test_caller_refuses_what_was_not_declared(walk, task, action, number):
    """Another action or resource than declared does not even leave the caller."""
    answer = walk.caller.refused("headers", name=task, path="/orders/42/x", action=action, number=number)
    assert answer["error"] == "OutOfScopeError"


def test_copied_token_is_worth_nothing(walk, task):
    """A token copied to another process is refused with the thief's proof; a proof that was shown works never again."""
    made = walk.caller.ask("headers", name=task, path="/orders/42/read", action="read", number=42)
    token = made["Authorization"].split()[1]
    assert walk.other.ask("forge", path="/orders/42/read", token=token, action="read", number=42) == 401
    assert last(walk)["refused"] == "ProofKeyError"
    for wrong in ({"Authorization": f"Bearer {token}"}, {"Authorization": f"DPoP {token}"}):
        assert walk.other.ask("send", path="/orders/42/read", headers=wrong) == 401
        assert last(walk)["refused"] == "MissingEvidenceError"
    assert walk.caller.ask("send", path="/orders/42/read", headers=made) == 200
    for thief in (walk.other, walk.caller):
        assert thief.ask("send", path="/orders/42/read", headers=made) == 401
        assert last(walk)["refused"] == "ReplayedProofError"


def test_after_the_end(walk, task):
    """The key is gone, the handle says why, and a proof made before the end is refused after it."""
    made = walk.caller.ask("headers", name=task, path="/orders/42/read", action="read", number=42)
    assert walk.caller.ask("leave", name=task) == {
        "cause": "block-ended",
        "credentials": {"orders": "by_construction"},
    }
    answer = walk.caller.refused("headers", name=task, path="/orders/42/read", action="read", number=42)
    assert (answer["error"], answer["cause"]) == ("GrantEndedError", "block-ended")
    assert walk.caller.ask("send", path="/orders/42/read", headers=made) == 401
    assert last(walk)["refused"] == "TaskEndedError"


def test_policy_denies(walk, task):
    """The caller's policy stops the task and the use, the service's own policy stops what the caller's lets through."""
    answer = walk.caller.refused("open", name="denied", permissions=[["cancel", 42]])
    assert answer["error"] == "AccessDeniedError"
    arguments = {"name": task, "path": "/orders/42/refund", "action": "refund", "number": 42}
    assert walk.caller.refused("use", **arguments, input={"amount": 1001})["error"] == "AccessDeniedError"
    assert walk.caller.ask("use", **arguments, input={"amount": 101}) == 403
    assert last(walk)["refused"] == "AccessDeniedError"


def test_two_workloads_are_decided_apart(walk, task):
    """The same policies, the same request: the SPIFFE ID alone decides, at the caller and again at the service."""
    name = f"task{next(numbers)}"
    opened = walk.other.ask("open", name=name, permissions=[["read", 42], ["refund", 42]])
    assert opened["workload"] == walk.stack.spiffe_id("/reports/worker")
    arguments = {"name": name, "path": "/orders/42/refund", "action": "refund", "number": 42}
    assert walk.other.refused("use", **arguments, **ORIGINAL)["error"] == "AccessDeniedError"
    assert walk.other.ask("use", name=name, path="/orders/42/read", action="read", number=42) == 403
    assert last(walk)["refused"] == "AccessDeniedError"
    assert walk.caller.ask("use", name=task, path="/orders/42/read", action="read", number=42) == 200
    walk.other.ask("leave", name=name)


def test_wider_than_declared(walk):
    """A bearer JWT-SVID is refused unless a policy of the user accepts it; then a strict verifier takes it."""
    name = f"task{next(numbers)}"
    walk.caller.ask("open", name=name, permissions=[["report", "r1"], ["archive", "r1"]])
    answer = walk.caller.refused("credential", name=name, issuer="archive")
    assert answer["error"] == "ScopeTooWideError"
    assert {"actions", "resources", "uses", "network"} <= set(answer["wider"])
    use = {"name": name, "path": "/reports/r1/report", "action": "report", "number": "r1", "issuer": "reports"}
    assert walk.caller.ask("use", **use) == 200
    assert last(walk)["workload"] == walk.stack.spiffe_id("/refunds/worker")
    wrong = walk.caller.ask("headers", **use)
    assert walk.other.ask("send", path="/orders/42/read", headers=wrong) == 401
    assert last(walk)["refused"] == "MissingEvidenceError"
    ending = walk.caller.ask("leave", name=name)
    assert ending["credentials"]["reports"] == "expires_at"


def test_strict_verifier_refuses_what_is_not_for_it(walk):
    """A real JWT-SVID of another audience, an expired one and a changed one are refused by the service."""
    worker = walk.stack.spiffe_id("/refunds/worker")
    other = walk.stack.mint_jwt(worker, "https://archive.example.test")
    several = walk.stack.mint_jwt(worker, ["https://reports.example.test", "https://archive.example.test"])
    short = walk.stack.mint_jwt(worker, "https://reports.example.test", ttl=1)
    good = walk.stack.mint_jwt(worker, "https://reports.example.test", ttl=30)
    time.sleep(1.1)
    head, _, rest = good.partition(".")
    changed = f"{head}.{rest[:9]}{'A' if rest[9] != 'A' else 'B'}{rest[10:]}"
    for token in (other, several, short, changed):
        sent = walk.other.ask("send", path="/reports/r1/report", headers={"Authorization": f"Bearer {token}"})
        assert sent == 503
        assert last(walk)["refused"] == "InvalidSvidError"
    assert walk.other.ask("send", path="/reports/r1/report", headers={"Authorization": f"Bearer {good}"}) == 200


def test_rotation_in_mid_task(walk, task):
    """A new SVID under an open task: the same task key, endorsed anew, and the service goes on accepting."""
    leaf, jkt = walk.caller.ask("token_of", name=task)
    version = walk.caller.ask("identity")["version"]
    walk.stack.touch_entry(walk.entries["refunds"])
    assert walk.caller.ask("identity", version=version + 1, seconds=10)["version"] > version
    renewed, same = walk.caller.ask("token_of", name=task)
    assert renewed != leaf
    assert same == jkt
    assert walk.caller.ask("use", name=task, path="/orders/42/read", action="read", number=42) == 200
    assert walk.caller.ask("ending", name=task) is None


def test_authority_rotated_under_load(walk, task):
    """Bar 32: no use is refused while old and new authority overlap; after the removal the old chain is refused."""
    stack, caller = walk.stack, walk.caller
    held = [caller.ask("headers", name=task, path="/orders/42/read", action="read", number=42) for _ in range(2)]
    caller.ask("storm_begin", name=task)
    try:
        new = stack.rotate_x509(keep_old=True)
        old = stack.domain.authorities("x509")["old"]
        assert caller.ask("send", path="/orders/42/read", headers=held[0]) == 200
        stack.domain.authority("x509", "taint", old)
        wait_until(lambda: stack.domain.node_state()[0] == new, "the agent's new SVID", timeout=60)
        wait_until(stack._each_x509(signed_by=new), "SVIDs of the new authority", timeout=60)
        stack.domain.authority("x509", "revoke", old)
        wait_until(stack._each_x509(not_in_bundle=old), "a bundle without the old authority", timeout=60, poll=0.05)
        assert walk.service.ask("authorities", count=1, seconds=1.0) is not None
        assert caller.ask("send", path="/orders/42/read", headers=held[1]) == 401
    finally:
        seen = caller.ask("storm_end", name=task)
    assert set(seen) == {"200"}
    assert seen["200"] > 20
    assert caller.ask("use", name=task, path="/orders/42/read", action="read", number=42) == 200


def test_old_chain_is_refused_for_its_own_reason(walk, task):
    """The refusal after the removal of an authority is the chain's and no other; held apart from the storm."""
    made = walk.caller.ask("headers", name=task, path="/orders/42/read", action="read", number=42)
    walk.stack.rotate_x509()
    assert walk.service.ask("authorities", count=1, seconds=5) is not None
    assert walk.caller.ask("send", path="/orders/42/read", headers=made) == 401
    assert last(walk)["refused"] == "UntrustedChainError"


def test_jwt_authority_rotated(walk):
    """Bar 32 for bearer tokens: a token of the removed key is refused, a new task gets one of the new key."""
    declared = {"permissions": [["report", "r1"]]}
    use = {"path": "/reports/r1/report", "action": "report", "number": "r1", "issuer": "reports"}
    names = [f"task{next(numbers)}" for _ in range(2)]
    walk.caller.ask("open", name=names[0], **declared)
    made = walk.caller.ask("headers", name=names[0], **use)
    walk.stack.rotate_jwt()
    wait_until(
        lambda: walk.other.ask("send", path=use["path"], headers=made) != 200, "the removal of the key", timeout=1.5
    )
    assert last(walk)["refused"] == "InvalidSvidError"
    walk.caller.ask("open", name=names[1], **declared)
    assert walk.caller.ask("use", name=names[1], **use) == 200
    for name in names:
        walk.caller.ask("leave", name=name)


def test_uses_go_on_without_the_agent(walk, task):
    """Neither side needs the agent for a running task: the caller has its SVID, the Guard its bundle."""
    read_order = {"name": task, "path": "/orders/42/read", "action": "read", "number": 42}
    version = walk.caller.ask("identity")["version"]
    walk.stack.kill_agent()
    try:
        assert walk.caller.ask("use", **read_order) == 200
    finally:
        walk.stack.start_agent()
    assert walk.caller.ask("identity", version=version + 1, seconds=10)["state"] == "ready"
    assert walk.caller.ask("use", **read_order) == 200


def test_process_told_to_stop(walk, start_program):
    """SIGTERM: the task is ended and on record before the process dies of it, and an unused proof is worth nothing."""
    told = start_program(
        walk.stack.persona("refunds"), "caller.py", state=str(walk.endings.parent.parent), **walk.callers_config
    )
    told.ask("make")
    txn = told.ask("open", name="x", permissions=[["read", 42]])["txn"]
    made = told.ask("headers", name="x", path="/orders/42/read", action="read", number=42)
    told.process.terminate()
    assert told.process.wait(10) == -signal.SIGTERM
    assert walk.caller.ask("send", path="/orders/42/read", headers=made) == 401
    assert last(walk)["refused"] == "TaskEndedError"
    trail = walk.endings.parent / "audit"
    (end,) = [line for line in read(trail, txn=txn) if line["kind"] == "grant.ended"]
    assert (end["cause"], end["outcomes"]) == ("process-stopped", ["by_construction"])
    verify(trail).require_intact()


def test_record_of_both_sides(walk, start_program):
    """Both records are joined by `txn`, name every use and refusal, verify, and show a changed byte."""
    persona = walk.stack.persona("refunds")
    own = start_program(persona, "caller.py", **walk.callers_config)
    own.ask("make")
    name = "recorded"
    txn = own.ask("open", name=name, permissions=[["refund", 42]], purpose="customer request", owner="team-payments")[
        "txn"
    ]
    use = {"name": name, "path": "/orders/42/refund", "action": "refund", "number": 42}
    assert own.ask("use", **use, **ORIGINAL) == 200
    assert own.ask("use", **use, input={"amount": 30}, body={"amount": 30000}) == 401
    assert own.ask("use", **use, input={"amount": 101}) == 403
    own.refused("use", **use, input={"amount": 1001})
    own.ask("leave", name=name)
    own.close()
    callers, services = own.folder / "state" / "main" / "audit", walk.service.folder / "state" / "orders" / "audit"
    kinds = [line["kind"] for line in read(callers, txn=txn)]
    assert kinds == [
        "task.opened",
        "credential.intended",
        "credential.issued",
        *["use.allowed"] * 3,
        "use.denied",
        "credential.ended",
        "grant.ended",
    ]
    seen = list(read(services, txn=txn))
    assert [line["kind"] for line in seen] == ["guard.allowed", "guard.denied", "guard.denied"]
    assert [line.get("step") for line in seen] == [None, "use", "decision"]
    assert all(line["jti"] for line in seen)
    assert seen[0]["decision"]["policy_ids"] == ["service.refund"]
    closed, running = verify(callers), verify(services)
    closed.require_intact()
    running.require_intact()
    assert {chain.status.value for chain in closed.chains} == {"closed"}
    (chain,) = (path for path in callers.iterdir() if b"customer request" in path.read_bytes())
    chain.write_bytes(chain.read_bytes().replace(b"customer request", b"customer reQuest"))
    assert not verify(callers).is_intact


def test_nothing_of_the_walk_names_a_secret(walk, task):
    """No token, proof or key is in any record of caller or service."""
    made = walk.caller.ask("headers", name=task, path="/orders/42/read", action="read", number=42)
    assert walk.caller.ask("send", path="/orders/42/read", headers=made) == 200
    secrets = [made["Authorization"].split()[1], made["DPoP"], made["DPoP"].rpartition(".")[2]]
    folders = (walk.endings.parent / "audit", walk.service.folder / "state" / "orders" / "audit")
    text = "".join(path.read_text() for folder in folders for path in folder.iterdir())
    assert json.loads(text.splitlines()[0])
    assert not [secret for secret in secrets if secret in text]
