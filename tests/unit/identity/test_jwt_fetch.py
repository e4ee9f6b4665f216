# SPDX-License-Identifier: Apache-2.0
"""JWT-SVIDs from the agent: half-life cache, single flight, checks after the fetch; and the identity as a JWT-SVID."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from jitwi.errors import (
    AmbiguousIdentityError,
    ConfigurationError,
    IdentityError,
    IdentityExpiredError,
    IdentityUnavailableError,
    IdentityWithdrawnError,
    InvalidSvidError,
)
from jitwi.identity import IdentityEventKind, SourceState, SvidKind, WorkloadApiSource, parse_and_verify
from jitwi.spiffe_id import TrustDomain
from jitwi.testing.ca import TestCa
from jitwi.testing.clock import FakeClock
from jitwi.testing.workload_api import FakeWorkloadApi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ID = "spiffe://example.org/ns/prod/refunds"
OTHER = "spiffe://example.org/ns/prod/other"
AUD = "https://orders.example.org"
OWN = "https://me.example.org"
TD = TrustDomain("example.org")
WIDE = 20.0
K = IdentityEventKind


@pytest.fixture
def clock() -> FakeClock:
    """A clock for agent and source alike."""
    return FakeClock()


@pytest.fixture
def timed(clock: FakeClock, wait_until) -> Iterator[tuple[FakeWorkloadApi, WorkloadApiSource]]:
    """An agent and a started source on one settable clock."""
    with FakeWorkloadApi(ID, clock=clock, jwt_ttl=300) as api:
        source = WorkloadApiSource(api.socket, clock=clock)
        source.start()
        source.identity(timeout=WIDE)
        wait_until(lambda: source.jwt_bundle(TD) is not None)
        yield api, source
        source.close()


def test_what_was_asked_for(source: WorkloadApiSource, api: FakeWorkloadApi) -> None:
    """The token is for the pinned identity and the one audience, and verifies."""
    svid = source.jwt_svid(AUD)
    verified = parse_and_verify(svid.token.reveal(), audience=AUD, bundles=api.ca.jwt_bundle, now=svid.issued_at)
    assert (str(verified.spiffe_id), svid.audience, svid.is_repeat) == (ID, AUD, False)
    assert verified.expires_at == svid.expires_at


def test_kept_to_half_life(timed, clock: FakeClock) -> None:
    """Up to half its life a token is given again, from then on the agent is asked."""
    api, source = timed
    first = source.jwt_svid(AUD)
    clock.advance(145)
    assert source.jwt_svid(AUD).token == first.token
    assert api.calls["FetchJWTSVID"] == 1
    clock.advance(10)
    second = source.jwt_svid(AUD)
    assert second.token != first.token
    assert second.expires_at > first.expires_at
    assert api.calls["FetchJWTSVID"] == 2


def test_one_entry_per_audience(source: WorkloadApiSource, api: FakeWorkloadApi) -> None:
    """Audiences do not share tokens."""
    assert source.jwt_svid(AUD).token != source.jwt_svid("https://other").token
    assert api.calls["FetchJWTSVID"] == 2


def test_agent_gives_the_same_again(timed, clock: FakeClock) -> None:
    """When the agent's own copy is not at its half life yet, it is not asked at every call."""
    api, source = timed
    source.jwt_svid(AUD)
    clock.advance(151)
    token, _ = next(iter(api._jwts.values()))
    api._jwts = {key: (token, clock.now().wall + 100) for key in api._jwts}
    for _ in range(5):
        assert source.jwt_svid(AUD).token.reveal() == token
    assert api.calls["FetchJWTSVID"] == 2


def test_fresh_says_when_it_is_not(source: WorkloadApiSource, api: FakeWorkloadApi) -> None:
    """`fresh` asks the agent again and tells that the same bytes came back."""
    first = source.jwt_svid(AUD)
    again = source.jwt_svid(AUD, fresh=True)
    assert (first.is_repeat, again.is_repeat) == (False, True)
    api.forget_jwts()
    api.jwt_claims = {"jti": "another"}
    assert source.jwt_svid(AUD, fresh=True).is_repeat is False
    assert api.calls["FetchJWTSVID"] == 3


def test_a_destroyed_copy_harms_nobody(source: WorkloadApiSource) -> None:
    """Each caller gets a secret of its own."""
    source.jwt_svid(AUD).token.destroy()
    assert source.jwt_svid(AUD).token.reveal()


def test_single_flight(source: WorkloadApiSource, api: FakeWorkloadApi) -> None:
    """Many callers at once make one request."""
    with api.hang(), ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(source.jwt_svid, AUD, timeout=WIDE) for _ in range(16)]
        threading.Event().wait(0.3)
        api.restore()
        tokens = {one.result(WIDE).token.reveal() for one in waiting}
    assert len(tokens) == 1
    assert api.calls["FetchJWTSVID"] == 1


def test_pause_after_a_failure(timed, clock: FakeClock) -> None:
    """After a failure the same error is given for a while without asking, then the agent is asked again."""
    api, source = timed
    api.deny("UNAVAILABLE", methods=("FetchJWTSVID",))
    for _ in range(5):
        with pytest.raises(IdentityUnavailableError) as caught:
            source.jwt_svid(AUD)
        assert caught.value.grpc_code == "UNAVAILABLE"
    assert api.calls["FetchJWTSVID"] == 1
    clock.advance(0.2)
    api.restore()
    assert source.jwt_svid(AUD)


def test_renewal_fails_while_the_old_one_lives(timed, clock: FakeClock) -> None:
    """An agent that is away does not take a token that still lives; expired it is not given out."""
    api, source = timed
    first = source.jwt_svid(AUD)
    clock.advance(200)
    api.deny("UNAVAILABLE", methods=("FetchJWTSVID",))
    assert source.jwt_svid(AUD).token == first.token
    clock.advance(100)
    with pytest.raises(IdentityUnavailableError):
        source.jwt_svid(AUD)


def test_denied_token(timed) -> None:
    """PermissionDenied for a token is withdrawn, and what was kept is forgotten."""
    api, source = timed
    source.jwt_svid(AUD)
    api.deny("PERMISSION_DENIED", methods=("FetchJWTSVID",))
    with pytest.raises(IdentityWithdrawnError):
        source.jwt_svid(AUD, fresh=True)
    with pytest.raises(IdentityWithdrawnError):
        source.jwt_svid(AUD)


def test_hang_costs_the_deadline(source: WorkloadApiSource, api: FakeWorkloadApi) -> None:
    """Every call has a deadline."""
    with api.hang(), pytest.raises(IdentityUnavailableError) as caught:
        source.jwt_svid(AUD, timeout=0.3)
    assert caught.value.grpc_code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"jwt_subject": OTHER}, "sub"),
        ({"jwt_claims": {"aud": [AUD, "https://other"]}}, "aud"),
        ({"jwt_claims": {"aud": ["https://other"]}}, "aud"),
        ({"jwt_claims": {"exp": 4_000_000_000}}, "lifetime"),
        ({"jwt_claims": {"exp": 1}}, "expired"),
        ({"jwt_claims": {"exp": None}}, "exp"),
        ({"jwt_claims": {"sub": 1}}, "sub"),
        ({"jwt_header": {"crit": ["x"]}}, "header"),
        ({"jwt_header": {"alg": "none"}}, "algorithm"),
    ],
)
def test_checks_after_the_fetch(source: WorkloadApiSource, api: FakeWorkloadApi, fault: dict, reason: str) -> None:
    """What the agent sends is compared with what was asked: subject, audience, life, form."""
    for name, value in fault.items():
        setattr(api, name, value)
    with pytest.raises(InvalidSvidError) as caught:
        source.jwt_svid(AUD)
    assert caught.value.reasons[0] == reason


def test_token_faster_than_its_bundle(timed) -> None:
    """A key that the bundle does not have yet is waited for, within the deadline."""
    api, source = timed
    api.ca.rotate_jwt_authority()
    timer = threading.Timer(0.2, api.push)
    timer.start()
    assert source.jwt_svid(AUD, timeout=WIDE)
    timer.join()


def test_removed_key_ends_a_kept_token(timed, wait_until) -> None:
    """A token whose key left the bundle is not given out, whatever is kept."""
    api, source = timed
    first = source.jwt_svid(AUD)
    before = source.jwt_bundle(TD)
    api.ca.rotate_jwt_authority()
    api.ca.drop_old_jwt_authorities()
    api.forget_jwts()
    api.push()
    wait_until(lambda: source.jwt_bundle(TD) is not before)
    assert source.jwt_svid(AUD).token != first.token


def test_no_jwt_bundle(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """WA-10: without a bundle of the subject's domain no token is trusted."""
    api.deny("UNIMPLEMENTED", methods=("FetchJWTBundles",))
    source = make_source()
    source.start()
    source.identity(timeout=WIDE)
    with pytest.raises(InvalidSvidError) as caught:
        source.jwt_svid(AUD, timeout=0.5)
    assert caught.value.reasons[0] == "untrusted-domain"


@pytest.mark.parametrize("audience", ["", ["a"], None, "a\n"])
def test_bad_audience(source: WorkloadApiSource, audience: object) -> None:
    """C6: one printable text."""
    with pytest.raises(ConfigurationError):
        source.jwt_svid(audience)


# The identity itself as a JWT-SVID ------------------------------------------------------------------------------


@pytest.fixture
def make_jwt(api: FakeWorkloadApi, make_source: Callable[..., WorkloadApiSource]) -> Callable[..., WorkloadApiSource]:
    """Makes started sources whose identity is a JWT-SVID."""

    def make(**options: object) -> WorkloadApiSource:
        source = make_source(svid="jwt-svid", audience=OWN, **options)
        source.start()
        return source

    return make


def test_jwt_identity(make_jwt, api: FakeWorkloadApi, wait_until) -> None:
    """A JWT-SVID for an audience of our own is the same snapshot, without key and chain; X.509 bundles come too."""
    source = make_jwt()
    identity = source.identity(timeout=WIDE)
    assert (str(identity.spiffe_id), identity.kind) == (ID, SvidKind.JWT)
    assert (identity.chain, identity.key) == ((), None)
    assert identity.not_after - identity.not_before == 300
    wait_until(lambda: source.x509_bundle(TD) is not None)
    assert api.calls["FetchX509SVID"] == 0
    assert source.jwt_svid(AUD, timeout=WIDE).spiffe_id == identity.spiffe_id


def test_jwt_identity_rotates(make_jwt, api: FakeWorkloadApi, watch) -> None:
    """Renewed at half life."""
    api.jwt_ttl = 4
    source = make_jwt()
    seen = watch(source)
    first = source.identity(timeout=WIDE)
    assert seen.wait(K.ROTATED).identity.version == first.version + 1
    assert "expired" not in seen.kinds()


@pytest.mark.parametrize("methods", [(), ("FetchJWTSVID",)], ids=["all", "only-the-fetch"])
def test_jwt_identity_withdrawn(make_jwt, api: FakeWorkloadApi, watch, methods: tuple[str, ...]) -> None:
    """PermissionDenied ends it: at once by the bundle stream, else at the next poll."""
    source = make_jwt(max_staleness=2)
    seen = watch(source)
    source.identity(timeout=WIDE)
    api.deny("PERMISSION_DENIED", "no identity issued", methods=methods)
    seen.wait(K.WITHDRAWN)
    assert source.peek() is None
    with pytest.raises(IdentityWithdrawnError):
        source.identity(timeout=0)
    api.restore()
    seen.wait(K.READY)
    assert "refused-update" not in seen.kinds()


def test_jwt_identity_outage(make_jwt, api: FakeWorkloadApi, watch) -> None:
    """Stale while the agent is away, fresh within 5 s after it is back."""
    source = make_jwt()
    seen = watch(source)
    source.identity(timeout=WIDE)
    with api.outage():
        seen.wait(K.STALE)
        assert source.peek() is not None
        threading.Event().wait(2.0)
    seen.wait(K.FRESH, timeout=5.0)


def test_jwt_identity_hang(make_jwt, api: FakeWorkloadApi, watch) -> None:
    """A silent agent is stale."""
    source = make_jwt(max_staleness=4)
    seen = watch(source)
    source.identity(timeout=WIDE)
    with api.hang():
        assert seen.wait(K.STALE).grpc_code == "DEADLINE_EXCEEDED"
    seen.wait(K.FRESH)


def test_jwt_identity_expires(api: FakeWorkloadApi, make_source, watch) -> None:
    """It ends with its token."""
    clock = FakeClock()
    source = make_source(svid=SvidKind.JWT, audience=OWN, clock=clock)
    seen = watch(source)
    source.start()
    identity = source.identity(timeout=WIDE)
    api.hang()
    clock.set_wall(identity.not_after)
    with pytest.raises(IdentityExpiredError):
        source.identity(timeout=0)
    seen.wait(K.EXPIRED)
    api.restore()


def test_jwt_identity_ambiguous(make_jwt, api: FakeWorkloadApi) -> None:
    """Several identities and no choice is an error here too."""
    api.add(OTHER)
    source = make_jwt()
    with pytest.raises(AmbiguousIdentityError) as caught:
        source.identity(timeout=WIDE)
    assert [name for name, _ in caught.value.candidates] == [ID, OTHER]


@pytest.mark.parametrize("choice", [{"spiffe_id": OTHER}, {"hint": "x"}])
def test_jwt_identity_chosen(make_jwt, api: FakeWorkloadApi, choice: dict) -> None:
    """Chosen by ID or hint."""
    api.add(OTHER, hint="x")
    source = make_jwt(**choice)
    assert str(source.identity(timeout=WIDE).spiffe_id) == OTHER


@pytest.mark.parametrize(
    "fault", [{"jwt_claims": {"aud": [AUD]}}, {"jwt_subject": OTHER}, {"jwt_header": {"typ": "x"}}]
)
def test_jwt_identity_bad(make_jwt, api: FakeWorkloadApi, watch, fault: dict) -> None:
    """A token that does not hold is refused; the next good one is taken."""
    for name, value in fault.items():
        setattr(api, name, value)
    source = make_jwt()
    with pytest.raises(IdentityError):
        source.identity(timeout=1.0)
    assert source.status().refused >= 1
    api.jwt_claims, api.jwt_header, api.jwt_subject = {}, {}, None
    api.forget_jwts()
    assert source.identity(timeout=WIDE)


def test_jwt_identity_foreign_key(make_jwt, api: FakeWorkloadApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of another authority of the same name is not adopted."""
    foreign = TestCa("example.org")
    foreign.rotate_jwt_authority(kid=api.ca.jwt_kid)
    monkeypatch.setattr(api, "_mint", lambda served, audience: foreign.jwt(served.spiffe_id, audience))
    source = make_jwt()
    with pytest.raises(IdentityUnavailableError, match="signature"):
        source.identity(timeout=1.0)
    assert source.state is SourceState.STARTING
