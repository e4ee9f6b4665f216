# SPDX-License-Identifier: Apache-2.0
"""Credentials with effects outside the process: written down first, ended for certain, never reported as better."""

import threading
from datetime import timedelta

import pytest

import jitwi
from jitwi.audit.events import CredentialEnded, CredentialIntended, CredentialRefused
from jitwi.credentials import Outcome
from jitwi.errors import (
    AccessDeniedError,
    ConfigurationError,
    GrantError,
    IssuanceError,
    OutOfScopeError,
    RevocationPendingError,
    ScopeTooWideError,
)
from jitwi.issuers import JwtSvid, TaskTokens
from jitwi.journal import LeaseStatus, SqliteJournal, journal_path
from jitwi.testing import BackendIssuer, TestingBackend


@pytest.fixture
def backend():
    """Return a running backend."""
    with TestingBackend() as backend:
        yield backend


@pytest.fixture
def with_backend(make_jit, backend, tmp_path):
    """Return a maker of (`JIT`, events, journal) whose issuer `backend` is the running one."""
    journals = []

    def make(**settings):
        issuer = BackendIssuer(backend.address, backend.admin_token, serves=["read", "count", "refund"], timeout=2.0)
        settings.setdefault("end_timeout", timedelta(seconds=2))
        jit, sink = make_jit(issuers={"backend": issuer}, state_dir=tmp_path / "state", **settings)
        journals.append(SqliteJournal(journal_path(tmp_path / "state"), clock=jit._clock))
        return jit, sink, journals[-1]

    yield make
    for journal in journals:
        journal.close()


def test_the_credential_works_inside_the_block_and_is_refused_after_it(with_backend, backend, shop):
    """Issued under our id, used, ended, tried, refused: `verified`."""
    jit, sink, journal = with_backend()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        handle = grant.credential("backend")
        handle.use("read", shop.order)
        (record,) = journal.open_leases()
        assert record.status is LeaseStatus.ACTIVE
        assert backend.leases() == [record.lease_id]
        with pytest.raises(OutOfScopeError):
            handle.use("read", shop.other)
    (ending,) = grant.ending.credentials
    assert (ending.outcome, ending.proof) == (Outcome.VERIFIED, "tried")
    assert backend.leases() == []
    assert journal.open_leases() == ()
    with pytest.raises(GrantError):
        handle.use("read", shop.order)
    assert [type(e) for e in sink.events if isinstance(e, CredentialIntended | CredentialEnded)] == [
        CredentialIntended,
        CredentialEnded,
    ]


def test_backend_down_at_the_end_is_pending_and_finished_when_it_is_back(with_backend, backend, shop, wait_for, caplog):
    """The block does not raise; the ending says pending, then verified, and the journal follows."""
    jit, _, journal = with_backend()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        grant.credential("backend").use("read", shop.order)
        backend.kill()
    assert grant.ending.is_pending
    assert "not ended yet" in caplog.text
    assert [r.status for r in journal.open_leases()] != [LeaseStatus.ENDED]
    backend.start()
    wait_for(lambda: not grant.ending.is_pending, seconds=20)
    assert grant.ending.credentials[0].outcome is Outcome.VERIFIED
    wait_for(lambda: journal.open_leases() == ())


def test_raise_on_pending_and_the_note_on_a_failing_body(with_backend, backend, shop):
    """Those who want it get the error; a failing body keeps its own, with a note."""
    jit, _, _ = with_backend()
    block = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl, raise_on_pending=True)
    with pytest.raises(RevocationPendingError) as pending, block as grant:
        grant.credential("backend")
        backend.kill()
    assert pending.value.ending.is_pending
    backend.start()
    block = jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl, raise_on_pending=True)
    with pytest.raises(KeyError) as failed, block as grant:
        grant.credential("backend")
        backend.kill()
        raise KeyError("mine")
    assert "not proven to be over" in failed.value.__notes__[0]
    backend.start()


def test_a_backend_that_lies_is_never_verified(with_backend, backend, shop):
    """It says ended and goes on honouring: the probe shows it, the ending says pending."""
    jit, _, _ = with_backend()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        grant.credential("backend")
        backend.fault("end", "lie")
    assert grant.ending.credentials[0].outcome is Outcome.PENDING
    backend.heal()


def test_no_new_credential_above_the_cap_of_owed_endings(with_backend, backend, shop):
    """Once two endings are owed, the third issue is refused and says why."""
    jit, _, _ = with_backend(max_pending_endings=2)
    for _ in range(2):
        with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
            grant.credential("backend")
            backend.fault("end", "fail")
    with (
        jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant,
        pytest.raises(IssuanceError, match="owes 2 endings"),
    ):
        grant.credential("backend")
    backend.heal()


@pytest.mark.parametrize("kind", ["fail", "hang", "die-after"])
def test_a_half_answered_issue_is_ended_too(with_backend, backend, shop, kind, wait_for):
    """The issuer fails, hangs, or dies after it made the credential: nothing stays at the backend."""
    jit, sink, journal = with_backend(issuer_timeout=timedelta(milliseconds=700))
    if kind == "die-after":
        backend.fault("create", "die", times=1)
    else:
        backend.fault("create", kind, seconds=1.5, times=1)
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant, pytest.raises(IssuanceError):
        grant.credential("backend")
    if kind == "die-after":
        backend.kill()
        backend.start()
    wait_for(lambda: backend.leases() == [] and journal.open_leases() == (), seconds=20)
    assert sink.of(CredentialRefused)


def test_a_permission_that_needs_input_is_refused_as_a_bearer_credential(with_backend, shop):
    """Nobody would ask at each use, so the credential is not made."""
    jit, _, _ = with_backend()
    with (
        jit.task("refund-order", permissions={"refund": shop.order}, ttl=shop.ttl) as grant,
        pytest.raises(ScopeTooWideError, match="input"),
    ):
        grant.credential("backend")


def test_unknown_issuer_and_unserved_permission_are_told_apart(make_jit, shop):
    """A wrong name lists the right ones; an issuer that serves nothing of the task says so."""
    jit, _ = make_jit(issuers={"api": TaskTokens("https://o.example.org", serves=["read"])})
    with jit.task("x", permissions={"count": shop.order}, ttl=shop.ttl) as grant:
        with pytest.raises(ConfigurationError, match="`api`"):
            grant.credential("apy")
        with pytest.raises(OutOfScopeError, match="serves none"):
            grant.credential("api")
        grant.check("count", shop.order)


def test_a_bearer_jwt_svid_needs_the_users_own_policy_and_ends_as_expires_at(make_jit, shop):
    """Wider and not revocable: refused by default; with a policy it is given, and its ending is honest."""
    issuers = {"raw": JwtSvid("https://o.example.org", serves=["read"])}
    jit, _ = make_jit(issuers=issuers)
    with (
        jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant,
        pytest.raises(ScopeTooWideError) as refused,
    ):
        grant.credential("raw")
    assert set(refused.value.wider) >= {"actions", "resources", "uses"}
    from_user = (
        'permit (principal, action == Shop::Action::"read", resource);'
        'permit (principal, action == Jitwi::Action::"obtain", resource) when { context.credential.bearer };'
    )
    jit, _ = make_jit(policies=from_user, issuers=issuers)
    with jit.task("x", permissions={"read": shop.order}, ttl=timedelta(hours=1)) as grant:
        handle = grant.credential("raw")
        assert handle.headers("GET", "https://o.example.org/x", "read", shop.order)["Authorization"].startswith(
            "Bearer "
        )
    assert grant.ending.credentials[0].outcome is Outcome.EXPIRES_AT
    with pytest.raises(GrantError):
        handle.headers("GET", "https://o.example.org/x", "read", shop.order)


def test_a_jwt_svid_identity_decides_and_checks_but_cannot_endorse_a_key(make_jit, shop):
    """The issuer that needs the SVID's key says so in its plan."""
    from jitwi.testing import FakeWorkloadApi

    with FakeWorkloadApi("spiffe://example.org/ns/prod/refunds") as agent:
        jit, _ = make_jit(
            identity="jwt-svid", endpoint=agent.socket, issuers={"api": TaskTokens("https://o.example.org")}
        )
        with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
            grant.check("read", shop.order)
            with pytest.raises(IssuanceError, match="key"):
                grant.credential("api")
        jit.close()


def test_the_audit_names_the_standing_right_behind_a_credential(with_backend, shop):
    """The intent says whose admin right makes the credential."""
    jit, sink, _ = with_backend()
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        grant.credential("backend")
    (intent,) = sink.of(CredentialIntended)
    assert intent.standing_right
    assert intent.credential["kind"] == "testing-backend"
    assert intent.task_digest == grant.task_digest.value


def test_denied_obtain_is_an_access_decision_with_policy_ids(make_jit, backend, shop):
    """A forbid on `obtain` wins over everything."""
    policies = (
        'permit (principal, action == Shop::Action::"read", resource);'
        '@id("no-bearer") forbid (principal, action == Jitwi::Action::"obtain", resource)'
        "when { context.credential.bearer };"
    )
    jit, _ = make_jit(
        policies=policies, issuers={"backend": BackendIssuer(backend.address, backend.admin_token, serves=["read"])}
    )
    with (
        jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant,
        pytest.raises(jitwi.IssuanceError) as refused,
    ):
        grant.credential("backend")
    assert refused.value.reasons == ("forbid",)
    assert not isinstance(refused.value, AccessDeniedError)


def test_a_grant_that_ends_while_its_credential_is_being_made_leaves_none_behind(with_backend, backend, shop, wait_for):
    """Revoked in the middle of `issue`: whatever comes out of it is ended once more."""
    jit, _, journal = with_backend()
    backend.fault("create", "slow", seconds=0.6, times=1)
    with jit.task("x", permissions={"read": shop.order}, ttl=shop.ttl) as grant:
        failed = []

        def obtain():
            try:
                grant.credential("backend")
            except jitwi.JitwiError as error:
                failed.append(type(error).__name__)

        thread = threading.Thread(target=obtain)
        thread.start()
        wait_for(lambda: journal.open_leases() != ())
        grant.revoke()
        thread.join(20)
    assert failed
    wait_for(lambda: backend.leases() == [] and journal.open_leases() == (), seconds=20)
