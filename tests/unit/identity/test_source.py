# SPDX-License-Identifier: Apache-2.0
"""The live source against a fake agent on a real socket: life cycle, choice, faults (bars 12, 13, 14)."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from spiffe._proto import workload_pb2_grpc

from jitwi.clock import SystemClock
from jitwi.errors import (
    AmbiguousIdentityError,
    IdentityExpiredError,
    IdentityReplacedError,
    IdentityUnavailableError,
    IdentityWithdrawnError,
    InvalidSvidError,
    StateError,
)
from jitwi.identity import IdentityEventKind, SourceState, WorkloadApiSource, verify_x509_svid
from jitwi.spiffe_id import TrustDomain
from jitwi.testing.ca import TestCa
from jitwi.testing.clock import FakeClock
from jitwi.testing.workload_api import MALFORMED, FakeWorkloadApi, _Servicer

if TYPE_CHECKING:
    from collections.abc import Callable

ID = "spiffe://example.org/ns/prod/refunds"
OTHER = "spiffe://example.org/ns/prod/other"
TD = TrustDomain("example.org")
PARTNER = TrustDomain("partner.test")
WIDE = 20.0
K = IdentityEventKind


def test_identity_is_admitted(source: WorkloadApiSource, api: FakeWorkloadApi) -> None:
    """The snapshot is what the agent serves, verified, with a key that signs."""
    identity = source.identity(timeout=WIDE)
    assert str(identity.spiffe_id) == ID
    verified = verify_x509_svid(identity.chain, source, now=SystemClock().now().wall)
    assert (verified.thumbprint, verified.not_after) == (identity.thumbprint, identity.not_after)
    assert identity.key is not None
    assert len(identity.key.sign(b"data")) == 64
    assert source.x509_bundle(TD).digest == api.ca.x509_bundle.digest
    assert source.jwt_bundle(TD).digest == api.ca.jwt_bundle.digest
    assert source.x509_bundle(PARTNER) is None


def test_nothing_happens_before_start(make_source: Callable[..., WorkloadApiSource]) -> None:
    """Rule 13: a source that was not started has no thread, no call, no identity."""
    before = threading.active_count()
    source = make_source()
    assert (source.state, source.peek()) == (SourceState.IDLE, None)
    with pytest.raises(StateError):
        source.identity(timeout=0)
    assert threading.active_count() == before


def test_starts_before_the_agent(make_source: Callable[..., WorkloadApiSource]) -> None:
    """A source may start before the agent; the wait has a deadline and names the last gRPC code."""
    with FakeWorkloadApi(ID) as api:
        api.stop()
        source = make_source(api.socket)
        source.start()
        with pytest.raises(IdentityUnavailableError) as caught:
            source.identity(timeout=1.0)
        assert caught.value.grpc_code == "UNAVAILABLE"
        api.start()
        assert source.identity(timeout=WIDE)


def test_denied_before_any_update(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """WE-4: PermissionDenied before any good update is a wait with that reason."""
    api.withdraw()
    source = make_source()
    source.start()
    with pytest.raises(IdentityUnavailableError, match="no identity issued") as caught:
        source.identity(timeout=0.5)
    assert caught.value.grpc_code == "PERMISSION_DENIED"
    assert source.state is SourceState.STARTING
    api.restore()
    assert source.identity(timeout=WIDE)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNIMPLEMENTED"])
def test_fatal_code(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi, code: str) -> None:
    """WE-5: these are reported at once and not asked again in a hurry."""
    api.deny(code)
    source = make_source()
    source.start()
    with pytest.raises(IdentityUnavailableError) as caught:
        source.identity(timeout=WIDE)
    assert caught.value.grpc_code == code
    assert api.calls["FetchX509SVID"] == 1


def test_rotation(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """A rotation gives a new version with a new key; the old snapshot stays as it was."""
    old = source.identity(timeout=WIDE)
    api.rotate()
    event = events.wait(K.ROTATED)
    new = source.peek()
    assert event.identity is new
    assert new.version == old.version + 1
    assert new.thumbprint != old.thumbprint
    assert old.key.sign(b"still valid")
    api.push()
    api.rotate()
    events.wait(K.ROTATED)
    assert events.kinds() == ["rotated", "rotated"]
    assert events.threads == {"jitwi-identity"}


def test_withdrawn_at_once(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """WA-8: PermissionDenied after a good update ends the identity, its key, its bundles and its tokens at once."""
    identity = source.identity(timeout=WIDE)
    source.jwt_svid("https://a")
    api.withdraw()
    event = events.wait(K.WITHDRAWN)
    assert (event.identity, event.grpc_code, event.reason) == (None, "PERMISSION_DENIED", "no identity issued")
    assert (source.peek(), source.state) == (None, SourceState.WITHDRAWN)
    assert source.latest() is None
    with pytest.raises(IdentityWithdrawnError):
        source.identity(timeout=WIDE)
    with pytest.raises(IdentityWithdrawnError):
        source.jwt_svid("https://a")
    with pytest.raises(StateError):
        identity.key.sign(b"x")
    assert source.x509_bundle(TD) is None
    api.restore()
    assert events.wait(K.READY).identity.version == identity.version + 1
    assert events.kinds() == ["withdrawn", "ready"]


def test_replaced(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """Bar 14: another SPIFFE ID instead of the pinned one ends the identity; nobody moves on by accident."""
    key = source.identity(timeout=WIDE).key
    api.replace(OTHER)
    assert OTHER in events.wait(K.REPLACED).reason
    assert (source.peek(), source.state) == (None, SourceState.REPLACED)
    with pytest.raises(IdentityReplacedError):
        source.identity(timeout=WIDE)
    with pytest.raises(StateError):
        key.sign(b"x")
    api.replace(ID)
    events.wait(K.READY)


def test_other_trust_domain(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """Bar 14: the same path in another trust domain is another identity."""
    other = TestCa("other.org")
    api.add("spiffe://other.org/ns/prod/refunds", ca=other)
    api.remove(ID)
    events.wait(K.REPLACED)
    assert source.x509_bundle(other.trust_domain).digest == other.x509_bundle.digest


def test_expired(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi, watch) -> None:
    """An identity is over from its `not_after` on, whatever the agent does not say; the key with it."""
    clock = FakeClock()
    source = make_source(clock=clock)
    seen = watch(source)
    source.start()
    identity = source.identity(timeout=WIDE)
    clock.set_wall(identity.not_after - 0.001)
    assert source.latest() is identity
    clock.set_wall(identity.not_after)
    assert source.peek() is None
    assert source.latest() is None
    assert source.state is SourceState.EXPIRED
    with pytest.raises(IdentityExpiredError):
        source.identity(timeout=WIDE)
    with pytest.raises(StateError):
        identity.key.sign(b"x")
    seen.wait(K.EXPIRED)
    assert source.state is SourceState.EXPIRED


def test_suspend_ends_a_life(make_source: Callable[..., WorkloadApiSource]) -> None:
    """C14: a wall clock that was set back does not prolong anything; the boot-time clock counts too."""
    clock = FakeClock()
    source = make_source(clock=clock)
    source.start()
    identity = source.identity(timeout=WIDE)
    clock.set_boot(clock.now().boot + identity.not_after - clock.now().wall + 1)
    clock.set_wall(clock.now().wall - 3000)
    assert source.peek() is None
    assert source.state is SourceState.EXPIRED


def test_lost_stream_is_stale(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """WA-1: a lost stream is stale with its code, still served, and fresh when the agent is back within 5 s."""
    with api.outage():
        assert events.wait(K.STALE).grpc_code in ("UNAVAILABLE", "CANCELLED", "")
        status = source.status()
        assert (status.state, status.is_healthy) == (SourceState.STALE, False)
        assert source.identity(timeout=0)
        assert source.latest() is not None
        threading.Event().wait(2.0)
        assert source.status().stale_for >= 1.5
    events.wait(K.FRESH, timeout=5.0)
    assert source.status().is_healthy
    assert events.kinds() == ["stale", "fresh"]


def test_stale_for_too_long(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi, watch) -> None:
    """Rule 9: stale for longer than `max_staleness` refuses new identities, and says the gRPC code."""
    clock = FakeClock()
    source = make_source(clock=clock, max_staleness=60)
    seen = watch(source)
    source.start()
    identity = source.identity(timeout=WIDE)
    with api.outage():
        seen.wait(K.STALE)
        clock.advance(59)
        assert source.peek() is identity
        clock.advance(2)
        assert source.peek() is None
        with pytest.raises(IdentityUnavailableError, match="stale"):
            source.identity(timeout=WIDE)
        assert source.latest() is identity
        assert identity.key.sign(b"running tasks go on")
    seen.wait(K.FRESH, timeout=WIDE)
    assert source.peek() is identity


def test_overdue_rotation(make_source: Callable[..., WorkloadApiSource], watch) -> None:
    """Rule 9: a rotation that is overdue is stale although the agent answers."""
    clock = FakeClock()
    source = make_source(clock=clock)
    seen = watch(source)
    source.start()
    identity = source.identity(timeout=WIDE)
    clock.advance(0.76 * 3600)
    assert source.state is SourceState.STALE
    seen.wait(K.STALE)
    assert source.peek() is identity
    clock.advance(61)
    assert source.peek() is None


def test_silent_hang(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi, watch) -> None:
    """An agent that hangs shows nothing on the stream: a probe with a deadline finds out."""
    source = make_source(max_staleness=8)
    seen = watch(source)
    source.start()
    source.identity(timeout=WIDE)
    with api.hang():
        assert seen.wait(K.STALE).grpc_code == "DEADLINE_EXCEEDED"
        with pytest.raises(IdentityUnavailableError):
            source.jwt_svid("https://a", timeout=0.3)
    seen.wait(K.FRESH, timeout=5.0)


def test_hang_at_start(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi, wait_until) -> None:
    """Rule 13: a hanging agent costs the deadline and no more."""
    with api.hang():
        source = make_source()
        source.start()
        took = wait_until(lambda: _refuses(source, 0.5))
        assert took < 5.0
    assert source.identity(timeout=WIDE)


def _refuses(source: WorkloadApiSource, timeout: float) -> bool:
    with pytest.raises(IdentityUnavailableError):
        source.identity(timeout=timeout)
    return True


@pytest.mark.parametrize("how", sorted(MALFORMED))
def test_malformed_update(source: WorkloadApiSource, api: FakeWorkloadApi, events, how: str) -> None:
    """WA-4: a malformed update is told, the last good one stays, and the next good one is taken."""
    identity = source.identity(timeout=WIDE)
    bundle = source.x509_bundle(TD)
    api.push_malformed(how)
    event = events.wait(K.REFUSED_UPDATE)
    assert event.identity is identity
    assert source.peek() is identity
    assert source.x509_bundle(TD) is bundle
    assert source.status().refused == 1
    assert source.status().last_refusal == event.reason
    api.rotate()
    assert events.wait(K.ROTATED).identity is source.peek()
    assert events.kinds() == ["refused-update", "rotated"]


@pytest.mark.parametrize(
    "options",
    [
        {"is_ca": True},
        {"uris": [ID, OTHER]},
        {"key_usage": None},
        {"signer": TestCa("example.org")},
        {"not_before": 1, "not_after": 2},
        {"uris": [OTHER]},
    ],
    ids=["ca", "two-uris", "key-usage", "foreign-authority", "expired", "other-id"],
)
def test_bad_svid_is_not_adopted(source: WorkloadApiSource, api: FakeWorkloadApi, events, options: dict) -> None:
    """Bar 13: an SVID that fails admission is never adopted."""
    identity = source.identity(timeout=WIDE)
    api.serve(api.ca.issue(ID, **options))
    events.wait(K.REFUSED_UPDATE)
    assert source.peek() is identity


def test_bad_svid_at_start_is_waited_out(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """A bad first update leaves a reason; the next good one is taken."""
    api.serve(api.ca.issue(ID, is_ca=True))
    source = make_source()
    source.start()
    with pytest.raises(IdentityUnavailableError, match="signing certificate"):
        source.identity(timeout=1.0)
    api.replace(ID)
    assert source.identity(timeout=WIDE)


def test_outage_and_bad_update_is_not_fresh(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """After a lost stream only a good update is fresh."""
    api.stop()
    events.wait(K.STALE)
    good = api._served[0].svid
    api._served[0].svid = api.ca.issue(ID, is_ca=True)
    api.start()
    events.wait(K.REFUSED_UPDATE)
    assert source.state is SourceState.STALE
    api.serve(good)
    events.wait(K.FRESH)


def test_several_and_no_choice(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """Several SVIDs and no choice: an error that lists them, never the first."""
    api.add(OTHER, hint="internal")
    source = make_source()
    source.start()
    with pytest.raises(AmbiguousIdentityError) as caught:
        source.identity(timeout=WIDE)
    assert caught.value.candidates == ((ID, ""), (OTHER, "internal"))
    assert source.state is SourceState.AMBIGUOUS
    assert source.x509_bundle(TD) is not None
    api.remove(OTHER)
    assert _settled(source)
    assert str(source.identity(timeout=WIDE).spiffe_id) == ID


def _settled(source: WorkloadApiSource) -> bool:
    done = threading.Event()
    stop = source.subscribe(lambda event: done.set() if event.kind is K.READY else None)
    try:
        return source.peek() is not None or done.wait(WIDE)
    finally:
        stop()


@pytest.mark.parametrize("choice", [{"spiffe_id": OTHER}, {"hint": "internal"}])
def test_choice_is_pinned(
    make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi, watch, choice: dict
) -> None:
    """WA-6: by ID or hint, pinned from then on: order and newcomers do not matter."""
    api.add(OTHER, hint="internal")
    source = make_source(**choice)
    seen = watch(source)
    source.start()
    assert str(source.identity(timeout=WIDE).spiffe_id) == OTHER
    first = source.peek()
    api.flip()
    api.add("spiffe://example.org/new", hint="internal", first=True)
    api.rotate()
    seen.wait(K.ROTATED)
    assert source.peek().spiffe_id == first.spiffe_id
    assert seen.kinds() == ["ready", "rotated"]
    api.remove(OTHER)
    seen.wait(K.REPLACED)


def test_same_hint_twice(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """WA-6: of two SVIDs with one hint the first counts."""
    api.add(OTHER, hint="x")
    api.add("spiffe://example.org/third", hint="x")
    source = make_source(hint="x")
    source.start()
    assert str(source.identity(timeout=WIDE).spiffe_id) == OTHER
    assert source.peek().hint == "x"


def test_chosen_is_not_there(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """A choice that the agent does not serve is waited for, and the error lists what is served."""
    source = make_source(spiffe_id=OTHER)
    source.start()
    with pytest.raises(IdentityUnavailableError, match="ns/prod/refunds"):
        source.identity(timeout=0.7)
    api.add(OTHER)
    assert str(source.identity(timeout=WIDE).spiffe_id) == OTHER


def test_newcomer_does_not_unseat(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """One SVID and no choice pins it: a second entry, even as the first of the list, changes nothing."""
    identity = source.identity(timeout=WIDE)
    api.add(OTHER, first=True)
    api.rotate()
    assert events.wait(K.ROTATED).identity.spiffe_id == identity.spiffe_id


def test_federated_bundles(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """TB-1, WA-3: a federated bundle is there as long as it is served, and gone at once when it is not."""
    partner = TestCa("partner.test")
    api.federate(partner)
    events.wait(K.BUNDLES)
    events.wait(K.BUNDLES)
    assert source.x509_bundle(PARTNER).digest == partner.x509_bundle.digest
    assert source.jwt_bundle(PARTNER).digest == partner.jwt_bundle.digest
    chain = partner.issue("spiffe://partner.test/a").chain
    now = SystemClock().now().wall
    assert verify_x509_svid(chain, source, now=now)
    api.federate_raw("spiffe://partner.test", None, None)
    events.wait(K.BUNDLES)
    events.wait(K.BUNDLES)
    assert source.x509_bundle(PARTNER) is None
    assert source.jwt_bundle(PARTNER) is None


@pytest.mark.parametrize(
    ("name", "x509", "jwks"),
    [
        ("spiffe://partner.test", b"garbage", b"garbage"),
        ("spiffe://partner.test", b"", b""),
        ("spiffe://PARTNER.test", b"x", b"{}"),
        ("https://partner.test", b"\x30\x00", b"[]"),
        ("", b"", b""),
    ],
)
def test_malformed_federated_bundle(
    source: WorkloadApiSource, api: FakeWorkloadApi, events, name: str, x509: bytes, jwks: bytes
) -> None:
    """A malformed federated bundle is untrusted, named, and harms nobody else."""
    good = TestCa("good.test")
    api.federate_raw(name, x509, jwks)
    api.federate(good)
    events.wait(K.BUNDLES)
    events.wait(K.BUNDLES)
    api.rotate()
    events.wait(K.ROTATED)
    assert source.x509_bundle(good.trust_domain) is not None
    assert source.jwt_bundle(good.trust_domain) is not None
    assert source.x509_bundle(PARTNER) is None
    assert len(source.status().untrusted) == 1
    assert "refused-update" not in events.kinds()


def test_good_bundle_turned_bad_is_untrusted(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """A federated bundle that no longer parses is not trusted by its past."""
    partner = TestCa("partner.test")
    api.federate(partner)
    events.wait(K.BUNDLES)
    events.wait(K.BUNDLES)
    api.federate_raw("spiffe://partner.test", b"garbage", b"garbage")
    events.wait(K.BUNDLES)
    events.wait(K.BUNDLES)
    assert source.x509_bundle(PARTNER) is None
    assert source.jwt_bundle(PARTNER) is None


def test_federated_bundle_of_our_own_domain(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """An entry in the federated map never replaces our own domain's bundle."""
    api.federate_raw(f"spiffe://{TD}", TestCa("example.org").x509_bundle_der, None)
    api.rotate()
    events.wait(K.ROTATED)
    assert source.x509_bundle(TD).digest == api.ca.x509_bundle.digest


def test_authority_removed(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """C2: what a removed authority signed is untrusted from the update on."""
    old = source.identity(timeout=WIDE).chain
    now = SystemClock().now().wall
    api.ca.rotate_authority()
    api.rotate()
    events.wait(K.ROTATED)
    assert verify_x509_svid(old, source, now=now)
    api.ca.drop_old_authorities()
    api.push()
    events.wait(K.BUNDLES)
    events.wait(K.BUNDLES)
    with pytest.raises(Exception, match="does not lead"):
        verify_x509_svid(old, source, now=now)


def test_authority_removed_under_our_own_svid(
    source: WorkloadApiSource, api: FakeWorkloadApi, events, wait_until
) -> None:
    """C2: an authority is untrusted from its removal on, also where our own SVID still rests on it."""
    identity = source.identity(timeout=WIDE)
    partner, gone = TestCa("partner.test"), TestCa("gone.test")
    api.federate(partner)
    api.federate(gone)
    wait_until(lambda: source.x509_bundle(gone.trust_domain) is not None)
    kept = source.x509_bundle(PARTNER)
    now = SystemClock().now().wall
    api.ca.rotate_authority()
    api.push()
    wait_until(lambda: len(source.x509_bundle(TD).authorities) == 2)
    assert verify_x509_svid(identity.chain, source, now=now)
    api.ca.rotate_authority()
    del api.ca._roots[0]
    api.federate_raw("spiffe://gone.test", None, None)
    events.wait(K.REFUSED_UPDATE)
    wait_until(lambda: source.x509_bundle(gone.trust_domain) is None)
    (left,) = source.x509_bundle(TD).authorities
    assert left.public_bytes(serialization.Encoding.DER) == api.ca.roots[0]
    assert source.x509_bundle(PARTNER).digest == kept.digest
    with pytest.raises(InvalidSvidError, match="does not lead"):
        verify_x509_svid(identity.chain, source, now=now)
    api.rotate()
    events.wait(K.ROTATED)
    assert len(source.x509_bundle(TD).authorities) == 2


@pytest.mark.parametrize("code", ["OK", "UNAVAILABLE", "INTERNAL", "CANCELLED", "RESOURCE_EXHAUSTED", "UNKNOWN"])
def test_stream_ends(source: WorkloadApiSource, api: FakeWorkloadApi, events, code: str) -> None:
    """WA-1: however a stream ends, it is opened again and nothing is lost."""
    identity = source.identity(timeout=WIDE)
    api.cut(code)
    events.wait(K.STALE)
    events.wait(K.FRESH, timeout=5.0)
    assert source.peek() is identity


def test_slow_drip(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """Slow answers arrive; nobody waits longer than he said."""
    api.response_delay = 0.7
    source = make_source()
    source.start()
    with pytest.raises(IdentityUnavailableError):
        source.identity(timeout=0.1)
    assert source.identity(timeout=WIDE)


def test_flood(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """A flood of equal updates makes no event and ends at the last state."""
    api.push(times=500)
    api.rotate()
    events.wait(K.ROTATED)
    assert events.kinds() == ["rotated"]


def test_agent_restarts_with_another_identity(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """What changed during an outage is seen after it."""
    api.stop()
    events.wait(K.STALE)
    api.replace(OTHER)
    api.start()
    events.wait(K.REPLACED, timeout=5.0)


def test_subscriber_that_raises(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """A subscriber that raises anything harms neither the source nor other subscribers."""

    def raises(_: object) -> None:
        raise SystemExit

    source.subscribe(raises)
    for _ in range(2):
        api.rotate()
        events.wait(K.ROTATED)


def test_unsubscribe(source: WorkloadApiSource, api: FakeWorkloadApi, events) -> None:
    """Who stopped is not called again."""
    calls = []
    stop = source.subscribe(calls.append)
    stop()
    stop()
    api.rotate()
    events.wait(K.ROTATED)
    assert calls == []


def test_close(source: WorkloadApiSource) -> None:
    """Closing is idempotent, ends all threads, drops the key, and use afterwards is a state error."""
    key = source.identity(timeout=WIDE).key
    source.close()
    source.close()
    assert source.state is SourceState.CLOSED
    assert not [t.name for t in threading.enumerate() if t.name.startswith("jitwi-identity")]
    for use in (
        lambda: source.identity(timeout=1),
        lambda: source.jwt_svid("a"),
        source.start,
        lambda: key.sign(b"x"),
    ):
        with pytest.raises(StateError):
            use()
    assert (source.peek(), source.latest(), source.x509_bundle(TD)) == (None, None, None)


def test_close_ends_a_wait(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """Who waits is told at once that the source was closed."""
    with api.hang():
        source = make_source()
        source.start()
        caught: list[Exception] = []

        def wait() -> None:
            try:
                source.identity(timeout=60)
            except StateError as exc:
                caught.append(exc)

        waiter = threading.Thread(target=wait)
        waiter.start()
        source.close()
        waiter.join(WIDE)
        assert len(caught) == 1


def test_close_from_a_subscriber(source: WorkloadApiSource, api: FakeWorkloadApi) -> None:
    """A subscriber may close the source."""
    done = threading.Event()

    def close(_: object) -> None:
        source.close()
        done.set()

    source.subscribe(close)
    api.rotate()
    assert done.wait(WIDE)
    assert source.state is SourceState.CLOSED


def test_start_is_idempotent(source: WorkloadApiSource) -> None:
    """Starting twice starts once."""
    names = sorted(t.name for t in threading.enumerate() if t.name.startswith("jitwi-identity"))
    source.start()
    assert sorted(t.name for t in threading.enumerate() if t.name.startswith("jitwi-identity")) == names
    assert len(names) <= 4


def test_no_secret_is_shown(source: WorkloadApiSource) -> None:
    """Rule 10: identity, key and token do not show, copy or pickle."""
    identity = source.identity(timeout=WIDE)
    svid = source.jwt_svid("https://a")
    token = svid.token.reveal()
    for thing in (identity, identity.key, svid, source, source.status()):
        assert token not in repr(thing)
        assert "PRIVATE" not in repr(thing)
    for thing in (identity, identity.key, svid, svid.token):
        for taken in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(StateError):
                taken(thing)


def test_async_callers(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """Async callers share the source and do not block their loop."""
    api.response_delay = 0.3
    source = make_source()

    async def main() -> int:
        """Count beats of the loop while waiting."""
        source.start()
        beats = 0

        async def beat() -> None:
            """Beat."""
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        task = asyncio.create_task(beat())
        identity = await source.identity_async(timeout=WIDE)
        svid = await source.jwt_svid_async("https://a", timeout=WIDE)
        task.cancel()
        assert svid.spiffe_id == identity.spiffe_id
        return beats

    assert asyncio.run(main()) >= 5


def test_two_agents_one_authority(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi) -> None:
    """Two fakes on one authority serve two identities that verify each other."""
    with FakeWorkloadApi(OTHER, ca=api.ca) as second:
        one, two = make_source(), make_source(second.socket)
        one.start()
        two.start()
        now = SystemClock().now().wall
        assert str(two.identity(timeout=WIDE).spiffe_id) == OTHER
        assert str(verify_x509_svid(one.identity(timeout=WIDE).chain, two, now=now).spiffe_id) == ID


@pytest.mark.parametrize("hint", ["x" * 1025, "a\nb", "\x1b[31m"])
def test_odd_hint(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi, hint: str) -> None:
    """WA-6: a hint that is too long or not printable is dropped, the SVID is not."""
    api.serve(api.ca.issue(ID), hint=hint)
    source = make_source()
    source.start()
    assert source.identity(timeout=WIDE).hint == ""


def test_health_is_a_record(source: WorkloadApiSource) -> None:
    """The status names state, reason, code and ages, and no secret."""
    status = source.status()
    assert status.is_healthy
    assert (status.reason, status.grpc_code, status.refused, status.untrusted) == ("", "", 0, ())
    assert status.age is not None
    assert status.age < WIDE


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]")])
def test_over_tcp(make_source: Callable[..., WorkloadApiSource], api: FakeWorkloadApi, host: str, shown: str) -> None:
    """WE-3: `tcp://` with an IPv4 or IPv6 literal is followed like a Unix socket."""
    server = grpc.server(ThreadPoolExecutor(8))
    workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(_Servicer(api), server)
    try:
        port = server.add_insecure_port(f"{host}:0")
    except RuntimeError:
        pytest.skip(f"this machine has no {host}")
    server.start()
    try:
        source = make_source(f"tcp://{shown}:{port}")
        source.start()
        assert str(source.identity(timeout=WIDE).spiffe_id) == ID
        source.close()
    finally:
        server.stop(grace=None).wait(WIDE)
