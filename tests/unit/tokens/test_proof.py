# SPDX-License-Identifier: Apache-2.0
"""The proof: RFC 9449 §4.3 line by line, and the use that it is bound to."""

from __future__ import annotations

import base64
import json
from datetime import timedelta

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.errors import ConfigurationError, EvidenceError, InvalidTaskError, JitwiError, StateError
from jitwi.task import Entity
from jitwi.tokens import (
    InputMismatchError,
    MalformedProofError,
    ProofError,
    ProofKeyError,
    ProofSignatureError,
    ProofTargetError,
    ProofTimeError,
    ProofTokenError,
    TaskKey,
    UseMismatchError,
    input_digest,
    normalise_url,
    verify_proof,
)

NOW = 1_800_000_000.0
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
USE = {
    "type": "jitwi_use",
    "action_type": "Shop::Action",
    "actions": ["refund"],
    "datatypes": ["Shop::Order"],
    "identifier": "42",
}


def check(lab, proof: str, token: object = None, **changes: object):
    """Verify as the Guard does."""
    arguments = {"method": "POST", "url": lab.URL, "now": NOW} | changes
    return verify_proof(proof, token=token or lab.verify(lab.mint()), **arguments)


def forge(lab, token, *, header=None, claims=None, drop=(), key=None, header_text=None, payload_text=None) -> str:
    """A proof with other content, validly signed by the key at hand."""
    head, body, _ = lab.prove(token).split(".")
    new_head, new_body = lab.open(head) | (header or {}), lab.open(body) | (claims or {})
    for name in drop:
        new_head.pop(name, None)
        new_body.pop(name, None)
    text = f"{lab.b64(header_text or json.dumps(new_head))}.{lab.b64(payload_text or json.dumps(new_body))}"
    return f"{text}.{lab.b64((key or lab.key).sign(text.encode()))}"


def test_round_trip(lab) -> None:
    """A proof says which key, which use, which input."""
    token = lab.verify(lab.mint())
    digest = input_digest({"amount": 30})
    proof = check(lab, lab.prove(token, digest=digest), token)
    assert (proof.action, proof.resource, proof.input_digest) == (lab.REFUND, lab.ORDER, digest)
    assert (proof.jkt, proof.issued_at, proof.replay_until) == (lab.key.jkt, NOW, NOW + 61)
    proof.require_use(lab.REFUND, lab.ORDER, input={"amount": 30})


def test_registered_names_only(lab) -> None:
    """RFC 9449 §4.2: header and claims of a proof, and RFC 9396 for the use."""
    head, body, _ = lab.prove().split(".")
    assert lab.open(head).keys() == {"typ", "alg", "jwk"}
    assert lab.open(head)["jwk"].keys() == {"kty", "crv", "x", "y"}
    assert lab.open(body).keys() == {"jti", "htm", "htu", "iat", "ath", "authorization_details"}
    assert lab.open(body)["authorization_details"] == [USE]


X, Y = "A" * 43, "A" * 43
TABLE = [
    ("4.3 (3) no jti", {"drop": ("jti",)}, MalformedProofError),
    ("4.3 (3) no htm", {"drop": ("htm",)}, MalformedProofError),
    ("4.3 (3) no htu", {"drop": ("htu",)}, MalformedProofError),
    ("4.3 (3) no iat", {"drop": ("iat",)}, MalformedProofError),
    ("4.3 (3) no ath", {"drop": ("ath",)}, MalformedProofError),
    ("no use", {"drop": ("authorization_details",)}, MalformedProofError),
    ("4.3 (4) typ JWT", {"header": {"typ": "JWT"}}, MalformedProofError),
    ("4.3 (4) typ jit+jwt", {"header": {"typ": "jit+jwt"}}, MalformedProofError),
    ("4.3 (4) no typ", {"drop": ("typ",)}, MalformedProofError),
    ("4.3 (5) alg none", {"header": {"alg": "none"}}, MalformedProofError),
    ("4.3 (5) alg HS256", {"header": {"alg": "HS256"}}, MalformedProofError),
    ("4.3 (5) alg ES384", {"header": {"alg": "ES384"}}, MalformedProofError),
    ("4.3 (5) alg RS256", {"header": {"alg": "RS256"}}, MalformedProofError),
    (
        "4.3 (7) private jwk",
        {"header": {"jwk": {"kty": "EC", "crv": "P-256", "x": X, "y": Y, "d": X}}},
        MalformedProofError,
    ),
    ("4.3 (7) no jwk", {"drop": ("jwk",)}, MalformedProofError),
    ("jwk is text", {"header": {"jwk": "x"}}, MalformedProofError),
    ("jwk of another curve", {"header": {"jwk": {"kty": "EC", "crv": "P-384", "x": X, "y": Y}}}, MalformedProofError),
    ("jwk of another type", {"header": {"jwk": {"kty": "oct", "k": X}}}, MalformedProofError),
    ("jwk RSA", {"header": {"jwk": {"kty": "RSA", "n": X, "e": "AQAB"}}}, MalformedProofError),
    ("jwk at infinity", {"header": {"jwk": {"kty": "EC", "crv": "P-256", "x": X, "y": Y}}}, MalformedProofError),
    (
        "jwk off the curve",
        {"header": {"jwk": {"kty": "EC", "crv": "P-256", "x": "B" * 42 + "A", "y": Y}}},
        MalformedProofError,
    ),
    ("jwk with a number", {"header": {"jwk": {"kty": "EC", "crv": "P-256", "x": 1, "y": Y}}}, MalformedProofError),
    (
        "jwk with a short coordinate",
        {"header": {"jwk": {"kty": "EC", "crv": "P-256", "x": "AA", "y": Y}}},
        MalformedProofError,
    ),
    (
        "jwk with more members",
        {"header": {"jwk": {"kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": "1"}}},
        MalformedProofError,
    ),
    ("kid", {"header": {"kid": "1"}}, MalformedProofError),
    ("crit", {"header": {"crit": ["exp"]}}, MalformedProofError),
    ("x5c", {"header": {"x5c": ["AAAA"]}}, MalformedProofError),
    ("4.3 (8) another method", {"claims": {"htm": "GET"}}, ProofTargetError),
    ("4.3 (8) method in lower case", {"claims": {"htm": "post"}}, ProofTargetError),
    ("4.3 (8) method is null", {"claims": {"htm": None}}, ProofTargetError),
    ("4.3 (9) another path", {"claims": {"htu": "https://orders.example.org/orders/43"}}, ProofTargetError),
    ("4.3 (9) another host", {"claims": {"htu": "https://other.example.org/orders/42"}}, ProofTargetError),
    ("4.3 (9) another scheme", {"claims": {"htu": "http://orders.example.org/orders/42"}}, ProofTargetError),
    ("4.3 (9) another port", {"claims": {"htu": "https://orders.example.org:8443/orders/42"}}, ProofTargetError),
    ("4.3 (9) a slash more", {"claims": {"htu": "https://orders.example.org/orders/42/"}}, ProofTargetError),
    ("4.3 (9) dot segments", {"claims": {"htu": "https://orders.example.org/x/../orders/42"}}, ProofTargetError),
    (
        "4.3 (9) escaped dot segments",
        {"claims": {"htu": "https://orders.example.org/x/%2e%2e/orders/42"}},
        ProofTargetError,
    ),
    ("4.3 (9) user information", {"claims": {"htu": "https://u@orders.example.org/orders/42"}}, ProofTargetError),
    ("4.3 (9) htu is relative", {"claims": {"htu": "/orders/42"}}, ProofTargetError),
    ("4.3 (9) htu is a list", {"claims": {"htu": ["https://orders.example.org/orders/42"]}}, ProofTargetError),
    ("4.3 (9) backslash", {"claims": {"htu": "https://orders.example.org\\orders\\42"}}, ProofTargetError),
    ("4.3 (11) a second over the window", {"claims": {"iat": int(NOW) - 61}}, ProofTimeError),
    ("4.3 (11) from the future", {"claims": {"iat": int(NOW) + 6}}, ProofTimeError),
    ("iat is a float", {"claims": {"iat": NOW + 0.5}}, MalformedProofError),
    ("iat is text", {"claims": {"iat": "1800000000"}}, MalformedProofError),
    ("iat is true", {"claims": {"iat": True}}, MalformedProofError),
    ("iat is negative", {"claims": {"iat": -1}}, MalformedProofError),
    ("4.3 (12) hash of another token", {"claims": {"ath": "A" * 43}}, ProofTokenError),
    ("4.3 (12) ath is null", {"claims": {"ath": None}}, ProofTokenError),
    ("jti is a number", {"claims": {"jti": 1}}, MalformedProofError),
    ("jti is empty", {"claims": {"jti": ""}}, MalformedProofError),
    ("jti is long", {"claims": {"jti": "a" * 129}}, MalformedProofError),
    ("jti with a dot", {"claims": {"jti": "a.b"}}, MalformedProofError),
    ("nonce that nobody asked for", {"claims": {"nonce": "n"}}, MalformedProofError),
    ("an unknown claim", {"claims": {"exp": int(NOW) + 60}}, MalformedProofError),
    ("two uses", {"claims": {"authorization_details": [USE, USE]}}, MalformedProofError),
    ("no entry", {"claims": {"authorization_details": []}}, MalformedProofError),
    ("use is an object", {"claims": {"authorization_details": USE}}, MalformedProofError),
    (
        "use of the token's type",
        {"claims": {"authorization_details": [USE | {"type": "jitwi_permission"}]}},
        MalformedProofError,
    ),
    ("use with under", {"claims": {"authorization_details": [USE | {"under": True}]}}, MalformedProofError),
    ("use with an unknown member", {"claims": {"authorization_details": [USE | {"x": 1}]}}, MalformedProofError),
    ("input is no digest", {"claims": {"authorization_details": [USE | {"input": "x"}]}}, MalformedProofError),
    ("input is null", {"claims": {"authorization_details": [USE | {"input": None}]}}, MalformedProofError),
    ("claim twice", {"payload_text": '{"jti":"a","jti":"b"}'}, MalformedProofError),
    ("payload is a list", {"payload_text": "[]"}, MalformedProofError),
]


@pytest.mark.parametrize(("clause", "how", "error"), TABLE, ids=[t[0] for t in TABLE])
def test_rfc9449(lab, clause: str, how: dict, error: type[EvidenceError]) -> None:
    """RFC 9449 §4.3: each check refuses, although the task key signed."""
    token = lab.verify(lab.mint())
    with pytest.raises(error) as caught:
        check(lab, forge(lab, token, **how), token)
    assert caught.value.challenge == "invalid_dpop_proof"
    assert caught.value.status == 401


def test_another_key(lab) -> None:
    """RFC 9449 §4.3 (6), §6.1: another key, and another key under the endorsed one's name."""
    token = lab.verify(lab.mint())
    stranger = TaskKey()
    with pytest.raises(ProofKeyError):
        check(lab, lab.prove(token, key=stranger), token)
    with pytest.raises(ProofSignatureError):
        check(lab, forge(lab, token, key=stranger), token)


@pytest.mark.parametrize(
    ("offset", "passes"), [(-5, True), (-6, False), (0, True), (60, True), (60.001, False), (61, False)]
)
def test_window(lab, offset: float, passes: bool) -> None:
    """RFC 9449 §11.1: 60 s back, 5 s ahead; and replay is remembered at least as long."""
    token = lab.verify(lab.mint())
    proof = lab.prove(token)
    if passes:
        assert check(lab, proof, token, now=NOW + offset).replay_until > NOW + offset
    else:
        with pytest.raises(ProofTimeError):
            check(lab, proof, token, now=NOW + offset)


def test_use_and_input(lab) -> None:
    """A proof for one use serves no other, and an input other than the one executed is refused."""
    token = lab.verify(lab.mint())
    proof = check(lab, lab.prove(token, digest=input_digest({"amount": 30})), token)
    with pytest.raises(UseMismatchError):
        proof.require_use(lab.READ, lab.ORDER, input={"amount": 30})
    with pytest.raises(UseMismatchError):
        proof.require_use(lab.REFUND, Entity("Shop::Order", "43"), input={"amount": 30})
    others = [None, {}, {"amount": 30_000}, {"amount": "30"}, {"amount": True}, {"amount": 30, "x": 1}, {"Amount": 30}]
    others += [{"amount": 30.0}, {"amount": 2**60}, {"\u00e9": 1}, {"a": object()}, {"amount": [30]}]
    for other in others:
        with pytest.raises(InputMismatchError):
            proof.require_use(lab.REFUND, lab.ORDER, input=other)
    bare = check(lab, lab.prove(token), token)
    bare.require_use(lab.REFUND, lab.ORDER)
    with pytest.raises(InputMismatchError):
        bare.require_use(lab.REFUND, lab.ORDER, input={})


def test_input_is_canonical() -> None:
    """RFC 8785: order of members and the kind of sequence do not matter; types and values do."""
    assert input_digest({"a": 1, "b": [1, "x"]}) == input_digest({"b": (1, "x"), "a": 1})
    assert input_digest({"a": 1}) != input_digest({"a": True})
    assert input_digest({"a": ""}) != input_digest({"a": None})
    assert input_digest(None) is None
    assert input_digest({}) == "RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o"


def _deep(levels: int) -> dict:
    value: dict = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "given",
    [
        _deep(17),
        _deep(5000),
        {"a": "x" * 65_536},
        {str(n): 1 for n in range(1001)},
        {"a": [0] * 1001},
        {"a": 1.5},
        {"a": float("nan")},
        {"a": b"x"},
        {"a": {1}},
        {1: 1},
        {"\ud800": 1},
        {"a": "\ud800"},
        ["a"],
        "a",
    ],
)
def test_input_bounds(given: object) -> None:
    """Bar 38: too deep, too large, or without a canonical form: our error, at once."""
    with pytest.raises(InvalidTaskError):
        input_digest(given)


def test_input_at_its_bounds() -> None:
    """The bounds themselves are inside."""
    assert input_digest(_deep(16))
    assert input_digest({str(n): 1 for n in range(1000)})


# ------------------------------------------------------------------------------------------ bar 19


def test_cross_task(lab) -> None:
    """20 x 20 tasks: a token goes with proofs of its own key and of nobody else's; 0 of 380 substitutions pass."""
    tasks = []
    for n in range(20):
        key = TaskKey()
        task = attrs.evolve(lab.task, name=f"task-{n}")
        token = lab.verify(lab.mint(task=task, jkt=key.jkt, txn=f"txn-{n}"))
        tasks.append((token, lab.prove(token, key=key), key))
    accepted = [
        (i, j)
        for i, (token, _, _) in enumerate(tasks)
        for j, (_, proof, _) in enumerate(tasks)
        if _passes(lab, proof, token)
    ]
    assert accepted == [(i, i) for i in range(20)]
    same_key_other_token = lab.verify(lab.mint(jkt=tasks[0][2].jkt))
    assert not _passes(lab, tasks[0][1], same_key_other_token)


def _passes(lab, proof: str, token: object) -> bool:
    try:
        check(lab, proof, token)
    except ProofError:
        return False
    return True


def test_encodings_of_one_proof(lab) -> None:
    """Bar 19: every other spelling of one proof is refused, or is the same (`jkt`, `jti`) to the replay memory."""
    token = lab.verify(lab.mint())
    proof = lab.prove(token)
    head, body, tail = proof.split(".")
    raw = base64.urlsafe_b64decode(tail + "==")
    high = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    der = lab.key.sign(f"{head}.{body}".encode())
    loose = {"A": "B", "Q": "R", "g": "h", "w": "x"}
    spellings = {
        "the other s": f"{head}.{body}.{lab.b64(high)}",
        "signed again": f"{head}.{body}.{lab.b64(der)}",
        "padded": proof + "==",
        "padded header": f"{head}=.{body}.{tail}",
        "padded body": f"{head}.{body}=.{tail}",
        "loose bits": f"{head}.{body}.{tail[:-1]}{loose[tail[-1]]}",
        "leading space": " " + proof,
        "trailing space": proof + " ",
        "four trailing spaces": proof + "    ",
        "four newlines inside": proof[:-8] + "\n\n\n\n" + proof[-8:],
        "four equal signs": proof + "====",
        "trailing tab": proof + "\t",
        "trailing newline": proof + "\n",
        "trailing CRLF": proof + "\r\n",
        "folded": f"{head}.{body}.\r\n {tail}",
        "NUL": proof + "\0",
        "trailing dot": proof + ".",
        "trailing comma": proof + ",",
        "twice": f"{proof},{proof}",
        "twice with a space": f"{proof} {proof}",
        "quoted": f'"{proof}"',
        "percent-encoded": proof.replace(".", "%2E"),
        "JSON serialisation": json.dumps({"protected": head, "payload": body, "signature": tail}),
        "standard alphabet": proof.replace("-", "+").replace("_", "/") + "+",
        "case swapped": proof.swapcase(),
        "with a BOM": "\ufeff" + proof,
        "with a soft hyphen": proof[:9] + "\u00ad" + proof[9:],
        "bytes": proof.encode(),
    }
    assert len(spellings) >= 20
    first = check(lab, proof, token)
    for name, spelling in spellings.items():
        try:
            again = check(lab, spelling, token)
        except ProofError:
            continue
        assert name in {"the other s", "signed again"}
        assert (again.jkt, again.jti) == (first.jkt, first.jti)


def test_each_proof_has_its_own_id(lab) -> None:
    """Two proofs of one use in one second differ in `jti`."""
    token = lab.verify(lab.mint())
    assert len({check(lab, lab.prove(token), token).jti for _ in range(50)}) == 50


# ------------------------------------------------------------------------------------------ htu

SAME = [
    ("https://Orders.Example.org/orders/42", "https://orders.example.org/orders/42"),
    ("HTTPS://orders.example.org/orders/42", "https://orders.example.org/orders/42"),
    ("https://orders.example.org:443/orders/42", "https://orders.example.org/orders/42"),
    ("http://orders.example.org:80", "http://orders.example.org/"),
    ("https://orders.example.org", "https://orders.example.org/"),
    ("https://orders.example.org?x=1", "https://orders.example.org/"),
    ("https://orders.example.org/a?x=1#y", "https://orders.example.org/a"),
    ("https://orders.example.org/%7Ea/%2fb", "https://orders.example.org/~a/%2Fb"),
    ("https://orders.example.org:8443/a", "https://orders.example.org:8443/a"),
    ("http://127.0.0.1:8000/a;b=1/c,d", "http://127.0.0.1:8000/a;b=1/c,d"),
    ("http://[::1]:8000/a", "http://[::1]:8000/a"),
    ("https://[2001:DB8::1]/a", "https://[2001:db8::1]/a"),
    ("https://orders.example.org//a//b", "https://orders.example.org//a//b"),
]


@pytest.mark.parametrize(("url", "htu"), SAME)
def test_one_spelling_per_url(url: str, htu: str) -> None:
    """RFC 9449 §4.3 (9) with RFC 3986 §6.2.2 and §6.2.3: case, escapes, default ports; no query, no fragment."""
    assert normalise_url(url) == htu
    assert normalise_url(htu) == htu


@pytest.mark.parametrize(
    "url",
    [
        "",
        "orders",
        "/orders/42",
        "ftp://a/b",
        "https:///a",
        "https://a/../b",
        "https://a/./b",
        "https://a/%2e%2E/b",
        "https://a/.%2e/b",
        "https://u@a/b",
        "https://u:p@a/b",
        "https://a:443@b/c",
        "https://a:/b",
        "https://a:+1/b",
        "https://a:\u0663/b",
        "https://a:0/",
        "https://a:65536/",
        "https://a:x/",
        "https://a/b c",
        "https://a/\u00e9",
        "https://\u00e9.org/",
        "https://a\\b",
        "https://a/%zz",
        "https://a/%",
        "https://a/b\n",
        "\nhttps://a/",
        "https://a/<b>",
        "https://[::1",
        "https://a b/",
        "javascript:alert(1)",
        "https://a/" + "x" * 5000,
        None,
        b"https://a/",
    ],
)
def test_urls_that_a_proof_cannot_name(url: object) -> None:
    """What two parsers could read differently is refused."""
    with pytest.raises(ConfigurationError):
        normalise_url(url)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60).map(lambda tail: "https://a" + tail))
def test_normalising_is_idempotent(url: str) -> None:
    """A normalised URL is its own normal form, and only our error leaves."""
    try:
        once = normalise_url(url)
    except ConfigurationError:
        return
    assert normalise_url(once) == once


# ------------------------------------------------------------------------------------------ task key


def test_destroyed_key_signs_nothing(lab) -> None:
    """After `destroy()` there is no proof; destroying twice is destroying once."""
    token = lab.verify(lab.mint())
    lab.key.destroy()
    lab.key.destroy()
    assert lab.key.is_destroyed
    with pytest.raises(StateError, match="destroyed"):
        lab.prove(token)


def test_key_is_not_shown() -> None:
    """Bar 17: no attribute of a task key leads to its private key, and it cannot be copied or pickled."""
    import copy
    import inspect
    import pickle

    key = TaskKey()
    shown = [value for name, value in inspect.getmembers(key) if not name.startswith("__")]
    shown += [getattr(key, slot, None) for cls in type(key).__mro__ for slot in getattr(cls, "__slots__", ())]
    assert not any(isinstance(value, ec.EllipticCurvePrivateKey) for value in shown)
    assert not hasattr(key, "__dict__")
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(StateError):
            attempt(key)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_child_has_no_key() -> None:
    """Bar 11: in a forked child the key is gone, and using it raises."""
    import os

    key = TaskKey()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = b"signed"
        try:
            from jitwi.tokens import jose

            try:
                key.sign(b"x")
            except StateError:
                answer = b"refused" if len(jose._KEYS) == 0 and key.is_destroyed else b"still there"
        finally:
            os.write(write, answer)
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert os.read(read, 100) == b"refused"
    os.close(read)
    assert len(key.sign(b"x")) == 64


def test_only_jitwi_errors_from_minting(lab) -> None:
    """A method or URL that no proof can name is our error."""
    for changes in ({"method": "GET /"}, {"method": ""}, {"url": "x"}, {"method": "P\u00d6ST"}):
        with pytest.raises(JitwiError):
            lab.prove(**changes)


def test_window_of_a_verified_token(lab) -> None:
    """The token's own times are not the proof's: a verified token is verified again at each request."""
    token = lab.verify(lab.mint(), max_ttl=timedelta(minutes=2))
    assert check(lab, lab.prove(token, now=NOW + 200), token, now=NOW + 200).issued_at == NOW + 200
