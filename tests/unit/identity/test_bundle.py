# SPDX-License-Identifier: Apache-2.0
"""SPIFFE bundle documents (TDB §4; X-9, TB-2 to TB-5)."""

from __future__ import annotations

import base64
import json

import pytest

from jitwi.errors import InvalidSvidError
from jitwi.identity import X509Bundle, parse_spiffe_bundle, parse_x509_bundle
from jitwi.spiffe_id import TrustDomain
from jitwi.testing.ca import TestCa, jwk

TD = TrustDomain("example.org")


def _document(ca: TestCa, **members: object) -> dict[str, object]:
    return json.loads(ca.spiffe_bundle) | members


def test_document(ca: TestCa) -> None:
    """Both kinds of authority, the sequence and the refresh hint are read."""
    bundle = parse_spiffe_bundle(TD, ca.spiffe_bundle)
    assert bundle.x509 is not None
    assert bundle.x509.digest == ca.x509_bundle.digest
    assert list(bundle.jwt.keys) == list(ca.jwt_bundle.keys)
    assert (bundle.sequence, bundle.refresh_hint) == (1, 300)


def test_use_is_required(ca: TestCa) -> None:
    """TB-4: in a bundle document a key without `use`, or with another case, is ignored."""
    document = _document(ca)
    for key in document["keys"]:
        key["use"] = key["use"].upper()
    document["keys"].append(jwk(ca._jwt_keys[ca.jwt_kid], "no-use"))
    bundle = parse_spiffe_bundle(TD, json.dumps(document))
    assert bundle.x509 is None
    assert dict(bundle.jwt.keys) == {}


@pytest.mark.parametrize("x5c", [None, [], [1], ["!"], ["AAAA"], "text", {}])
def test_odd_x509_entry(ca: TestCa, x5c: object) -> None:
    """X-9: an entry without a usable `x5c` is ignored, and does not kill the set."""
    document = _document(ca)
    odd = {"kty": "EC", "use": "x509-svid", "x5c": x5c}
    document["keys"].insert(0, odd)
    bundle = parse_spiffe_bundle(TD, json.dumps(document))
    assert bundle.x509 is not None
    assert bundle.x509.digest == ca.x509_bundle.digest


@pytest.mark.parametrize("family", [[], {}, ["EC"], None, 1, True, "ec"])
def test_odd_family(ca: TestCa, family: object) -> None:
    """TB-4: an entry whose `kty` is of another type, or not known, is ignored, and does not kill the set."""
    document = _document(ca)
    for entry in [dict(key) for key in document["keys"]]:
        document["keys"].insert(0, entry | {"kty": family, "kid": "odd"})
    bundle = parse_spiffe_bundle(TD, json.dumps(document))
    assert bundle.x509 is not None
    assert bundle.x509.digest == ca.x509_bundle.digest
    assert bundle.jwt.digest == ca.jwt_bundle.digest


def test_only_the_first_of_x5c(ca: TestCa) -> None:
    """X-9: only the first value of `x5c` is an authority."""
    document = _document(ca)
    entry = next(key for key in document["keys"] if key["use"] == "x509-svid")
    entry["x5c"].append(base64.b64encode(TestCa("example.org").roots[0]).decode())
    bundle = parse_spiffe_bundle(TD, json.dumps(document))
    assert bundle.x509 is not None
    assert len(bundle.x509.authorities) == 1


@pytest.mark.parametrize("value", [-1, 1.5, "1", True, 2**64])
def test_bad_sequence(ca: TestCa, value: object) -> None:
    """TB-2: the sequence is a 64-bit count."""
    with pytest.raises(InvalidSvidError):
        parse_spiffe_bundle(TD, json.dumps(_document(ca, spiffe_sequence=value)))


def test_duplicate_member(ca: TestCa) -> None:
    """TB-5: duplicate names are refused at any depth."""
    text = ca.spiffe_bundle.decode().replace('"kty"', '"kty": "EC", "kty"', 1)
    with pytest.raises(InvalidSvidError):
        parse_spiffe_bundle(TD, text)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x30", b"\x30\x84", b"\x30\x03abc", b"\x30" * 99])
def test_bad_der(data: bytes) -> None:
    """Bytes that are not certificates make no bundle."""
    with pytest.raises(InvalidSvidError):
        parse_x509_bundle(TD, data)


def test_bundle_digest_is_its_version(ca: TestCa) -> None:
    """Equal content, equal digest; another domain or another authority, another digest."""
    assert parse_x509_bundle(TD, ca.x509_bundle_der * 2).digest == ca.x509_bundle.digest
    assert parse_x509_bundle(TrustDomain("other.org"), ca.x509_bundle_der).digest != ca.x509_bundle.digest


@pytest.mark.parametrize("digest", ["", "1", "v1", None])
def test_a_bundle_has_the_digest_of_its_content(ca: TestCa, digest: str) -> None:
    """What was verified is remembered by the digest, so a bundle cannot carry another: versions would be confused."""
    good = ca.x509_bundle
    assert X509Bundle(TD, good.authorities, good.digest).digest == good.digest
    for trust_domain, authorities, wrong in (
        (TD, good.authorities, digest),
        (TrustDomain("other.org"), good.authorities, good.digest),
        (TD, (), good.digest),
    ):
        with pytest.raises(InvalidSvidError):
            X509Bundle(trust_domain, authorities, wrong)
