# SPDX-License-Identifier: Apache-2.0
"""Using a grant: rule 6, in its order."""

import threading
from datetime import timedelta

import pytest

import jitwi
from jitwi.audit.events import UseAllowed, UseDenied
from jitwi.errors import (
    AccessDeniedError,
    AuditError,
    GrantEndedError,
    GrantError,
    GrantExpiredError,
    GrantRevokedError,
    LimitExceededError,
    OutOfScopeError,
)
from jitwi.grants import EndCause
from jitwi.testing import FakeClock, FixedIdentity, RecordingSink


def test_an_allowed_use_is_counted_and_on_record_before_it_returns(make_jit, shop):
    """The line of a use is there when `check` returns, with number and decision."""
    jit, sink = make_jit()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        use = grant.check("read", shop.order)
        (line,) = sink.of(UseAllowed)
        assert (use.number, line.number, line.decision.policy_ids) == (1, 1, ("read",))
        assert grant.uses == 1


def test_what_was_not_declared_is_out_of_scope(jit, shop):
    """Another action, another resource: refused before policy is asked."""
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        with pytest.raises(OutOfScopeError):
            grant.check("count", shop.order)
        with pytest.raises(OutOfScopeError):
            grant.check("read", shop.other)


def test_policy_decides_each_use_over_its_input(jit, shop):
    """30 is fine, 101 is not, none at all names what is missing; a denied use is not counted."""
    with jit.task("refund-order", permissions={"refund": shop.order}, ttl=shop.ttl, max_uses=1) as grant:
        with pytest.raises(AccessDeniedError, match="missing-input"):
            grant.check("refund", shop.order)
        with pytest.raises(AccessDeniedError, match="no-permit"):
            grant.check("refund", shop.order, input={"amount": 101})
        assert grant.check("refund", shop.order, input={"amount": 30}).number == 1
        with pytest.raises(LimitExceededError):
            grant.check("refund", shop.order, input={"amount": 30})


def test_used_counts_this_tasks_uses(jit, shop):
    """`context.used` is what was used before: the fourth use is denied by the policy."""
    with jit.task("x", permissions={"count": shop.order}, ttl=shop.ttl) as grant:
        for _ in range(3):
            grant.check("count", shop.order)
        with pytest.raises(AccessDeniedError):
            grant.check("count", shop.order)


def test_a_permissions_own_limit_holds_beside_the_tasks(jit, shop):
    """One permission is used up, the other goes on."""
    permissions = [jitwi.Permission("read", shop.order, max_uses=1), jitwi.Permission("read", shop.other)]
    with jit.task("x", permissions=permissions, ttl=shop.ttl) as grant:
        grant.check("read", shop.order)
        with pytest.raises(LimitExceededError):
            grant.check("read", shop.order)
        grant.check("read", shop.other)


def test_max_uses_is_exact_under_threads(make_jit, shop):
    """Eight threads get exactly `max_uses` uses out of a grant."""
    jit, _ = make_jit(max_refused_uses=10**6)
    allowed, refused = [], []
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl, max_uses=500) as grant:

        def work():
            for _ in range(100):
                try:
                    allowed.append(grant.check("read", shop.order).number)
                except (LimitExceededError, GrantRevokedError):
                    refused.append(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(allowed) == list(range(1, 501))
    assert len(refused) == 300


def test_using_more_than_max_uses_ends_the_task(jit, shop):
    """The attempt after the last use is refused as a limit, and the task is over by that cause."""
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl, max_uses=1) as grant:
        grant.check("read", shop.order)
        with pytest.raises(LimitExceededError):
            grant.check("read", shop.order)
        with pytest.raises(GrantRevokedError) as error:
            grant.check("read", shop.order)
    assert error.value.cause == "max-uses"


def test_too_many_refused_uses_end_the_task(make_jit, shop):
    """Ten refused uses are abnormal behaviour."""
    jit, _ = make_jit()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        for _ in range(10):
            with pytest.raises(OutOfScopeError):
                grant.check("read", shop.other)
        with pytest.raises(GrantRevokedError) as error:
            grant.check("read", shop.order)
    assert error.value.cause == EndCause.REFUSED_USES.value


@pytest.mark.parametrize(
    "clock_step", [{"wall": 61.0, "boot": 61.0}, {"wall": -3600.0, "boot": 61.0}, {"wall": 61.0, "boot": 1.0}]
)
def test_ttl_is_the_earlier_of_both_clocks(make_jit, shop, clock_step):
    """Time passing, the wall clock set back, or set forward: from the deadline on the task is over."""
    clock = FakeClock()
    jit, _ = make_jit(clock=clock, identity=FixedIdentity("spiffe://example.org/ns/prod/refunds", clock=clock))
    with jit.task("x", permissions={"read": shop.order}, ttl=timedelta(seconds=60)) as grant:
        grant.check("read", shop.order)
        now = clock.now()
        clock.set_wall(now.wall + clock_step["wall"])
        clock.set_boot(now.boot + clock_step["boot"])
        with pytest.raises(GrantExpiredError):
            grant.check("read", shop.order)
        clock.set_wall(now.wall)
        with pytest.raises(GrantError):
            grant.check("read", shop.order)


@pytest.mark.parametrize(("how", "cause"), [("withdraw", "identity-withdrawn"), ("replace", "identity-replaced")])
def test_identity_gone_ends_running_tasks_at_once(make_jit, shop, how, cause):
    """Withdrawn or replaced in mid-task: the next use says so, and so does the ending."""
    identity = FixedIdentity("spiffe://example.org/ns/prod/refunds")
    jit, _ = make_jit(identity=identity)
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        grant.check("read", shop.order)
        getattr(identity, how)()
        with pytest.raises(GrantRevokedError) as error:
            grant.check("read", shop.order)
        assert error.value.cause == cause
        identity.restore()
        with pytest.raises(GrantRevokedError):
            grant.check("read", shop.order)
    assert grant.ending.cause.value == cause


def test_rotation_does_not_disturb_a_task(make_jit, shop):
    """A new SVID of the same workload serves the running task."""
    identity = FixedIdentity("spiffe://example.org/ns/prod/refunds")
    jit, _ = make_jit(identity=identity)
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        identity.rotate()
        grant.check("read", shop.order)


def test_no_record_no_use(make_jit, shop):
    """A use whose line cannot be written is refused and given back; ending still works."""

    class Failing(RecordingSink):
        fails = False

        def record(self, event, *, durable=False):
            if self.fails:
                raise AuditError("the disk is full")
            super().record(event, durable=durable)

    sink = Failing()
    jit, _ = make_jit(audit=sink)
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl, max_uses=1) as grant:
        sink.fails = True
        with pytest.raises(AuditError):
            grant.check("read", shop.order)
        sink.fails = False
        assert grant.check("read", shop.order).number == 1
        sink.fails = True
    assert grant.ending.cause is EndCause.BLOCK_ENDED


def test_every_refusal_is_on_record(make_jit, shop):
    """A refused use leaves a line with its reason, even after the end."""
    jit, sink = make_jit()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        with pytest.raises(OutOfScopeError):
            grant.check("read", shop.other)
    with pytest.raises(GrantEndedError):
        grant.check("read", shop.order)
    assert [line.error for line in sink.of(UseDenied)] == ["out-of-scope", "grant-ended"]


def test_an_ending_by_another_process_of_the_host_counts_at_the_next_use(make_jit, shop):
    """The epoch is read at each use; an ending published for this grant ends it here."""
    jit, _ = make_jit()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        grant.check("read", shop.order)
        grant.runtime.endings.publish("grant:somebody-else", expires_at=grant.expires_at.timestamp())
        grant.check("read", shop.order)
        grant.runtime.endings.publish(grant.ending_key, expires_at=grant.expires_at.timestamp())
        with pytest.raises(GrantRevokedError) as error:
            grant.check("read", shop.order)
    assert error.value.cause == "revoked-elsewhere"


def test_the_exact_permission_is_counted_before_an_under(jit, shop):
    """Whatever the order of the declaration, a use counts on the permission that names its resource."""
    for permissions in (
        [jitwi.Permission("list", jitwi.under(shop.root)), jitwi.Permission("list", shop.inner, max_uses=1)],
        [jitwi.Permission("list", shop.inner, max_uses=1), jitwi.Permission("list", jitwi.under(shop.root))],
    ):
        with jit.task("x", permissions=permissions, ttl=shop.ttl) as grant:
            grant.check("list", shop.inner)
            with pytest.raises(LimitExceededError):
                grant.check("list", shop.inner)
            grant.check("list", shop.root)


def test_a_childs_use_counts_on_the_parents_permission_for_that_very_resource(jit, shop):
    """A child that is `under(...)` cannot get past the parent's limit on one resource below it."""
    permissions = [jitwi.Permission("list", jitwi.under(shop.root)), jitwi.Permission("list", shop.inner, max_uses=1)]
    with (
        jit.task("x", permissions=permissions, ttl=shop.ttl) as parent,
        parent.task("y", permissions={"list": jitwi.under(jitwi.Entity("Shop::Folder", "a"))}) as child,
    ):
        child.check("list", shop.inner)
        with pytest.raises(LimitExceededError):
            child.check("list", shop.inner)
        child.check("list", jitwi.Entity("Shop::Folder", "a"))
        assert (parent.uses, child.uses) == (2, 2)
