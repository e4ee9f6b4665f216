# SPDX-License-Identifier: Apache-2.0
"""Trust bundles: from the Workload API's bytes and from SPIFFE bundle documents to immutable values.

Holds the parsers and `StaticBundleSource`. Does not fetch, and does not pool: a bundle is of one trust domain.
One odd key never spoils its set; a document that is not a key set is refused whole.

Example:
    >>> from jitwi.identity.bundle import parse_jwks
    >>> from jitwi.spiffe_id import TrustDomain
    >>> dict(parse_jwks(TrustDomain("example.org"), '{"keys": []}').keys)
    {}
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from jitwi.errors import InvalidSvidError
from jitwi.identity.identity import JwtBundle, X509Bundle
from jitwi.identity.strict import decode_base64, decode_base64url, load_object, refusal, split_der

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from jitwi.spiffe_id import TrustDomain

__all__ = [
    "MAX_RSA_BITS",
    "MIN_RSA_BITS",
    "SpiffeBundle",
    "StaticBundleSource",
    "parse_jwks",
    "parse_spiffe_bundle",
    "parse_x509_bundle",
    "x509_bundle",
]

MAX_BUNDLE_BYTES = 4 * 1024 * 1024
MAX_AUTHORITIES = 256
MAX_KEYS = 1024
MAX_KEY_ID_CHARACTERS = 1024
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
MIN_RSA_EXPONENT = 3
MAX_RSA_EXPONENT = 2**32 - 1
MAX_SEQUENCE = 2**64 - 1
_USE_JWT = "jwt-svid"
_USE_X509 = "x509-svid"
_CURVES: dict[str, tuple[type[ec.EllipticCurve], int]] = {
    "P-256": (ec.SECP256R1, 32),
    "P-384": (ec.SECP384R1, 48),
    "P-521": (ec.SECP521R1, 66),
}
_FAMILIES = {"EC": ("ES256", "ES384", "ES512"), "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")}


@attrs.frozen(eq=False)
class SpiffeBundle:
    """A SPIFFE bundle document. Source: TDB §4.

    Args:
        trust_domain: Whose, as configured; the document does not say.
        x509: Its X.509 authorities; None if it has none: the domain then has no X.509-SVIDs.
        jwt: Its JWT authorities, possibly none.
        sequence: `spiffe_sequence`, or None.
        refresh_hint: `spiffe_refresh_hint` in seconds, or None.
    """

    trust_domain: TrustDomain
    x509: X509Bundle | None
    jwt: JwtBundle
    sequence: int | None = None
    refresh_hint: int | None = None


class StaticBundleSource:
    """Fixed bundles behind the port of the live ones, for a Guard whose partners do not change.

    Args:
        x509: X.509 bundles, one per trust domain at most.
        jwt: JWT bundles, one per trust domain at most.
    """

    def __init__(self, x509: Iterable[X509Bundle] = (), jwt: Iterable[JwtBundle] = ()) -> None:
        self._x509 = {bundle.trust_domain: bundle for bundle in x509}
        self._jwt = {bundle.trust_domain: bundle for bundle in jwt}

    def x509_bundle(self, trust_domain: TrustDomain) -> X509Bundle | None:
        """Return the bundle, or None: that trust domain is untrusted."""
        return self._x509.get(trust_domain)

    def jwt_bundle(self, trust_domain: TrustDomain) -> JwtBundle | None:
        """Return the bundle, or None: that trust domain is untrusted."""
        return self._jwt.get(trust_domain)


def load_certificate(der: bytes) -> x509.Certificate:
    """Load one DER certificate.

    Raises:
        InvalidSvidError: It cannot be read.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc  # a year that Python cannot say
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as exc:
        raise refusal("a certificate cannot be read", "der") from exc
    return certificate


def x509_bundle(trust_domain: TrustDomain, ders: Iterable[bytes]) -> X509Bundle:
    """Build a bundle from DER certificates, each once.

    Raises:
        InvalidSvidError: One of them cannot be read.
    """
    unique = tuple(dict.fromkeys(ders))
    digest = hashlib.sha256(trust_domain.name.encode())
    for der in unique:
        digest.update(hashlib.sha256(der).digest())
    return X509Bundle(trust_domain, tuple(load_certificate(der) for der in unique), digest.hexdigest())


def parse_x509_bundle(trust_domain: TrustDomain, data: bytes) -> X509Bundle:
    """Parse the concatenated DER certificates of the Workload API.

    Raises:
        InvalidSvidError: Empty, too large, or not certificates. Source: Workload API §5.2.1.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise refusal(f"the bundle of `{trust_domain}` is larger than {MAX_BUNDLE_BYTES} bytes", "too-large")
    return x509_bundle(trust_domain, split_der(data, limit=MAX_AUTHORITIES))


def parse_jwks(trust_domain: TrustDomain, data: bytes | str) -> JwtBundle:
    """Parse a JWKS of the Workload API: a key whose `use` is absent counts, one for another use does not.

    Raises:
        InvalidSvidError: It is not a key set.
    """
    return _jwt_bundle(trust_domain, _keys(trust_domain, data)[1], is_use_required=False)


def parse_spiffe_bundle(trust_domain: TrustDomain, data: bytes | str) -> SpiffeBundle:
    """Parse a SPIFFE bundle document, as federation and `bundle show -format spiffe` give it.

    Raises:
        InvalidSvidError: It is not such a document. Source: TDB §4.1.
    """
    document, keys = _keys(trust_domain, data)
    ders = [der for key in keys if (der := _x5c(key)) is not None]
    return SpiffeBundle(
        trust_domain,
        x509_bundle(trust_domain, ders) if ders else None,
        _jwt_bundle(trust_domain, keys, is_use_required=True),
        _count(document, "spiffe_sequence"),
        _count(document, "spiffe_refresh_hint"),
    )


def _keys(trust_domain: TrustDomain, data: bytes | str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if len(data) > MAX_BUNDLE_BYTES:
        raise refusal(f"the bundle of `{trust_domain}` is larger than {MAX_BUNDLE_BYTES} bytes", "too-large")
    document = load_object(data)
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise refusal(f"the bundle of `{trust_domain}` has no list `keys`", "keys")
    if len(keys) > MAX_KEYS:
        raise refusal(f"the bundle of `{trust_domain}` has more than {MAX_KEYS} keys", "too-large")
    return document, [key for key in keys if isinstance(key, dict)]


def _count(document: dict[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEQUENCE:
        raise refusal(f"`{name}` is not a count", "member")
    return value


def _x5c(key: dict[str, Any]) -> bytes | None:
    """Return the authority of one entry, or None for an entry that is none. Source: X509-SVID §6.1."""
    chain = key.get("x5c")
    family = key.get("kty")
    if key.get("use") != _USE_X509 or not isinstance(family, str) or family not in _FAMILIES:
        return None
    if not isinstance(chain, list) or not chain or not isinstance(chain[0], str):
        return None
    try:
        der = decode_base64(chain[0])
        load_certificate(der)
    except InvalidSvidError:
        return None
    return der


def _jwt_bundle(trust_domain: TrustDomain, keys: list[dict[str, Any]], *, is_use_required: bool) -> JwtBundle:
    found: dict[str, PublicKeyTypes] = {}
    seen: set[str] = set()
    for key in keys:
        use, kid = key.get("use"), key.get("kid")
        if use != _USE_JWT and (is_use_required or "use" in key):
            continue
        if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KEY_ID_CHARACTERS:
            continue
        if kid in seen:  # two keys under one name: neither is meant for certain
            found.pop(kid, None)
            continue
        seen.add(kid)
        public = _public_key(key)
        if public is not None:
            found[kid] = public
    digest = hashlib.sha256(trust_domain.name.encode())
    for kid in sorted(found):
        spki = found[kid].public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        digest.update(hashlib.sha256(kid.encode("utf-8", "surrogatepass")).digest() + hashlib.sha256(spki).digest())
    return JwtBundle(trust_domain, found, digest.hexdigest())


def _public_key(key: dict[str, Any]) -> PublicKeyTypes | None:
    """Return the public key of one JWK, or None for a key that is not for verifying JWT-SVIDs."""
    family = key.get("kty")
    operations = key.get("key_ops", ["verify"])
    if not isinstance(family, str) or family not in _FAMILIES or "d" in key:
        return None
    if "alg" in key and key["alg"] not in _FAMILIES[family]:
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        return _ec_key(key) if family == "EC" else _rsa_key(key)
    except (InvalidSvidError, ValueError, UnsupportedAlgorithm):
        return None


def _member(key: dict[str, Any], name: str) -> bytes:
    value = key.get(name)
    if not isinstance(value, str) or not value:
        raise refusal(f"a key has no `{name}`", "key")
    return decode_base64url(value)


def _ec_key(key: dict[str, Any]) -> ec.EllipticCurvePublicKey | None:
    curve = key.get("crv")
    if not isinstance(curve, str) or curve not in _CURVES:
        return None
    kind, size = _CURVES[curve]
    x, y = _member(key, "x"), _member(key, "y")
    if len(x) != size or len(y) != size:
        return None
    return ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), kind()).public_key()


def _rsa_key(key: dict[str, Any]) -> rsa.RSAPublicKey | None:
    n, e = int.from_bytes(_member(key, "n")), int.from_bytes(_member(key, "e"))
    if not MIN_RSA_BITS <= n.bit_length() <= MAX_RSA_BITS:
        return None
    if not MIN_RSA_EXPONENT <= e <= MAX_RSA_EXPONENT or e % 2 == 0:
        return None
    return rsa.RSAPublicNumbers(e, n).public_key()
