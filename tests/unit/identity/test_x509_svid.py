# SPDX-License-Identifier: Apache-2.0
"""Verification of chains and admission of our own SVID (X-1 to X-9, TB-1, bar 13)."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from jitwi.errors import InvalidSvidError
from jitwi.identity import StaticBundleSource, verify_x509_svid, x509_bundle
from jitwi.identity.x509_svid import MAX_X509_LIFETIME, admit_x509_svid
from jitwi.testing.ca import IssuedX509Svid, TestCa, usage

if TYPE_CHECKING:
    from collections.abc import Callable

ID = "spiffe://example.org/ns/prod/refunds"
OTHER = TestCa("other.org")
FOREIGN = TestCa("example.org")  # the same name, another key
ED = TestCa("example.org", key=ed25519.Ed25519PrivateKey.generate())
RSA = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505 - must be refused
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
SIGNS = usage("digital_signature")
DAY = 86400.0


def now() -> float:
    """Now."""
    return time.time()


GOOD: dict[str, dict[str, object]] = {
    "as-spire": {},
    "X-2 no subject, critical names": {"has_subject": False},
    "X-2 subject, critical names": {"is_san_critical": True},
    "X-1 further DNS names": {"dns": ["a.example.org", "b.example.org"]},
    "X-4 no basic constraints": {"is_ca": None},
    "X-6 only digital signature": {"key_usage": SIGNS},
    "X-7 no purposes": {"extended": None},
    "X-7 critical purposes": {"is_extended_critical": True},
    "X-7 more purposes": {"extended": [SERVER, CLIENT, ExtendedKeyUsageOID.CODE_SIGNING]},
    "X-8 one intermediate": {"intermediates": 1},
    "X-8 seven intermediates": {"intermediates": 7},
    "no authority key id": {"has_authority_key_id": False},
    "P-384": {"key": ec.generate_private_key(ec.SECP384R1())},
    "P-521": {"key": ec.generate_private_key(ec.SECP521R1())},
    "RSA-2048": {"key": RSA},
    "longest life": {"ttl": MAX_X509_LIFETIME - 60},
}
BAD: dict[str, tuple[str, dict[str, object]]] = {
    "X-1 two URI names": ("uri-san", {"uris": [ID, "spiffe://example.org/other"]}),
    "X-1 twice the same": ("uri-san", {"uris": [ID, ID]}),
    "X-1 SPIFFE ID and a URL": ("uri-san", {"uris": [ID, "https://example.org"]}),
    "X-1 no names": ("uri-san", {"has_san": False}),
    "X-1 only DNS": ("uri-san", {"uris": [], "dns": ["example.org"]}),
    "X-1 a URL": ("spiffe-id", {"uris": ["https://example.org/a"]}),
    "X-2 no path": ("spiffe-id", {"uris": ["spiffe://example.org"]}),
    "X-2 root path": ("spiffe-id", {"uris": ["spiffe://example.org/"]}),
    "X-2 no subject, names not critical": ("san-criticality", {"has_subject": False, "is_san_critical": False}),
    "ID-2 upper case": ("spiffe-id", {"uris": ["spiffe://EXAMPLE.org/a"]}),
    "ID-3 empty segment": ("spiffe-id", {"uris": ["spiffe://example.org//a"]}),
    "ID-1 query": ("spiffe-id", {"uris": [ID + "?x"]}),
    "X-4 a signing certificate": ("leaf-is-ca", {"is_ca": True}),
    "X-6 no key usage": ("key-usage", {"key_usage": None}),
    "X-6 key usage not critical": ("key-usage", {"is_key_usage_critical": False}),
    "X-6 no digital signature": ("key-usage", {"key_usage": usage("key_encipherment")}),
    "X-6 signs certificates": ("key-usage", {"key_usage": usage("digital_signature", "key_cert_sign")}),
    "X-6 signs revocation lists": ("key-usage", {"key_usage": usage("digital_signature", "crl_sign")}),
    "X-7 only servers": ("extended-key-usage", {"extended": [SERVER]}),
    "X-7 only clients": ("extended-key-usage", {"extended": [CLIENT]}),
    "X-7 neither": ("extended-key-usage", {"extended": [ExtendedKeyUsageOID.CODE_SIGNING]}),
    "X-8 another key signed": ("chain", {"signing_key": ec.generate_private_key(ec.SECP256R1())}),
    "X-8 another authority of the same name": ("chain", {"signer": FOREIGN}),
    "X-8 another trust domain's authority": ("chain", {"signer": OTHER}),
    "X-8 Ed25519 authority": ("chain", {"signer": ED}),
    "ID-6 another trust domain's ID": ("untrusted-domain", {"uris": ["spiffe://other.org/a"]}),
    "expired": ("expired", {"not_before": now() - 100, "not_after": now() - 1}),
    "not yet valid": ("not-yet-valid", {"not_before": now() + 600, "not_after": now() + 900}),
    "lives too long": ("lifetime", {"ttl": MAX_X509_LIFETIME + DAY}),
    "RSA-1024": ("weak-key", {"key": WEAK}),
    "Ed25519 leaf": ("key", {"key": ed25519.Ed25519PrivateKey.generate()}),
    "secp256k1 leaf": ("key", {"key": ec.generate_private_key(ec.SECP256K1())}),
    "eight intermediates": ("too-many-certificates", {"intermediates": 8}),
    "unknown critical extension": (
        "chain",
        {"extensions": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"), True)]},
    ),
    "too large": (
        "too-large",
        {"extensions": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x" * 17000), False)]},
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_good_chain(ca: TestCa, case: str) -> None:
    """A chain that the profile allows is verified, and admitted as our own."""
    issued = ca.issue(ID, **GOOD[case])
    verified = verify_x509_svid(issued.chain, ca.x509_bundle, now=now())
    assert str(verified.spiffe_id) == ID
    assert verified.public_key == issued.key.public_key()
    assert verified.not_after == issued.leaf.not_valid_after_utc.timestamp()
    admitted = admit_x509_svid(
        spiffe_id=ID, chain=issued.chain_der, key=issued.key_der, bundles=ca.x509_bundle, now=now()
    )
    assert admitted.chain == issued.chain


@pytest.mark.parametrize("case", BAD)
def test_bad_chain(ca: TestCa, case: str) -> None:
    """A chain that the profile does not allow is refused, for its own reason."""
    reason, options = BAD[case]
    issued = ca.issue(ID, **options)
    with pytest.raises(InvalidSvidError) as caught:
        verify_x509_svid(issued.chain, ca.x509_bundle, now=now())
    assert caught.value.reasons[0] == reason


def _other_key(issued: IssuedX509Svid) -> dict[str, object]:
    return {"key": TestCa("example.org").issue(ID).key_der}


def _garbled(issued: IssuedX509Svid) -> dict[str, object]:
    return {"chain": bytes([issued.chain_der[0]]) + issued.chain_der[5:]}


SPOILT: dict[str, tuple[str, Callable[[IssuedX509Svid], dict[str, object]]]] = {
    "another key": ("key-mismatch", _other_key),
    "no key": ("key", lambda issued: {"key": b""}),
    "key is garbage": ("key", lambda issued: {"key": b"garbage"}),
    "key is too large": ("key", lambda issued: {"key": b"x" * 20000}),
    "SEC 1 Ed25519 key": (
        "key",
        lambda issued: {
            "key": ed25519.Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        },
    ),
    "another field": ("spiffe-id-field", lambda issued: {"spiffe_id": ID + "2"}),
    "empty field": ("spiffe-id-field", lambda issued: {"spiffe_id": ""}),
    "upper-case field": ("spiffe-id-field", lambda issued: {"spiffe_id": ID.upper()}),
    "no chain": ("no-certificate", lambda issued: {"chain": b""}),
    "chain is garbage": ("der", lambda issued: {"chain": b"garbage"}),
    "chain is cut": ("der", lambda issued: {"chain": issued.chain_der[:-1]}),
    "chain has a tail": ("der", lambda issued: {"chain": issued.chain_der + b"\x00"}),
    "chain is garbled": ("der", _garbled),
    "chain with an indefinite length": ("der", lambda issued: {"chain": b"\x30\x80" + b"\x00" * 9}),
    "chain is huge": ("too-large", lambda issued: {"chain": issued.chain_der * 500}),
    "no bundle": ("untrusted-domain", lambda issued: {"bundles": StaticBundleSource()}),
    "only another domain's bundle": (
        "untrusted-domain",
        lambda issued: {"bundles": StaticBundleSource([OTHER.x509_bundle])},
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_bad_admission(ca: TestCa, case: str) -> None:
    """C9: key, field, chain and bundle must belong together before an SVID is adopted."""
    reason, spoil = SPOILT[case]
    issued = ca.issue(ID)
    parts = {"spiffe_id": ID, "chain": issued.chain_der, "key": issued.key_der, "bundles": ca.x509_bundle}
    with pytest.raises(InvalidSvidError) as caught:
        admit_x509_svid(**(parts | spoil(issued)), now=now())
    assert caught.value.reasons[0] == reason


def test_table_is_large_enough() -> None:
    """Bar 13: at least 40 bad SVIDs."""
    assert len(BAD) + len(SPOILT) >= 40


def test_intermediate_order_and_absence(ca: TestCa) -> None:
    """X-8: without its intermediate a leaf leads nowhere."""
    issued = ca.issue(ID, intermediates=2)
    with pytest.raises(InvalidSvidError):
        verify_x509_svid(issued.chain[:1], ca.x509_bundle, now=now())


def test_intermediate_does_not_authenticate(ca: TestCa) -> None:
    """X-3: a signing certificate is not somebody."""
    issued = ca.issue(ID, intermediates=1)
    with pytest.raises(InvalidSvidError):
        verify_x509_svid(issued.chain[1:], ca.x509_bundle, now=now())


def test_root_does_not_authenticate(ca: TestCa) -> None:
    """X-3: nor is the root."""
    with pytest.raises(InvalidSvidError):
        verify_x509_svid(ca.roots, ca.x509_bundle, now=now())


@pytest.mark.parametrize("is_self_signed", [False, True])
def test_leaf_in_the_bundle(ca: TestCa, is_self_signed: bool) -> None:
    """A leaf that stands in the bundle as if it were an authority is refused."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = ca.issue(ID, key=key, signing_key=key if is_self_signed else None)
    bundle = x509_bundle(ca.trust_domain, [*ca.roots, issued.chain[0]])
    with pytest.raises(InvalidSvidError) as caught:
        verify_x509_svid(issued.chain, bundle, now=now())
    assert caught.value.reasons[0] == "leaf-in-bundle"


def test_bundle_without_authority(ca: TestCa) -> None:
    """X-4: a certificate without `cA` is no authority, wherever it stands."""
    bundle = x509_bundle(ca.trust_domain, [ca.issue(ID).chain[0]])
    with pytest.raises(InvalidSvidError) as caught:
        verify_x509_svid(ca.issue(ID).chain, bundle, now=now())
    assert caught.value.reasons[0] == "bundle"


def test_each_domain_by_its_own_bundle(ca: TestCa) -> None:
    """TB-1: with both bundles at hand, an ID is verified by its own domain's alone."""
    both = StaticBundleSource([ca.x509_bundle, OTHER.x509_bundle])
    assert verify_x509_svid(OTHER.issue("spiffe://other.org/a").chain, both, now=now()).spiffe_id.path == "/a"
    for chain in (ca.issue("spiffe://other.org/a").chain, OTHER.issue(ID).chain):
        with pytest.raises(InvalidSvidError) as caught:
            verify_x509_svid(chain, both, now=now())
        assert caught.value.reasons[0] == "chain"


def test_current_bundle_counts() -> None:
    """C2: a removed authority is untrusted at once, also for a chain that was verified before."""
    own = TestCa("example.org")
    chain = own.issue(ID).chain
    assert verify_x509_svid(chain, own.x509_bundle, now=now())
    own.rotate_authority()
    assert verify_x509_svid(chain, own.x509_bundle, now=now())
    own.drop_old_authorities()
    with pytest.raises(InvalidSvidError):
        verify_x509_svid(chain, own.x509_bundle, now=now())


def test_a_kept_result_does_not_outlive_the_chain(ca: TestCa) -> None:
    """A positive result is for its times only: one second before the end, at the end, and before the start."""
    issued = ca.issue(ID, ttl=100)
    end = issued.leaf.not_valid_after_utc.timestamp()
    start = issued.leaf.not_valid_before_utc.timestamp()
    assert verify_x509_svid(issued.chain, ca.x509_bundle, now=end - 1)
    for instant in (end, end + 1, start - 1):
        with pytest.raises(InvalidSvidError):
            verify_x509_svid(issued.chain, ca.x509_bundle, now=instant)


def test_a_bundle_that_lies_about_its_domain(ca: TestCa) -> None:
    """TB-1: a source that answers with another domain's bundle is not believed."""

    class Confused(StaticBundleSource):
        """Answers with one bundle for all."""

        def x509_bundle(self, trust_domain: object) -> object:
            """Answer with the other domain's."""
            return OTHER.x509_bundle

    with pytest.raises(InvalidSvidError) as caught:
        verify_x509_svid(OTHER.issue(ID).chain, Confused(), now=now())
    assert caught.value.reasons[0] == "untrusted-domain"


@pytest.mark.parametrize("year", [b"0000", b"9999"])
def test_dates_that_cannot_be_said(ca: TestCa, year: bytes) -> None:
    """A certificate of a year that the language has no value for is a refusal, in a chain as in a bundle."""
    der = ca.issue(ID, ttl=30 * 365 * DAY).chain[0]
    odd = re.sub(rb"\x18\x0f\d{4}(\d{10}Z)", b"\x18\x0f" + year + rb"\1", der)
    assert len(odd) == len(der)
    assert odd != der
    with pytest.raises(InvalidSvidError):
        verify_x509_svid([odd], ca.x509_bundle, now=now())
    with pytest.raises(InvalidSvidError):
        verify_x509_svid([*ca.issue(ID).chain, odd], ca.x509_bundle, now=0.0)
    if year == b"0000":
        with pytest.raises(InvalidSvidError):
            x509_bundle(ca.trust_domain, [odd])
