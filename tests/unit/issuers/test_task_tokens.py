# SPDX-License-Identifier: Apache-2.0
"""TaskTokens: plan, handle, rotation, ending; nothing is made before the gate allowed it."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import pickle
import threading
from datetime import timedelta

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from jitwi.clock import Deadline
from jitwi.credentials import LeaseRef, ProbeResult, Strength
from jitwi.errors import (
    AccessDeniedError,
    ConfigurationError,
    GrantEndedError,
    GrantExpiredError,
    InvalidTaskError,
    IssuanceError,
    OutOfScopeError,
    StateError,
)
from jitwi.identity import SvidKind
from jitwi.issuers import TaskTokens
from jitwi.task import Entity, Permission, Task
from jitwi.tokens import TaskTokenVerifier, VerifiedProof, VerifiedTaskToken, verify_proof

AUDIENCE = "https://orders.example.org"
URL = "https://orders.example.org/orders/42"


def receive(desk, headers: dict[str, str], *, url: str = URL, method: str = "POST", **changes) -> tuple:
    """Verify as a Guard does."""
    scheme, _, text = headers["Authorization"].partition(" ")
    assert scheme == "DPoP"
    now = desk.clock.wall
    token = TaskTokenVerifier(changes.pop("audience", AUDIENCE), desk.source, **changes).verify(text, now=now)
    return token, verify_proof(headers["DPoP"], token=token, method=method, url=url, now=now)


@pytest.fixture
def token(desk):
    """A handle for AUDIENCE."""
    return desk.obtain(TaskTokens(AUDIENCE))


def test_plan(desk) -> None:
    """KEY_DESTROYED, exact, not bearer, revocable, no effects outside the process, until the end of the grant."""
    plan = TaskTokens(AUDIENCE).plan(desk.order())
    assert plan.kind == "task-token"
    assert plan.strength is Strength.KEY_DESTROYED
    assert plan.is_exact
    assert plan.is_revocable
    assert not plan.is_bearer
    assert not plan.has_outside_effects
    assert plan.expires_at == desk.NOW + 120
    assert plan.recipe == {}


def test_jwt_identity_is_refused_at_plan(desk) -> None:
    """With a JWT-SVID as the identity there is no key to endorse with, and the plan says so."""
    with pytest.raises(IssuanceError, match="SVID's key"):
        TaskTokens(AUDIENCE).plan(desk.order(svid_kind=SvidKind.JWT))


def test_too_large_is_refused_at_plan(desk) -> None:
    """A task that no token can carry is told so before it starts to work."""
    many = tuple(Permission(desk.READ, Entity("Shop::Order", f"{n}" + "x" * 400)) for n in range(64))
    task = Task("big", many, timedelta(minutes=2))
    with pytest.raises(IssuanceError, match="characters"):
        TaskTokens(AUDIENCE).plan(desk.order(task=task, permissions=many))


def test_headers(desk, token) -> None:
    """One use: a token and a proof that a Guard accepts, for this action, resource and input."""
    verified, proof = receive(desk, token.headers("POST", URL, "refund", desk.ORDER, {"amount": 30}))
    assert isinstance(verified, VerifiedTaskToken)
    assert isinstance(proof, VerifiedProof)
    proof.require_use(desk.REFUND, desk.ORDER, input={"amount": 30})
    assert desk.gate.checks == [("refund", desk.ORDER, {"amount": 30})]
    assert verified.expires_at == desk.NOW + 120


def test_each_use_is_checked(desk, token) -> None:
    """Every call passes the gate, and each has its own proof under one token."""
    first, second = (token.headers("POST", URL, "refund", desk.ORDER) for _ in range(2))
    assert first["Authorization"] == second["Authorization"]
    assert first["DPoP"] != second["DPoP"]
    assert len(desk.gate.checks) == 2


@pytest.mark.parametrize("refusal", [AccessDeniedError("no"), GrantEndedError("over"), OutOfScopeError("no")])
def test_nothing_is_made_before_the_gate(desk, token, refusal, monkeypatch) -> None:
    """Rule 6: a refused use makes no key, no token, no proof."""
    desk.gate.refusal = refusal

    def never(*args: object, **kwargs: object) -> None:
        pytest.fail("made before the gate allowed it")

    for name in ("TaskKey", "mint_task_token", "mint_proof"):
        monkeypatch.setattr(f"jitwi.issuers.task_tokens.{name}", never)
    with pytest.raises(type(refusal)):
        token.headers("POST", URL, "refund", desk.ORDER)
    assert token.public_ids == ()


def test_input_is_taken_once(desk, token) -> None:
    """What the gate decided on is what the proof stands for, even if the caller's own object changes meanwhile."""
    given = {"amount": 30, "items": [1]}

    def meanwhile() -> None:
        given["amount"] = 30_000
        given["items"].append(2)

    desk.gate.before_return = meanwhile
    _, proof = receive(desk, token.headers("POST", URL, "refund", desk.ORDER, given))
    assert desk.gate.checks[0][2] == {"amount": 30, "items": [1]}
    proof.require_use(desk.REFUND, desk.ORDER, input={"amount": 30, "items": [1]})


def test_input_without_canonical_form(desk, token) -> None:
    """An input that no proof can stand for is refused before the gate counts it."""
    with pytest.raises(InvalidTaskError):
        token.headers("POST", URL, "refund", desk.ORDER, {"amount": 1.5})
    assert desk.gate.checks == []


@pytest.mark.parametrize(
    "url",
    ["https://evil.example.org/orders/42", "http://orders.example.org/orders/42", "https://orders.example.org:8443/", "https://orders.example.org.evil.org/",
     "https://orders.example.org@evil.org/", "https://evil.org\\@orders.example.org/", "/orders/42", "", "ftp://orders.example.org/"],
)  # fmt: skip
def test_origin_is_pinned(desk, token, url: str) -> None:
    """A request to another origin gets nothing, and counts nothing."""
    with pytest.raises(OutOfScopeError):
        token.headers("POST", url, "refund", desk.ORDER)
    assert desk.gate.checks == []


# ------------------------------------------------------------------------------------------ rotation and time


def test_rotation(desk, token) -> None:
    """After a rotation the same task key is endorsed by the new SVID; the old token is not minted again."""
    first, _ = receive(desk, token.headers("POST", URL, "read", desk.ORDER))
    desk.clock.advance(10)
    desk.source.rotate()
    second, proof = receive(desk, token.headers("POST", URL, "read", desk.ORDER))
    assert (second.jkt, second.txn, second.expires_at) == (first.jkt, first.txn, first.expires_at)
    assert second.thumbprint != first.thumbprint
    assert second.jti != first.jti
    assert proof.jkt == first.jkt


def test_rotation_between_look_and_signature(desk, token) -> None:
    """The SVID's key is dropped after the identity was read: the new identity signs."""
    stale = desk.source.current
    desk.source.rotate()
    answers = [stale]
    original = type(desk.gate).identity
    try:
        type(desk.gate).identity = lambda self: answers.pop() if answers else self.source.current
        verified, _ = receive(desk, token.headers("POST", URL, "read", desk.ORDER))
    finally:
        type(desk.gate).identity = original
    assert verified.thumbprint == desk.source.current.thumbprint


def test_exp_follows_the_svid(desk) -> None:
    """A short SVID bounds the token, and the next SVID carries on within the task."""
    desk.source.ttl = 60
    desk.source.rotate()
    token = desk.obtain(TaskTokens(AUDIENCE))
    assert receive(desk, token.headers("POST", URL, "read", desk.ORDER))[0].expires_at == desk.NOW + 60
    desk.clock.advance(40)
    desk.source.rotate()
    assert receive(desk, token.headers("POST", URL, "read", desk.ORDER))[0].expires_at == desk.NOW + 100
    desk.clock.advance(30)
    desk.source.rotate()
    assert receive(desk, token.headers("POST", URL, "read", desk.ORDER))[0].expires_at == desk.NOW + 120


def test_max_ttl_of_one_token(desk) -> None:
    """A task longer than `max_ttl` has several tokens under one key, renewed before they end."""
    token = desk.obtain(TaskTokens(AUDIENCE, max_ttl=timedelta(seconds=30)))
    seen = []
    for _ in range(4):
        seen.append(receive(desk, token.headers("POST", URL, "read", desk.ORDER), max_ttl=timedelta(seconds=30))[0])
        desk.clock.advance(26)
    assert len({one.jti for one in seen}) == 4
    assert len({one.jkt for one in seen}) == 1
    assert [one.expires_at - desk.NOW for one in seen] == [30, 56, 82, 108]


def test_wall_clock_set_back(desk, token) -> None:
    """The boot-time clock bounds `exp` when the wall clock was set back."""
    desk.clock.advance(60)
    desk.clock.wall -= 30
    desk.gate.deadline = Deadline(desk.NOW + 120, 5120.0)
    assert receive(desk, token.headers("POST", URL, "read", desk.ORDER))[0].expires_at == desk.NOW + 30 + 60


def test_last_second(desk, token) -> None:
    """In the fraction of a second after the last whole one nothing is minted; before it, a token that ends in time."""
    desk.gate.deadline = Deadline(desk.NOW + 120.4, 5120.4)
    desk.clock.advance(119.5)
    assert receive(desk, token.headers("POST", URL, "read", desk.ORDER))[0].expires_at == desk.NOW + 120
    desk.clock.advance(0.7)
    with pytest.raises(GrantExpiredError):
        token.headers("POST", URL, "read", desk.ORDER)


# ------------------------------------------------------------------------------------------ ending


def test_destroy(desk, token) -> None:
    """After the end there is no key: no proof, whatever was kept of the handle; ending twice is ending once."""
    token.headers("POST", URL, "read", desk.ORDER)
    (public,) = token.public_ids
    token.destroy()
    token.destroy()
    assert token.is_destroyed
    assert token.public_ids == (public,)
    with pytest.raises(StateError, match="destroyed"):
        token.headers("POST", URL, "read", desk.ORDER)


def test_destroy_before_the_first_use(desk, token) -> None:
    """A handle that was never used makes no key after its end."""
    token.destroy()
    with pytest.raises(StateError, match="destroyed"):
        token.headers("POST", URL, "read", desk.ORDER)
    assert token.is_destroyed


def test_destroy_between_gate_and_proof(desk, token) -> None:
    """A use that passed the gate and then lost its key leaves nothing."""
    desk.gate.before_return = token.destroy
    with pytest.raises(StateError, match="destroyed"):
        token.headers("POST", URL, "read", desk.ORDER)


def test_destroy_races_use(desk) -> None:
    """Bar 10: no call that begins after `destroy()` returned makes a proof."""
    late: list[str] = []
    for _ in range(20):
        token = desk.obtain(TaskTokens(AUDIENCE))
        ended = threading.Event()
        start = threading.Barrier(4)

        def use(token=token, ended=ended, start=start) -> None:
            start.wait(30)
            for _ in range(20):
                began_after = ended.is_set()
                try:
                    token.headers("POST", URL, "read", desk.ORDER)
                except StateError:
                    continue
                if began_after:
                    late.append("used after the end")

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        start.wait(30)
        token.destroy()
        ended.set()
        for thread in threads:
            thread.join(30)
    assert late == []


def test_end_and_probe(desk) -> None:
    """`end` destroys the key of its lease, `probe` says whether there is one; unknown leases are over."""
    issuer = TaskTokens(AUDIENCE)
    token = desk.obtain(issuer)
    lease = LeaseRef("jitwi-1", "orders-api", "task-token", {}, desk.NOW + 120)
    assert issuer.probe(lease) is ProbeResult.ALLOWED
    issuer.end(lease)
    issuer.end(lease)
    assert token.is_destroyed
    assert issuer.probe(lease) is ProbeResult.REFUSED
    unknown = LeaseRef("jitwi-2", "orders-api", "task-token", {}, desk.NOW + 120)
    issuer.end(unknown)
    assert issuer.probe(unknown) is ProbeResult.REFUSED
    assert issuer.outstanding() == ()


def test_issuer_keeps_no_handle_alive(desk) -> None:
    """A handle that nobody holds is gone, and its key with it."""
    issuer = TaskTokens(AUDIENCE)
    desk.obtain(issuer).headers("POST", URL, "read", desk.ORDER)
    gc.collect()
    lease = LeaseRef("jitwi-1", "orders-api", "task-token", {}, desk.NOW + 120)
    assert issuer.probe(lease) is ProbeResult.REFUSED


# ------------------------------------------------------------------------------------------ secrecy


def test_key_is_not_readable_through_the_handle(desk, token) -> None:
    """Bar 17: neither members nor slots of the handle, two levels deep, lead to the private key."""
    token.headers("POST", URL, "read", desk.ORDER)
    level = [token]
    for _ in range(3):
        found = []
        for thing in level:
            found += [v for n, v in inspect.getmembers(thing) if not n.startswith("__") and not inspect.isroutine(v)]
        assert not any(isinstance(value, ec.EllipticCurvePrivateKey) for value in found)
        level = [value for value in found if type(value).__module__.startswith("jitwi.tokens")]
    assert not hasattr(token, "__dict__")


def test_no_copy_no_pickle(desk, token) -> None:
    """Rule 10: a handle and what it gives to httpx cannot be copied or pickled."""
    token.headers("POST", URL, "read", desk.ORDER)
    for thing in (token, token.auth("read", desk.ORDER)):
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(StateError):
                attempt(thing)


def test_renderings(desk, token) -> None:
    """Neither the handle nor its `auth` shows a token in any rendering."""
    headers = token.headers("POST", URL, "read", desk.ORDER)
    secret = headers["Authorization"][5:]
    for thing in (token, token.auth("read", desk.ORDER), TaskTokens(AUDIENCE)):
        for shown in (repr(thing), str(thing), f"{thing}", f"{thing!r}"):
            assert secret[:30] not in shown
            assert secret[-30:] not in shown


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_child(desk, token) -> None:
    """Bar 11: a forked child has the handle and no key."""
    token.headers("POST", URL, "read", desk.ORDER)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = b"used"
        try:
            token.headers("POST", URL, "read", desk.ORDER)
        except StateError:
            answer = b"refused"
        finally:
            os.write(write, answer)
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert os.read(read, 20) == b"refused"
    os.close(read)
    token.headers("POST", URL, "read", desk.ORDER)


# ------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"audience": ""}, "audience"),
        ({"audience": ["https://a.example.org"]}, "audience"),
        ({"audience": "a" * 2000}, "audience"),
        ({"audience": "orders"}, "origin"),
        ({"audience": "spiffe://example.org/orders"}, "origin"),
        ({"audience": "orders", "origin": "orders.example.org"}, "origin"),
        ({"audience": "orders", "origin": "https://orders.example.org/path"}, "path"),
        ({"audience": "http://orders.example.org"}, "plain HTTP"),
        ({"audience": "a", "origin": "http://10.0.0.1"}, "plain HTTP"),
        ({"audience": "https://orders.example.org", "serves": "read"}, "serves"),
        ({"audience": "https://orders.example.org", "serves": []}, "serves"),
        ({"audience": "https://orders.example.org", "serves": [1]}, "serves"),
        ({"audience": "https://orders.example.org", "max_ttl": timedelta(0)}, "max_ttl"),
        ({"audience": "https://orders.example.org", "max_ttl": 60}, "max_ttl"),
    ],
)
def test_configuration(arguments: dict, why: str) -> None:
    """Wrong arguments are refused when the issuer is made, with the reason."""
    with pytest.raises(ConfigurationError, match=why):
        TaskTokens(**arguments)


def test_configurations_that_hold(desk) -> None:
    """Loopback by plain HTTP, other plain HTTP by name, an audience that is no URL with its origin."""
    TaskTokens("http://127.0.0.1:8080")
    TaskTokens("http://localhost:8080")
    TaskTokens("http://[::1]:8080")
    TaskTokens("http://orders.prod.svc", allow_insecure_http=True)
    issuer = TaskTokens("spiffe://example.org/orders", origin="https://orders.example.org", serves=["read", "refund"])
    assert issuer.serves == frozenset({"read", "refund"})
    assert (issuer.kind, issuer.is_local) == ("task-token", True)
    headers = desk.obtain(issuer).headers("POST", URL, "read", desk.ORDER)
    receive(desk, headers, audience="spiffe://example.org/orders")


def test_served_permissions_only(desk) -> None:
    """The token carries the permissions of its credential, not those of the whole task."""
    desk.gate = attrs.evolve(desk.gate, permissions=desk.TASK.permissions[:1])
    token = desk.obtain(TaskTokens(AUDIENCE))
    verified, _ = receive(desk, token.headers("POST", URL, "read", desk.ORDER))
    assert verified.permissions == desk.TASK.permissions[:1]
