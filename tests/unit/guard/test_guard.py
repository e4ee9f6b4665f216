# SPDX-License-Identifier: Apache-2.0
"""The Guard's procedure: what is allowed, and each refusal for its own reason."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from contextlib import closing
from datetime import timedelta

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jitwi.guard as g
from jitwi.audit.events import GuardAllowed, GuardDenied
from jitwi.errors import (
    AccessDeniedError,
    AuditError,
    ConfigurationError,
    EvidenceError,
    IdentityUnavailableError,
    InvalidPolicyError,
    JitwiError,
    LimitExceededError,
    OutOfScopeError,
    PolicyEvaluationError,
    PolicyStaleError,
    SharedStateError,
    StateError,
)
from jitwi.guard import Request
from jitwi.spiffe_id import SpiffeId
from jitwi.state import SqliteEndings
from jitwi.task import Entity, Permission, under
from jitwi.testing.ca import TestCa
from jitwi.testing.guard import CaBundles, Caller

ORDER = Entity("Shop::Order", "42")
OTHER = Entity("Shop::Order", "43")
SHOP = Entity("Shop::Shop", "1")
ME = "spiffe://example.org/ns/prod/refunds"


def _refused(lab, request, expected, action="refund", resource=ORDER, *, input=None, guard=None, step=None):
    """Check that a request is refused by exactly this class, on record, and return the error."""
    before = len(lab.trail.events)
    with pytest.raises(JitwiError) as refused:
        (guard or lab.guard).check(request, action, resource, input=input)
    assert type(refused.value) is expected, repr(refused.value)
    (event,) = lab.trail.events[before:]
    assert isinstance(event, GuardDenied)
    assert event.error == refused.value.code
    if step is not None:
        assert event.step == step
    return refused.value


# ---------------------------------------------------------------------------------------------- allowed


def test_allowed_call_names_everybody(lab) -> None:
    """An allowed call says who, which task, which permission, which policies; and is on record before it returns."""
    caller = lab.caller(purpose="customer request", owner="team-payments", on_behalf_of="c-1", agent="a-1", max_uses=5)
    call = caller.call("refund", ORDER, input={"amount": 30})
    assert call.workload == SpiffeId.parse(ME)
    assert call.chain == (call.workload,)
    assert (call.task.name, call.task.purpose, call.owner) == ("refund-order", "customer request", "team-payments")
    assert (call.task.on_behalf_of, call.task.agent, call.task.max_uses, call.task.ttl) == ("c-1", "a-1", 5, 120)
    assert (call.action, call.resource) == (Entity("Shop::Action", "refund"), ORDER)
    assert call.permission == Permission(Entity("Shop::Action", "refund"), ORDER)
    assert call.expires_at.timestamp() == caller.token.expires_at
    assert call.policy_ids == ("orders.allow",)
    assert (call.txn, call.number) == (caller.txn, 1)
    (event,) = lab.trail.events
    assert isinstance(event, GuardAllowed)
    assert (event.jti, event.audience, event.evidence) == (call.jti, lab.guard.audience, "task-token")
    assert (event.subject.txn, event.subject.workload, event.subject.owner) == (caller.txn, ME, "team-payments")
    assert event.decision.input == {"amount": 30}
    assert event.decision.question == "guard"


def test_policies_are_asked_about_the_authenticated_actor(lab) -> None:
    """The question holds the verified ID, this side's action uid, `task-token` as evidence, the input as executed."""
    lab.caller(purpose="p").call("refund", ORDER, input={"amount": 30})
    ((principal, action, resource, facts),) = lab.policies.questions
    assert (principal, action, resource) == (SpiffeId.parse(ME), Entity("Shop::Action", "refund"), ORDER)
    assert facts.task_json == '{"name":"refund-order","ttl":120,"purpose":"p"}'
    assert (facts.evidence.value, facts.input, facts.used, facts.now) == (
        "task-token",
        {"amount": 30},
        0,
        lab.clock.now().wall,
    )
    assert facts.approval is None
    assert facts.delegation is None


def test_used_is_counted_where_a_policy_reads_it(lab) -> None:
    """An action that declares `used` gets the uses so far, also of a task without a limit; denied ones do not count."""
    lab.policies.keys = {"task": True, "used": False}
    lab.policies.allow = lambda facts: facts.used < 2
    caller = lab.caller()
    assert [caller.call("refund", ORDER).number for _ in range(2)] == [1, 2]
    for _ in range(3):
        _refused(lab, caller.request("refund", ORDER), AccessDeniedError)
    assert [q[3].used for q in lab.policies.questions] == [0, 1, 2, 2, 2]


def test_used_counts_the_uses_of_the_whole_task(lab) -> None:
    """`used` is of the task: uses of actions whose own context does not declare it count too."""
    lab.policies.keys_of["refund"] = {"task": True, "used": False}
    caller = lab.caller({"refund": ORDER, "read": OTHER})
    assert [caller.call("read", OTHER).number for _ in range(3)] == [1, 2, 3]
    assert caller.call("refund", ORDER).number == 4
    assert lab.policies.questions[-1][3].used == 3


def test_no_io_before_the_first_use(folder) -> None:
    """The constructor reads and makes nothing, even with paths that do not exist (rule 13)."""
    guard = g.Guard("https://orders.example.org", folder / "no-policies", state_dir=folder / "state")
    assert list(folder.iterdir()) == []
    guard.close()


def test_async_twin(lab) -> None:
    """`acheck` allows and refuses as `check` does, with the loop free meanwhile."""
    caller = lab.caller()
    request = caller.request("refund", ORDER)

    async def twice():
        ticks = []
        check = asyncio.ensure_future(lab.guard.acheck(request, "refund", ORDER))
        while not check.done():
            ticks.append(1)
            await asyncio.sleep(0)
        with pytest.raises(g.ReplayedProofError):
            await lab.guard.acheck(request, "refund", ORDER)
        return await check, ticks

    call, ticks = asyncio.run(twice())
    assert call.txn == caller.txn
    assert ticks


# ---------------------------------------------------------------------------------------------- each for its own reason


def _replace(request, name, *values):
    kept = [(k, v) for k, v in request.headers if k != name.lower()]
    return attrs.evolve(request, headers=kept + [(name, value) for value in values])


def _of(request, name):
    (value,) = request.values_of(name)
    return value


HEADERS = [
    ("no Authorization", lambda r: _replace(r, "Authorization"), g.MissingEvidenceError),
    ("no DPoP", lambda r: _replace(r, "DPoP"), g.MissingEvidenceError),
    ("nothing", lambda r: attrs.evolve(r, headers=[]), g.MissingEvidenceError),
    ("Bearer", lambda r: _replace(r, "Authorization", "Bearer " + _of(r, "Authorization")[5:]), g.MissingEvidenceError),
    ("no scheme", lambda r: _replace(r, "Authorization", _of(r, "Authorization")[5:]), g.MissingEvidenceError),
    ("empty", lambda r: _replace(r, "Authorization", ""), g.MissingEvidenceError),
    ("scheme only", lambda r: _replace(r, "Authorization", "DPoP "), g.MissingEvidenceError),
    (
        "two Authorization",
        lambda r: _replace(r, "Authorization", *[_of(r, "Authorization")] * 2),
        g.AmbiguousEvidenceError,
    ),
    ("two DPoP", lambda r: _replace(r, "DPoP", *[_of(r, "DPoP")] * 2), g.AmbiguousEvidenceError),
    (
        "two in two cases",
        lambda r: attrs.evolve(r, headers=[*r.headers, ("DPOP", _of(r, "DPoP"))]),
        g.AmbiguousEvidenceError,
    ),
    ("joined", lambda r: _replace(r, "DPoP", ", ".join([_of(r, "DPoP")] * 2)), g.MalformedProofError),
    (
        "joined tokens",
        lambda r: _replace(r, "Authorization", ", ".join([_of(r, "Authorization")] * 2)),
        g.MissingEvidenceError,
    ),
    ("token of garbage", lambda r: _replace(r, "Authorization", "DPoP abc"), g.MalformedEvidenceError),
    ("empty proof", lambda r: _replace(r, "DPoP", ""), g.MalformedProofError),
    ("proof as token", lambda r: _replace(r, "Authorization", "DPoP " + _of(r, "DPoP")), g.UnknownFieldError),
    ("token as proof", lambda r: _replace(r, "DPoP", _of(r, "Authorization")[5:]), g.MalformedProofError),
    ("huge token", lambda r: _replace(r, "Authorization", "DPoP " + "a" * 1_000_000), g.MalformedEvidenceError),
    ("huge proof", lambda r: _replace(r, "DPoP", "a" * 1_000_000), g.MalformedProofError),
    ("method", lambda r: attrs.evolve(r, method="PUT"), g.ProofTargetError),
    ("path", lambda r: attrs.evolve(r, url="/orders/43"), g.ProofTargetError),
    ("path case", lambda r: attrs.evolve(r, url="/Orders/42"), g.ProofTargetError),
    ("method with a line", lambda r: attrs.evolve(r, method="POST\r\nX: y"), g.InvalidRequestError),
    ("empty method", lambda r: attrs.evolve(r, method=""), g.InvalidRequestError),
    ("empty URL", lambda r: attrs.evolve(r, url=""), g.InvalidRequestError),
    ("asterisk", lambda r: attrs.evolve(r, url="*"), g.InvalidRequestError),
    ("fragment", lambda r: attrs.evolve(r, url="/orders/42#x"), g.InvalidRequestError),
    ("long URL", lambda r: attrs.evolve(r, url="/" + "a" * 5000), g.InvalidRequestError),
]


@pytest.mark.parametrize(("name", "change", "expected"), HEADERS, ids=[row[0] for row in HEADERS])
def test_request_is_refused(lab, name, change, expected) -> None:
    """Headers, method and URL: each fault has its own refusal (RFC 9449 §4.3), and nothing was remembered for it."""
    request = lab.caller().request("refund", ORDER, path="/orders/42")
    _refused(lab, change(request), expected)
    assert lab.guard.check(request, "refund", ORDER).resource == ORDER


@pytest.mark.parametrize("form", ["mapping", "pairs", "bytes", "lower", "spaces"])
def test_headers_in_every_form(lab, form) -> None:
    """Headers come as a mapping or as pairs, text or bytes, in any case, with blanks around."""
    request = lab.caller().request("refund", ORDER)
    pairs = [("Authorization", _of(request, "Authorization")), ("DPoP", _of(request, "DPoP"))]
    forms = {
        "mapping": dict(pairs),
        "pairs": pairs,
        "bytes": [(k.encode(), v.encode()) for k, v in pairs],
        "lower": [(k.lower(), v.replace("DPoP ", "dpop  ", 1)) for k, v in pairs],
        "spaces": [(k, f" \t{v} ") for k, v in pairs],
    }
    assert lab.guard.check(Request("POST", "/", forms[form]), "refund", ORDER)


@pytest.mark.parametrize("headers", [None, 5, [("a",)], ["abc"], "Authorization: x"])
def test_headers_of_another_shape(headers) -> None:
    """What is neither a mapping nor pairs is the integration's fault, said at once."""
    with pytest.raises(ConfigurationError):
        Request("GET", "/", headers)


def test_use_must_be_the_proven_one(lab) -> None:
    """Another action, resource or input than the proof names is refused (declared 30, body 30000)."""
    caller = lab.caller({"refund": [ORDER, OTHER], "read": ORDER})
    refunding = {"action": "refund", "resource": ORDER}
    for used, input_, expected in [
        ({"action": "read", "resource": ORDER}, {"amount": 30}, g.UseMismatchError),
        ({"action": "refund", "resource": OTHER}, {"amount": 30}, g.UseMismatchError),
        (refunding, {"amount": 30000}, g.InputMismatchError),
        (refunding, {"amount": 30, "more": 1}, g.InputMismatchError),
        (refunding, {}, g.InputMismatchError),
        (refunding, None, g.InputMismatchError),
        (refunding, {"amount": 30.0}, g.InputMismatchError),
        (refunding, {"amount": True}, g.InputMismatchError),
        (refunding, {"amount": "30"}, g.InputMismatchError),
        (refunding, [("amount", 30)], g.InputMismatchError),
    ]:
        request = caller.request("refund", ORDER, input={"amount": 30})
        _refused(lab, request, expected, **used, input=input_, step="use")
    assert caller.call("refund", ORDER, input={"amount": 30})


def test_scope(lab) -> None:
    """What the task does not declare is refused, whatever the policies would allow."""
    caller = lab.caller({"refund": ORDER})
    for action, resource in [("read", ORDER), ("refund", OTHER)]:
        refused = _refused(lab, caller.request(action, resource), g.ScopeMismatchError, action, resource, step="scope")
        assert refused.status == 403
    assert lab.policies.questions == []


@pytest.mark.parametrize(("answer", "is_allowed"), [(True, True), (False, False), (None, False)])
def test_under_by_our_own_hierarchy(lab, answer, is_allowed) -> None:
    """`under` holds only what this side's hierarchy puts there; what it does not know is refused."""
    lab.policies.below[OTHER, SHOP] = answer
    caller = lab.caller({"read": under(SHOP)})
    if is_allowed:
        assert caller.call("read", OTHER).permission.resource == under(SHOP)
    else:
        _refused(lab, caller.request("read", OTHER), g.ScopeMismatchError, "read", OTHER)


def test_unknown_action_is_refused(lab) -> None:
    """An action that this side's schema does not know is refused."""
    request = lab.caller().request("refund", ORDER)
    _refused(lab, request, PolicyEvaluationError, "refnud")


@pytest.mark.parametrize("resource", [None, "42", ("Shop::Order", "42")])
def test_resource_must_be_an_entity(lab, resource) -> None:
    """A resource that is no entity is refused before anything else."""
    _refused(lab, lab.caller().request("refund", ORDER), OutOfScopeError, "refund", resource, step="request")


def test_policy_deny_says_nothing_to_a_stranger(lab) -> None:
    """A denial by policy is a 403 without policy, reason or detail in it; the record has them."""
    lab.policies.allow = False
    refused = _refused(lab, lab.caller().request("refund", ORDER), AccessDeniedError, step="decision")
    assert refused.policy_ids == ("secret-policy-name",)
    answer = lab.guard.answer(refused)
    assert answer.status == 403
    shown = repr(answer.headers) + repr(answer.body)
    assert not any(word in shown for word in ("secret-policy-name", "forbid", "Order", "42", "refund"))
    assert lab.trail.events[-1].decision.policy_ids == ("secret-policy-name",)


def test_task_class_of_this_side(lab) -> None:
    """This side's task classes refuse a task, and their owner is the one of the call, the policies and the record."""
    caller = lab.caller()
    lab.policies.refuse_task = AccessDeniedError("not registered", reasons=("unregistered-task",))
    assert _refused(lab, caller.request("refund", ORDER), g.TaskClassError, step="task-class").status == 403
    lab.policies.refuse_task = LimitExceededError("over the ceiling", reasons=("ceiling",))
    _refused(lab, caller.request("refund", ORDER), g.TaskClassError)
    lab.policies.refuse_task, lab.policies.owner = None, "team-payments"
    assert caller.call("refund", ORDER).owner == "team-payments"
    assert '"owner":"team-payments"' in lab.policies.questions[-1][3].task_json
    assert lab.trail.events[-1].subject.owner == "team-payments"


# ---------------------------------------------------------------------------------------------- Host and paths


@pytest.mark.parametrize(
    "headers",
    [
        [("Host", "evil.example.org")],
        [("X-Forwarded-Host", "evil.example.org"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Port", "81")],
        [("Forwarded", "host=evil.example.org;proto=http")],
        [("X-Original-URL", "/admin"), ("X-Rewrite-URL", "/admin")],
        [("X-HTTP-Method-Override", "DELETE")],
    ],
)
def test_client_set_headers_change_nothing(lab, headers) -> None:
    """No header that a client can set names host, path or method: a proof for another host stays useless."""
    caller = lab.caller()
    request = caller.request("refund", ORDER)
    assert lab.guard.check(attrs.evolve(request, headers=[*headers, *request.headers]), "refund", ORDER)
    evil = lab.another_guard(origin="https://evil.example.org")
    stolen = Caller(evil, caller.identity, {"refund": ORDER}).request("refund", ORDER)
    _refused(lab, attrs.evolve(stolen, headers=[*headers, *stolen.headers]), g.ProofTargetError)


@pytest.mark.parametrize("url", ["https://evil.example.org/a", "http://127.0.0.1:8080/a", "https://u:p@h/a", "/a?b=c"])
def test_authority_of_the_request_is_replaced(lab, url) -> None:
    """An absolute URL counts by its path alone; the host is the configured origin."""
    request = lab.caller().request("refund", ORDER, path="/a")
    assert lab.guard.check(attrs.evolve(request, url=url), "refund", ORDER)


@pytest.mark.parametrize(
    ("proven", "requested"),
    [
        ("/a%2Fb", "/a%2fb"),
        ("/orders/42", "/orders/%34%32"),
        ("/~x", "/%7Ex"),
        ("/a", "/a?token=1"),
        ("/", "https://orders.example.org"),
    ],
)
def test_equal_paths(lab, proven, requested) -> None:
    """Paths are compared after RFC 3986 §6.2.2 normalisation, without the query."""
    request = lab.caller().request("refund", ORDER, path=proven)
    assert lab.guard.check(attrs.evolve(request, url=requested), "refund", ORDER)


@pytest.mark.parametrize(
    ("proven", "requested", "expected"),
    [
        ("/admin", "/orders/../admin", g.InvalidRequestError),
        ("/admin", "/orders/%2e%2E/admin", g.InvalidRequestError),
        ("/admin", "/./admin", g.InvalidRequestError),
        ("/admin", "/admin/.", g.InvalidRequestError),
        ("/admin", "/orders\\..\\admin", g.InvalidRequestError),
        ("/admin", "//admin", g.ProofTargetError),
        ("/admin", "/admin/", g.ProofTargetError),
        ("/a/b", "/a%2Fb", g.ProofTargetError),
        ("/admin", "/admin;x=1", g.ProofTargetError),
        ("/admin", "/adm%69n%00", g.ProofTargetError),
        ("/admin", "/ädmin", g.InvalidRequestError),
        ("/admin", "/adm%zzin", g.InvalidRequestError),
        ("/admin", "/admin\n", g.InvalidRequestError),
        ("/admin", "admin", g.InvalidRequestError),
        ("/admin", "@evil.example.org/admin", g.InvalidRequestError),
        ("/admin", ".evil.example.org/admin", g.InvalidRequestError),
        ("/admin", ":81/admin", g.InvalidRequestError),
        ("/admin", "ftp://orders.example.org/admin", g.InvalidRequestError),
    ],
)
def test_paths_with_another_reading(lab, proven, requested, expected) -> None:
    """A path that a server could read in two ways is refused, another path does not fit the proof."""
    request = lab.caller().request("refund", ORDER, path=proven)
    _refused(lab, attrs.evolve(request, url=requested), expected)


@pytest.mark.parametrize(
    ("audience", "origin", "expected"),
    [
        ("https://orders.example.org", None, "https://orders.example.org"),
        ("https://orders.example.org:443/v1?x", None, "https://orders.example.org"),
        ("https://Orders.Example.org:8443", None, "https://orders.example.org:8443"),
        ("orders", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("orders", "https://orders.example.org/", "https://orders.example.org"),
        ("orders", "http://[::1]:8080", "http://[::1]:8080"),
        ("orders", None, None),
        ("spiffe://example.org/orders", None, None),
        ("https://a", "orders.example.org", None),
        ("https://a", "https://orders.example.org/v1", None),
        ("https://a", "https://u@orders.example.org", None),
        ("https://a", "https://orders.example.org?x", None),
        ("https://a", "https://orders.example.org:99999", None),
        ("https://a", "", None),
        ("https://a", 5, None),
    ],
)
def test_origin_is_configuration(lab, audience, origin, expected) -> None:
    """The origin is that of the audience unless it is given; what is not an origin is refused at construction."""
    if expected is None:
        with pytest.raises(ConfigurationError):
            lab.another_guard(audience=audience, origin=origin)
    else:
        assert lab.another_guard(audience=audience, origin=origin).origin == expected


# ---------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("offset", "expected"), [(-1, None), (-0.001, None), (0, g.ExpiredEvidenceError), (1, g.ExpiredEvidenceError)]
)
def test_end_has_no_leeway(lab, offset, expected) -> None:
    """A token is good until its `exp` and refused from that very second on (exp-1, exp, exp+1)."""
    caller = lab.caller(ttl=timedelta(seconds=30))
    request = caller.request("refund", ORDER)
    lab.clock.advance(caller.token.expires_at - lab.clock.now().wall + offset)
    if expected is None:
        assert lab.guard.check(request, "refund", ORDER)
    else:
        _refused(lab, request, expected)


@pytest.mark.parametrize(
    ("skew", "expected"),
    [(5, None), (6, g.NotYetValidError), (0, None), (-5, None)],
)
def test_beginning_has_five_seconds(lab, skew, expected) -> None:
    """A token from a clock that is 5 s ahead is good, one from 6 s ahead is not."""
    lab.guard.start()
    lab.clock.advance(60 + skew)
    request = lab.caller().request("refund", ORDER)
    lab.clock.advance(-skew)
    if expected is None:
        assert lab.guard.check(request, "refund", ORDER)
    else:
        _refused(lab, request, expected)


@pytest.mark.parametrize(("age", "expected"), [(60, None), (61, g.ProofTimeError), (-5, None), (-6, g.ProofTimeError)])
def test_window_of_the_proof(lab, age, expected) -> None:
    """A proof is good for 60 s, and 5 s early for clocks that differ."""
    caller = lab.caller()
    lab.clock.advance(20)
    request = caller.request("refund", ORDER)
    lab.clock.advance(age)
    if expected is None:
        assert lab.guard.check(request, "refund", ORDER)
    else:
        _refused(lab, request, expected)


def test_window_is_a_setting(lab) -> None:
    """A narrower window refuses what the default one takes."""
    guard = lab.another_guard(proof_window=timedelta(seconds=5))
    request = lab.caller(guard=guard).request("refund", ORDER)
    lab.clock.advance(6)
    _refused(lab, request, g.ProofTimeError, guard=guard)


def test_longest_life_is_the_guards(lab) -> None:
    """A token that lives longer than this Guard allows is refused, whatever the task says."""
    guard = lab.another_guard(max_ttl=timedelta(seconds=60))
    _refused(lab, lab.caller(ttl=timedelta(seconds=61)).request("refund", ORDER), g.LifetimeError, guard=guard)
    assert guard.check(lab.caller(ttl=timedelta(seconds=60)).request("refund", ORDER), "refund", ORDER)


# ---------------------------------------------------------------------------------------------- trust


def test_other_audience(lab) -> None:
    """A token for another service is refused."""
    other = lab.another_guard(audience="https://reports.example.org", origin="https://orders.example.org")
    _refused(lab, lab.caller(guard=other).request("refund", ORDER), g.WrongAudienceError)


def test_trust_domains_do_not_mix(lab) -> None:
    """Only the authority of an ID's own trust domain counts; a domain without a bundle is not trusted (bar 33)."""
    foreign = TestCa("partner.example.com", clock=lab.clock)
    theirs = "spiffe://partner.example.com/a"
    good = lab.identity(theirs, ca=foreign)
    bad = [lab.identity(ME, ca=foreign), lab.identity(theirs)]
    for identity in (good, *bad):
        request = Caller(lab.guard, identity, {"refund": ORDER}).request("refund", ORDER)
        _refused(lab, request, g.UntrustedChainError, step="token")
    lab.bundles.add(foreign)
    assert Caller(lab.guard, good, {"refund": ORDER}).call("refund", ORDER).workload.path == "/a"
    for identity in bad:
        _refused(lab, Caller(lab.guard, identity, {"refund": ORDER}).request("refund", ORDER), g.UntrustedChainError)


def test_bundle_removed(lab) -> None:
    """A trust domain whose bundle goes away is refused at the next check, also for a token that was verified before."""
    caller = lab.caller()
    assert caller.call("refund", ORDER)
    lab.bundles.remove(lab.ca)
    _refused(lab, caller.request("refund", ORDER), g.UntrustedChainError)


def test_authority_rotated_and_dropped(lab) -> None:
    """While both authorities are in the bundle both are good; what a dropped one signed is refused at once (bar 32)."""
    ca = TestCa("rotating.example.org", clock=lab.clock)
    guard = lab.another_guard(identity=CaBundles(ca))
    old = Caller(guard, lab.identity("spiffe://rotating.example.org/a", ca=ca), {"refund": ORDER})
    ca.rotate_authority()
    new = Caller(guard, lab.identity("spiffe://rotating.example.org/a", ca=ca), {"refund": ORDER})
    assert old.call("refund", ORDER)
    assert new.call("refund", ORDER)
    ca.drop_old_authorities()
    _refused(lab, old.request("refund", ORDER), g.UntrustedChainError, guard=guard)
    assert new.call("refund", ORDER)


def test_nothing_heard_yet_is_not_a_401(lab) -> None:
    """While the source has heard nothing at all the Guard is unavailable, as the caller may well be right."""

    class Silent:
        state = type("S", (), {"value": "starting"})

        def start(self):
            """Begin."""

        def x509_bundle(self, trust_domain):
            """Nothing."""

    guard = lab.another_guard(identity=Silent())
    refused = _refused(lab, lab.caller().request("refund", ORDER), IdentityUnavailableError, guard=guard)
    assert guard.answer(refused).status == 503


# ---------------------------------------------------------------------------------------------- endings, store, audit


@pytest.mark.parametrize("kind", ["txn", "jkt"])
def test_ended_task_is_refused_at_the_next_check(lab, kind) -> None:
    """An ending published in the shared folder counts at the next check; other tasks go on."""
    caller, other = lab.caller(), lab.caller()
    assert caller.call("refund", ORDER)
    endings = SqliteEndings(lab.folder / "endings", clock=lab.clock)
    request = caller.request("refund", ORDER)
    endings.publish(f"{kind}:{caller.txn if kind == 'txn' else caller.key.jkt}", expires_at=caller.ends_at)
    endings.close()
    _refused(lab, request, g.TaskEndedError, step="endings")
    assert other.call("refund", ORDER)


@pytest.mark.parametrize("back", [1, 29, 50, 80, 3600])
def test_clock_set_back_revives_nothing(lab, back) -> None:
    """A token that has expired, or a held-back proof that is too old, stays refused when the wall clock goes back."""
    short, long = lab.caller(ttl=timedelta(seconds=70)), lab.caller(ttl=timedelta(minutes=10))
    held, held_long = short.request("refund", ORDER), long.request("refund", ORDER)
    lab.clock.advance(71)
    _refused(lab, held, g.ExpiredEvidenceError)
    _refused(lab, held_long, g.ProofTimeError)
    lab.clock.set_wall(lab.clock.now().wall - back)
    for request in (held, short.request("refund", ORDER)):
        _refused(lab, request, g.ExpiredEvidenceError)
    _refused(lab, held_long, g.ProofTimeError)


def test_clock_that_was_ahead_is_forgiven(lab) -> None:
    """A wall clock that was a day ahead and was corrected does not close the Guard for a day."""
    right = lab.clock.now().wall
    caller = lab.caller()
    lab.clock.set_wall(right + 86400)
    _refused(lab, caller.request("refund", ORDER), g.UntrustedChainError)
    lab.clock.set_wall(right)
    assert caller.call("refund", ORDER)


def test_endings_in_a_folder_of_their_own(lab, folder) -> None:
    """`endings_dir` names the folder that callers write to."""
    guard = lab.another_guard(endings_dir=folder / "callers")
    caller = lab.caller(guard=guard)
    with closing(SqliteEndings(folder / "callers", clock=lab.clock)) as endings:
        endings.publish(f"txn:{caller.txn}", expires_at=caller.ends_at)
    _refused(lab, caller.request("refund", ORDER), g.TaskEndedError, guard=guard)


def test_new_store_refuses_older_proofs(lab, folder) -> None:
    """A Guard whose memory was lost refuses proofs from before, and tokens with a limit from before."""
    plain, limited = lab.caller(), lab.caller(max_uses=5)
    old, old_limited = plain.request("refund", ORDER), limited.request("refund", ORDER)
    assert lab.guard.check(old, "refund", ORDER)
    lab.clock.advance(2)
    fresh = lab.another_guard(state_dir=folder / "new", endings_dir=folder / "endings")
    _refused(lab, old, g.ForgottenProofError, guard=fresh, step="memory")
    _refused(lab, old_limited, g.ForgottenProofError, guard=fresh)
    assert fresh.check(plain.request("refund", ORDER), "refund", ORDER)
    _refused(lab, limited.request("refund", ORDER), g.ForgottenError, guard=fresh)
    assert fresh.check(lab.caller(max_uses=5).request("refund", ORDER), "refund", ORDER)


def test_new_store_refuses_what_a_policy_counts(lab, folder) -> None:
    """Where a policy may read `used`, a token from before the memory is refused also without a limit of its own."""
    lab.policies.keys_of["refund"] = {"task": True, "used": False}
    caller = lab.caller()
    assert caller.call("refund", ORDER)
    lab.clock.advance(2)
    fresh = lab.another_guard(state_dir=folder / "new", endings_dir=folder / "endings")
    _refused(lab, caller.request("refund", ORDER), g.ForgottenError, guard=fresh, step="memory")


def test_memory_taken_away_and_made_anew_by_an_older_guard(lab, folder) -> None:
    """Once a Guard misses its memory, no Guard of this audience accepts what may have been shown or counted before."""
    older = lab.another_guard()
    lab.clock.advance(20)
    caller, limited = lab.caller(), lab.caller(max_uses=1)
    shown = caller.request("refund", ORDER)
    lab.guard.check(shown, "refund", ORDER)
    limited.call("refund", ORDER)
    shutil.rmtree(folder / "guard")
    lab.clock.advance(2)
    assert older.check(caller.request("refund", ORDER), "refund", ORDER)
    _refused(lab, shown, g.ForgottenProofError)
    _refused(lab, shown, g.ForgottenProofError, guard=older)
    _refused(lab, limited.request("refund", ORDER), g.ForgottenError, guard=older)


def test_every_refusal_says_what_was_asked(lab) -> None:
    """A refusal before any decision was made names the action and the resource in its record too."""
    caller = lab.caller(max_uses=1)
    shown = caller.request("refund", ORDER)
    lab.guard.check(shown, "refund", ORDER)
    for request, action, resource in (
        (Request("GET", "/", []), "read", OTHER),
        (shown, "refund", ORDER),
        (caller.request("refund", ORDER), "refund", ORDER),
        (caller.request("close", OTHER), Entity("Shop::Action", "close"), OTHER),
    ):
        with pytest.raises(EvidenceError):
            lab.guard.check(request, action, resource)
        event = lab.trail.events[-1]
        assert event.decision is None
        assert event.detail.startswith(f"{action} on {resource}: ")


def test_refusal_before_the_first_step_is_on_record(lab, folder) -> None:
    """A Guard that cannot start, or is closed, refuses on record too, as far as it has a record."""
    unfit = lab.another_guard(state_dir=folder / "unfit")
    (folder / "unfit" / "guard").mkdir(parents=True)
    (folder / "unfit" / "guard").chmod(0o777)
    request = lab.caller().request("refund", ORDER)
    _refused(lab, request, SharedStateError, guard=unfit, step="start")
    lab.guard.close()
    _refused(lab, request, StateError, step="start")


@pytest.mark.parametrize("request_", [None, "GET /", {}, object()])
def test_not_a_request(lab, request_) -> None:
    """Whatever else is given as the request is our error, on record, and 503."""
    assert g.answer(_refused(lab, request_, ConfigurationError, step="request")).status == 503


def test_store_that_cannot_answer_is_a_deny(lab) -> None:
    """Without replay, counts or endings nothing is allowed, and the answer is 503."""
    assert lab.caller().call("refund", ORDER)
    request = lab.caller().request("refund", ORDER)
    for place in ("guard", "endings"):
        lab.clock.advance(2)
        (lab.folder / place).chmod(0o777)
        guard = lab.another_guard()
        with pytest.raises(SharedStateError) as refused:
            guard.check(request, "refund", ORDER)
        assert guard.answer(refused.value).status == 503
        (lab.folder / place).chmod(0o700)
    assert lab.guard.check(lab.caller().request("refund", ORDER), "refund", ORDER)


def test_no_record_no_call(lab) -> None:
    """A decision that cannot be recorded is refused; its use is given back, its proof is not."""
    caller = lab.caller(max_uses=1)
    request = caller.request("refund", ORDER)
    lab.trail.is_failing = True
    with pytest.raises(AuditError) as refused:
        lab.guard.check(request, "refund", ORDER)
    assert lab.guard.answer(refused.value).status == 503
    assert [event.step for event in lab.trail.lost] == ["audit"]
    lab.trail.is_failing = False
    _refused(lab, request, g.ReplayedProofError)
    assert caller.call("refund", ORDER).number == 1


@pytest.mark.parametrize("error", [PolicyStaleError("too old"), InvalidPolicyError("broken")])
def test_no_policies_no_call(lab, error) -> None:
    """Policies that cannot be asked allow nothing."""
    request = lab.caller().request("refund", ORDER)
    lab.policies.broken = error
    assert lab.guard.answer(_refused(lab, request, type(error))).status == 503


def test_anything_unexpected_is_a_refusal(lab) -> None:
    """An error that nobody foresaw, even a KeyboardInterrupt, leaves no use counted and is on record."""
    caller = lab.caller(max_uses=1)
    for strange in (RuntimeError("boom"), KeyboardInterrupt()):

        def fail(*_, strange=strange):
            raise strange

        decide, lab.policies.decide = lab.policies.decide, fail
        with pytest.raises(type(strange)):
            caller.call("refund", ORDER)
        assert lab.trail.events[-1].error == type(strange).__name__
        lab.policies.decide = decide
    assert caller.call("refund", ORDER).number == 1


# ---------------------------------------------------------------------------------------------- limits


def test_task_limit_and_given_back_on_deny(lab) -> None:
    """Denied uses do not count; the one after the last is refused; a re-minted token starts no new count."""
    caller = lab.caller(max_uses=2)
    lab.policies.allow = False
    for _ in range(5):
        _refused(lab, caller.request("refund", ORDER), AccessDeniedError)
    lab.policies.allow = True
    assert [caller.call("refund", ORDER).number for _ in range(2)] == [1, 2]
    assert _refused(lab, caller.request("refund", ORDER), g.UsesExhaustedError, step="limits").status == 403
    lab.clock.advance(5)
    caller.token = caller.mint()
    _refused(lab, caller.request("refund", ORDER), g.UsesExhaustedError)


def test_permission_limit_gives_the_task_use_back(lab) -> None:
    """A permission that is used up costs nothing of the task's own limit."""
    caller = lab.caller([Permission("refund", ORDER, 1), Permission("read", ORDER)], max_uses=3)
    assert caller.call("refund", ORDER)
    for _ in range(4):
        _refused(lab, caller.request("refund", ORDER), g.UsesExhaustedError)
    assert [caller.call("read", ORDER).number for _ in range(2)] == [2, 3]
    _refused(lab, caller.request("read", ORDER), g.UsesExhaustedError, "read")


def test_several_permissions_hold_one_use(lab) -> None:
    """The exact permission is used first, then the one that the resource is under, and none after both."""
    lab.policies.below[ORDER, SHOP] = True
    caller = lab.caller([Permission("read", under(SHOP), 2), Permission("read", ORDER, 1)])
    scopes = [caller.call("read", ORDER).permission.resource for _ in range(3)]
    assert scopes == [ORDER, under(SHOP), under(SHOP)]
    _refused(lab, caller.request("read", ORDER), g.UsesExhaustedError, "read")


def test_use_that_cannot_be_given_back_stays_counted(lab, monkeypatch, caplog) -> None:
    """If the store fails while a denied use is given back, the denial is what the caller sees and the use is lost."""
    caller = lab.caller(max_uses=1)
    lab.policies.allow = False

    def fail(key: str) -> None:
        raise SharedStateError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(lab.guard._parts.ledger, "release", fail)
        _refused(lab, caller.request("refund", ORDER), AccessDeniedError)
    assert "stays counted" in caplog.text
    lab.policies.allow = True
    _refused(lab, caller.request("refund", ORDER), g.UsesExhaustedError)


def test_limits_of_tasks_are_apart(lab) -> None:
    """Two tasks of one workload, and two workloads, do not spend each other's uses."""
    callers = [lab.caller(max_uses=1), lab.caller(max_uses=1), lab.caller(max_uses=1, as_="spiffe://example.org/b")]
    assert [c.call("refund", ORDER).number for c in callers] == [1, 1, 1]


# ---------------------------------------------------------------------------------------------- life


def test_replay_over_guards(lab) -> None:
    """A second Guard of the same audience on this host knows the proofs of the first."""
    caller = lab.caller()
    request = caller.request("refund", ORDER)
    assert lab.guard.check(request, "refund", ORDER)
    _refused(lab, request, g.ReplayedProofError, guard=lab.another_guard(), step="replay")


def test_replay_after_a_deny(lab) -> None:
    """A proof that was shown and denied is worth nothing once the policies would allow it."""
    request = lab.caller().request("refund", ORDER)
    lab.policies.allow = False
    _refused(lab, request, AccessDeniedError)
    lab.policies.allow = True
    _refused(lab, request, g.ReplayedProofError)


def test_reload(lab) -> None:
    """`reload` loads this side's policies."""
    lab.guard.reload()
    assert lab.policies.reloads == 1


def test_closed(lab) -> None:
    """A closed Guard allows nothing, and what was given to it stays open."""
    request = lab.caller().request("refund", ORDER)
    with lab.another_guard() as guard:
        assert guard.check(request, "refund", ORDER)
    guard.close()
    with pytest.raises(StateError):
        guard.check(request, "refund", ORDER)
    assert guard.answer(StateError("closed")).status == 503
    assert lab.guard.check(lab.caller().request("refund", ORDER), "refund", ORDER)


@pytest.mark.parametrize(
    "bad",
    [
        {"audience": ""},
        {"audience": 5},
        {"proof_window": timedelta(0)},
        {"proof_window": timedelta(minutes=6)},
        {"max_ttl": timedelta(0)},
        {"max_ttl": timedelta(days=2)},
    ],
)
def test_bounds_of_the_settings(lab, bad) -> None:
    """A setting out of bounds is refused at construction."""
    with pytest.raises(ConfigurationError):
        lab.another_guard(**bad)


def test_guard_knows_nothing_of_the_caller() -> None:
    """Importing the Guard imports neither the caller's rooms nor gRPC nor a database."""
    wanted = ("grpc", "sqlite3", "jitwi.jit", "jitwi.grants", "jitwi.credentials", "jitwi.journal")
    code = f"import sys, jitwi.guard; print([m for m in sys.modules if m in {wanted}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_renderings_show_no_token(lab) -> None:
    """Neither a request nor a Guard shows evidence."""
    request = attrs.evolve(lab.caller().request("refund", ORDER), url="/a?secret=1")
    assert repr(request) == "<Request POST /a>"
    assert repr(lab.guard) == "<Guard https://orders.example.org>"


# ---------------------------------------------------------------------------------------------- answers

CHALLENGE = 'DPoP algs="ES256"'


@pytest.mark.parametrize(
    ("error", "status", "challenge"),
    [
        (g.MissingEvidenceError("x"), 401, CHALLENGE),
        (g.AmbiguousEvidenceError("x"), 401, CHALLENGE + ', error="invalid_dpop_proof"'),
        (g.InvalidRequestError("x"), 401, CHALLENGE + ', error="invalid_dpop_proof"'),
        (g.ExpiredEvidenceError("x"), 401, CHALLENGE + ', error="invalid_token"'),
        (g.TaskEndedError("x"), 401, CHALLENGE + ', error="invalid_token"'),
        (g.ForgottenError("x"), 401, CHALLENGE + ', error="invalid_token"'),
        (g.ReplayedProofError("x"), 401, CHALLENGE + ', error="invalid_dpop_proof"'),
        (g.ForgottenProofError("x"), 401, CHALLENGE + ', error="invalid_dpop_proof"'),
        (g.ScopeMismatchError("x"), 403, CHALLENGE + ', error="insufficient_scope"'),
        (g.TaskClassError("x"), 403, CHALLENGE + ', error="insufficient_scope"'),
        (g.UsesExhaustedError("x"), 403, CHALLENGE + ', error="insufficient_scope"'),
        (AccessDeniedError("x"), 403, CHALLENGE + ', error="insufficient_scope"'),
        (EvidenceError("x"), 401, CHALLENGE + ', error="invalid_token"'),
        (SharedStateError("x"), 503, None),
        (AuditError("x"), 503, None),
        (PolicyStaleError("x"), 503, None),
        (RuntimeError("x"), 503, None),
    ],
)
def test_answers(error, status, challenge) -> None:
    """A stranger gets the standard's status and code, and nothing of the message (RFC 6750 §3, RFC 9449 §7.1)."""
    answer = g.answer(error)
    assert (answer.status, dict(answer.headers).get("WWW-Authenticate")) == (status, challenge)
    assert dict(answer.headers)["Cache-Control"] == "no-store"
    assert b"x" not in answer.body.replace(b"expired", b"")


def test_every_refusal_has_a_status_and_a_challenge() -> None:
    """Every evidence error of the Guard answers 401 or 403 with a code of RFC 6750 or RFC 9449, or with none."""
    kinds = [k for k in vars(g).values() if isinstance(k, type) and issubclass(k, EvidenceError)]
    assert len(kinds) > 30
    for kind in kinds:
        assert kind.status in (401, 403)
        assert kind.challenge in ("", "invalid_token", "invalid_dpop_proof", "insufficient_scope")
    assert len({k.code for k in kinds}) == len(kinds)


# ---------------------------------------------------------------------------------------------- any change is a refusal


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_refused(lab, data) -> None:
    """Changing one character of token or proof is refused with an evidence error, and only the original passes."""
    caller = lab.caller()
    request = caller.request("refund", ORDER)
    name = data.draw(st.sampled_from(["Authorization", "DPoP"]))
    value = _of(request, name)
    first = 5 if name == "Authorization" else 0
    at = first + data.draw(st.integers(0, 5000)) % (len(value) - first)
    letter = chr(33 + (ord(value[at]) - 33 + data.draw(st.integers(1, 600))) % 601)
    with pytest.raises(EvidenceError):
        lab.guard.check(_replace(request, name, value[:at] + letter + value[at + 1 :]), "refund", ORDER)
    assert lab.guard.check(request, "refund", ORDER)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.one_of(st.text(max_size=12), st.just("POST")),
    url=st.one_of(st.text(max_size=60), st.text(alphabet="/.%2eEfF\\:@?#a", max_size=20).map(lambda t: "/" + t)),
    headers=st.lists(
        st.tuples(
            st.sampled_from(["Authorization", "DPoP", "authorization", "X"]),
            st.one_of(st.text(max_size=80), st.binary(max_size=80), st.text(max_size=40).map("DPoP ".__add__)),
        ),
        max_size=4,
    ),
)
def test_garbage_is_evidence_error(lab, method, url, headers) -> None:
    """Whatever a client sends, only our refusal escapes."""
    with pytest.raises(EvidenceError):
        lab.guard.check(Request(method, url, headers), "refund", ORDER)
