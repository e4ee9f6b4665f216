# SPDX-License-Identifier: Apache-2.0
"""The Guard with real parts around it: Cedar policies of its own, an audit trail on disk, a Workload API."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import tracemalloc
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jitwi.guard as g
from jitwi.audit import AuditLog, read, verify
from jitwi.clock import SystemClock
from jitwi.errors import AccessDeniedError, AuditError, EvidenceError, IdentityUnavailableError, InvalidPolicyError
from jitwi.guard import Guard, Request
from jitwi.policy import Evidence, Facts, PolicyStore, task_json
from jitwi.task import Entity, under
from jitwi.testing.audit import RecordingSink
from jitwi.testing.ca import TestCa
from jitwi.testing.guard import CaBundles, Caller, call, identity_of
from jitwi.testing.workload_api import FakeWorkloadApi

AUDIENCE = "https://orders.example.org"
ME = "spiffe://example.org/ns/prod/refunds"
ORDER = Entity("Shop::Order", "42")
CUSTOMER = Entity("Shop::Customer", "7")
SCHEMA = """
namespace Shop {
  entity Customer;
  entity Order in [Customer] = { total: Long };
  action read appliesTo { principal: [Jitwi::Workload], resource: [Order], context: { task: Jitwi::Task } };
  action refund appliesTo { principal: [Jitwi::Workload], resource: [Order],
                            context: { task: Jitwi::Task, used: Long, evidence: String, input: { amount: Long } } };
}
"""
POLICIES = """
@id("orders.read")
permit (principal in Jitwi::Path::"example.org/ns/prod", action == Shop::Action::"read", resource);
@id("orders.refund")
permit (principal in Jitwi::Path::"example.org/ns/prod", action == Shop::Action::"refund", resource is Shop::Order)
when { context.task.name == "refund-order" && context.input.amount > 0 && context.input.amount <= resource.total
       && context.used < 2 && context.evidence == "task-token" };
"""
ENTITIES = """[
  {"uid": {"type": "Shop::Customer", "id": "7"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Shop::Order", "id": "42"}, "attrs": {"total": 100},
   "parents": [{"type": "Shop::Customer", "id": "7"}]},
  {"uid": {"type": "Shop::Order", "id": "43"}, "attrs": {"total": 100}, "parents": []}
]"""
TASKS = """
[tasks.refund-order]
owner = "team-payments"
max_ttl = 300
"""


@pytest.fixture
def ca():
    """An authority on the machine's clock."""
    return TestCa("example.org")


@pytest.fixture
def policies(folder):
    """A folder of the Guard's own policies."""
    place = folder / "policies"
    place.mkdir()
    for name, text in {
        "shop.cedarschema": SCHEMA,
        "orders.cedar": POLICIES,
        "entities.json": ENTITIES,
        "tasks.toml": TASKS,
    }.items():
        (place / name).write_text(text)
    return place


@pytest.fixture
def guard(ca, folder, policies):
    """A Guard with everything real but the agent."""
    with Guard(AUDIENCE, policies, identity=CaBundles(ca), state_dir=folder / "state") as guard:
        yield guard


def test_call_from_a_users_test(guard, ca) -> None:
    """`jitwi.testing.call` gives a service's own tests a real call, or the real refusal."""
    task = {"task": "refund-order", "ca": ca, "as_": ME, "purpose": "customer request"}
    done = call(guard, "refund", ORDER, input={"amount": 30}, **task)
    assert (done.owner, done.policy_ids) == ("team-payments", ("orders.refund",))
    below = call(guard, "read", ORDER, permissions={"read": under(CUSTOMER)}, **task)
    assert below.permission.resource == under(CUSTOMER)
    refusals = [
        (AccessDeniedError, "refund", ORDER, {"input": {"amount": 101}}),
        (AccessDeniedError, "refund", ORDER, {"input": {"amount": -1}}),
        (AccessDeniedError, "refund", ORDER, {}),
        (AccessDeniedError, "refund", ORDER, {"input": {"amount": "30"}}),
        (AccessDeniedError, "read", Entity("Shop::Order", "unknown"), {}),
        (AccessDeniedError, "read", ORDER, {"as_": "spiffe://example.org/ns/dev/refunds"}),
        (g.ScopeMismatchError, "read", Entity("Shop::Order", "43"), {"permissions": {"read": under(CUSTOMER)}}),
        (g.TaskClassError, "read", ORDER, {"task": "unregistered"}),
        (g.TaskClassError, "read", ORDER, {"owner": "somebody-else"}),
        (g.TaskClassError, "read", ORDER, {"ttl": timedelta(minutes=6)}),
    ]
    for expected, action, resource, changed in refusals:
        with pytest.raises(expected):
            call(guard, action, resource, **(task | changed))


def test_used_is_the_guards_own_count(guard, ca) -> None:
    """A policy over `used` counts what this Guard allowed, and a denied use can be made up for."""
    caller = Caller(
        guard, identity_of(ca.issue(ME), clock=SystemClock()), {"refund": ORDER}, task="refund-order", max_uses=5
    )
    with pytest.raises(AccessDeniedError):
        caller.call("refund", ORDER, input={"amount": 1000})
    assert [caller.call("refund", ORDER, input={"amount": 1}).number for _ in range(2)] == [1, 2]
    with pytest.raises(AccessDeniedError):
        caller.call("refund", ORDER, input={"amount": 1})


def test_trail_on_disk(guard, ca, folder) -> None:
    """Every decision is in the trail with `txn` and `jti`, refusals with their step, and the trail verifies."""
    task = {"task": "refund-order", "ca": ca, "as_": ME}
    done = call(guard, "refund", ORDER, input={"amount": 30}, txn="the-txn", **task)
    with pytest.raises(AccessDeniedError):
        call(guard, "refund", ORDER, input={"amount": 3000}, **task)
    with pytest.raises(g.MissingEvidenceError):
        guard.check(Request("GET", "/", {}), "read", ORDER)
    guard.close()
    trail = folder / "state" / "audit"
    assert verify(trail).is_intact
    lines = [line for line in read(trail) if str(line.get("kind", "")).startswith("guard.")]
    assert [line["kind"] for line in lines] == ["guard.allowed", "guard.denied", "guard.denied"]
    assert (lines[0]["jti"], lines[0]["decision"]["policy_ids"]) == (done.jti, ["orders.refund"])
    assert "the-txn" in str(lines[0])
    assert [line.get("step") for line in lines[1:]] == ["decision", "request"]
    text = "".join(str(line) for line in lines)
    assert "eyJ" not in text


def test_trail_that_cannot_be_written_is_a_refusal(ca, folder, policies) -> None:
    """With the trail's folder gone bad nothing is allowed (no record, no call)."""
    (folder / "audit").write_text("in the way")
    log = AuditLog(folder / "audit", deadline=timedelta(seconds=1))
    with Guard(AUDIENCE, policies, identity=CaBundles(ca), state_dir=folder / "state", audit=log) as guard:
        with pytest.raises(AuditError) as refused:
            call(guard, "read", ORDER, task="refund-order", ca=ca, as_=ME)
        assert guard.answer(refused.value).status == 503
    log.close()


def test_reload_of_real_policies(guard, ca, policies) -> None:
    """A reload takes effect at the next check; a bad set is refused and the last good one stays."""
    task = {"task": "refund-order", "ca": ca, "as_": ME}
    (policies / "orders.cedar").write_text("permit (principal, action")
    with pytest.raises(InvalidPolicyError):
        guard.reload()
    assert call(guard, "read", ORDER, **task)
    (policies / "orders.cedar").write_text(POLICIES + 'forbid (principal, action == Shop::Action::"read", resource);')
    guard.reload()
    with pytest.raises(AccessDeniedError):
        call(guard, "read", ORDER, **task)


def test_bad_policies_refuse_to_start(ca, folder, policies) -> None:
    """A Guard whose policies are refused checks nothing, and says why at `start`."""
    (policies / "orders.cedar").write_text("permit (principal, action")
    guard = Guard(AUDIENCE, policies, identity=CaBundles(ca), state_dir=folder / "state", audit=RecordingSink())
    for _ in range(2):
        with pytest.raises(InvalidPolicyError):
            guard.check(Request("GET", "/", {}), "read", ORDER)
    (policies / "orders.cedar").write_text(POLICIES)
    with pytest.raises(g.MissingEvidenceError):
        guard.check(Request("GET", "/", {}), "read", ORDER)
    guard.close()


def test_bundles_from_the_workload_api(folder, policies, monkeypatch) -> None:
    """Without an `identity` the Guard follows the Workload API, and an authority dropped there is dropped here."""
    with FakeWorkloadApi("spiffe://example.org/orders") as api:
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", api.socket)
        with Guard(AUDIENCE, policies, state_dir=folder / "state", audit=RecordingSink()) as guard:
            task = {"task": "refund-order", "ca": api.ca, "as_": ME}
            assert call(guard, "read", ORDER, **task)
            caller = Caller(
                guard, identity_of(api.ca.issue(ME), clock=SystemClock()), {"read": ORDER}, task="refund-order"
            )
            assert caller.call("read", ORDER)
            api.ca.rotate_authority()
            api.ca.drop_old_authorities()
            api.rotate()
            for _ in range(200):
                try:
                    caller.call("read", ORDER)
                except g.UntrustedChainError:
                    break
            else:
                pytest.fail("the dropped authority is still trusted")


def test_no_agent_is_unavailable(folder, policies, ca, monkeypatch) -> None:
    """With no agent the Guard answers 503 within its deadline, and a good call once the agent is there."""
    api = FakeWorkloadApi("spiffe://example.org/orders", ca=ca)
    monkeypatch.setattr("jitwi.guard.parts._FIRST_BUNDLE_SECONDS", 0.2)
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", api.prepare())
    task = {"task": "refund-order", "ca": ca, "as_": ME}
    with Guard(AUDIENCE, policies, state_dir=folder / "state", audit=RecordingSink()) as guard:
        with pytest.raises(IdentityUnavailableError) as refused:
            call(guard, "read", ORDER, **task)
        assert guard.answer(refused.value).status == 503
        with api:
            guard._parts._source.identity(timeout=30)
            assert call(guard, "read", ORDER, **task)


FORK = """
import os, sys
from jitwi.guard import Guard, ReplayedProofError
from jitwi.policy import PolicyStore
from jitwi.task import Entity
from jitwi.testing.ca import TestCa
from jitwi.testing.guard import CaBundles, Caller, identity_of
ca, order = TestCa("example.org"), Entity("Shop::Order", "42")
guard = Guard("https://orders.example.org", sys.argv[1], identity=CaBundles(ca), state_dir=sys.argv[2])
if sys.argv[3] == "started":
    guard.start()
identity = identity_of(ca.issue("spiffe://example.org/ns/prod/refunds"), clock=guard._clock)
maker = Guard("https://orders.example.org", sys.argv[1], identity=CaBundles(ca), state_dir=sys.argv[2] + "-maker")
caller = Caller(maker, identity, {"read": order}, task="refund-order")
requests = [caller.request("read", order) for _ in range(3)]
maker.close()
children = []
for number in (0, 1):
    pid = os.fork()
    if not pid:
        try:
            guard.check(requests[number], "read", order)
            guard.check(requests[2], "read", order)
            os._exit(10)
        except ReplayedProofError:
            os._exit(11)
        except BaseException as exc:
            print(repr(exc), flush=True)
            os._exit(12)
    children.append(pid)
print(sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children), flush=True)
"""


@pytest.mark.parametrize("when", ["started", "fresh"])
def test_preforked_workers_share_their_memory(folder, policies, when) -> None:
    """A Guard made before a fork works in each worker, and what one worker saw, the other refuses (bar 11)."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORK), str(policies), str(folder / "state"), when],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ,
    )
    assert done.stdout == "[10, 11]\n", done.stdout + done.stderr
    assert verify(folder / "state" / "audit").is_intact


def test_flood_of_refusals_is_bounded(guard, ca) -> None:
    """Thousands of refused requests leave nothing in memory and no row in the store (bar 36, scaled)."""
    good = Caller(guard, identity_of(ca.issue(ME), clock=SystemClock()), {"read": ORDER}, task="refund-order")
    stolen = good.request("read", ORDER, path="/elsewhere")

    def flood(count: int) -> None:
        for number in range(count):
            request = Request("POST", "/", [("Authorization", f"DPoP {number}.a.b"), ("DPoP", "x" * 100)])
            for bad in (request, Request("POST", "/", stolen.headers), Request("GET", f"/{number}", {})):
                with pytest.raises(EvidenceError):
                    guard.check(bad, "read", ORDER)

    flood(300)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        flood(700)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 1_000_000
    with guard._parts.ledger._connected() as connection:
        assert connection.execute("SELECT count(*) FROM seen").fetchone() == (0,)
    assert good.call("read", ORDER)


CONDITIONS = st.sampled_from(
    [
        "context.input.amount <= resource.total",
        "context.input.amount > 0",
        "context.used < 1",
        'context.evidence == "task-token"',
        'context.task.name == "refund-order"',
        "context.task has purpose",
        "context.task.ttl > 60",
        'principal in Jitwi::Path::"example.org/ns/prod"',
        'principal.path == "/ns/prod/refunds"',
        'resource in Shop::Customer::"7"',
    ]
)
POLICY = st.builds(
    lambda effect, scope, conditions: f"{effect} (principal, {scope}, resource) when {{ {' && '.join(conditions)} }};",
    st.sampled_from(["permit", "permit", "forbid"]),
    st.sampled_from(['action == Shop::Action::"refund"']),
    st.lists(CONDITIONS, min_size=1, max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(POLICY, min_size=1, max_size=4),
    amount=st.sampled_from([-5, 0, 30, 100, 101]),
    order=st.sampled_from(["42", "43"]),
    purpose=st.sampled_from([None, "p"]),
    who=st.sampled_from([ME, "spiffe://example.org/ns/dev/refunds"]),
)
def test_guard_decides_as_the_library(ca, folder, texts, amount, order, purpose, who) -> None:
    """For the same request the Guard and the library give the same answer by the same policies (bar 41)."""
    store = PolicyStore.from_text(
        policies="\n".join(['permit (principal, action == Shop::Action::"read", resource);', *texts]),
        schema=SCHEMA,
        entities=ENTITIES,
    )
    snapshot = store.load()
    resource, given_input = Entity("Shop::Order", order), {"amount": amount}
    audit = RecordingSink()
    with Guard(AUDIENCE, store, identity=CaBundles(ca), state_dir=folder / "state", audit=audit) as guard:
        caller = Caller(
            guard,
            identity_of(ca.issue(who), clock=SystemClock()),
            {"refund": resource},
            task="refund-order",
            purpose=purpose,
        )
        facts = Facts(task_json(caller.task.facts()), 0, caller.now(), Evidence.TASK_TOKEN, given_input)
        expected = snapshot.decide(caller.identity.spiffe_id, snapshot.action("refund"), resource, facts)
        try:
            caller.call("refund", resource, input=given_input)
            allowed = True
        except AccessDeniedError:
            allowed = False
    assert allowed == expected.is_allowed
    decision = audit.events[-1].decision
    assert (decision.reason, sorted(decision.policy_ids)) == (expected.reason, sorted(expected.policy_ids))
