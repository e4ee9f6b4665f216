# SPDX-License-Identifier: Apache-2.0
"""The task token, claim by claim and step by step."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from math import floor

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from jitwi.errors import ConfigurationError, EvidenceError, GrantExpiredError, InvalidTaskError, IssuanceError
from jitwi.identity import SvidKind
from jitwi.spiffe_id import TrustDomain
from jitwi.task import Entity, Permission, Task, Under
from jitwi.tokens import (
    AlgorithmRefusedError,
    DelegationRefusedError,
    DigestMismatchError,
    ExpiredEvidenceError,
    LifetimeError,
    MalformedEvidenceError,
    NotYetValidError,
    TaskKey,
    TaskTokenVerifier,
    UnknownFieldError,
    UntrustedChainError,
    WrongAudienceError,
    WrongIssuerError,
    WrongTypeError,
    errors,
)
from jitwi.tokens.jose import algorithm_of, is_signed_by

NOW = 1_800_000_000.0
ME = "spiffe://example.org/ns/prod/refunds"
HASH = "A" * 43


def test_round_trip(lab) -> None:
    """What was minted is what is read: every field of the task and of the identity."""
    token = lab.verify(lab.mint())
    assert token.spiffe_id == lab.identity.spiffe_id
    assert token.audience == lab.AUDIENCE
    assert (token.issued_at, token.not_before, token.expires_at) == (NOW, NOW, NOW + 120)
    assert token.txn == lab.TXN
    assert token.jkt == lab.key.jkt
    assert token.permissions == lab.task.permissions
    assert token.facts == lab.task.facts()
    assert token.task_digest == lab.task.digest(txn=lab.TXN).value
    assert token.permission_hashes == lab.task.digest(txn=lab.TXN).permissions
    assert token.thumbprint == lab.identity.thumbprint
    assert token.max_uses == 5


def test_registered_claims_only(lab) -> None:
    """The token has exactly the claims and headers of the profile, `typ` its own, `aud` one string."""
    head, body, _ = lab.mint().split(".")
    assert lab.open(head).keys() == {"alg", "typ", "x5c"}
    assert lab.open(head)["typ"] == "jit+jwt"
    claims = lab.open(body)
    assert claims.keys() == {
        "iss", "sub", "aud", "exp", "nbf", "iat", "jti", "txn", "cnf", "authorization_details", "tctx",
    }  # fmt: skip
    assert claims["iss"] == claims["sub"] == ME
    assert claims["aud"] == lab.AUDIENCE
    assert all(type(claims[name]) is int for name in ("exp", "nbf", "iat"))
    assert claims["authorization_details"][1] == {
        "type": "jitwi_permission",
        "action_type": "Shop::Action",
        "actions": ["refund"],
        "datatypes": ["Shop::Order"],
        "identifier": "42",
        "max_uses": 2,
    }
    assert claims["authorization_details"][2]["under"] is True


def test_exact_permissions_come_first(lab) -> None:
    """`permissions_for` gives the exact resource before what is under an entity."""
    found = lab.verify(lab.mint()).permissions_for(lab.READ)
    assert [isinstance(p.resource, Under) for p in found] == [False, True]
    assert lab.verify(lab.mint()).permissions_for(Entity("Shop::Action", "delete")) == ()


@pytest.mark.parametrize("alg", ["ES256", "ES384", "ES512", "RS256"])
def test_algorithm_of_the_leaf(lab, alg: str) -> None:
    """Each key type that an SVID may have signs by its one algorithm (RFC 7518 §3.1)."""
    identity = lab.ca.identity(alg=alg)
    token = lab.mint(identity=identity)
    assert lab.open(token.split(".")[0])["alg"] == alg
    assert lab.verify(token).spiffe_id == identity.spiffe_id


def test_only_served_permissions_travel(lab) -> None:
    """A token carries what its credential serves, and the digest still covers the whole task."""
    token = lab.verify(lab.mint(permissions=lab.task.permissions[:1]))
    assert token.permissions == lab.task.permissions[:1]
    assert len(token.permission_hashes) == 3
    body = lab.open(lab.mint(permissions=lab.task.permissions[:1]).split(".")[1])
    assert "refund" not in json.dumps(body["authorization_details"])


# ------------------------------------------------------------------------------------------ times


@pytest.mark.parametrize(
    ("ends_at", "svid_end", "exp"),
    [
        (NOW + 60, NOW + 3600, NOW + 60),
        (NOW + 60.9, NOW + 3600, NOW + 60),
        (NOW + 900, NOW + 30, NOW + 30),
        (NOW + 30, NOW + 30, NOW + 30),
    ],
)
def test_exp_is_the_earlier_end(lab, ends_at: float, svid_end: float, exp: float) -> None:
    """`exp` is never after the end of the credential or of the SVID."""
    task = attrs.evolve(lab.task, ttl=timedelta(minutes=20))
    identity = lab.ca.identity(end=svid_end)
    minted = lab.minted(identity, task=task, ends_at=ends_at)
    assert minted.expires_at == exp
    assert lab.verify(minted.text).expires_at == exp


def test_nothing_is_minted_in_the_last_second(lab) -> None:
    """With less than a whole second left there is no token."""
    with pytest.raises(GrantExpiredError):
        lab.mint(ends_at=NOW + 0.9)


@pytest.mark.parametrize(
    ("offset", "error"),
    [
        (119, None),
        (119.999, None),
        (120, ExpiredEvidenceError),
        (121, ExpiredEvidenceError),
        (-5, None),
        (-5.001, NotYetValidError),
        (-59, NotYetValidError),
    ],
)
def test_leeway(lab, offset: float, error: type[EvidenceError] | None) -> None:
    """Leeway: none on `exp` (RFC 7519 §4.1.4), 5 s on `iat` and `nbf` (§4.1.5, §4.1.6)."""
    token = lab.mint()
    for verify in (lab.verify, lambda t, now: TaskTokenVerifier(lab.AUDIENCE, lab.bundles).verify(t, now=now)):
        if error is None:
            assert verify(token, now=NOW + offset).jkt == lab.key.jkt
        else:
            with pytest.raises(error):
                verify(token, now=NOW + offset)


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        ({"exp": NOW + 121}, LifetimeError),  # longer than tctx.ttl
        ({"exp": int(NOW) + 121}, LifetimeError),
        ({"exp": int(NOW)}, ExpiredEvidenceError),
        ({"exp": int(NOW) + 2, "nbf": int(NOW) + 3}, LifetimeError),
        ({"iat": int(NOW) + 6}, NotYetValidError),
        ({"nbf": int(NOW) + 6}, NotYetValidError),
        ({"iat": int(NOW) + 5, "nbf": int(NOW) + 5}, None),
        ({"iat": int(NOW) - 61, "exp": int(NOW) + 10}, LifetimeError),  # before the SVID
        ({"iat": int(NOW) - 60, "exp": int(NOW) + 10}, None),
        ({"iat": int(NOW) + 4, "nbf": 0, "exp": int(NOW) + 3}, LifetimeError),
    ],
)
def test_lifetime(lab, claims: dict, error: type[EvidenceError] | None) -> None:
    """`exp - iat` is at most the task's ttl, and the token lies within its SVID."""
    token = lab.forge(claims={k: int(v) for k, v in claims.items()})
    if error is None:
        lab.verify(token)
    else:
        with pytest.raises(error):
            lab.verify(token)


def test_max_ttl_of_the_guard(lab) -> None:
    """The Guard's own `max_ttl` holds whatever the task says."""
    token = lab.mint()
    with pytest.raises(LifetimeError):
        lab.verify(token, max_ttl=timedelta(seconds=119))
    lab.verify(token, max_ttl=timedelta(seconds=120))


def test_beyond_the_svid(lab) -> None:
    """A token that outlives its SVID is refused even while the SVID holds."""
    identity = lab.ca.identity(end=NOW + 60)
    with pytest.raises(LifetimeError):
        lab.verify(lab.forge(identity=identity, claims={"exp": int(NOW) + 61}))


# ------------------------------------------------------------------------------------------ per claim

MISSING = [
    ("iss", "RFC 7519 4.1.1"), ("sub", "4.1.2"), ("aud", "4.1.3"), ("exp", "4.1.4"), ("nbf", "4.1.5"), ("iat", "4.1.6"),
    ("jti", "4.1.7"), ("txn", "Txn-Tokens"), ("cnf", "RFC 7800 3.1"), ("authorization_details", "RFC 9396 9.1"),
    ("tctx", "Txn-Tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "clause"), MISSING, ids=[f"{c} {n}" for n, c in MISSING])
def test_no_claim_is_optional(lab, name: str, clause: str) -> None:
    """Every claim of the profile is required."""
    with pytest.raises(MalformedEvidenceError):
        lab.verify(lab.forge(drop=(name,)))


T = MalformedEvidenceError
CLAIMS = [
    ("RFC 7519 4.1.1 iss is no SPIFFE ID", {"iss": "https://issuer.example.org"}, T),
    ("SPIFFE-ID 2.1 iss in upper case", {"iss": "SPIFFE://example.org/ns/prod/refunds"}, T),
    ("X509-SVID 3.1 iss is a trust domain", {"iss": "spiffe://example.org", "sub": "spiffe://example.org"}, T),
    ("SPIFFE-ID 3 iss is another workload", {"iss": "spiffe://example.org/ns/prod/admin"}, WrongIssuerError),
    ("SPIFFE-ID 3 iss and sub are another workload", {"iss": ME + "x", "sub": ME + "x"}, WrongIssuerError),
    ("SPIFFE-ID 3.3 iss of another trust domain", {"iss": "spiffe://other.org/ns/prod/refunds"}, UntrustedChainError),
    ("SPIFFE-ID 3.3 iss of an unknown trust domain", {"iss": "spiffe://evil.org/x"}, UntrustedChainError),
    ("iss is not text", {"iss": ["spiffe://example.org/ns/prod/refunds"]}, T),
    ("iss is null", {"iss": None}, T),
    ("RFC 7519 4.1.2 sub is another workload", {"sub": "spiffe://example.org/x"}, DelegationRefusedError),
    ("sub is not text", {"sub": 7}, DelegationRefusedError),
    ("RFC 8693 4.1 act", {"act": {"sub": ME}}, DelegationRefusedError),
    ("RFC 8693 4.4 may_act", {"may_act": {"sub": ME}}, DelegationRefusedError),
    ("approval as a claim of the caller", {"approval": {"approvers": ["boss"]}}, UnknownFieldError),
    ("approvals", {"approvals": []}, UnknownFieldError),
    ("RFC 6749 scope", {"scope": "admin"}, UnknownFieldError),
    ("Txn-Tokens rctx", {"rctx": {}}, UnknownFieldError),
    ("an unknown claim", {"x-claim": 1}, UnknownFieldError),
    ("RFC 7519 4.1.3 aud is an array of one", {"aud": ["https://orders.example.org"]}, T),
    ("aud is an array of two", {"aud": ["https://orders.example.org", "https://evil.example.org"]}, T),
    ("aud is another service", {"aud": "https://other.example.org"}, WrongAudienceError),
    ("aud with a slash", {"aud": "https://orders.example.org/"}, WrongAudienceError),
    ("aud in upper case", {"aud": "https://ORDERS.example.org"}, WrongAudienceError),
    ("aud with a space", {"aud": " https://orders.example.org"}, WrongAudienceError),
    ("aud is a prefix", {"aud": "https://orders.example"}, WrongAudienceError),
    ("aud is empty", {"aud": ""}, WrongAudienceError),
    ("aud is null", {"aud": None}, T),
    ("RFC 7519 4.1.4 exp is text", {"exp": "1800000060"}, T),
    ("exp is true", {"exp": True}, T),
    ("exp is negative", {"exp": -1}, T),
    ("exp is null", {"exp": None}, T),
    ("exp is 0", {"exp": 0}, ExpiredEvidenceError),
    ("exp far away", {"exp": 999_999_999_999_999}, LifetimeError),
    ("RFC 7519 4.1.5 nbf is text", {"nbf": "0"}, T),
    ("nbf is negative", {"nbf": -5}, T),
    ("nbf far away", {"nbf": 999_999_999_999_999}, NotYetValidError),
    ("RFC 7519 4.1.6 iat is null", {"iat": None}, T),
    ("iat is a list", {"iat": [1]}, T),
    ("iat is 0", {"iat": 0}, LifetimeError),
    ("RFC 7519 4.1.7 jti is a number", {"jti": 7}, T),
    ("jti is empty", {"jti": ""}, T),
    ("jti is too long", {"jti": "a" * 129}, T),
    ("jti has a line break", {"jti": "a\nb"}, T),
    ("jti ends in a line break", {"jti": "a\n"}, T),
    ("jti is not ASCII", {"jti": "\u0131d"}, T),
    ("Txn-Tokens txn is another transaction", {"txn": "txn-2"}, DigestMismatchError),
    ("txn is a number", {"txn": 1}, T),
    ("txn is too long", {"txn": "t" * 129}, T),
    ("RFC 7800 3.1 cnf is empty", {"cnf": {}}, T),
    ("cnf is text", {"cnf": HASH}, T),
    ("RFC 8705 3.1 cnf binds a certificate", {"cnf": {"x5t#S256": HASH}}, T),
    ("RFC 7800 3.2 cnf has a jwk", {"cnf": {"jwk": {"kty": "EC"}}}, T),
    ("cnf has two members", {"cnf": {"jkt": HASH, "jwk": {}}}, T),
    ("RFC 9449 6.1 jkt is short", {"cnf": {"jkt": "A" * 42}}, T),
    ("jkt is long", {"cnf": {"jkt": "A" * 44}}, T),
    ("jkt is padded", {"cnf": {"jkt": "A" * 42 + "="}}, T),
    ("jkt is a number", {"cnf": {"jkt": 1}}, T),
    ("RFC 9396 2 details is an object", {"authorization_details": {}}, T),
    ("details is empty", {"authorization_details": []}, T),
    ("details has an entry of text", {"authorization_details": ["refund"]}, T),
    ("details has an entry too many", {"authorization_details": [{}] * 65}, T),
    ("tctx is text", {"tctx": "refund-order"}, T),
    ("tctx is empty", {"tctx": {}}, T),
]


@pytest.mark.parametrize(("clause", "claims", "error"), CLAIMS, ids=[c[0] for c in CLAIMS])
def test_claims(lab, clause: str, claims: dict, error: type[EvidenceError]) -> None:
    """Per claim: other types, other values and unknown names are refused, although validly signed."""
    with pytest.raises(error):
        lab.verify(lab.forge(claims=claims))


def _entry(**changes: object) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "jitwi_permission", "action_type": "Shop::Action", "actions": ["read"],
        "datatypes": ["Shop::Order"], "identifier": "42",
    }  # fmt: skip
    return {k: v for k, v in {**entry, **changes}.items() if v != "DROP"}


ENTRIES = [
    ("another action", _entry(actions=["delete"]), DigestMismatchError),
    ("another action type", _entry(action_type="Bank::Action"), DigestMismatchError),
    ("another resource", _entry(identifier="43"), DigestMismatchError),
    ("another resource type", _entry(datatypes=["Shop::Customer"]), DigestMismatchError),
    ("widened to everything under it", _entry(under=True), DigestMismatchError),
    ("a limit taken off", _entry(actions=["refund"]), DigestMismatchError),
    ("a limit raised", _entry(actions=["refund"], max_uses=3), DigestMismatchError),
    ("under is false", _entry(under=False), T),
    ("under is 1", _entry(under=1), T),
    ("under is null", _entry(under=None), T),
    ("max_uses is null", _entry(max_uses=None), T),
    ("max_uses is 0", _entry(max_uses=0), T),
    ("max_uses is true", _entry(max_uses=True), T),
    ("max_uses is text", _entry(max_uses="2"), T),
    ("two actions", _entry(actions=["read", "refund"]), T),
    ("no action", _entry(actions=[]), T),
    ("actions is text", _entry(actions="read"), T),
    ("action is a number", _entry(actions=[1]), T),
    ("two datatypes", _entry(datatypes=["Shop::Order", "Shop::Customer"]), T),
    ("datatypes missing", _entry(datatypes="DROP"), T),
    ("identifier missing", _entry(identifier="DROP"), T),
    ("identifier is a number", _entry(identifier=42), T),
    ("identifier has a control character", _entry(identifier="4\u00002"), T),
    ("identifier has a surrogate", _entry(identifier="\ud800"), T),
    ("identifier is too long", _entry(identifier="x" * 513), T),
    ("type is of the proof", _entry(type="jitwi_use"), T),
    ("type is unknown", _entry(type="payment_initiation"), T),
    ("an unknown member", _entry(locations=["https://orders.example.org"]), T),
    ("privileges", _entry(privileges=["admin"]), T),
    ("action type is no Cedar name", _entry(action_type='Shop::Action::"read"'), T),
]


@pytest.mark.parametrize(("what", "entry", "error"), ENTRIES, ids=[e[0] for e in ENTRIES])
def test_authorization_details(lab, what: str, entry: dict, error: type[EvidenceError]) -> None:
    """RFC 9396 §2: an entry is one of the task's own permissions, to the letter."""
    with pytest.raises(error):
        lab.verify(lab.forge(claims={"authorization_details": [entry]}))


def test_same_permission_twice(lab) -> None:
    """Two entries alike are refused."""
    with pytest.raises(MalformedEvidenceError):
        lab.verify(lab.forge(claims={"authorization_details": [_entry(), _entry()]}))


TCTX = [
    ("name", "other-task", DigestMismatchError),
    ("purpose", "fun", DigestMismatchError),
    ("owner", "me", DigestMismatchError),
    ("on_behalf_of", "boss", DigestMismatchError),
    ("agent", "a", DigestMismatchError),
    ("max_uses", 6, DigestMismatchError),
    ("max_uses", "DROP", DigestMismatchError),
    ("ttl", 121, DigestMismatchError),
    ("ttl", 0, T),
    ("ttl", -1, T),
    ("ttl", 86_401, T),
    ("ttl", "120", T),
    ("ttl", True, T),
    ("ttl", "DROP", T),
    ("name", "DROP", T),
    ("name", "", T),
    ("name", 7, T),
    ("name", "a\u0007", T),
    ("owner", None, T),
    ("owner", "\ud800", T),
    ("purpose", "x" * 1025, T),
    ("max_uses", 0, T),
    ("max_uses", 2**31, T),
    ("digest", HASH, DigestMismatchError),
    ("digest", "DROP", T),
    ("digest", 1, DigestMismatchError),
    ("permissions", [HASH], DigestMismatchError),
    ("permissions", [], T),
    ("permissions", [HASH] * 65, T),
    ("permissions", ["x"], T),
    ("permissions", HASH, T),
    ("permissions", "DROP", T),
    ("approval", "yes", UnknownFieldError),
    ("used", 0, UnknownFieldError),
    ("now", 0, UnknownFieldError),
]


@pytest.mark.parametrize(("name", "value", "error"), TCTX, ids=[f"{n}={ascii(v)[:20]}" for n, v, _ in TCTX])
def test_task_facts(lab, name: str, value: object, error: type[EvidenceError]) -> None:
    """Txn-Tokens `tctx`: facts are covered by the digest, bounded like a task, and none is unknown."""
    tctx = lab.open(lab.mint().split(".")[1])["tctx"] | {name: value}
    if value == "DROP":
        del tctx[name]
    with pytest.raises(error):
        lab.verify(lab.forge(claims={"tctx": tctx}))


def test_reordered_hashes(lab) -> None:
    """The digest covers the order of the permissions."""
    tctx = lab.open(lab.mint().split(".")[1])["tctx"]
    tctx["permissions"].reverse()
    with pytest.raises(DigestMismatchError):
        lab.verify(lab.forge(claims={"tctx": tctx}))


# ------------------------------------------------------------------------------------------ header

HEADERS = [
    ("RFC 8725 3.11 typ JWT", {"typ": "JWT"}, WrongTypeError),
    ("JWT-SVID 2.3 typ JOSE", {"typ": "JOSE"}, WrongTypeError),
    ("RFC 9068 2.1 typ at+jwt", {"typ": "at+jwt"}, WrongTypeError),
    ("RFC 9449 4.2 typ dpop+jwt", {"typ": "dpop+jwt"}, WrongTypeError),
    ("Txn-Tokens typ txntoken+jwt", {"typ": "txntoken+jwt"}, WrongTypeError),
    ("typ with media type", {"typ": "application/jit+jwt"}, WrongTypeError),
    ("typ in upper case", {"typ": "JIT+JWT"}, WrongTypeError),
    ("typ is null", {"typ": None}, WrongTypeError),
    ("typ is a list", {"typ": ["jit+jwt"]}, WrongTypeError),
    ("RFC 7518 3.6 alg none", {"alg": "none"}, AlgorithmRefusedError),
    ("alg None", {"alg": "None"}, AlgorithmRefusedError),
    ("alg empty", {"alg": ""}, AlgorithmRefusedError),
    ("alg null", {"alg": None}, AlgorithmRefusedError),
    ("alg is a list", {"alg": ["ES256"]}, AlgorithmRefusedError),
    ("alg in lower case", {"alg": "es256"}, AlgorithmRefusedError),
    ("RFC 7518 3.2 HS256", {"alg": "HS256"}, AlgorithmRefusedError),
    ("HS384", {"alg": "HS384"}, AlgorithmRefusedError),
    ("HS512", {"alg": "HS512"}, AlgorithmRefusedError),
    ("RS384", {"alg": "RS384"}, AlgorithmRefusedError),
    ("RS512", {"alg": "RS512"}, AlgorithmRefusedError),
    ("PS256", {"alg": "PS256"}, AlgorithmRefusedError),
    ("EdDSA", {"alg": "EdDSA"}, AlgorithmRefusedError),
    ("ES256K", {"alg": "ES256K"}, AlgorithmRefusedError),
    ("RFC 8725 3.1 ES384 with a P-256 leaf", {"alg": "ES384"}, AlgorithmRefusedError),
    ("ES512 with a P-256 leaf", {"alg": "ES512"}, AlgorithmRefusedError),
    ("RS256 with a P-256 leaf", {"alg": "RS256"}, AlgorithmRefusedError),
    ("RFC 7515 4.1.11 crit", {"crit": ["exp"]}, UnknownFieldError),
    ("crit empty", {"crit": []}, UnknownFieldError),
    ("RFC 7797 3 b64 false", {"b64": False, "crit": ["b64"]}, UnknownFieldError),
    ("b64 true", {"b64": True}, UnknownFieldError),
    ("RFC 7515 4.1.2 jku", {"jku": "https://evil.example.org/keys"}, UnknownFieldError),
    ("RFC 7515 4.1.3 jwk", {"jwk": {"kty": "EC"}}, UnknownFieldError),
    ("RFC 7515 4.1.4 kid", {"kid": "1"}, UnknownFieldError),
    ("kid with a path", {"kid": "../../dev/null"}, UnknownFieldError),
    ("RFC 7515 4.1.5 x5u", {"x5u": "https://evil.example.org/chain"}, UnknownFieldError),
    ("RFC 7515 4.1.7 x5t", {"x5t": "a"}, UnknownFieldError),
    ("x5t#S256", {"x5t#S256": HASH}, UnknownFieldError),
    ("RFC 7515 4.1.10 cty", {"cty": "JWT"}, UnknownFieldError),
    ("RFC 7516 4.1.3 zip", {"zip": "DEF"}, UnknownFieldError),
    ("RFC 7516 4.1.2 enc", {"enc": "A128GCM"}, UnknownFieldError),
    ("iss in the header", {"iss": ME}, UnknownFieldError),
    ("a header in upper case", {"ALG": "ES256"}, UnknownFieldError),
    ("RFC 7515 4.1.6 x5c empty", {"x5c": []}, T),
    ("x5c is text", {"x5c": "MII"}, T),
    ("x5c null", {"x5c": None}, T),
    ("x5c of numbers", {"x5c": [1]}, T),
    ("x5c of empty text", {"x5c": [""]}, T),
    ("x5c not base64", {"x5c": ["!"]}, T),
    ("x5c base64url", {"x5c": ["__79"]}, T),
    ("x5c no certificate", {"x5c": ["AAAA"]}, UntrustedChainError),
    ("x5c of nine", {"x5c": ["AAAA"] * 9}, T),
]


@pytest.mark.parametrize(("clause", "header", "error"), HEADERS, ids=[h[0] for h in HEADERS])
def test_headers(lab, clause: str, header: dict, error: type[EvidenceError]) -> None:
    """Header: exactly `alg`, `typ` and `x5c`, each with the one value that fits."""
    with pytest.raises(error):
        lab.verify(lab.forge(header=header))


@pytest.mark.parametrize("name", ["alg", "typ", "x5c"])
def test_no_header_is_optional(lab, name: str) -> None:
    """Every header of the profile is required."""
    with pytest.raises(MalformedEvidenceError):
        lab.verify(lab.forge(drop_header=(name,)))


def test_x5c_spelling(lab) -> None:
    """A certificate has one spelling: no whitespace, no missing padding, no loose bits."""
    (der,) = lab.open(lab.mint().split(".")[0])["x5c"]
    for other in (der + "\n", " " + der, der[:40] + "\r\n" + der[40:], der.rstrip("=") if "=" in der else der + "===="):
        with pytest.raises((MalformedEvidenceError, UntrustedChainError)):
            lab.verify(lab.forge(header={"x5c": [other]}))


# ------------------------------------------------------------------------------------------ trust


def test_chain_of_another_trust_domain(lab) -> None:
    """TDB §3: an authority of one trust domain says nothing about another, even if both are trusted."""
    foreign = lab.other_ca.identity(ME)
    with pytest.raises(UntrustedChainError):
        lab.verify(lab.mint(identity=foreign))
    own = lab.other_ca.identity("spiffe://other.org/x")
    assert str(lab.verify(lab.mint(identity=own)).spiffe_id) == "spiffe://other.org/x"


def test_self_signed(lab) -> None:
    """A leaf that its own key signed is not trusted."""
    with pytest.raises(UntrustedChainError):
        lab.verify(lab.mint(identity=lab.Authority("example.org").identity()))


def test_swapped_leaf(lab) -> None:
    """A token signed by one workload does not become another's by its chain."""
    other = lab.ca.identity("spiffe://example.org/ns/prod/other")
    mine = lab.open(lab.mint().split(".")[0])
    with pytest.raises((errors.BadSignatureError, WrongIssuerError)):
        lab.verify(lab.forge(identity=other, header={"x5c": mine["x5c"]}))


@pytest.mark.parametrize(("start", "end"), [(NOW - 7200, NOW - 1), (NOW + 1, NOW + 7200), (NOW - 60, NOW)])
def test_leaf_validity(lab, start: float, end: float) -> None:
    """X509-SVID §5.1: the leaf holds now, whatever the token says."""
    identity = attrs.evolve(lab.ca.identity(start=start, end=end), not_after=NOW + 3600)
    with pytest.raises(UntrustedChainError):
        lab.verify(lab.mint(identity=identity))


BAD_LEAVES = {
    "X509-SVID 4.1 a signing certificate": {"is_ca": True},
    "X509-SVID 2 two URI names": {"uris": (ME, "spiffe://example.org/ns/prod/admin")},
    "X509-SVID 2 no name": {"has_san": False},
    "X509-SVID 4.3 no key usage": {"key_usage": None},
    "X509-SVID 3.1 a trust domain": {"uris": ("spiffe://example.org",)},
}


@pytest.mark.parametrize("clause", BAD_LEAVES)
def test_leaf(lab, clause: str) -> None:
    """A leaf that is no X509-SVID endorses nothing."""
    with pytest.raises((UntrustedChainError, WrongIssuerError)):
        lab.verify(lab.mint(identity=lab.ca.identity(**BAD_LEAVES[clause])))


def test_chain_with_intermediates(lab) -> None:
    """The intermediates travel in `x5c`, and without them the chain does not hold."""
    identity = lab.ca.identity(intermediates=2)
    assert lab.verify(lab.mint(identity=identity)).spiffe_id == identity.spiffe_id
    with pytest.raises(UntrustedChainError):
        lab.verify(lab.mint(identity=attrs.evolve(identity, chain=identity.chain[:1])))


def test_current_bundle(lab) -> None:
    """The current bundle decides: a removed authority is untrusted at the next verification, remembered or not."""
    verifier = TaskTokenVerifier(lab.AUDIENCE, lab.bundles)
    token = lab.mint()
    first = verifier.verify(token, now=NOW)
    assert verifier.verify(token, now=NOW) is first
    lab.bundles.known[TrustDomain("example.org")] = lab.Authority("example.org").bundle()
    with pytest.raises(UntrustedChainError):
        verifier.verify(token, now=NOW)
    lab.bundles.known.clear()
    with pytest.raises(UntrustedChainError):
        verifier.verify(token, now=NOW)


def test_rotated_bundle_that_keeps_the_authority(lab) -> None:
    """A bundle with one more authority still verifies, by verifying anew."""
    verifier = TaskTokenVerifier(lab.AUDIENCE, lab.bundles)
    token = lab.mint()
    first = verifier.verify(token, now=NOW)
    lab.bundles.known[TrustDomain("example.org")] = lab.ca.bundle(lab.Authority("example.org"))
    again = verifier.verify(token, now=NOW)
    assert again is not first
    assert again.jti == first.jti


def test_authority_ends_before_the_token(lab) -> None:
    """What is remembered ends with the authority that it rests on."""
    ca = lab.Authority("example.org", days=10 / 86400)
    verifier = TaskTokenVerifier(lab.AUDIENCE, lab.Bundles(ca))
    token = lab.mint(identity=ca.identity())
    verifier.verify(token, now=NOW)
    with pytest.raises(UntrustedChainError):
        verifier.verify(token, now=NOW + 11)


def test_memory_is_bounded(lab) -> None:
    """At most `cache_size` tokens are remembered, and a refusal never is."""
    verifier = TaskTokenVerifier(lab.AUDIENCE, lab.bundles, cache_size=3)
    for _ in range(10):
        verifier.verify(lab.mint(), now=NOW)
    assert "3 tokens" in repr(verifier)
    bad = lab.forge(claims={"aud": "https://other.example.org"})
    for _ in range(2):
        with pytest.raises(WrongAudienceError):
            verifier.verify(bad, now=NOW)
    assert "3 tokens" in repr(verifier)


def test_remembered_per_audience(lab) -> None:
    """What one verifier remembers says nothing to one of another audience."""
    token = lab.mint()
    TaskTokenVerifier(lab.AUDIENCE, lab.bundles).verify(token, now=NOW)
    with pytest.raises(WrongAudienceError):
        TaskTokenVerifier("https://other.example.org", lab.bundles).verify(token, now=NOW)


# ------------------------------------------------------------------------------------------ minting


def test_jwt_identity_cannot_mint(lab) -> None:
    """Without the SVID's key there is no endorsement."""
    identity = attrs.evolve(lab.identity, kind=SvidKind.JWT, key=None, chain=())
    with pytest.raises(IssuanceError, match="SVID's key"):
        lab.mint(identity=identity)


def test_too_large_to_send(lab) -> None:
    """A token over the limit is refused where it is made, not where it arrives."""
    task = Task(
        "big",
        tuple(Permission(lab.READ, Entity("Shop::Order", f"{n}" + "x" * 400)) for n in range(64)),
        timedelta(minutes=2),
    )
    with pytest.raises(IssuanceError, match="characters"):
        lab.mint(task=task)


def test_sixty_four_permissions_fit(lab) -> None:
    """The largest task with ordinary ids can be carried."""
    task = Task(
        "big", tuple(Permission(lab.READ, Entity("Shop::Order", f"{n}")) for n in range(50)), timedelta(minutes=2)
    )
    token = lab.mint(task=task)
    assert len(token) <= 16_384
    assert len(lab.verify(token).permissions) == 50


def test_remint_keeps_the_key_and_changes_the_id(lab) -> None:
    """After a rotation another SVID endorses the same task key, under another `jti`."""
    first = lab.verify(lab.mint())
    second = lab.verify(lab.mint(identity=lab.ca.identity(version=2)))
    assert first.jkt == second.jkt
    assert first.jti != second.jti
    assert first.thumbprint != second.thumbprint


def test_reprs_show_no_token(lab) -> None:
    """Rule 10: no rendering of a value shows the token or its hash."""
    minted = lab.minted()
    verified = lab.verify(minted.text)
    for shown in (repr(minted), str(minted), repr(verified), repr(TaskKey())):
        assert minted.text[:40] not in shown
        assert minted.text[-40:] not in shown
        assert floor(NOW) == NOW


@pytest.mark.parametrize(
    "arguments",
    [{"audience": ""}, {"audience": ["https://orders.example.org"]}, {"max_ttl": timedelta(0)}, {"cache_size": -1}],
)
def test_verifier_configuration(lab, arguments: dict) -> None:
    """A verifier without an audience or with bounds that are none is refused."""
    options = {"audience": lab.AUDIENCE} | arguments
    with pytest.raises(ConfigurationError):
        TaskTokenVerifier(options.pop("audience"), lab.bundles, **options)


def test_unresolved_action_is_not_minted(lab) -> None:
    """An action by name has no uid that a Guard could compare."""
    with pytest.raises(InvalidTaskError):
        lab.mint(permissions=(Permission("refund", lab.ORDER),))


@pytest.mark.parametrize("bits", [1024, 2048])
def test_rsa_leaf_size(lab, bits: int) -> None:
    """RFC 7518 §3.3: RSA of 2048 bits or more; below, neither the chain nor the algorithm holds."""
    key = rsa.generate_private_key(65537, bits)
    assert algorithm_of(key.public_key()) == ("RS256" if bits == 2048 else None)
    signature = lab.sign_raw(key, b"x", "RS256")
    assert is_signed_by(key.public_key(), signature, b"x") is (bits == 2048)


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate().public_key(), object(), None])
def test_keys_that_no_svid_has(key: object) -> None:
    """A key of another kind has no algorithm here, and verifies nothing."""
    assert algorithm_of(key) is None
    assert not is_signed_by(key, bytes(64), b"x")


@pytest.mark.parametrize("how", ["python", "libc"])
def test_fork_in_the_middle_of_another_threads_verification(how) -> None:
    """A child forked while another thread remembers a token, or a chain, does not wait for that thread (bar 11)."""
    code = """
import contextlib, ctypes, os, signal, sys
from jitwi.identity import x509_svid
from jitwi.testing import FakeClock, TestCa
from jitwi.testing.guard import CaBundles, identity_of
from jitwi.task import Entity, Permission, Task
from jitwi.tokens import TaskKey, TaskTokenVerifier, mint_task_token
from datetime import timedelta
clock = FakeClock(wall=1_800_000_000.0)
ca = TestCa("example.org", clock=clock)
task = Task("t", (Permission(Entity("A::Action", "read"), Entity("A::B", "1")),), timedelta(seconds=60))
now = clock.now().wall
def mint(who):
    who = identity_of(ca.issue(f"spiffe://example.org/{who}"), clock=clock)
    return mint_task_token(who, task=task, digest=task.digest(txn="x"), permissions=task.permissions, audience="a",
                           jkt=TaskKey().jkt, txn="x", now=now, ends_at=now + 60).text
verifier = TaskTokenVerifier("a", CaBundles(ca))
verifier.verify(mint("a"), now=now)
other = mint("b")
with contextlib.ExitStack() as held:
    for memory in (verifier._tokens, verifier._chains, x509_svid._memory):
        for lock in memory._locks.values():
            held.enter_context(lock)
    pid = os.fork() if sys.argv[1] == "python" else ctypes.PyDLL(None).fork()
    if not pid:
        signal.alarm(20)
        verifier.verify(other, now=now)
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "0\n", done.stderr
