# SPDX-License-Identifier: Apache-2.0
"""JWT-SVIDs: strict parser and verifier in one call.

Holds `parse_and_verify`; there is no parsing without verifying. Does not fetch or cache, and does not say what the
bearer may do: whoever has the text can show it.

Stricter than the standard where the standard leaves room: `kid` is required, exactly one audience, leeway 0.
"""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from jitwi.errors import InvalidSpiffeIdError, InvalidSvidError
from jitwi.identity.bundle import MIN_RSA_BITS
from jitwi.identity.identity import JwtBundle
from jitwi.identity.strict import decode_base64url, load_object, refusal
from jitwi.spiffe_id import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from jitwi.identity.identity import BundleSource
    from jitwi.spiffe_id import TrustDomain

__all__ = ["ALGORITHMS", "MAX_JWT_LIFETIME", "MAX_TOKEN_BYTES", "VerifiedJwtSvid", "parse_and_verify"]

MAX_TOKEN_BYTES = 16 * 1024
MAX_JWT_LIFETIME = 24 * 3600.0
"""Seconds from `iat`, or from now, to `exp`."""
ISSUED_AT_SKEW = 5.0
"""Seconds that `iat` may lie ahead: the issuer is another machine. `exp` and `nbf` get none."""
MAX_INSTANT = 253_402_300_799
"""The last second of the year 9999."""
MAX_AUDIENCE_CHARACTERS = 2048

_HEADERS = frozenset({"alg", "kid", "typ"})
_TYPES = ("JWT", "JOSE")
_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVE_OF = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
ALGORITHMS = frozenset(family + size for family in ("ES", "PS", "RS") for size in _HASHES)
"""Source: JWT-SVID §2.1."""


@attrs.frozen(eq=False)
class VerifiedJwtSvid:
    """What a verified JWT-SVID says; the token itself is not kept.

    Args:
        spiffe_id: Its `sub`.
        audience: Its only audience.
        issued_at: `iat`, seconds since the epoch, or None.
        expires_at: `exp`, seconds since the epoch; expired from that second on.
        thumbprint: SHA-256 of the token, in hex; safe for the record.
        claims: All claims, read-only.
    """

    spiffe_id: SpiffeId
    audience: str
    issued_at: float | None
    expires_at: float
    thumbprint: str
    claims: Mapping[str, Any] = attrs.field(repr=False)


def check_audience(audience: object) -> str:
    """Return `audience` if it is one that a JWT-SVID can be asked for.

    Raises:
        InvalidSvidError: It is not text, empty or too long.
    """
    if not isinstance(audience, str) or not 0 < len(audience) <= MAX_AUDIENCE_CHARACTERS or not audience.isprintable():
        raise refusal("an audience is one printable text", "audience", remedy="pass the one recipient's name")
    return audience


def parse_and_verify(token: str, *, audience: str, bundles: BundleSource | JwtBundle, now: float) -> VerifiedJwtSvid:
    """Verify a JWT-SVID against the current bundle of its subject's trust domain.

    Args:
        token: JWS compact serialization.
        audience: The one audience that it must have, and no other.
        bundles: Where the bundle comes from; a single bundle counts for its own trust domain only.
        now: Seconds since the epoch.

    Raises:
        InvalidSvidError: Any check failed; `reasons` says which.

    Source: JWT-SVID §2, §3, §5.
    """
    check_audience(audience)
    # 1. Bounds and form, before anything is decoded.
    if not isinstance(token, str):
        raise refusal("a JWT-SVID is text", "type")
    if len(token) > MAX_TOKEN_BYTES:
        raise refusal(f"the JWT-SVID is longer than {MAX_TOKEN_BYTES} bytes", "too-large")
    parts = token.split(".")
    if not token.isascii() or len(parts) != 3 or not all(parts):  # noqa: PLR2004
        raise refusal("the JWT-SVID is not in compact serialization", "form")
    # 2. The header: the algorithm before all, then nothing unknown.
    header = load_object(decode_base64url(parts[0]))
    algorithm, kid = _header(header)
    # 3. Who it is about decides which bundle, never the header.
    claims = load_object(decode_base64url(parts[1]))
    subject = _subject(claims)
    key = _key_of(subject.trust_domain, kid, bundles)
    # 4. The signature, with the algorithm bound to the key's type.
    _verify_signature(algorithm, key, f"{parts[0]}.{parts[1]}".encode(), decode_base64url(parts[2]))
    # 5. The claims.
    issued_at, expires_at = _times(claims, now)
    _check_audience(claims, audience)
    return VerifiedJwtSvid(
        subject,
        audience,
        issued_at,
        expires_at,
        hashlib.sha256(token.encode()).hexdigest(),
        MappingProxyType(claims),
    )


def _header(header: dict[str, Any]) -> tuple[str, str]:
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise refusal("the JWT-SVID's algorithm is not allowed", "algorithm")
    if not header.keys() <= _HEADERS:
        raise refusal("the JWT-SVID has a header that is not allowed", "header")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise refusal("the JWT-SVID does not name its key", "kid")
    if "typ" in header and header["typ"] not in _TYPES:
        raise refusal("the JWT-SVID has another `typ`", "typ")
    return algorithm, kid


def _subject(claims: dict[str, Any]) -> SpiffeId:
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise refusal("the JWT-SVID has no subject", "sub")
    try:
        return SpiffeId.parse(subject).require_workload()
    except InvalidSpiffeIdError as exc:
        raise refusal(f"the JWT-SVID's subject does not name a workload: {exc.message}", "sub") from exc


def _key_of(trust_domain: TrustDomain, kid: str, bundles: BundleSource | JwtBundle) -> PublicKeyTypes:
    if isinstance(bundles, JwtBundle):
        bundle = bundles if bundles.trust_domain == trust_domain else None
    else:
        bundle = bundles.jwt_bundle(trust_domain)
    if bundle is None or bundle.trust_domain != trust_domain:
        raise refusal(f"there is no JWT bundle of trust domain `{trust_domain}`: untrusted", "untrusted-domain")
    key = bundle.keys.get(kid)
    if key is None:
        raise refusal(f"the bundle of `{trust_domain}` does not have the JWT-SVID's key", "unknown-kid")
    return key


def _verify_signature(algorithm: str, key: PublicKeyTypes, signed: bytes, signature: bytes) -> None:
    digest = _HASHES[algorithm[2:]]
    try:
        if algorithm in _CURVE_OF:
            if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != _CURVE_OF[algorithm]:
                raise refusal("the JWT-SVID's algorithm does not belong to its key", "algorithm-key")
            size = (key.curve.key_size + 7) // 8
            if len(signature) != 2 * size:
                raise refusal("the JWT-SVID's signature has another length", "signature")
            r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))
            return
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_RSA_BITS:
            raise refusal("the JWT-SVID's algorithm does not belong to its key", "algorithm-key")
        scheme: padding.AsymmetricPadding = padding.PKCS1v15()
        if algorithm.startswith("PS"):
            scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)
        key.verify(signature, signed, scheme, digest)
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as exc:
        if isinstance(exc, InvalidSvidError):
            raise
        raise refusal("the JWT-SVID's signature does not verify", "signature") from exc


def _instant(claims: dict[str, Any], name: str) -> int | None:
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_INSTANT:
        raise refusal(f"`{name}` is not an instant in whole seconds", name)
    return value


def _times(claims: dict[str, Any], now: float) -> tuple[float | None, float]:
    expires_at, issued_at, not_before = (_instant(claims, name) for name in ("exp", "iat", "nbf"))
    if expires_at is None:
        raise refusal("the JWT-SVID does not expire", "exp")
    if now >= expires_at:
        raise refusal("the JWT-SVID has expired", "expired")
    if not_before is not None and now < not_before:
        raise refusal("the JWT-SVID is not valid yet", "nbf")
    if issued_at is not None and (issued_at > now + ISSUED_AT_SKEW or issued_at >= expires_at):
        raise refusal("the JWT-SVID was issued in the future", "iat")
    if expires_at - (now if issued_at is None else min(issued_at, now)) > MAX_JWT_LIFETIME:
        raise refusal(f"the JWT-SVID lives longer than {MAX_JWT_LIFETIME:.0f} s", "lifetime")
    return issued_at, expires_at


def _check_audience(claims: dict[str, Any], audience: str) -> None:
    found = claims.get("aud")
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise refusal("the JWT-SVID has no audience", "aud")
    if found != [audience]:
        raise refusal("the JWT-SVID is for another audience, or for several", "aud")
