# SPDX-License-Identifier: Apache-2.0
"""Decisions: rule 1, context by the schema, bounds and injection (bars 3, 23 and 38)."""

from __future__ import annotations

import itertools
import json
import threading
from enum import StrEnum
from types import MappingProxyType

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.errors import PolicyEvaluationError
from jitwi.policy import NO_TASK, ActionShape, Evidence, bounded_json, engine, task_json
from jitwi.policy.context import MAX_BYTES, MAX_DEPTH, MAX_KEYS
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity

CREDENTIAL = {
    "kind": "task-token",
    "strength": "KEY_DESTROYED",
    "revocable": True,
    "bearer": False,
    "exact": True,
    "wider": [],
    "ttl": 60,
}


def test_a_good_request_is_allowed(shop) -> None:
    """Allow carries the `@id`, the digests and the context without `input`."""
    snapshot = shop.store().load()
    decision = shop.decide(snapshot, "refund", input={"amount": 30})
    assert (decision.is_allowed, decision.reason, decision.policy_ids) == (True, "allow", ("shop.refund",))
    assert decision.policy_digest == snapshot.digest
    assert len(decision.entities_digest) == 64
    assert json.loads(decision.context) == {"task": json.loads(shop.task)}


def test_a_decision_has_no_truth_value(shop) -> None:
    """Branching on the decision itself raises instead of allowing."""
    with pytest.raises(TypeError):
        bool(shop.decide(shop.store().load(), "read"))


def test_a_forbid_on_an_action_group_denies(shop) -> None:
    """Entities are built with the schema, so that action groups exist."""
    policies = shop.policies + '@id("no-writes") forbid(principal, action in Shop::Action::"writes", resource);'
    snapshot = shop.store(policies=policies).load()
    decision = shop.decide(snapshot, "refund", input={"amount": 30})
    assert (decision.is_allowed, decision.reason, decision.policy_ids) == (False, "forbid", ("no-writes",))
    assert shop.decide(snapshot, "read").is_allowed


def test_a_forbid_that_errors_denies(shop) -> None:
    """The engine skips a forbid that errors and says Allow; rule 1 says deny."""
    policies = (
        shop.policies
        + '@id("broken") forbid(principal, action == Shop::Action::"refund", resource)'
        + " when { 9223372036854775807 + context.input.amount < 0 };"
    )
    decision = shop.decide(shop.store(policies=policies).load(), "refund", input={"amount": 30})
    assert (decision.is_allowed, decision.reason) == (False, "evaluation-error")
    assert "`broken`" in decision.errors[0]
    assert "30" not in decision.errors[0]


def test_a_forbid_on_a_parent_denies(shop) -> None:
    """Parents come from the store of the deciding side."""
    policies = shop.policies + '@id("c1") forbid(principal, action, resource in Shop::Customer::"c1");'
    snapshot = shop.store(policies=policies).load()
    assert shop.decide(snapshot, "read").policy_ids == ("c1",)
    assert shop.decide(snapshot, "read", Entity("Shop::Order", "43")).is_allowed


def test_the_principal_is_in_each_prefix_and_in_its_trust_domain(shop) -> None:
    """Every prefix of the path is an ancestor, nothing beside it is."""
    cases = {
        'in Jitwi::Path::"example.org/ns"': True,
        'in Jitwi::Path::"example.org/ns/prod"': True,
        'in Jitwi::Path::"example.org/ns/prod/refunds"': True,
        'in Jitwi::TrustDomain::"example.org"': True,
        '== Jitwi::Workload::"spiffe://example.org/ns/prod/refunds"': True,
        'in Jitwi::Path::"example.org/ns/prod/refund"': False,
        'in Jitwi::Path::"example.org/ns/pro"': False,
        'in Jitwi::Path::"example.org/prod"': False,
        'in Jitwi::Path::"example.org/ns/prod/refunds/x"': False,
        'in Jitwi::TrustDomain::"example.com"': False,
    }
    for scope, expected in cases.items():
        policies = f"permit(principal {scope}, action, resource);"
        assert shop.decide(shop.store(policies=policies).load(), "read").is_allowed is expected, scope
    policies = (
        'permit(principal, action, resource) when { principal.path == "/ns/prod/refunds" && '
        'principal.trust_domain == Jitwi::TrustDomain::"example.org" };'
    )
    assert shop.decide(shop.store(policies=policies).load(), "read").is_allowed


def test_literals_in_conditions_bring_their_facts(shop) -> None:
    """An entity that only a condition names is there with attributes and parents; a workload by its id alone."""
    policies = """
    permit(principal, action, resource) when { Shop::Order::"43".total == 10
      && Shop::Order::"42" in Shop::Customer::"c1"
      && Jitwi::Workload::"spiffe://example.org/ns/dev/x" in Jitwi::Path::"example.org/ns/dev" };
    """
    snapshot = shop.store(policies=policies).load()
    assert shop.decide(snapshot, "open", Entity("Shop::Till", "1")).is_allowed
    assert shop.decide(snapshot, "read").is_allowed


# Bar 3: what is asked, and why it must be a deny.
UNKNOWN_ORDER = Entity("Shop::Order", "99")
BAD_INPUTS = [
    None, {}, {"amount": "30"}, {"amount": True}, {"amount": 1.0}, {"amount": None}, {"amount": [1]}, {"amount": {}},
    {"amount": 2**63}, {"amount": -(2**63) - 1}, {"amount": float("nan")}, {"amount": float("inf")},
    {"amount": 1, "more": 1}, {"more": 1}, {"Amount": 1}, {"amount ": 1},
    {"amount": {"__extn": {"fn": "ip", "arg": "1"}}},
    {"amount": 1, "__entity": {"type": "Shop::Order", "id": "42"}}, {"amount": b"1"}, {"amount": object()}, {1: 1},
    {"amount": {"__entity": {"type": "Shop::Order", "id": "42"}}}, {"amount": "\ud800"}, {"\ud800": 1}, [("amount", 1)],
    "amount", 1, True, {"amount": 1 << 9_999}, {"amount": {1, 2}}, {None: 1},
]  # fmt: skip
FAULTS = [
    *[("refund", {"input": value}) for value in BAD_INPUTS],
    ("refund", {"input": {"amount": 30}, "task_json": '{"ttl":1}'}),
    ("refund", {"input": {"amount": 30}, "task_json": '{"name":"refund-order"}'}),
    ("refund", {"input": {"amount": 30}, "task_json": "{}"}),
    ("refund", {"input": {"amount": 30}, "task_json": ""}),
    ("refund", {"input": {"amount": 30}, "task_json": "null"}),
    ("refund", {"input": {"amount": 30}, "task_json": "{"}),
    ("refund", {"input": {"amount": 30}, "task_json": '{"name":"refund-order","ttl":"1","owner":"x"}'}),
    ("refund", {"input": {"amount": 30}, "task_json": '{"name":"refund-order","ttl":1,"owner":"x","more":1}'}),
    ("refund", {"input": {"amount": 30}, "task_json": '{"name":"refund-order","ttl":1.5,"owner":"x"}'}),
    ("refund", {"input": {"amount": 150}, "approval": {"groups": ["finance"]}}),
    ("refund", {"input": {"amount": 150}, "approval": {}}),
    ("refund", {"input": {"amount": 150}, "approval": "finance"}),
    ("refund", {"input": {"amount": 150}, "approval": {"groups": "finance"}}),
    ("refund", {"input": {"amount": 30}, "resource": UNKNOWN_ORDER}),
    ("refund", {"input": {"amount": 30}, "resource": Entity("Shop::Till", "1")}),
    ("refund", {"input": {"amount": 30}, "resource": Entity("Shop::Nope", "1")}),
    ("refund", {"input": {"amount": 30}, "resource": Entity("Jitwi::Workload", "spiffe://example.org/a")}),
    ("refund", {"input": {"amount": 30}, "resource": "Shop::Order::42"}),
    ("refund", {"input": {"amount": 30}, "resource": None}),
    ("refund", {"input": {"amount": 30}, "evidence": Evidence.MTLS, "task_json": NO_TASK}),
    ("refund", {"input": {"amount": 30}, "evidence": Evidence.JWT_SVID, "task_json": NO_TASK}),
    ("refund", {"input": {"amount": 30}, "evidence": Evidence.JWT_SVID, "task_json": "{}"}),
    ("refund", {"input": {"amount": 30}, "principal": SpiffeId.parse("spiffe://example.org")}),
    ("refund", {"input": {"amount": 30}, "principal": SpiffeId.parse("spiffe://example.com/ns/prod/refunds")}),
    ("refund", {"input": {"amount": 30}, "principal": SpiffeId.parse("spiffe://example.org/ns/production")}),
    ("refund", {"input": {"amount": 30}, "principal": None}),
    ("refund", {"input": {"amount": 251}}),
    ("watch", {}),
    ("watch", {"risk": 1}),
    ("watch", {"posture": {"patched": True}}),
    ("watch", {"risk": "1", "posture": {"patched": True}}),
    ("watch", {"risk": 1, "posture": {"patched": 1}}),
    ("watch", {"risk": 1, "posture": {"patched": True}, "used": None}),
    ("watch", {"risk": 1, "posture": {"patched": True}, "now": float("nan")}),
    ("watch", {"risk": 1, "posture": {"patched": True}, "now": 1e30}),
    ("watch", {"risk": 1, "posture": {"patched": True}, "now": "today"}),
    ("watch", {"risk": 1, "posture": {"patched": True}, "evidence": "local"}),
]  # fmt: skip
WATCH = """namespace Shop { action watch appliesTo { principal: [Jitwi::Workload], resource: [Till, Order],
  context: { task: Jitwi::Task, used: Long, now: datetime, risk: Long, evidence: String,
             posture: { patched: Bool } } }; }"""


def _with_watch(shop, **changes):
    schema = shop.schema.rstrip().removesuffix("}") + WATCH.removeprefix("namespace Shop {")
    policies = shop.policies + '@id("watch") permit(principal, action == Shop::Action::"watch", resource);'
    return shop.store(**{"schema": schema, "policies": policies, **changes})


def test_there_are_enough_faults() -> None:
    """Bar 3 asks for 60 fault inputs."""
    assert len(FAULTS) >= 60


@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_every_uncertainty_is_a_deny_with_a_reason(fault, shop) -> None:
    """NoDecision, missing or odd facts, unknown resources: deny with a reason, never an exception (bar 3)."""
    snapshot = _with_watch(shop).load()
    action, given = FAULTS[fault]
    facts = {key: value for key, value in given.items() if key not in {"resource", "principal"}}
    decision = shop.decide(
        snapshot,
        action,
        given.get("resource", shop.order if action == "refund" else Entity("Shop::Till", "1")),
        given.get("principal", shop.caller),
        **facts,
    )
    assert decision.is_allowed is False
    assert decision.reason not in {"", "allow"}
    assert decision.reason == "no-permit" or decision.errors


def test_the_watch_action_can_be_allowed(shop) -> None:
    """The faults above are denied for themselves: with all facts in order the same question is allowed."""
    decision = shop.decide(
        _with_watch(shop).load(), "watch", Entity("Shop::Till", "1"), risk=1, posture={"patched": True}, used=3
    )
    assert decision.is_allowed, decision
    assert json.loads(decision.context) == {
        "evidence": "local",
        "now": "2023-11-14T22:13:20.250Z",
        "posture": {"patched": True},
        "risk": 1,
        "task": json.loads(shop.task),
        "used": 3,
    }


def test_an_action_of_another_set_is_unknown(shop) -> None:
    """A shape that this set did not make decides nothing by its own claims."""
    shape = ActionShape(Entity("Other::Action", "x"), {}, frozenset({"Shop::Order"}))
    assert shop.store().load().decide(shop.caller, shape, shop.order, shop.facts()).reason == "unknown-action"


@pytest.mark.parametrize(("reason", "changes"), [
    ("missing-input", {}),
    ("bad-input", {"input": {"amount": "30"}}),
    ("bad-input", {"input": {}}),
    ("bad-input", {"input": {"amount": 1.5}}),
    ("bad-approval", {"input": {"amount": 1}, "approval": {"count": 1.5}}),
])  # fmt: skip
def test_denials_by_facts_say_which(reason, changes, shop) -> None:
    """The reason is stable and the error names the fact, without its value."""
    decision = shop.decide(shop.store().load(), "refund", **changes)
    assert decision.reason == reason
    assert "input" in decision.errors[0] or "approval" in decision.errors[0]
    assert "30" not in "".join(decision.errors)


def test_only_declared_keys_are_sent(shop) -> None:
    """A fact that the action does not declare is not built: it neither reaches the policy nor the record."""
    decision = shop.decide(
        shop.store().load(), "read", input={"amount": 1}, approval={"count": 1}, risk=9, posture={"a": 1}, delegation={}
    )
    assert decision.is_allowed
    assert json.loads(decision.context).keys() == {"task"}


def test_evidence_without_a_task_needs_an_action_that_declares_it(shop) -> None:
    """`mtls` and `jwt-svid` without a task decide only actions that declare `evidence`; with a task they decide all."""
    snapshot = _with_watch(shop).load()
    seen = {"risk": 1, "posture": {"patched": True}}
    till = Entity("Shop::Till", "1")
    for evidence in Evidence:
        is_taskless = evidence in {Evidence.MTLS, Evidence.JWT_SVID}
        bare = {"evidence": evidence, "task_json": NO_TASK}
        assert shop.decide(snapshot, "watch", till, **bare, **seen).is_allowed
        assert shop.decide(snapshot, "open", till, **bare).is_allowed is not is_taskless
        assert shop.decide(snapshot, "open", till, evidence=evidence).is_allowed
    assert shop.decide(snapshot, "open", till, evidence=Evidence.MTLS, task_json=NO_TASK).reason == "evidence"


def test_now_decides(shop) -> None:
    """`now` is a datetime of the clock that was passed in."""
    policies = (
        "permit(principal, action, resource);"
        'forbid(principal, action == Shop::Action::"watch", resource)'
        ' when { context.now >= datetime("2024-01-01") };'
    )
    snapshot = _with_watch(shop, policies=policies).load()
    given = {"risk": 1, "posture": {"patched": True}}
    assert shop.decide(snapshot, "watch", now=1_704_067_199.999, **given).is_allowed
    assert not shop.decide(snapshot, "watch", now=1_704_067_200.0, **given).is_allowed


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, True),
    ({"exact": False, "wider": ["time"]}, False),
    ({"revocable": False}, False),
    ({"exact": "yes"}, False),
    ({"more": 1}, False),
])  # fmt: skip
def test_the_built_in_obtain_policy(changes, expected, shop) -> None:
    """Exact and revocable needs no policy of the user; everything else does."""
    snapshot = shop.store().load()
    decision = snapshot.decide_obtain(shop.caller, "orders-db", shop.facts(credential={**CREDENTIAL, **changes}))
    assert decision.is_allowed is expected
    assert (decision.policy_ids == ("jitwi.obtain.exact-and-revocable",)) is expected


def test_obtain_follows_the_users_policies(shop) -> None:
    """A user's permit widens `obtain`, a user's forbid narrows it."""
    policies = (
        shop.policies
        + '@id("allow-db") permit(principal, action == Jitwi::Action::"obtain", resource == Jitwi::Issuer::"db");'
        + '@id("no-bearer") forbid(principal, action == Jitwi::Action::"obtain", resource)'
        + " when { context.credential.bearer };"
    )
    snapshot = shop.store(policies=policies).load()

    def ask(issuer, **changes):
        return snapshot.decide_obtain(shop.caller, issuer, shop.facts(credential={**CREDENTIAL, **changes}))

    assert ask("db", exact=False).policy_ids == ("allow-db",)
    assert not ask("other", exact=False).is_allowed
    assert ask("db", bearer=True).policy_ids == ("no-bearer",)
    assert ask("").reason == ask("x" * 513).reason == "bad-request"
    assert snapshot.decide_obtain(shop.caller, "db", shop.facts()).reason == "missing-fact"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_policy_that_errors_never_leaves_an_allow(data) -> None:
    """Generated conditions with overflow: whenever the engine reports an error, the answer is a deny (bar 3)."""
    number = st.sampled_from(["context.n", "1", "0", "9223372036854775807", "-9223372036854775808", "resource.n"])
    sums = st.recursive(
        number,
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        max_leaves=5,
    )
    tests = st.tuples(sums, st.sampled_from(["<", ">", "==", "!="]), sums).map(" ".join)
    conditions = st.recursive(
        tests,
        lambda inner: st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda t: f"({' '.join(t)})"),
        max_leaves=3,
    )
    forbids = [f"forbid(principal, action, resource) when {{ {data.draw(conditions)} }};" for _ in range(2)]
    policies = engine.parse_policies("permit(principal, action, resource);" + "".join(forbids))
    schema = engine.parse_schema(
        "entity U; entity R {n: Long}; action a appliesTo {principal: U, resource: R, context: {n: Long}};"
    )
    record = {
        "uid": {"type": "R", "id": "r"},
        "attrs": {"n": data.draw(st.sampled_from([0, 1, -1, 2**63 - 1]))},
        "parents": [],
    }
    entities = engine.parse_entities(json.dumps([record]), schema)
    request = {
        "principal": {"type": "U", "id": "u"},
        "action": {"type": "Action", "id": "a"},
        "resource": {"type": "R", "id": "r"},
        "context": json.dumps({"n": data.draw(st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]))}),
    }
    said = cedarpy.is_authorized(request, policies, entities, schema)
    answer = engine.ask(request, policies, entities, schema)
    assert answer.is_allowed == (said.decision is cedarpy.Decision.Allow and not said.diagnostics.errors)
    if said.diagnostics.errors:
        assert not answer.is_allowed
        assert answer.errors


def test_an_engine_that_raises_is_a_deny(shop, monkeypatch) -> None:
    """An exception of the engine, a panic included, denies and does not escape."""

    class PanicException(BaseException):
        """What a panic of the engine looks like."""

    snapshot = shop.store().load()
    for error in (ValueError("x"), RecursionError(), MemoryError(), PanicException("boom")):
        monkeypatch.setattr(cedarpy, "is_authorized", lambda *_, error=error: (_ for _ in ()).throw(error))
        decision = shop.decide(snapshot, "read")
        assert (decision.is_allowed, decision.reason) == (False, "no-decision")
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        shop.decide(snapshot, "read")


# Bar 38: bounds, one below, at, and one above.
def _nested(depth):
    value = {"a": 1}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def _listed(depth):
    value = [1]
    for _ in range(depth - 2):
        value = [value]
    return {"a": value}


@pytest.mark.parametrize("make", [_nested, _listed])
@pytest.mark.parametrize(("extra", "good"), [(-1, True), (0, True), (1, False), (5_000, False)])
def test_input_depth_is_bounded(make, extra, good) -> None:
    """Sixteen containers within each other, not one more (bar 38)."""
    value = make(MAX_DEPTH + extra)
    if good:
        bounded_json(value)
    else:
        with pytest.raises(PolicyEvaluationError, match="deeper") as caught:
            bounded_json(value)
        assert caught.value.reasons == ("bad-input",)


@pytest.mark.parametrize(("extra", "good"), [(-1, True), (0, True), (1, False), (10**6, False)])
@pytest.mark.parametrize("char", ["a", "\n", "é"])
def test_input_size_is_bounded(extra, good, char) -> None:
    """64 kB of JSON, not one byte more (bar 38)."""
    width = len(json.dumps(char)) - 2
    overhead = len('{"a":""}')
    count, rest = divmod(MAX_BYTES + extra - overhead, width)
    value = {"a": char * count + "x" * rest}
    if good:
        assert len(bounded_json(value)) == MAX_BYTES + extra
    else:
        with pytest.raises(PolicyEvaluationError, match="bytes"):
            bounded_json(value)


@pytest.mark.parametrize(
    ("count", "good"), [(MAX_KEYS - 1, True), (MAX_KEYS, True), (MAX_KEYS + 1, False), (10**5, False)]
)
@pytest.mark.parametrize("spread", [False, True])
def test_input_keys_are_bounded(count, good, spread) -> None:
    """A thousand keys in all records together (bar 38)."""
    value = {f"k{i}": i for i in range(count)}
    if spread:
        value = {"a": [{f"k{i}": i} for i in range(count - 1)]}
    if good:
        bounded_json(value)
    else:
        with pytest.raises(PolicyEvaluationError, match=r"keys|bytes"):
            bounded_json(value)


@pytest.mark.parametrize(("value", "good"), [
    (2**63 - 1, True), (2**63, False), (-(2**63), True), (-(2**63) - 1, False), (0.0, False), (None, False),
    (float("nan"), False), (b"x", False), (chr(0xD800), False), ("\udfff", False), ("\x00", True), ("\u2028", True),
    ("\u202e", True), ("", True), ({1, 2}, False), ((1, 2), True), (object(), False), (1 << 20_000, False), (-1, True),
], ids=map(str, itertools.count()))  # fmt: skip
@pytest.mark.parametrize("wrap", [lambda v: {"a": v}, lambda v: {"a": [v]}, lambda v: {"a": {"b": v}}])
def test_input_values_are_plain(value, good, wrap) -> None:
    """Text, whole numbers of 64 bits, booleans, lists and records; nothing else reaches the engine (bar 38)."""
    if good:
        assert json.loads(bounded_json(wrap(value))) == json.loads(json.dumps(wrap(value)))
    else:
        with pytest.raises(PolicyEvaluationError):
            bounded_json(wrap(value))


def test_a_record_that_lies_is_refused() -> None:
    """What was checked is what is sent: the record is copied while it is checked."""

    class Colour(StrEnum):
        RED = "red"

    class Liar(dict):
        def items(self):
            return [("a", 1)]

    cycle: dict = {}
    cycle["a"] = cycle
    with pytest.raises(PolicyEvaluationError):
        bounded_json(cycle)
    assert bounded_json(Liar({"__entity": {"type": "A", "id": "b"}})) == '{"a":1}'
    assert bounded_json(MappingProxyType({"c": Colour.RED})) == '{"c":"red"}'
    assert task_json({"name": "a", "ttl": 1}) == '{"name":"a","ttl":1}'


# Bar 23: injection through entities, context and text.
PAYLOADS = [
    '"', "\\", '\\"', '" || true || "', '"); permit(principal, action, resource); //', "\u202e", "\u2028",
    "\u2066x\u2069", '"}, "approval": {"groups": ["finance"]}, "x": {"', '","input":{"amount":1},"y":"',
    "${x}", "{{x}}", "%s", "?principal",
    'Shop::Order::"42"', "42\u200b", "\uff14\uff12", "42 ", " 42", "*", "__entity", "__extn", "true", "null", "[]",
    "{}", "'", "`", "<script>", "a" * 512, "\N{GRINNING FACE}", "e\u0301", "\xe9",
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_ids_and_texts_arrive_as_they_are(payload, shop) -> None:
    """No id, task fact or input text changes which entities and types are evaluated (bar 23)."""
    schema = shop.schema.replace("input: { amount: Long }", "input: { amount: Long, note: String }")
    policies = (
        shop.policies
        + f'@id("exact") forbid(principal, action, resource) when {{ resource == Shop::Order::{json.dumps("42")} }};'
    )
    entities = [
        {"uid": {"type": "Shop::Order", "id": each}, "attrs": {"total": 250}, "parents": []} for each in ("42", payload)
    ]
    snapshot = shop.store(schema=schema, policies=policies, entities=json.dumps(entities)).load()
    task = task_json({"name": "refund-order", "ttl": 1, "owner": payload, "purpose": payload})
    decision = shop.decide(
        snapshot, "refund", Entity("Shop::Order", payload), task_json=task, input={"amount": 30, "note": payload}
    )
    assert (decision.is_allowed, decision.policy_ids) == (True, ("shop.refund",))
    over = shop.decide(
        snapshot, "refund", Entity("Shop::Order", payload), task_json=task, input={"amount": 150, "note": payload}
    )
    assert over.reason == "no-permit"
    assert shop.decide(snapshot, "refund", task_json=task, input={"amount": 30, "note": payload}).policy_ids == (
        "exact",
    )


@settings(max_examples=120, deadline=None)
@given(
    value=st.dictionaries(
        st.text(max_size=6) | st.sampled_from(["__entity", "__extn", "__expr", "type", "id", "fn", "arg", "amount"]),
        st.recursive(
            st.integers() | st.text(max_size=6) | st.booleans() | st.floats() | st.none(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["__entity", "__extn", "type", "id", "a"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_whatever_a_caller_sends_is_a_value_or_a_deny(value) -> None:
    """Bounded JSON never holds a reserved key and always reads back as what was given (bar 23)."""
    try:
        text = bounded_json(value)
    except PolicyEvaluationError:
        return
    assert json.loads(text) == value
    for reserved in ("__entity", "__extn", "__expr"):
        assert f'"{reserved}":' not in text


def test_a_caller_cannot_bring_facts_of_a_resource(shop) -> None:
    """`input` is a record of its own: it neither replaces attributes nor other keys."""
    snapshot = shop.store().load()
    for extra in ({"total": 10**6}, {"approval": {"groups": ["finance"]}}, {"resource": {"total": 10**6}}):
        assert shop.decide(snapshot, "refund", input={"amount": 251, **extra}).is_allowed is False
        assert shop.decide(snapshot, "refund", input={"amount": 150, **extra}).is_allowed is False


def test_handles_are_built_once_per_facts(shop, monkeypatch) -> None:
    """Resources without facts share one handle; one with facts has its own, kept for the next decision."""
    built = []
    original = engine.parse_entities
    snapshot = shop.store().load()
    monkeypatch.setattr(engine, "parse_entities", lambda *given: built.append(1) or original(*given))
    for number in range(20):
        assert shop.decide(snapshot, "open", Entity("Shop::Till", str(number))).is_allowed
    assert len(built) == 1
    for _ in range(20):
        assert shop.decide(snapshot, "read").is_allowed
        assert shop.decide(snapshot, "refund", input={"amount": 1}).is_allowed
    assert len(built) == 2


def test_the_cache_of_handles_is_bounded(shop, monkeypatch) -> None:
    """Many principals do not grow a snapshot without end."""
    monkeypatch.setattr("jitwi.policy.snapshot.MAX_HANDLES", 8)
    snapshot = shop.store().load()
    for number in range(30):
        caller = SpiffeId.parse(f"spiffe://example.org/ns/prod/w{number}")
        assert shop.decide(snapshot, "read", principal=caller).is_allowed
    assert len(snapshot._ready) <= 8
    assert len(snapshot._older) <= 8


def test_decisions_from_many_threads_agree(shop) -> None:
    """A snapshot is shared by all threads of a process."""
    snapshot = shop.store().load()
    wrong: list[object] = []

    def run(seed: int) -> None:
        for turn in range(60):
            amount = 30 if (seed + turn) % 2 else 9_999
            decision = shop.decide(snapshot, "refund", input={"amount": amount})
            if decision.is_allowed is not (amount == 30):
                wrong.append(decision)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_is_under_follows_this_sides_hierarchy(shop) -> None:
    """True below, False beside, None where this side does not know the resource."""
    snapshot = shop.store().load()
    till = Entity("Shop::Till", "1")
    assert snapshot.is_under(shop.order, Entity("Shop::Customer", "c1")) is True
    assert snapshot.is_under(shop.order, Entity("Shop::Customer", "c2")) is False
    assert snapshot.is_under(shop.order, shop.order) is True
    assert snapshot.is_under(till, till) is True
    assert snapshot.is_under(till, shop.order) is False
    assert snapshot.is_under(Entity("Shop::Order", "99"), shop.order) is None
    assert snapshot.is_under(Entity("Shop::Order", "99"), Entity("Shop::Order", "99")) is None
    assert snapshot.is_under(Entity("Shop::Nope", "1"), Entity("Shop::Nope", "1")) is None
    assert (snapshot.knows(shop.order), snapshot.knows(till)) == (True, True)
    assert (snapshot.knows(Entity("Shop::Order", "99")), snapshot.knows(Entity("Nope", "1"))) == (False, False)
