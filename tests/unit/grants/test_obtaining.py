# SPDX-License-Identifier: Apache-2.0
"""What an issuer of somebody else's may do, and when: refusals on record, races, credentials shorter than the task."""

import gc
import threading
import warnings
from datetime import timedelta

import pytest

import jitwi
from jitwi.audit.events import CredentialRefused, GrantLeaked
from jitwi.credentials import (
    CredentialHandle,
    Issued,
    Outcome,
    Plan,
    ProbeResult,
    Strength,
)
from jitwi.errors import (
    AccessDeniedError,
    AuditError,
    ConfigurationError,
    GrantEndedError,
    GrantExpiredError,
    GrantRevokedError,
    IssuanceError,
    OutOfScopeError,
    ScopeTooWideError,
    StateError,
)
from jitwi.grants import Watchdog
from jitwi.issuers import TaskTokens
from jitwi.policy import PolicyStore
from jitwi.testing import FakeClock, RecordingSink
from jitwi.testing import jit as make_test_jit


class Handle(CredentialHandle):
    """A handle with one verb."""

    def use(self, action, resource):
        """Pass the gate."""
        return self._gate.check(action, resource)


class Memory:
    """An issuer whose credentials are names in a set; each step can be replaced."""

    kind = "memory"
    is_local = False
    serves = None
    seconds = 60.0

    def __init__(self):
        self.alive = set()

    def start(self, services):
        """Nothing is needed."""

    def plan(self, order):
        """Exact and revocable."""
        ends_at = min(order.ends_at, order.issued_at + self.seconds)
        return Plan(kind=self.kind, strength=Strength.REFUSED_AT_NEXT_USE, is_bearer=False, expires_at=ends_at)

    def issue(self, order, plan):
        """Remember the id."""
        self.alive.add(order.lease_id)
        return Issued(expires_at=plan.expires_at)

    def handle(self, order, plan, issued, gate):
        """Return the handle."""
        return Handle(gate, kind=self.kind)

    def end(self, lease):
        """Forget the id."""
        self.alive.discard(lease.lease_id)

    def probe(self, lease, permission=None):
        """Look the id up."""
        return ProbeResult.ALLOWED if lease.lease_id in self.alive else ProbeResult.REFUSED

    def outstanding(self):
        """List the ids."""
        return tuple(self.alive)


def test_every_refusal_to_make_a_credential_is_on_record(make_jit, shop):
    """No such issuer, nothing served, task over: the record has a line of each."""
    tokens = TaskTokens("https://orders.example.org", serves=["read"])
    jit, sink = make_jit(issuers={"tokens": tokens})
    with jit.task("x", permissions={"count": shop.order}, ttl=shop.ttl) as grant:
        with pytest.raises(ConfigurationError):
            grant.credential("nobody")
        with pytest.raises(OutOfScopeError):
            grant.credential("tokens")
    with pytest.raises(GrantEndedError):
        grant.credential("tokens")
    found = [(event.issuer, event.error) for event in sink.of(CredentialRefused)]
    assert found == [("nobody", "configuration"), ("tokens", "out-of-scope"), ("tokens", "grant-ended")]


@pytest.mark.parametrize("step", ["plan", "issue", "handle"])
def test_an_issuer_that_answers_nonsense_is_an_issuance_error(make_jit, shop, step):
    """No foreign exception leaves, and what may have been made is ended."""
    issuer = Memory()
    setattr(issuer, step, lambda *_: "nonsense")
    jit, _ = make_jit(issuers={"memory": issuer})
    with (
        jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant,
        pytest.raises(IssuanceError),
    ):
        grant.credential("memory")
    assert issuer.alive == set()


def test_nothing_is_verified_to_be_over_while_it_is_still_being_made(make_jit, shop, wait_for):
    """Revoked in the middle of `issue`: pending, and verified only after the late answer was ended too."""
    told, begun, may_go_on = [], threading.Event(), threading.Event()
    issuer = Memory()
    issue = issuer.issue

    def slow(order, plan):
        begun.set()
        assert may_go_on.wait(20)
        return issue(order, plan)

    issuer.issue = slow
    jit, _ = make_jit(issuers={"memory": issuer}, on_ending=lambda _, ending: told.append(ending))
    failed = []

    def obtain(grant):
        try:
            grant.credential("memory")
        except jitwi.JitwiError as error:
            failed.append(error)

    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        thread = threading.Thread(target=obtain, args=(grant,))
        thread.start()
        assert begun.wait(20)
        (ending,) = grant.revoke().credentials
        assert ending.outcome is Outcome.PENDING
        assert told[0].is_pending
        may_go_on.set()
        thread.join(20)
    assert failed
    assert issuer.alive == set()
    wait_for(lambda: grant.ending.credentials[0].outcome is Outcome.VERIFIED)


def test_a_credential_that_ends_before_its_task_does_not_end_the_task(make_jit, shop):
    """The error says which one is over; the next call of `credential` makes a new one, and the old one is ended."""
    clock, issuer = FakeClock(), Memory()
    jit, _ = make_jit(issuers={"memory": issuer}, clock=clock)
    with jit.task("x", permissions={"read": shop.order}, ttl=timedelta(minutes=10)) as grant:
        old = grant.credential("memory")
        old.use("read", shop.order)
        clock.advance(61)
        with pytest.raises(GrantExpiredError, match="credential of issuer `memory`"):
            old.use("read", shop.order)
        assert grant.is_live
        new = grant.credential("memory")
        assert new is not old
        new.use("read", shop.order)
        assert len(issuer.alive) == 1
        assert grant.credential("memory") is new
    assert [c.outcome for c in grant.ending.credentials] == [Outcome.VERIFIED] * 2


def test_policies_that_change_while_a_task_opens_are_asked_again(make_jit, shop):
    """A reload between the decision and the first moment of life: the task does not open."""

    class Reloading(RecordingSink):
        def record(self, event, *, durable=False):
            super().record(event, durable=durable)
            if event.kind == "task.opened":
                jit.reload()

    jit, _ = make_jit(audit=Reloading())
    first = jit.start()._runtime().policies
    other = PolicyStore.from_text(
        policies='permit (principal, action == Shop::Action::"count", resource);', schema=SCHEMA_OF_ONE
    )
    other.load()
    first.reload = lambda: setattr(first, "_snapshot", other.snapshot)
    with (
        pytest.raises(AccessDeniedError),
        jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl),
    ):
        pytest.fail("it opened")
    assert all(not grant.is_live for grant in jit.live_grants)


SCHEMA_OF_ONE = """
namespace Shop {
  entity Order;
  action read, count appliesTo { principal: [Jitwi::Workload], resource: [Order], context: { task: Jitwi::Task } };
}
"""


def test_no_task_opens_while_its_jit_is_being_closed(make_jit, shop):
    """Closed between registration and the first moment of life."""

    class Closing(RecordingSink):
        def record(self, event, *, durable=False):
            super().record(event, durable=durable)
            if event.kind == "task.opened":
                jit.close()

    jit, _ = make_jit(audit=Closing())
    with pytest.raises(jitwi.JitwiError), jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
        pytest.fail("it opened")
    jit, _ = make_jit()
    runtime = jit.start()._runtime()
    runtime.is_stopping = True
    with pytest.raises(StateError), jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
        pytest.fail("it opened")


def test_a_task_that_did_not_open_is_no_leak(make_jit, shop, monkeypatch):
    """Neither a warning nor a record of a leak, however late its ending is complete."""

    class Dead(RecordingSink):
        def record(self, event, *, durable=False):
            if event.kind == "task.opened":
                raise AuditError("the sink is dead")
            super().record(event, durable=durable)

    jit, sink = make_jit(audit=Dead())
    jit.start()
    monkeypatch.setattr(Watchdog, "work", lambda *_, **__: None)  # its ending is not complete when it is collected
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(AuditError), jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
            pytest.fail("it opened")
        gc.collect()
    assert [w for w in caught if issubclass(w.category, ResourceWarning) and "task `x`" in str(w.message)] == []
    assert sink.of(GrantLeaked) == []


def test_a_child_may_raise_on_pending_as_its_parent_may(jit, shop):
    """`grant.task` takes what `JIT.task` takes."""
    with (
        jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant,
        grant.task("y", permissions={"read": shop.order}, raise_on_pending=True) as child,
    ):
        child.check("read", shop.order)


def test_a_decorator_keeps_the_permissions_that_it_was_given(jit, shop):
    """An iterator is not used up by the first call, and a mapping that changes later changes nothing."""
    mapping = {"read": shop.order}

    @jit.task("x", permissions=(jitwi.Permission("read", order) for order in [shop.order]), ttl=shop.ttl)
    def once(grant):
        return len(grant.declaration.permissions)

    @jit.task("x", permissions=mapping, ttl=shop.ttl)
    def twice(grant):
        return len(grant.declaration.permissions)

    mapping["count"] = shop.order
    assert [once(), once(), twice()] == [1, 1, 1]


@pytest.mark.parametrize("when", ["afterwards", "meanwhile"])
def test_a_reload_that_forbids_a_credential_ends_it(shop, policy_folder, tmp_path, when):
    """Made before, or just being made: what policies would not let a task obtain any more is over."""
    issuer = Memory()
    (policy_folder / "shop.cedar").write_text("permit (principal, action, resource);")

    def forbid():
        (policy_folder / "more.cedar").write_text(
            'forbid (principal, action == Jitwi::Action::"obtain", resource == Jitwi::Issuer::"memory");'
        )
        jit.reload()

    if when == "meanwhile":
        issue = issuer.issue
        issuer.issue = lambda order, plan: (issue(order, plan), forbid())[0]
    jit = make_test_jit(
        "spiffe://example.org/a",
        policy_folder,
        issuers={"memory": issuer},
        audit=RecordingSink(),
        state_dir=tmp_path / "state",
    )
    with jit, jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        if when == "meanwhile":
            with pytest.raises(ScopeTooWideError):
                grant.credential("memory")
        else:
            handle = grant.credential("memory")
            forbid()
            with pytest.raises(GrantRevokedError):
                handle.use("read", shop.order)
    assert issuer.alive == set()
