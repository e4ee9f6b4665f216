# SPDX-License-Identifier: Apache-2.0
"""An independent implementation reads what we sign, and we read what it signs."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

from jitwi.tokens import verify_proof
from jitwi.tokens.jose import is_signed_by, json_text, jwk_thumbprint, public_key_of_jwk

NOW = 1_800_000_000.0
REGISTRY = JWSRegistry(algorithms=["ES256", "ES384", "ES512", "RS256"], strict_check_header=False)
REGISTRY.max_header_length = REGISTRY.max_payload_length = 20_000


def _public(key) -> ECKey | RSAKey:
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    kind = RSAKey if "RSA" in type(key).__name__ else ECKey
    return kind.import_key(pem)


@pytest.mark.parametrize("alg", ["ES256", "ES384", "ES512", "RS256"])
def test_joserfc_reads_our_tokens(lab, alg: str) -> None:
    """Joserfc verifies a task token under the key of the first certificate of `x5c`."""
    text = lab.mint(identity=lab.ca.identity(alg=alg))
    der = base64.b64decode(lab.open(text.split(".")[0])["x5c"][0])
    leaf = x509.load_der_x509_certificate(der)
    read = jws.deserialize_compact(text, _public(leaf.public_key()), registry=REGISTRY)
    assert read.headers()["typ"] == "jit+jwt"
    assert lab.verify(text).txn == lab.TXN


@pytest.mark.parametrize("alg", ["ES256", "ES384", "ES512", "RS256"])
def test_we_read_joserfc_tokens(lab, alg: str) -> None:
    """A task token that joserfc signed is a task token."""
    identity = lab.ca.identity(alg=alg)
    head, body, _ = lab.mint(identity=identity).split(".")
    pem = identity.key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = (RSAKey if alg == "RS256" else ECKey).import_key(pem)
    text = jws.serialize_compact(lab.open(head), json_text(lab.open(body)), key, registry=REGISTRY)
    assert lab.verify(text).spiffe_id == identity.spiffe_id


def test_joserfc_reads_our_proofs(lab) -> None:
    """Joserfc verifies a proof under its own `jwk`, and its thumbprint is `cnf.jkt`."""
    token = lab.verify(lab.mint())
    proof = lab.prove(token)
    key = ECKey.import_key(lab.open(proof.split(".")[0])["jwk"])
    assert key.thumbprint() == token.jkt == lab.key.jkt
    read = jws.deserialize_compact(proof, key, registry=REGISTRY)
    assert read.headers()["typ"] == "dpop+jwt"


def test_we_read_joserfc_proofs(lab) -> None:
    """A proof that joserfc made with its own key, for a token that endorses it."""
    key = ECKey.generate_key("P-256")
    token = lab.verify(lab.mint(jkt=key.thumbprint()))
    claims = lab.open(lab.prove(token).split(".")[1])
    header = {"typ": "dpop+jwt", "alg": "ES256", "jwk": key.as_dict(private=False)}
    header["jwk"] = {name: header["jwk"][name] for name in ("kty", "crv", "x", "y")}
    text = jws.serialize_compact(header, json_text(claims), key, registry=REGISTRY)
    assert verify_proof(text, token=token, method="POST", url=lab.URL, now=NOW).jkt == key.thumbprint()


# RFC 9449 §4.1, figure 2: the example key and proof of the standard itself.
RFC9449_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJ"
    "oRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.ey"
    "JqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0I"
    "joxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)


def test_rfc9449_example(lab) -> None:
    """RFC 9449 figure 2 and §6.1: our primitives agree with the example key, signature and thumbprint."""
    head, body, tail = RFC9449_PROOF.split(".")
    jwk = lab.open(head)["jwk"]
    key, thumbprint = public_key_of_jwk(jwk)
    assert thumbprint == jwk_thumbprint(jwk) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    signature = base64.urlsafe_b64decode(tail + "==")
    assert is_signed_by(key, signature, f"{head}.{body}".encode())
    assert not is_signed_by(key, signature, f"{head}.{body}x".encode())


def test_digest_is_plain_json_and_sha256(lab) -> None:
    """A verifier in another language can recompute the digest: RFC 8785 JSON, SHA-256, base64url."""
    claims = lab.open(lab.mint().split(".")[1])
    tctx = claims["tctx"]
    facts = {k: v for k, v in tctx.items() if k not in ("digest", "permissions")}
    text = '{"permissions":' + json_text(tctx["permissions"]) + ',"task":{'
    text += ",".join(f'"{name}":{json_text(facts[name])}' for name in sorted(facts))
    text += f'}},"txn":"{claims["txn"]}","version":1}}'
    assert lab.b64(hashlib.sha256(text.encode()).digest()) == tctx["digest"]
    entry = claims["authorization_details"][1]
    text = f'{{"action":["{entry["action_type"]}","{entry["actions"][0]}"],"max_uses":{entry["max_uses"]},'
    text += f'"resource":["{entry["datatypes"][0]}","{entry["identifier"]}"],"txn":"{claims["txn"]}","under":false}}'
    assert lab.b64(hashlib.sha256(text.encode()).digest()) == tctx["permissions"][1]
