# SPDX-License-Identifier: Apache-2.0
"""Opening a task: who, may, and what is left when the answer is no."""

import threading
from datetime import timedelta

import pytest

import jitwi
from jitwi.audit.events import TaskOpened, TaskRefused
from jitwi.errors import (
    AccessDeniedError,
    AuditError,
    ConfigurationError,
    IdentityUnavailableError,
    IdentityWithdrawnError,
    InvalidTaskError,
    OutOfScopeError,
    PolicyEvaluationError,
    StateError,
)
from jitwi.grants import EndCause
from jitwi.grants.opening import MAX_DEPTH
from jitwi.issuers import TaskTokens
from jitwi.testing import FixedIdentity, RecordingSink


def test_a_task_opens_when_policy_allows_every_permission_that_can_be_asked(make_jit, shop):
    """Open asks for `read`, defers `refund` for its input, and says both in the intent."""
    jit, sink = make_jit()
    with jit.task("refund-order", permissions={"read": shop.order, "refund": shop.order}, ttl=shop.ttl) as grant:
        assert grant.is_live
        assert str(grant.workload) == "spiffe://example.org/ns/prod/refunds"
    (opened,) = sink.of(TaskOpened)
    assert [(d.action, d.reason) for d in opened.decisions] == [
        ('Shop::Action::"read"', "allow"),
        ('Shop::Action::"refund"', "deferred"),
    ]


def test_a_denied_permission_refuses_the_whole_task_and_leaves_nothing(make_jit, shop):
    """One denied permission is a denied task; no grant stays registered, and the refusal is on record."""
    jit, sink = make_jit()
    with (
        pytest.raises(AccessDeniedError) as refused,
        jit.task("x", permissions={"read": shop.order, "cancel": shop.order}, ttl=shop.ttl),
    ):
        pytest.fail("the block must not run")
    assert refused.value.policy_ids == ("never",)
    assert refused.value.reasons == ("forbid",)
    assert jit.live_grants == ()
    (record,) = sink.of(TaskRefused)
    assert record.error == "access-denied"
    assert record.subject.workload.endswith("/refunds")


def test_an_unknown_action_lists_what_there_is(make_jit, shop):
    """A typing slip in an action is an error that names the candidates."""
    jit, _ = make_jit()
    with (
        pytest.raises(PolicyEvaluationError, match="refund"),
        jit.task("x", permissions={"rfund": shop.order}, ttl=shop.ttl),
    ):
        pass


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "", "permissions": {"read": jitwi.Entity("Shop::Order", "1")}, "ttl": timedelta(seconds=1)},
        {"name": "x", "permissions": {}, "ttl": timedelta(seconds=1)},
        {"name": "x", "permissions": {"read": jitwi.Entity("Shop::Order", "1")}, "ttl": timedelta(0)},
        {"name": "x", "permissions": {"read": "Order::42"}, "ttl": timedelta(seconds=1)},
    ],
)
def test_a_declaration_out_of_bounds_is_refused_where_it_is_written(make_jit, bad):
    """The error comes from `jit.task(...)` itself, before anything starts."""
    jit, _ = make_jit()
    with pytest.raises(InvalidTaskError):
        jit.task(bad.pop("name"), **bad)


def test_no_identity_within_the_deadline_refuses(make_jit, shop):
    """A withdrawn identity opens nothing, and says so."""
    identity = FixedIdentity("spiffe://example.org/ns/prod/refunds")
    jit, sink = make_jit(identity=identity)
    jit.start()
    identity.withdraw()
    with pytest.raises(IdentityWithdrawnError), jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
        pass
    assert sink.of(TaskRefused)[-1].error == "identity-withdrawn"


def test_no_agent_says_so_within_the_deadline(make_jit, shop, tmp_path):
    """Without an agent the error names the socket's state and comes within the identity's deadline."""
    jit, _ = make_jit(
        identity="x509-svid", endpoint=f"unix://{tmp_path}/no.sock", identity_timeout=timedelta(milliseconds=200)
    )
    with pytest.raises(IdentityUnavailableError), jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
        pass


def test_the_intent_must_be_on_record_or_the_task_does_not_open(make_jit, shop):
    """An audit log that fails at the intent refuses the task and leaves no grant."""

    class Failing(RecordingSink):
        def record(self, event, *, durable=False):
            if isinstance(event, TaskOpened):
                raise AuditError("the disk is full")
            super().record(event, durable=durable)

    jit, _ = make_jit(audit=Failing())
    with pytest.raises(AuditError), jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
        pytest.fail("the block must not run")
    assert jit.live_grants == ()


def test_a_task_class_supplies_its_owner_and_refuses_unregistered_names(make_jit, shop):
    """Once `tasks.toml` is there, its owner wins and a name that it lacks is refused."""
    tasks = '[tasks.refund-order]\nowner = "team-payments"\nrequired = ["purpose"]\nmax_ttl = 60\n'
    jit, _ = make_jit(tasks=tasks)
    with jit.task("refund-order", permissions={"read": shop.order}, ttl=shop.ttl, purpose="p") as grant:
        assert grant.declaration.owner == "team-payments"
    for wrong in (
        {"name": "other", "ttl": shop.ttl, "purpose": "p"},
        {"name": "refund-order", "ttl": shop.ttl},
        {"name": "refund-order", "ttl": timedelta(seconds=61), "purpose": "p"},
        {"name": "refund-order", "ttl": shop.ttl, "purpose": "p", "owner": "somebody-else"},
    ):
        name = wrong.pop("name")
        with pytest.raises(AccessDeniedError), jit.task(name, permissions={"read": shop.order}, **wrong):
            pass


def test_a_block_is_entered_once(jit, shop):
    """A second `with` on the same block, during or after the first, is misuse with a message of its own."""
    block = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    with block, pytest.raises(StateError, match="entered already"), block:
        pass
    with pytest.raises(StateError, match="left already"), block:
        pass


def test_under_opens_by_the_folder_itself_and_covers_what_is_below(make_jit, shop):
    """`under(root)` is asked with the root, and a use of something below it is in scope."""
    jit, _ = make_jit()
    with jit.task("x", permissions={"list": jitwi.under(shop.root)}, ttl=shop.ttl) as grant:
        grant.check("list", shop.inner)
        grant.check("list", shop.root)
        with pytest.raises(AccessDeniedError):
            grant.check("list", jitwi.Entity("Shop::Folder", "unknown"))


def test_an_issuer_with_an_action_that_the_schema_lacks_is_a_configuration_error(make_jit, shop):
    """`serves` is held against the schema at the first task, with a way out."""
    jit, _ = make_jit(issuers={"api": TaskTokens(audience="https://o.example.org", serves=["nothing"])})
    with (
        pytest.raises(ConfigurationError, match="serves"),
        jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl),
    ):
        pass


def test_nothing_starts_before_the_first_task(make_jit):
    """A constructor makes no thread and reads no file."""
    before = threading.active_count()
    jit, _ = make_jit(identity="x509-svid", endpoint="unix:///nowhere/at.all")
    assert threading.active_count() == before
    assert repr(jit) == "<JIT idle, 0 issuer(s), 0 live grant(s)>"


def test_a_closed_jit_opens_nothing(jit, shop):
    """After `close()` the error says what to do."""
    jit.close()
    with pytest.raises(StateError, match="closed"), jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl):
        pass


def test_close_ends_every_live_task(make_jit, shop):
    """`close()` ends what is open, by its own cause."""
    jit, _ = make_jit()
    block = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl)
    grant = block.__enter__()
    jit.close()
    assert grant.ending.cause is EndCause.PROCESS_STOPPED
    block.__exit__(None, None, None)


def test_children_nest_only_so_deep_and_all_end_with_the_first(jit, shop):
    """A chain that an ending could not walk down is refused before it exists."""
    blocks = []
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        deepest = grant
        with pytest.raises(OutOfScopeError, match="deep"):
            for _ in range(MAX_DEPTH + 1):
                blocks.append(deepest.task("x", permissions={"read": shop.order}))
                deepest = blocks[-1].__enter__()
        assert len(jit.live_grants) == 1 + MAX_DEPTH
        deepest.check("read", shop.order)
    assert jit.live_grants == ()
    assert not deepest.is_live
    for block in blocks[:-1]:
        block.__exit__(None, None, None)
