# SPDX-License-Identifier: Apache-2.0
"""A trust domain's authority for tests: issues good SVIDs and, on request, bad ones.

Holds `TestCa`. Not for real use: its keys live in the memory of a test and protect nothing.

Example:
    >>> from jitwi.testing.ca import TestCa
    >>> ca = TestCa("example.org")
    >>> svid = ca.issue("spiffe://example.org/ns/prod/refunds")
    >>> len(svid.chain)
    1
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jitwi.clock import SystemClock, as_datetime
from jitwi.identity.bundle import parse_jwks, x509_bundle
from jitwi.spiffe_id import SpiffeId, TrustDomain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jitwi.clock import Clock
    from jitwi.identity.identity import BundleSource, JwtBundle, X509Bundle

__all__ = ["IssuedX509Svid", "TestCa"]

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
_BACKDATE = 10.0
"""Seconds that a leaf is valid before it is issued, as SPIRE does."""
_BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


@attrs.frozen(repr=False)
class IssuedX509Svid:
    """An X.509-SVID with its key.

    Args:
        spiffe_id: As text: a bad one need not be a SPIFFE ID.
        chain: DER certificates, leaf first, without the root.
        key: The leaf's key.
    """

    spiffe_id: str
    chain: tuple[bytes, ...]
    key: PrivateKey

    @property
    def chain_der(self) -> bytes:
        """The chain as the Workload API sends it."""
        return b"".join(self.chain)

    @property
    def key_der(self) -> bytes:
        """The key as the Workload API sends it: unencrypted PKCS#8."""
        return self.key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def leaf(self) -> x509.Certificate:
        """The leaf, parsed."""
        return x509.load_der_x509_certificate(self.chain[0])


def usage(*names: str) -> x509.KeyUsage:
    """Return a KeyUsage with these bits: names as `x509.KeyUsage` has them."""
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


def b64url(data: bytes) -> str:
    """Encode base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@attrs.define(repr=False)
class _Signer:
    certificate: x509.Certificate
    key: Any

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


class TestCa:
    """Authority of one trust domain, for tests only.

    Args:
        trust_domain: Name of the trust domain.
        clock: What tells the time.
        key: The X.509 authority's key; None makes a P-256 key.
        jwt_key: The JWT authority's key; None makes a P-256 key.
    """

    __test__ = False  # pytest: this is not a test class

    def __init__(
        self,
        trust_domain: str = "example.org",
        *,
        clock: Clock | None = None,
        key: PrivateKey | None = None,
        jwt_key: Any = None,
    ) -> None:
        self.trust_domain = TrustDomain.parse(trust_domain)
        self._clock = clock if clock is not None else SystemClock()
        self._roots: list[_Signer] = [self._root(key)]
        self._jwt_keys: dict[str, Any] = {}
        self.jwt_kid = ""
        self.rotate_jwt_authority(key=jwt_key)

    # X.509 -----------------------------------------------------------------------------------------------------

    def _root(self, key: PrivateKey | None) -> _Signer:
        key = key if key is not None else ec.generate_private_key(ec.SECP256R1())
        return self._authority(key, None, f"{self.trust_domain} root", uri=f"spiffe://{self.trust_domain}")

    def _authority(
        self,
        key: Any,
        parent: _Signer | None,
        name: str,
        *,
        uri: str | None = None,
        days: float = 30.0,
        path_length: int | None = None,
    ) -> _Signer:
        now = self._clock.now().wall
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if parent is None else parent.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(as_datetime(now - 3600))
            .not_valid_after(as_datetime(now + days * 86400))
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if uri is not None:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
            )
        if parent is not None:
            builder = builder.add_extension(_key_id(parent), critical=False)
        return _Signer(builder.sign(key if parent is None else parent.key, _digest(parent.key if parent else key)), key)

    def rotate_authority(self, *, key: PrivateKey | None = None) -> None:
        """Add a new root and issue from it; the old one stays in the bundle until `drop_old_authorities()`."""
        self._roots.append(self._root(key))

    def drop_old_authorities(self) -> None:
        """Leave only the newest root in the bundle: what the others signed is untrusted."""
        del self._roots[:-1]

    def issue(  # noqa: PLR0913 - each a knob that a test turns alone
        self,
        spiffe_id: SpiffeId | str,
        *,
        ttl: timedelta | float = timedelta(hours=1),
        key: PrivateKey | None = None,
        not_before: float | None = None,
        not_after: float | None = None,
        uris: Sequence[str] | None = None,
        dns: Sequence[str] = (),
        has_subject: bool = True,
        is_san_critical: bool | None = None,
        has_san: bool = True,
        is_ca: bool | None = False,
        key_usage: x509.KeyUsage | None = usage("digital_signature", "key_encipherment", "key_agreement"),  # noqa: B008 - immutable
        is_key_usage_critical: bool = True,
        extended: Sequence[x509.ObjectIdentifier] | None = _BOTH,
        is_extended_critical: bool = False,
        has_authority_key_id: bool = True,
        intermediates: int = 0,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        signer: TestCa | None = None,
        signing_key: Any = None,
    ) -> IssuedX509Svid:
        """Issue an X.509-SVID; the defaults make a good one, every other argument may make a bad one.

        Args:
            spiffe_id: Who.
            ttl: Life from now; a number means seconds.
            key: The leaf's key; None makes a P-256 key.
            not_before: Start instead of ten seconds ago, seconds since the epoch.
            not_after: End instead of now + ttl, seconds since the epoch.
            uris: URI names instead of the SPIFFE ID.
            dns: Further DNS names.
            has_subject: False leaves the subject empty.
            is_san_critical: None means critical just when there is no subject.
            has_san: False leaves the names out.
            is_ca: `cA` of the leaf; None leaves BasicConstraints out.
            key_usage: None leaves it out.
            is_key_usage_critical: As it says.
            extended: Purposes; None leaves them out.
            is_extended_critical: As it says.
            has_authority_key_id: As it says.
            intermediates: How many signing certificates between root and leaf.
            extensions: Further extensions, with their criticality.
            signer: Another authority signs.
            signing_key: Sign with this key instead of the issuer's: the signature is then wrong.
        """
        now = self._clock.now().wall
        leaf_key: Any = key if key is not None else ec.generate_private_key(ec.SECP256R1())
        parents = (signer if signer is not None else self).path(intermediates)
        issuer = parents[-1]
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "jitwi test")] if has_subject else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(attributes))
            .issuer_name(issuer.certificate.subject)
            .public_key(leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(as_datetime(now - _BACKDATE if not_before is None else not_before))
            .not_valid_after(as_datetime(now + seconds if not_after is None else not_after))
        )
        if is_ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        if key_usage is not None:
            builder = builder.add_extension(key_usage, critical=is_key_usage_critical)
        if extended is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=is_extended_critical)
        if has_authority_key_id:
            builder = builder.add_extension(_key_id(issuer), critical=False)
        if has_san:
            names: list[x509.GeneralName] = [
                x509.UniformResourceIdentifier(uri) for uri in ((str(spiffe_id),) if uris is None else uris)
            ]
            names += [x509.DNSName(name) for name in dns]
            is_critical = not has_subject if is_san_critical is None else is_san_critical
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=is_critical)
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, critical=is_critical)
        signing = issuer.key if signing_key is None else signing_key
        leaf = builder.sign(signing, _digest(signing)).public_bytes(serialization.Encoding.DER)
        return IssuedX509Svid(str(spiffe_id), (leaf, *(one.der for one in reversed(parents[1:]))), leaf_key)

    def path(self, intermediates: int) -> list[_Signer]:
        """Make a path of signing certificates from the newest root down."""
        path = [self._roots[-1]]
        for number in range(intermediates):
            key = ec.generate_private_key(ec.SECP256R1())
            path.append(self._authority(key, path[-1], f"{self.trust_domain} signer {number}", days=20))
        return path

    @property
    def roots(self) -> tuple[bytes, ...]:
        """DER of all current roots."""
        return tuple(root.der for root in self._roots)

    @property
    def x509_bundle_der(self) -> bytes:
        """The bundle as the Workload API sends it."""
        return b"".join(self.roots)

    @property
    def x509_bundle(self) -> X509Bundle:
        """The bundle as jitwi holds it."""
        return x509_bundle(self.trust_domain, self.roots)

    # JWT -------------------------------------------------------------------------------------------------------

    def bundles(self) -> BundleSource:
        """Return a source of the bundles of now and of later, to be given to a Guard as its `identity`."""
        return _CurrentBundles(self)

    def rotate_jwt_authority(self, *, key: Any = None, kid: str | None = None) -> str:
        """Add a new JWT authority and sign with it; returns its key id."""
        self.jwt_kid = kid if kid is not None else secrets.token_urlsafe(8)
        self._jwt_keys[self.jwt_kid] = key if key is not None else ec.generate_private_key(ec.SECP256R1())
        return self.jwt_kid

    def drop_old_jwt_authorities(self) -> None:
        """Leave only the newest JWT authority in the bundle."""
        self._jwt_keys = {self.jwt_kid: self._jwt_keys[self.jwt_kid]}

    @property
    def jwks(self) -> bytes:
        """The JWT bundle as the Workload API sends it: a JWKS without `use`."""
        return json.dumps({"keys": [jwk(key, kid) for kid, key in self._jwt_keys.items()]}).encode()

    @property
    def jwt_bundle(self) -> JwtBundle:
        """The JWT bundle as jitwi holds it."""
        return parse_jwks(self.trust_domain, self.jwks)

    @property
    def spiffe_bundle(self) -> bytes:
        """Both as a SPIFFE bundle document."""
        keys = [jwk(key, kid) | {"use": "jwt-svid"} for kid, key in self._jwt_keys.items()]
        for root in self._roots:
            x5c = [base64.b64encode(root.der).decode()]
            keys.append(jwk(root.key, None) | {"use": "x509-svid", "x5c": x5c})
        return json.dumps({"keys": keys, "spiffe_sequence": 1, "spiffe_refresh_hint": 300}).encode()

    def jwt(
        self,
        spiffe_id: SpiffeId | str,
        audience: Sequence[str] | str,
        *,
        ttl: timedelta | float = timedelta(minutes=5),
        claims: Mapping[str, Any] | None = None,
        header: Mapping[str, Any] | None = None,
        key: Any = None,
    ) -> str:
        """Sign a JWT-SVID.

        Args:
            spiffe_id: Its `sub`.
            audience: Its `aud`.
            ttl: From now to `exp`; a number means seconds.
            claims: Replace or add claims; a value of None leaves the claim out.
            header: The same for the header.
            key: Sign with this key instead of the authority's.
        """
        now = int(self._clock.now().wall)
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        signing = key if key is not None else self._jwt_keys[self.jwt_kid]
        audiences = [audience] if isinstance(audience, str) else list(audience)
        body: dict[str, Any] = {"sub": str(spiffe_id), "aud": audiences, "iat": now, "exp": int(now + seconds)}
        head: dict[str, Any] = {"alg": algorithm_of(signing), "kid": self.jwt_kid, "typ": "JWT"}
        body = {name: value for name, value in (body | dict(claims or {})).items() if value is not None}
        head = {name: value for name, value in (head | dict(header or {})).items() if value is not None}
        return sign_compact(signing, head, body)


class _CurrentBundles:
    def __init__(self, ca: TestCa) -> None:
        self._ca = ca

    def x509_bundle(self, trust_domain: TrustDomain) -> X509Bundle | None:
        return self._ca.x509_bundle if trust_domain == self._ca.trust_domain else None

    def jwt_bundle(self, trust_domain: TrustDomain) -> JwtBundle | None:
        return self._ca.jwt_bundle if trust_domain == self._ca.trust_domain else None


def _key_id(parent: _Signer) -> x509.AuthorityKeyIdentifier:
    identifier = parent.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier.value)


def _digest(key: Any) -> Any:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def algorithm_of(key: Any) -> str:
    """Return the JOSE algorithm for a key: by the curve, or RS256."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {256: "ES256", 384: "ES384", 521: "ES512"}[key.curve.key_size]
    return "RS256"


def jwk(key: Any, kid: str | None) -> dict[str, Any]:
    """Return the public half of a key as a JWK."""
    found: dict[str, Any]
    public = key.public_key() if hasattr(key, "public_key") else key
    if isinstance(public, ec.EllipticCurvePublicKey):
        size = (public.curve.key_size + 7) // 8
        numbers = public.public_numbers()
        curve = {256: "P-256", 384: "P-384", 521: "P-521"}[public.curve.key_size]
        found = {
            "kty": "EC",
            "crv": curve,
            "x": b64url(numbers.x.to_bytes(size)),
            "y": b64url(numbers.y.to_bytes(size)),
        }
    else:
        rsa_numbers = public.public_numbers()
        n = rsa_numbers.n.to_bytes((rsa_numbers.n.bit_length() + 7) // 8)
        e = rsa_numbers.e.to_bytes((rsa_numbers.e.bit_length() + 7) // 8)
        found = {"kty": "RSA", "n": b64url(n), "e": b64url(e)}
    return found if kid is None else found | {"kid": kid}


def sign_compact(key: Any, header: Mapping[str, Any] | str, claims: Mapping[str, Any] | str) -> str:
    """Sign header and claims, given as mappings or as raw JSON text, in JWS compact serialization."""
    parts = [b64url((one if isinstance(one, str) else json.dumps(one)).encode()) for one in (header, claims)]
    signed = ".".join(parts).encode()
    name = str(header.get("alg", "")) if not isinstance(header, str) else algorithm_of(key)
    digest = _HASHES.get(name[2:], hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
        size = (key.curve.key_size + 7) // 8
        signature = r.to_bytes(size) + s.to_bytes(size)
    elif isinstance(key, rsa.RSAPrivateKey):
        scheme: padding.AsymmetricPadding = padding.PKCS1v15()
        if name.startswith("PS"):
            scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)
        signature = key.sign(signed, scheme, digest)
    else:
        signature = hashlib.sha256(signed).digest()
    return ".".join([*parts, b64url(signature)])
