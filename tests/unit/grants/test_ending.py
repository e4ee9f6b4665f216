# SPDX-License-Identifier: Apache-2.0
"""Ending a grant: in any way, once, children first, never reported as better than it is."""

import gc
import threading
import warnings

import pytest

import jitwi
from jitwi.audit.events import CredentialEnded, GrantEnded, GrantLeaked, UseDenied
from jitwi.errors import GrantEndedError, GrantRevokedError, OutOfScopeError
from jitwi.grants import EndCause
from jitwi.issuers import TaskTokens
from jitwi.policy import PolicyStore
from jitwi.testing import FakeClock, FixedIdentity, RecordingSink
from jitwi.testing import jit as make_test_jit

URL = "https://orders.example.org/orders/42"


class BodyError(Exception):
    """What a test's block raises."""


@pytest.mark.parametrize(
    ("raised", "cause"),
    [
        (None, EndCause.BLOCK_ENDED),
        (BodyError, EndCause.BLOCK_FAILED),
        (KeyboardInterrupt, EndCause.BLOCK_FAILED),
        (SystemExit, EndCause.BLOCK_FAILED),
        (GeneratorExit, EndCause.CANCELLED),
    ],
)
def test_every_way_out_of_the_block_ends_the_grant_and_keeps_the_exception(make_jit, shop, raised, cause):
    """The body's exception passes unchanged, and the grant is over."""
    jit, sink = make_jit()
    grant = None
    try:
        with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
            if raised is not None:
                raise raised
    except BaseException as error:  # noqa: BLE001 - the table has interrupts
        assert type(error) is raised
    assert grant.ending.cause is cause
    assert jit.live_grants == ()
    with pytest.raises(GrantEndedError):
        grant.check("read", shop.order)
    assert [event.cause for event in sink.of(GrantEnded)] == [cause.value]


def test_a_task_token_ends_by_construction_and_can_prove_nothing_afterwards(make_jit, shop):
    """The key is gone: the ending says how, and the handle says why not."""
    jit, sink = make_jit(issuers={"api": TaskTokens(audience="https://orders.example.org")})
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        token = grant.credential("api")
        assert grant.credential("api") is token
        token.headers("GET", URL, "read", shop.order)
    (ending,) = grant.ending.credentials
    assert (ending.outcome, ending.proof) == (jitwi.Outcome.BY_CONSTRUCTION, "key-destroyed")
    assert not grant.ending.is_pending
    with pytest.raises(GrantEndedError):
        token.headers("GET", URL, "read", shop.order)
    assert sink.of(CredentialEnded)[0].outcome == "by_construction"


def test_a_foreign_origin_is_a_refused_use_on_record(make_jit, shop):
    """What a handle refuses before the gate is recorded and counted like any refusal."""
    jit, sink = make_jit(issuers={"api": TaskTokens(audience="https://orders.example.org")})
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        token = grant.credential("api")
        for _ in range(10):
            with pytest.raises(OutOfScopeError):
                token.headers("GET", "https://evil.example.org/orders/42", "read", shop.order)
        assert [event.reason for event in sink.of(UseDenied)] == ["origin"] * 10
        with pytest.raises(GrantRevokedError) as error:
            grant.check("read", shop.order)
    assert error.value.cause == "refused-uses"


def test_revoke_is_idempotent_and_the_first_cause_stays(make_jit, shop):
    """A second revoke changes nothing; the block's end afterwards neither."""
    jit, sink = make_jit()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        first = grant.revoke("looks odd")
        assert grant.revoke() == first
        with pytest.raises(GrantRevokedError) as error:
            grant.check("read", shop.order)
        assert error.value.cause == "revoked"
    assert grant.ending.cause is EndCause.REVOKED
    assert len(sink.of(GrantEnded)) == 1
    assert sink.of(GrantEnded)[0].detail == "looks odd"


def test_concurrent_revokes_have_one_effect(make_jit, shop):
    """Sixteen threads revoke at once: one ending on record, all see it."""
    jit, sink = make_jit(issuers={"api": TaskTokens(audience="https://orders.example.org")})
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        grant.credential("api")
        start = threading.Barrier(16)
        endings = []

        def revoke():
            start.wait(5)
            endings.append(grant.revoke())

        threads = [threading.Thread(target=revoke) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert len(endings) == 16
    assert len(sink.of(GrantEnded)) == len(sink.of(CredentialEnded)) == 1


def test_no_use_succeeds_after_revoke_returned(make_jit, shop):
    """Uses race a revoke: none that begins after it returned is allowed."""
    jit, _ = make_jit(max_refused_uses=10**9)
    for _ in range(20):
        with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
            over = threading.Event()
            late = []

            def use(grant=grant, over=over, late=late):
                while True:
                    began_after = over.is_set()
                    try:
                        grant.check("read", shop.order)
                    except GrantRevokedError:
                        if began_after:
                            return
                        continue
                    if began_after:
                        late.append(1)
                        return

            threads = [threading.Thread(target=use) for _ in range(3)]
            for thread in threads:
                thread.start()
            grant.revoke()
            over.set()
            for thread in threads:
                thread.join(10)
            assert late == []


def test_the_watchdog_ends_an_expired_task_nobody_touches(make_jit, shop, wait_for):
    """A task that outlives its ttl without a use is ended in the background."""
    clock = FakeClock()
    jit, sink = make_jit(clock=clock, identity=FixedIdentity("spiffe://example.org/ns/prod/refunds", clock=clock))
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        clock.advance(60)
        wait_for(lambda: grant.ending is not None and sink.of(GrantEnded))
        assert grant.ending.cause is EndCause.EXPIRED


def test_a_step_of_the_wall_clock_is_noticed_by_the_watchdog(make_jit, shop, wait_for):
    """Only the wall clock jumps forward: the task ends although boot time says it is early."""
    clock = FakeClock()
    jit, _ = make_jit(clock=clock, identity=FixedIdentity("spiffe://example.org/ns/prod/refunds", clock=clock))
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        clock.set_wall(clock.now().wall + 61)
        wait_for(lambda: grant.ending is not None)


def test_a_leaked_block_is_loud_and_ended(make_jit, shop, wait_for):
    """Entered, never left, forgotten: ResourceWarning, an event, and the grant is over."""
    jit, sink = make_jit()
    grant = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    grants = []

    def enter(block):
        grants.append(block.__enter__())

    enter(grant)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del grant
        gc.collect()
    assert [w.category for w in caught] == [ResourceWarning]
    wait_for(lambda: grants[0].ending is not None)
    assert grants[0].ending.cause is EndCause.LEAKED
    assert len(sink.of(GrantLeaked)) == 1


def test_reload_ends_tasks_that_the_new_policies_would_not_open(shop, policy_folder):
    """A forbid that arrives in mid-task ends it; a task that is still allowed goes on."""
    jit = make_test_jit("spiffe://example.org/ns/prod/refunds", policy_folder, audit=RecordingSink())
    with (
        jit,
        jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as hit,
        jit.task("x", permissions={"count": shop.order}, ttl=shop.ttl) as spared,
    ):
        (policy_folder / "more.cedar").write_text(
            '@id("stop") forbid (principal, action == Shop::Action::"read", resource);'
        )
        jit.reload()
        assert hit.ending.cause is EndCause.POLICY_CHANGED
        with pytest.raises(GrantRevokedError):
            hit.check("read", shop.order)
        spared.check("count", shop.order)


def test_on_ending_gets_the_grant_and_its_ending_and_may_fail(make_jit, shop, caplog):
    """The callback is called once with both; what it raises is logged and changes nothing."""
    seen = []

    def callback(grant, ending):
        seen.append((grant.id, ending.cause))
        raise BodyError

    jit, _ = make_jit(on_ending=callback)
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        pass
    assert seen == [(grant.id, EndCause.BLOCK_ENDED)]
    assert "on_ending" in caplog.text


def test_a_child_is_a_subset_and_dies_with_its_parent(make_jit, shop):
    """Wider is refused; what it uses counts on its parent; the parent's end takes it along."""
    jit, _ = make_jit()
    with jit.task("x", permissions={"read": [shop.order, shop.other]}, ttl=shop.ttl, max_uses=3) as parent:
        with pytest.raises(OutOfScopeError), parent.task("x", permissions={"count": shop.order}):
            pass
        with pytest.raises(OutOfScopeError), parent.task("x", permissions={"read": shop.order}, max_uses=4):
            pass
        with parent.task("x", permissions={"read": shop.order}, max_uses=2) as child:
            assert child.txn == parent.txn
            child.check("read", shop.order)
            with pytest.raises(OutOfScopeError):
                child.check("read", shop.other)
            assert (child.uses, parent.uses) == (1, 1)
        assert parent.is_live
        block = parent.task("x", permissions={"read": shop.order})
        orphan = block.__enter__()
    assert orphan.ending.cause is EndCause.PARENT_ENDED
    with pytest.raises(GrantRevokedError):
        orphan.check("read", shop.order)
    block.__exit__(None, None, None)


def test_children_cannot_use_more_than_their_parent_has_left(jit, shop):
    """Two children of two uses each share the parent's three."""
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl, max_uses=3) as parent:
        with (
            parent.task("x", permissions={"read": shop.order}, max_uses=2) as one,
            parent.task("x", permissions={"read": shop.order}, max_uses=2) as two,
        ):
            one.check("read", shop.order)
            one.check("read", shop.order)
            two.check("read", shop.order)
            with pytest.raises(jitwi.AccessDeniedError):
                two.check("read", shop.order)


def test_a_policy_store_of_ones_own_is_taken_as_it_is(make_jit, shop):
    """`PolicyStore` may be shared; `JIT` loads it and does not close it."""
    jit, _ = make_jit()
    assert isinstance(jit._policies, PolicyStore)
