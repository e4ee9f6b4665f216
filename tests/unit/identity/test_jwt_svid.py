# SPDX-License-Identifier: Apache-2.0
"""JWT-SVIDs against the standard, clause by clause (C6, C7, C8, J-1 to J-9; bar 5)."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.errors import InvalidSvidError, JitwiError
from jitwi.identity import StaticBundleSource, parse_and_verify, parse_jwks
from jitwi.identity.jwt_svid import ALGORITHMS, MAX_INSTANT, MAX_JWT_LIFETIME, MAX_TOKEN_BYTES
from jitwi.spiffe_id import TrustDomain
from jitwi.testing.ca import TestCa, b64url, jwk, sign_compact
from jitwi.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_800_000_000.0
ID = "spiffe://example.org/ns/prod/refunds"
AUD = "https://orders.example.org"
RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
CA = TestCa("example.org", clock=FakeClock(NOW, 0.0), jwt_key=P256)
OTHER = TestCa("other.org", clock=FakeClock(NOW, 0.0))
KEYS = {
    "ES256": P256,
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
} | {name: RSA for name in ALGORITHMS if name[0] in "RP"}
HEAD = {"alg": "ES256", "kid": CA.jwt_kid, "typ": "JWT"}
BODY = {"sub": ID, "aud": [AUD], "iat": int(NOW), "exp": int(NOW) + 300}


def verify(token: str, *, audience: str = AUD, now: float = NOW, bundles: object = None) -> Any:
    """Verify with the usual bundle."""
    return parse_and_verify(token, audience=audience, bundles=CA.jwt_bundle if bundles is None else bundles, now=now)


def raw(header: object = HEAD, body: object = BODY) -> str:
    """Sign header and claims, mappings or raw text, with the good key."""
    return sign_compact(P256, header, body)


def spelled(change: Callable[[list[str]], str]) -> str:
    """Change the text of a good token."""
    return change(CA.jwt(ID, AUD).split("."))


GOOD: dict[str, Callable[[], str]] = {
    "usual": lambda: CA.jwt(ID, AUD),
    "J-4 no typ": lambda: CA.jwt(ID, AUD, header={"typ": None}),
    "J-4 typ JOSE": lambda: CA.jwt(ID, AUD, header={"typ": "JOSE"}),
    "nested as deep as may be": lambda: raw(body=B[:-1] + ', "a": ' + "[" * 63 + '"[["' + "]" * 63 + "}"),
    "J-5 no iat": lambda: CA.jwt(ID, AUD, claims={"iat": None}),
    "J-5 aud as text": lambda: CA.jwt(ID, AUD, claims={"aud": AUD}),
    "J-5 other claims": lambda: CA.jwt(ID, AUD, claims={"jti": "1", "iss": "x", "nested": {"a": [1, 2.5, None]}}),
    "nbf reached": lambda: CA.jwt(ID, AUD, claims={"nbf": int(NOW)}),
    "iat a little ahead": lambda: CA.jwt(ID, AUD, claims={"iat": int(NOW) + 4}),
    "exp in one second": lambda: CA.jwt(ID, AUD, claims={"exp": int(NOW) + 1}),
    "longest life": lambda: CA.jwt(ID, AUD, ttl=MAX_JWT_LIFETIME),
}


def big(value: str, member: str = "exp") -> str:
    """Return claims as raw text with one value spelled as given."""
    body = json.dumps({key: val for key, val in BODY.items() if key != member})
    return raw(body=body[:-1] + f', "{member}": {value}}}')


SHA256 = ec.ECDSA(hashes.SHA256())
H, B = json.dumps(HEAD), json.dumps(BODY)
BAD: dict[str, tuple[str, Callable[[], Any]]] = {
    # J-1: form
    "J-1 empty": ("form", lambda: ""),
    "J-1 one part": ("form", lambda: "abc"),
    "J-1 two parts": ("form", lambda: spelled(lambda p: ".".join(p[:2]))),
    "J-1 four parts": ("form", lambda: spelled(lambda p: ".".join([*p, "x"]))),
    "J-1 no signature": ("form", lambda: spelled(lambda p: f"{p[0]}.{p[1]}.")),
    "J-1 empty header": ("form", lambda: spelled(lambda p: f".{p[1]}.{p[2]}")),
    "J-1 JSON serialization": (
        "form",
        lambda: spelled(lambda p: json.dumps({"payload": p[1], "protected": p[0], "signature": p[2]})),
    ),
    "J-1 not ASCII": ("form", lambda: spelled(lambda p: f"{p[0]}.{p[1]}.{p[2]}\u00e4")),
    "C7 bytes": ("type", lambda: CA.jwt(ID, AUD).encode()),
    "C7 None": ("type", lambda: None),
    "C7 too large": ("too-large", lambda: "a" * (MAX_TOKEN_BYTES + 1)),
    "C7 line end": ("base64url", lambda: CA.jwt(ID, AUD) + "\n"),
    "C7 space": ("base64url", lambda: " " + CA.jwt(ID, AUD)),
    "C7 padded": ("base64url", lambda: spelled(lambda p: f"{p[0]}.{p[1]}.{p[2]}==")),
    "C7 padded header": ("base64url", lambda: spelled(lambda p: f"{p[0]}=.{p[1]}.{p[2]}")),
    "C7 standard alphabet": ("base64url", lambda: spelled(lambda p: f"{p[0]}.{p[1]}.{'+/' * 43}")),
    "C7 impossible length": ("base64url", lambda: spelled(lambda p: f"{p[0]}.{p[1]}.{p[2][:-1]}")),
    "C7 bits left over": ("base64url", lambda: spelled(lambda p: f"{p[0]}.{p[1]}.{p[2][:-1]}B")),
    # the JSON itself (C7)
    "C7 header is a list": ("json", lambda: raw(header="[]")),
    "C7 header is garbage": ("json", lambda: raw(header="{")),
    "C7 claims are a list": ("json", lambda: raw(body="[]")),
    "C7 claims are text": ("json", lambda: raw(body='"x"')),
    "C7 claims are garbage": ("json", lambda: raw(body="garbage")),
    "C7 claims have a tail": ("json", lambda: raw(body=B + "x")),
    "C7 twice alg": ("json", lambda: raw(header=H[:-1] + ', "alg": "ES256"}')),
    "C7 twice sub": ("json", lambda: raw(body=B[:-1] + f', "sub": "{ID}"}}')),
    "C7 twice exp": ("json", lambda: raw(body=B[:-1] + ', "exp": 1}')),
    "C7 twice nested": ("json", lambda: raw(body=B[:-1] + ', "a": {"b": 1, "b": 2}}')),
    "C7 twice by escape": ("json", lambda: raw(body=B[:-1] + ', "s\\u0075b": "x"}')),
    "C7 UTF-16": (
        "json",
        lambda: sign_compact(P256, HEAD, "").replace("..", f".{b64url(B.encode('utf-16'))}."),
    ),
    "C7 byte order mark": ("json", lambda: raw(body="\ufeff" + B)),
    "C7 NaN": ("json", lambda: big("NaN")),
    "C7 Infinity": ("json", lambda: big("Infinity")),
    "C7 5,000 digits": ("json", lambda: big("9" * 5000)),
    "C7 1e999": ("json", lambda: big("1e999")),
    "C7 nested too deep": ("json", lambda: raw(body=B[:-1] + ', "a": ' + "[" * 64 + "]" * 64 + "}")),
    "C7 nested in objects": ("json", lambda: raw(body=B[:-1] + ', "a": ' + '{"a":' * 64 + "1" + "}" * 65)),
    "C7 deep nesting": ("json", lambda: raw(body=B[:-1] + ', "a": ' + "[" * 5000 + "]" * 5000 + "}")),
    # J-2, J-3, J-4: header
    "J-3 no alg": ("algorithm", lambda: CA.jwt(ID, AUD, header={"alg": None})),
    "J-3 none": ("algorithm", lambda: CA.jwt(ID, AUD, header={"alg": "none"})),
    "J-3 HS256": ("algorithm", lambda: CA.jwt(ID, AUD, header={"alg": "HS256"})),
    "J-3 EdDSA": ("algorithm", lambda: CA.jwt(ID, AUD, header={"alg": "EdDSA"})),
    "J-3 ES256K": ("algorithm", lambda: CA.jwt(ID, AUD, header={"alg": "ES256K"})),
    "J-3 lower case": ("algorithm", lambda: CA.jwt(ID, AUD, header={"alg": "es256"})),
    "J-3 a list": ("algorithm", lambda: CA.jwt(ID, AUD, header={"alg": ["ES256"]})),
    "J-3 before all": ("algorithm", lambda: CA.jwt(ID, AUD, header={"alg": "none", "crit": ["x"], "kid": None})),
    "J-3 ES384 on P-256": ("algorithm-key", lambda: CA.jwt(ID, AUD, header={"alg": "ES384"})),
    "J-3 ES512 on P-256": ("algorithm-key", lambda: CA.jwt(ID, AUD, header={"alg": "ES512"})),
    "J-3 RS256 on P-256": ("algorithm-key", lambda: CA.jwt(ID, AUD, header={"alg": "RS256"})),
    "J-3 PS256 on P-256": ("algorithm-key", lambda: CA.jwt(ID, AUD, header={"alg": "PS256"})),
    "J-2 crit": ("header", lambda: CA.jwt(ID, AUD, header={"crit": ["exp"]})),
    "J-2 b64": ("header", lambda: CA.jwt(ID, AUD, header={"b64": False})),
    "J-2 jwk": ("header", lambda: CA.jwt(ID, AUD, header={"jwk": jwk(P256, "x")})),
    "J-2 jku": ("header", lambda: CA.jwt(ID, AUD, header={"jku": "https://x"})),
    "J-2 x5c": ("header", lambda: CA.jwt(ID, AUD, header={"x5c": []})),
    "J-2 x5u": ("header", lambda: CA.jwt(ID, AUD, header={"x5u": "https://x"})),
    "J-2 cty": ("header", lambda: CA.jwt(ID, AUD, header={"cty": "JWT"})),
    "J-4 no kid": ("kid", lambda: CA.jwt(ID, AUD, header={"kid": None})),
    "J-4 empty kid": ("kid", lambda: CA.jwt(ID, AUD, header={"kid": ""})),
    "J-4 kid is a number": ("kid", lambda: CA.jwt(ID, AUD, header={"kid": 1})),
    "J-4 unknown kid": ("unknown-kid", lambda: CA.jwt(ID, AUD, header={"kid": "other"})),
    "J-4 empty typ": ("typ", lambda: CA.jwt(ID, AUD, header={"typ": ""})),
    "J-4 typ at+jwt": ("typ", lambda: CA.jwt(ID, AUD, header={"typ": "at+jwt"})),
    "J-4 typ in lower case": ("typ", lambda: CA.jwt(ID, AUD, header={"typ": "jwt"})),
    "J-4 typ is a number": ("typ", lambda: CA.jwt(ID, AUD, header={"typ": 1})),
    # signature
    "another key": ("signature", lambda: CA.jwt(ID, AUD, key=ec.generate_private_key(ec.SECP256R1()))),
    "another payload": (
        "signature",
        lambda: spelled(lambda p: f"{p[0]}.{b64url(json.dumps(BODY | {'x': 1}).encode())}.{p[2]}"),
    ),
    "zero signature": ("signature", lambda: spelled(lambda p: f"{p[0]}.{p[1]}.{b64url(bytes(64))}")),
    "short signature": ("signature", lambda: spelled(lambda p: f"{p[0]}.{p[1]}.{b64url(bytes(63))}")),
    "DER signature": ("signature", lambda: spelled(lambda p: f"{p[0]}.{p[1]}.{b64url(P256.sign(b'x', SHA256))}")),
    # J-5: subject
    "J-5 no sub": ("sub", lambda: CA.jwt(ID, AUD, claims={"sub": None})),
    "J-5 sub is a number": ("sub", lambda: CA.jwt(ID, AUD, claims={"sub": 1})),
    "J-5 sub is a list": ("sub", lambda: CA.jwt(ID, AUD, claims={"sub": [ID]})),
    "J-5 sub is a URL": ("sub", lambda: CA.jwt("https://example.org/a", AUD)),
    "J-5 sub without path": ("sub", lambda: CA.jwt("spiffe://example.org", AUD)),
    "J-5 sub with a line end": ("sub", lambda: CA.jwt(ID + "\n", AUD)),
    "J-5 sub in upper case": ("sub", lambda: CA.jwt("spiffe://EXAMPLE.ORG/a", AUD)),
    "J-5 sub with a lone surrogate": ("sub", lambda: raw(body=json.dumps(BODY | {"sub": ID + "\ud800"}))),
    "ID-6 another trust domain": ("untrusted-domain", lambda: CA.jwt("spiffe://other.org/a", AUD)),
    # J-5, C6: audience
    "J-5 no aud": ("aud", lambda: CA.jwt(ID, AUD, claims={"aud": None})),
    "J-5 empty aud": ("aud", lambda: CA.jwt(ID, AUD, claims={"aud": []})),
    "J-5 aud is a number": ("aud", lambda: CA.jwt(ID, AUD, claims={"aud": 1})),
    "J-5 aud has a number": ("aud", lambda: CA.jwt(ID, AUD, claims={"aud": [AUD, 1]})),
    "C6 another aud": ("aud", lambda: CA.jwt(ID, "https://other")),
    "C6 two audiences": ("aud", lambda: CA.jwt(ID, [AUD, "https://other"])),
    "C6 twice our own": ("aud", lambda: CA.jwt(ID, [AUD, AUD])),
    "C6 other case": ("aud", lambda: CA.jwt(ID, AUD.upper())),
    "C6 a prefix": ("aud", lambda: CA.jwt(ID, AUD[:-1])),
    "C6 with a slash": ("aud", lambda: CA.jwt(ID, AUD + "/")),
    # J-5, C7: times
    "J-5 no exp": ("exp", lambda: CA.jwt(ID, AUD, claims={"exp": None})),
    "J-5 null exp": ("exp", lambda: big("null")),
    "C7 exp is text": ("exp", lambda: CA.jwt(ID, AUD, claims={"exp": str(int(NOW) + 300)})),
    "C7 exp is a float": ("exp", lambda: CA.jwt(ID, AUD, claims={"exp": NOW + 300.5})),
    "C7 exp is true": ("exp", lambda: CA.jwt(ID, AUD, claims={"exp": True})),
    "C7 exp is zero": ("exp", lambda: CA.jwt(ID, AUD, claims={"exp": 0})),
    "C7 exp is negative": ("exp", lambda: CA.jwt(ID, AUD, claims={"exp": -1})),
    "C7 exp is too far": ("exp", lambda: CA.jwt(ID, AUD, claims={"exp": MAX_INSTANT + 1})),
    "C7 exp is 2^63": ("exp", lambda: CA.jwt(ID, AUD, claims={"exp": 2**63})),
    "J-5 exp is now": ("expired", lambda: CA.jwt(ID, AUD, claims={"exp": int(NOW), "iat": int(NOW) - 9})),
    "J-5 exp is past": ("expired", lambda: CA.jwt(ID, AUD, claims={"exp": int(NOW) - 1, "iat": int(NOW) - 9})),
    "C10 lives too long": ("lifetime", lambda: CA.jwt(ID, AUD, ttl=MAX_JWT_LIFETIME + 1)),
    "C10 lives too long, no iat": ("lifetime", lambda: CA.jwt(ID, AUD, ttl=3 * 365 * 86400, claims={"iat": None})),
    "C7 iat is text": ("iat", lambda: CA.jwt(ID, AUD, claims={"iat": "1"})),
    "C7 iat is a float": ("iat", lambda: CA.jwt(ID, AUD, claims={"iat": NOW + 0.5})),
    "C7 iat is ahead": ("iat", lambda: CA.jwt(ID, AUD, claims={"iat": int(NOW) + 6})),
    "C7 iat after exp": ("iat", lambda: CA.jwt(ID, AUD, claims={"iat": int(NOW) + 3, "exp": int(NOW) + 3})),
    "C7 nbf is ahead": ("nbf", lambda: CA.jwt(ID, AUD, claims={"nbf": int(NOW) + 1})),
    "C7 nbf is text": ("nbf", lambda: CA.jwt(ID, AUD, claims={"nbf": "1"})),
}


@pytest.mark.parametrize("case", GOOD)
def test_good_token(case: str) -> None:
    """What the standard allows is verified."""
    token = GOOD[case]()
    svid = verify(token)
    assert (str(svid.spiffe_id), svid.audience) == (ID, AUD)
    assert token not in repr(svid)


@pytest.mark.parametrize("case", BAD)
def test_bad_token(case: str) -> None:
    """What the standard does not allow is refused, for its own reason, with the one error type."""
    reason, make = BAD[case]
    with pytest.raises(InvalidSvidError) as caught:
        verify(make())
    assert caught.value.reasons[0] == reason


def test_table_is_large_enough() -> None:
    """At least 80 cases."""
    assert len(GOOD) + len(BAD) >= 80


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_algorithm(algorithm: str) -> None:
    """J-3: the nine algorithms, each with its own kind of key."""
    own = TestCa("example.org", clock=FakeClock(NOW, 0.0), jwt_key=KEYS[algorithm])
    token = own.jwt(ID, AUD, header={"alg": algorithm})
    assert str(verify(token, bundles=own.jwt_bundle).spiffe_id) == ID


@pytest.mark.parametrize("algorithm", ["RS256", "PS384", "PS512"])
def test_scheme_confusion(algorithm: str) -> None:
    """A signature of one RSA scheme is not one of another."""
    own = TestCa("example.org", clock=FakeClock(NOW, 0.0), jwt_key=RSA)
    header, body, _ = own.jwt(ID, AUD, header={"alg": algorithm}).split(".")
    other = own.jwt(ID, AUD, header={"alg": "PS256"}).split(".")[2]
    with pytest.raises(InvalidSvidError):
        verify(f"{header}.{body}.{other}", bundles=own.jwt_bundle)


@pytest.mark.parametrize("audience", ["", "a\nb", None, ["x"], 1, "x" * 3000])
def test_bad_audience_argument(audience: object) -> None:
    """C6: the audience asked for is one printable text."""
    with pytest.raises(InvalidSvidError):
        verify(CA.jwt(ID, AUD), audience=audience)


def test_each_domain_by_its_own_bundle() -> None:
    """TB-1: with both bundles at hand, another domain's key does not sign for ours."""
    both = StaticBundleSource(jwt=[CA.jwt_bundle, OTHER.jwt_bundle])
    assert verify(OTHER.jwt("spiffe://other.org/a", AUD), bundles=both)
    with pytest.raises(InvalidSvidError) as caught:
        verify(OTHER.jwt(ID, AUD), bundles=both)
    assert caught.value.reasons[0] == "unknown-kid"


def test_same_kid_in_two_domains() -> None:
    """TB-1: a key id names a key of one domain, never of two."""
    other = TestCa("other.org", clock=FakeClock(NOW, 0.0))
    other.rotate_jwt_authority(kid=CA.jwt_kid)
    both = StaticBundleSource(jwt=[CA.jwt_bundle, other.jwt_bundle])
    with pytest.raises(InvalidSvidError) as caught:
        verify(other.jwt(ID, AUD), bundles=both)
    assert caught.value.reasons[0] == "signature"


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.text(alphabet="abcAZ09-_.=", max_size=120), st.binary(max_size=60)))
def test_only_typed_errors_for_garbage(text: object) -> None:
    """Whatever comes, only the library's own error leaves."""
    with pytest.raises(JitwiError):
        verify(text)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from(["sub", "aud", "exp", "iat", "nbf", "x"]), x, max_size=5)
        ),
        max_leaves=8,
    )
)
def test_only_typed_errors_for_signed_oddities(body: object) -> None:
    """Also a well-signed token with any claims whatever is verified or refused by the one error."""
    claims = json.dumps({**BODY, **body} if isinstance(body, dict) else body)
    try:
        svid = verify(raw(body=claims))
    except InvalidSvidError:
        return
    assert str(svid.spiffe_id) == ID
    assert svid.expires_at > NOW


def test_bits_of_a_good_token_matter() -> None:
    """Any one changed character makes it another token, and refused."""
    token = CA.jwt(ID, AUD)
    for at in range(0, len(token), 7):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        with pytest.raises(InvalidSvidError):
            verify(changed)


def _keys(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


GOOD_KEY = jwk(P256, "good")
ODD_KEYS: dict[str, dict[str, Any]] = {
    "TB-4 unknown kty": {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "odd"},
    "TB-4 no kty": {"kid": "odd"},
    "J-8 no kid": jwk(P256, None),
    "J-8 empty kid": jwk(P256, ""),
    "J-8 kid is a number": jwk(P256, None) | {"kid": 1},
    "J-8 another use": jwk(P256, "odd") | {"use": "x509-svid"},
    "J-8 use in upper case": jwk(P256, "odd") | {"use": "JWT-SVID"},
    "J-8 use sig": jwk(P256, "odd") | {"use": "sig"},
    "J-8 use null": jwk(P256, "odd") | {"use": None},
    "unknown curve": jwk(P256, "odd") | {"crv": "P-257"},
    "curve mismatch": jwk(P256, "odd") | {"crv": "P-384"},
    "point off the curve": jwk(P256, "odd") | {"x": b64url(bytes(32))},
    "short coordinate": jwk(P256, "odd") | {"x": b64url(bytes(31))},
    "padded coordinate": jwk(P256, "odd") | {"x": GOOD_KEY["x"] + "="},
    "no coordinate": {key: value for key, value in jwk(P256, "odd").items() if key != "x"},
    "RSA-1024": jwk(rsa.generate_private_key(65537, 1024), "odd"),  # noqa: S505 - must be ignored
    "RSA exponent 1": jwk(RSA, "odd") | {"e": "AQ"},
    "RSA even exponent": jwk(RSA, "odd") | {"e": "AQAA"},
    "RSA no modulus": jwk(RSA, "odd") | {"n": ""},
    "private key": jwk(P256, "odd") | {"d": "AA"},
    "encryption only": jwk(P256, "odd") | {"key_ops": ["encrypt"]},
    "alg of another family": jwk(P256, "odd") | {"alg": "RS256"},
    "alg HS256": jwk(P256, "odd") | {"alg": "HS256"},
    "kty is a list": {"kty": ["EC"], "kid": "odd"},
    "crv is a list": jwk(P256, "odd") | {"crv": []},
}


@pytest.mark.parametrize("case", ODD_KEYS)
def test_odd_key_is_ignored(case: str) -> None:
    """C8: one odd key never spoils the set, and is never used."""
    bundle = parse_jwks(TrustDomain("example.org"), _keys(ODD_KEYS[case], GOOD_KEY))
    assert list(bundle.keys) == ["good"]


@pytest.mark.parametrize("count", [2, 3])
def test_two_keys_under_one_name(count: int) -> None:
    """Two keys with one key id: neither counts."""
    bundle = parse_jwks(TrustDomain("example.org"), _keys(*[GOOD_KEY] * count))
    assert dict(bundle.keys) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        '{"keys": {}}',
        '{"keys": null}',
        '{"keys": [], "keys": []}',
        "\ufeff{}",
        '{"keys": ' + "[" * 9000,
    ],
)
def test_not_a_key_set(text: str) -> None:
    """TB-3, TB-5: a document that is not a key set is refused whole."""
    with pytest.raises(InvalidSvidError):
        parse_jwks(TrustDomain("example.org"), text)


def test_empty_set_invalidates_all() -> None:
    """TB-3: no key means that no JWT-SVID of that domain is valid."""
    bundle = parse_jwks(TrustDomain("example.org"), '{"keys": []}')
    with pytest.raises(InvalidSvidError):
        verify(CA.jwt(ID, AUD), bundles=bundle)


def test_bundle_is_immutable() -> None:
    """C12: what is given out cannot change the trust of anybody."""
    with pytest.raises(TypeError):
        CA.jwt_bundle.keys["x"] = P256.public_key()  # type: ignore[index]


def test_token_of_py_spiffe_shape() -> None:
    """The wire form is plain base64url JSON: a token written by hand is read."""
    token = CA.jwt(ID, AUD)
    header = json.loads(base64.urlsafe_b64decode(token.split(".", maxsplit=1)[0] + "=="))
    assert header == HEAD
