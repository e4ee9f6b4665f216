# SPDX-License-Identifier: Apache-2.0
"""Bar 5: nothing forged, confused or malformed is accepted; only our errors leave; garbage is cheap."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import time
import tracemalloc

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jitwi.errors import EvidenceError
from jitwi.tokens import MalformedEvidenceError, ProofError, TaskTokenVerifier, TokenError, verify_proof
from jitwi.tokens.jose import b64url_decode, b64url_encode, parse_jws
from jitwi.tokens.task_token import PROFILE as TOKEN_PROFILE

NOW = 1_800_000_000.0
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
MODEST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _signature_forgeries(lab) -> dict[str, str]:
    token = lab.mint()
    head, body, tail = token.split(".")
    raw = base64.urlsafe_b64decode(tail + "==")
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    both = f"{head}.{body}".encode()
    der = lab.identity.key.key.sign(both, ec.ECDSA(__import__("cryptography").hazmat.primitives.hashes.SHA256()))
    stranger = ec.generate_private_key(ec.SECP256R1())

    def put(left: int, right: int, size: int = 32) -> str:
        return f"{head}.{body}." + lab.b64(left.to_bytes(size, "big") + right.to_bytes(size, "big"))

    public = lab.identity.key.key.public_key()
    secrets = {
        "spki der": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "spki pem": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "leaf der": lab.identity.chain[0],
        "empty key": b"",
    }
    found = {
        "empty signature": f"{head}.{body}.",
        "one byte": f"{head}.{body}.AA",
        "zero r and s": put(0, 0),
        "zero r": put(0, s),
        "zero s": put(r, 0),
        "r = n": put(P256_ORDER, s),
        "s = n": put(r, P256_ORDER),
        "r + n in 33 bytes": put(r + P256_ORDER, s, 33),
        "r and s swapped": put(s, r),
        "all ones": put(2**256 - 1, 2**256 - 1),
        "one and one": put(1, 1),
        "DER signature": f"{head}.{body}.{lab.b64(der)}",
        "short by one": f"{head}.{body}.{lab.b64(raw[:-1])}",
        "long by one": f"{head}.{body}.{lab.b64(raw + bytes(1))}",
        "leading zero": f"{head}.{body}.{lab.b64(bytes(1) + raw)}",
        "padded to 48": f"{head}.{body}.{lab.b64(bytes(16) + raw[:32] + bytes(16) + raw[32:])}",
        "of another key": f"{head}.{body}.{lab.b64(lab.sign_raw(stranger, both, 'ES256'))}",
        "of the task key": f"{head}.{body}.{lab.b64(lab.key.sign(both))}",
        "over the payload only": f"{head}.{body}.{lab.b64(lab.sign_raw(lab.identity.key.key, body.encode(), 'ES256'))}",
        "over another token": f"{head}.{body}.{lab.mint().split('.')[2]}",
        "by SHA-384": f"{head}.{body}.{lab.b64(lab.sign_raw(lab.identity.key.key, both, 'ES384'))}",
    }
    for name, secret in secrets.items():
        for alg, digest in (("HS256", hashlib.sha256), ("HS384", hashlib.sha384), ("HS512", hashlib.sha512)):
            text = f"{lab.b64(json.dumps({**lab.open(head), 'alg': alg}))}.{body}"
            found[f"{alg} by {name}"] = f"{text}.{lab.b64(hmac.new(secret, text.encode(), digest).digest())}"
        found[f"ES256 as an HMAC by {name}"] = (
            f"{head}.{body}.{lab.b64(hmac.new(secret, both, hashlib.sha512).digest())}"
        )
    for alg in ("none", "None", "NONE", "nOnE"):
        bare = f"{lab.b64(json.dumps({**lab.open(head), 'alg': alg}))}.{body}."
        found[f"alg {alg}, no signature"] = bare
        found[f"alg {alg}, old signature"] = bare + tail
    rsa = lab.ca.identity(alg="RS256")
    for alg in ("RS384", "RS512", "PS256", "PS384", "PS512"):
        found[f"RSA leaf, {alg}"] = lab.forge(identity=rsa, alg=alg, header={"alg": alg})
    found["RSA leaf, PSS under RS256"] = lab.forge(identity=rsa, alg="PS256")
    found["RSA leaf, SHA-512 under RS256"] = lab.forge(identity=rsa, alg="RS512")
    found["RSA leaf, ES256"] = lab.forge(identity=rsa, alg="RS256", header={"alg": "ES256"})
    p384 = lab.ca.identity(alg="ES384")
    found["P-384 leaf, ES256"] = lab.forge(identity=p384, alg="ES256", header={"alg": "ES256"})
    found["P-384 leaf, SHA-256 under ES384"] = lab.forge(identity=p384, alg="ES256")
    return found


def _form_forgeries(lab) -> dict[str, object]:
    token = lab.mint()
    head, body, tail = token.split(".")
    flat = {"protected": head, "payload": body, "signature": tail}
    loose = "AEIMQUYcgkosw048"
    return {
        "JWS JSON, flattened": json.dumps(flat),
        "JWS JSON, general": json.dumps({"payload": body, "signatures": [{"protected": head, "signature": tail}]}),
        "detached payload": f"{head}..{tail}",
        "two parts": f"{head}.{body}",
        "four parts": f"{token}.{tail}",
        "five parts (JWE)": f"{head}.{body}.{tail}.{tail}.{tail}",
        "empty": "",
        "dots": "..",
        "many dots": "." * 16_000,
        "leading space": " " + token,
        "trailing newline": token + "\n",
        "trailing CRLF": token + "\r\n",
        "newline inside": f"{head}\n.{body}.{tail}",
        "tab inside": f"{head}.\t{body}.{tail}",
        "four spaces": token + "    ",
        "four newlines in the signature": token[:-4] + "\n\n\n\n" + token[-4:],
        "four equal signs": token + "====",
        "NUL at the end": token + "\0",
        "quoted": f'"{token}"',
        "scheme in front": f"DPoP {token}",
        "two tokens": f"{token},{token}",
        "padded header": f"{head}=.{body}.{tail}",
        "padded payload": f"{head}.{body}=.{tail}",
        "padded signature": f"{head}.{body}.{tail}==",
        "standard alphabet": f"{head}.{body}.{tail[:-1]}+",
        "slash": f"{head}.{body}.{tail[:-1]}/",
        "percent-encoded dot": f"{head}%2E{body}%2E{tail}",
        "full-width dot": f"{head}\uff0e{body}.{tail}",
        "Unicode digit": f"{head}.{body}.{tail[:-1]}\u0661",
        "Kelvin sign": f"{head}.{body}.{tail[:-1]}\u212a",
        "loose bits in the signature": f"{head}.{body}.{tail[:-1]}{'B' if tail[-1] in loose else 'A'}",
        "bytes": token.encode(),
        "bytearray": bytearray(token.encode()),
        "None": None,
        "a list": [token],
        "a number": 7,
        "BOM in front of the payload": lab.forge(payload_text="\ufeff" + json.dumps({})),
        "over the size limit": head + "." + "A" * 16_384 + "." + tail,
        "payload is a list": lab.forge(payload_text="[]"),
        "payload is text": lab.forge(payload_text='"x"'),
        "payload is null": lab.forge(payload_text="null"),
        "payload is a number": lab.forge(payload_text="1"),
        "payload is empty": lab.forge(payload_text=" "),
        "payload of two values": lab.forge(payload_text="{}{}"),
        "payload with a comment": lab.forge(payload_text="{}//"),
        "payload with a comma at the end": lab.forge(payload_text='{"iss":"x",}'),
        "payload with single quotes": lab.forge(payload_text="{'iss':'x'}"),
        "payload deeply nested": lab.forge(payload_text='{"a":' + "[" * 5000 + "]" * 5000 + "}"),
        "payload nested too deep": lab.forge(payload_text='{"a":' + "[" * 64 + "]" * 64 + "}"),
        "payload with NaN": lab.forge(payload_text='{"exp":NaN}'),
        "payload with Infinity": lab.forge(payload_text='{"exp":Infinity}'),
        "payload with a huge number": lab.forge(payload_text='{"exp":' + "9" * 5000 + "}"),
        "header is a list": lab.forge(header_text="[]"),
        "header is null": lab.forge(header_text="null"),
        "header is empty": lab.forge(header_text="{}"),
        "header deeply nested": lab.forge(header_text='{"alg":' + "[" * 4000 + "]" * 4000 + "}"),
    }


def _text_forgeries(lab) -> dict[str, str]:
    head, body, _ = lab.mint().split(".")
    claims, header = lab.open(body), lab.open(head)
    plain = json.dumps(claims)
    found = {
        "alg twice": lab.forge(header_text='{"alg":"none",' + json.dumps(header)[1:]),
        "typ twice": lab.forge(header_text=json.dumps(header)[:-1] + ',"typ":"JWT"}'),
        "escaped name twice": lab.forge(payload_text='{"\\u0061ud":"https://evil.example.org",' + plain[1:]),
        "nested name twice": lab.forge(payload_text=plain.replace('"jkt":', '"jkt":"' + "A" * 43 + '","jkt":')),
        "exp 1e10": lab.forge(payload_text=plain.replace(str(claims["exp"]), "1e10")),
        "exp as a float": lab.forge(payload_text=plain.replace(str(claims["exp"]), f"{claims['exp']}.0")),
        "exp -0": lab.forge(payload_text=plain.replace(f'"exp": {claims["exp"]}', '"exp": -0')),
        "exp with 16 digits": lab.forge(payload_text=plain.replace(str(claims["exp"]), "1" * 16)),
        "exp with a plus": lab.forge(payload_text=plain.replace(f'"exp": {claims["exp"]}', f'"exp": +{claims["exp"]}')),
        "exp in hex": lab.forge(payload_text=plain.replace(f'"exp": {claims["exp"]}', '"exp": 0x7fffffff')),
    }
    for name in claims:
        found[f"{name} twice"] = lab.forge(payload_text=plain[:-1] + f',"{name}":{json.dumps(claims[name])}}}')
    utf16 = lab.b64(plain.encode("utf-16"))
    latin = lab.b64(plain.replace("customer", "c\xfcstomer").encode("latin-1"))
    overlong = lab.b64(plain.encode().replace(b"refund-order", b"refund\xc0\xadorder"))
    for name, segment in (("UTF-16", utf16), ("Latin-1", latin), ("overlong UTF-8", overlong)):
        text = f"{head}.{segment}"
        found[f"payload in {name}"] = f"{text}.{lab.b64(lab.sign_raw(lab.identity.key.key, text.encode(), 'ES256'))}"
    return found


def test_forged_tokens(lab) -> None:
    """0 of the matrix is accepted, by the plain function or by a verifier that has a good token in its memory."""
    verifier = TaskTokenVerifier(lab.AUDIENCE, lab.bundles)
    verifier.verify(lab.mint(), now=NOW)
    matrix = {**_signature_forgeries(lab), **_form_forgeries(lab), **_text_forgeries(lab)}
    assert len(matrix) >= 121
    accepted = []
    for name, forged in matrix.items():
        for verify in (lab.verify, lambda t: verifier.verify(t, now=NOW)):
            try:
                verify(forged)
                accepted.append(name)
            except TokenError:
                pass
    assert accepted == []


@pytest.mark.parametrize(("depth", "is_read"), [(63, True), (64, False), (900, False), (4_000, False)])
def test_nesting_is_bounded_on_every_version_of_python(lab, depth: int, is_read: bool) -> None:
    """An object may be nested 64 deep, brackets within text not counted, however deep the interpreter could go."""
    payload = '{"a":' + "[" * depth + '"[[[["' + "]" * depth + "}"
    with contextlib.nullcontext() if is_read else pytest.raises(MalformedEvidenceError):
        parse_jws(lab.forge(payload_text=payload), TOKEN_PROFILE)


def test_confused_documents(lab) -> None:
    """A proof is no token, a token is no proof, and a JWT-SVID is neither."""
    good = lab.verify(lab.mint())
    proof = lab.prove(good)
    with pytest.raises(TokenError):
        lab.verify(proof)
    with pytest.raises(ProofError):
        verify_proof(lab.mint(), token=good, method="POST", url=lab.URL, now=NOW)
    header, claims = {"alg": "ES256", "kid": "1", "typ": "JWT"}, {"sub": str(good.spiffe_id)}
    text = f"{lab.b64(json.dumps(header))}.{lab.b64(json.dumps(claims))}"
    svid = f"{text}.{lab.b64(lab.sign_raw(lab.identity.key.key, text.encode(), 'ES256'))}"
    with pytest.raises(TokenError):
        lab.verify(svid)
    with pytest.raises(ProofError):
        verify_proof(svid, token=good, method="POST", url=lab.URL, now=NOW)


@pytest.mark.parametrize("size", [0, 1, 10, 1_000, 10_000, 16_384, 16_385, 100_000, 1_000_000])
@pytest.mark.parametrize("kind", ["A", ".", "A.", "{", "eyJ", "\ud800", "\0", "[", "\u20ac"])
def test_garbage_is_cheap(lab, size: int, kind: str) -> None:
    """Garbage of up to 1 MB is refused by our error, quickly and without a copy of itself."""
    text = (kind * (size // len(kind) + 1))[:size]
    good = lab.verify(lab.mint())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        with pytest.raises(MalformedEvidenceError):
            lab.verify(text)
        with pytest.raises(ProofError):
            verify_proof(text, token=good, method="POST", url=lab.URL, now=NOW)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak <= 2 * size + 64_000


def test_garbage_takes_no_longer_than_a_token(lab) -> None:
    """1 MB of garbage costs less than verifying one good token."""
    token, garbage = lab.mint(), "A" * 1_000_000

    def best_of(call, count: int = 7) -> float:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    def refuse() -> None:
        with pytest.raises(TokenError):
            lab.verify(garbage)

    assert best_of(refuse) <= best_of(lambda: lab.verify(token))


# ------------------------------------------------------------------------------------------ generated


@MODEST
@given(st.one_of(st.text(), st.binary().map(lambda b: b.decode("latin-1")), st.from_regex(r"[A-Za-z0-9_.=-]{0,300}")))
def test_random_text(lab, text: str) -> None:
    """Only our errors leave, whatever arrives."""
    with pytest.raises(TokenError):
        lab.verify(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@MODEST
@given(
    st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "txn", "cnf", "authorization_details", "tctx"]),
    json_values,
)
def test_random_claims(lab, name: str, value: object) -> None:
    """Any other value of any claim, validly signed, is refused or means the same task."""
    try:
        token = lab.verify(lab.forge(claims={name: value}))
    except EvidenceError:
        return
    assert name in {"exp", "nbf", "iat", "jti"}
    assert token.permissions == lab.task.permissions


@MODEST
@given(st.sampled_from(["alg", "typ", "x5c", "crit", "kid", "jwk"]), json_values)
def test_random_headers(lab, name: str, value: object) -> None:
    """Any other header, validly signed, is refused."""
    with pytest.raises(EvidenceError):
        lab.verify(lab.forge(header={name: value}))


@MODEST
@given(st.data())
def test_mutated_tokens(lab, data: st.DataObject) -> None:
    """A token with one or more characters changed, added or taken away is not a token."""
    token = lab.mint()
    chars = list(token)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(chars) - 1))
        how = data.draw(st.sampled_from(["change", "drop", "add", "swap"]))
        char = data.draw(st.sampled_from("ABCabc019-_.=+/ \n"))
        if how == "drop":
            del chars[place]
        elif how == "add":
            chars.insert(place, char)
        elif how == "swap":
            chars[place], chars[place - 1] = chars[place - 1], chars[place]
        else:
            chars[place] = char
    mutated = "".join(chars)
    if mutated == token:
        return
    with pytest.raises(TokenError):
        lab.verify(mutated)


@MODEST
@given(st.data())
def test_mutated_proofs(lab, data: st.DataObject) -> None:
    """A proof with a character changed is not a proof."""
    token = lab.verify(lab.mint())
    proof = lab.prove(token)
    place = data.draw(st.integers(0, len(proof) - 1))
    mutated = proof[:place] + data.draw(st.sampled_from("ABCabc019-_.=+/ \n")) + proof[place + 1 :]
    if mutated == proof:
        return
    with pytest.raises(ProofError):
        verify_proof(mutated, token=token, method="POST", url=lab.URL, now=NOW)


@MODEST
@given(st.binary(min_size=1, max_size=200))
def test_base64url_has_one_spelling(raw: bytes) -> None:
    """Bytes have one text and the text has one meaning (RFC 4648 §3.5)."""
    text = b64url_encode(raw)
    assert b64url_decode(text) == raw
    last = text[-1]
    for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
        if other != last:
            with contextlib.suppress(ValueError):
                assert b64url_decode(text[:-1] + other) != raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "AB",
        "AAB",
        "AA==",
        "AA=",
        "A A",
        "AA\n",
        "+A",
        "/A",
        "AAAA\n\n\n\n",
        "AA    AA",
        "AAAA====",
        "====AAAA",
        "AAAA++++",
        "AAAA////",
        "AA==AAAA",
        "\0\0\0\0AAAA",
        "AAAAA",
        "\u0410\u0410",
    ],
)
def test_base64url_refuses(text: str) -> None:
    """Empty, padded, loose bits, other alphabets, whitespace, impossible lengths: not base64url."""
    with pytest.raises(ValueError, match=r".+"):
        b64url_decode(text)
