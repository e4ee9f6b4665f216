# SPDX-License-Identifier: Apache-2.0
"""X.509-SVIDs: verification of a chain, and admission of our own.

Holds the checks, numbered in `verify_x509_svid`. Does not hold who may do what, nor the transport: the caller proves
possession of the key. The bundle is always that of the leaf's own trust domain, as it stands now.

Limits that are the library's below and fail closed: Ed25519 authorities and URI name constraints are refused.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from jitwi.clock import as_datetime
from jitwi.errors import InvalidSpiffeIdError
from jitwi.identity.bundle import MAX_RSA_BITS, MIN_RSA_BITS, load_certificate
from jitwi.identity.identity import X509Bundle
from jitwi.identity.key import SigningKey, load_private_key
from jitwi.identity.strict import refusal, split_der
from jitwi.spiffe_id import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from jitwi.identity.identity import BundleSource
    from jitwi.spiffe_id import TrustDomain

__all__ = [
    "MAX_CERTIFICATE_BYTES",
    "MAX_CHAIN",
    "MAX_X509_LIFETIME",
    "AdmittedX509Svid",
    "VerifiedX509Svid",
    "admit_x509_svid",
    "verify_x509_svid",
]

MAX_CHAIN = 8
"""Certificates in a chain, leaf included, root not."""
MAX_CERTIFICATE_BYTES = 16 * 1024
MAX_X509_LIFETIME = 7 * 24 * 3600.0
"""Seconds from `notBefore` to `notAfter` of a leaf."""
MAX_CACHED = 1024

_Kind = TypeVar("_Kind", bound=x509.ExtensionType)
_AGNOSTIC = verification.Criticality.AGNOSTIC
# Which criticality an extension of the leaf has is checked here where the profile says; path rules stay the library's.
_LEAF_POLICY = (
    verification.ExtensionPolicy.webpki_defaults_ee()
    .require_present(x509.SubjectAlternativeName, _AGNOSTIC, None)
    .may_be_present(x509.AuthorityKeyIdentifier, _AGNOSTIC, None)
    .may_be_present(x509.ExtendedKeyUsage, _AGNOSTIC, None)
)
_AUTHORITY_POLICY = verification.ExtensionPolicy.webpki_defaults_ca()
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_EXTENSION_ERRORS = (
    KeyError,  # a string type that the library does not know
    ValueError,
    TypeError,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)


@attrs.frozen(eq=False)
class VerifiedX509Svid:
    """What a verified chain proves about its leaf.

    Args:
        spiffe_id: Who.
        public_key: The leaf's key: P-256, P-384, P-521 or RSA.
        not_before: Latest start of validity in the chain, seconds since the epoch.
        not_after: Earliest end of validity in the chain, seconds since the epoch; expired from that second on.
        thumbprint: SHA-256 of the leaf, in hex.
    """

    spiffe_id: SpiffeId
    public_key: PublicKeyTypes
    not_before: float
    not_after: float
    thumbprint: str


@attrs.frozen(eq=False, repr=False)
class AdmittedX509Svid:
    """An X.509-SVID of our own that may be used.

    Args:
        svid: What was verified.
        chain: DER certificates, leaf first.
        key: The leaf's private key.
    """

    svid: VerifiedX509Svid
    chain: tuple[bytes, ...]
    key: SigningKey


class _Memory:
    """Bounded memory of positive results and stores, keyed by content and bundle version only."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}
        self.results: OrderedDict[tuple[bytes, str], tuple[VerifiedX509Svid, float]] = OrderedDict()
        self.names: OrderedDict[bytes, TrustDomain] = OrderedDict()  # which bundle a chain seen before needs
        self.stores: OrderedDict[str, verification.Store] = OrderedDict()

    def result(self, key: tuple[bytes, str], now: float) -> VerifiedX509Svid | None:
        with self._lock():
            known, until = self.results.get(key, (None, 0.0))
        return known if known is not None and known.not_before <= now < until else None

    def name(self, digest: bytes) -> TrustDomain | None:
        with self._lock():
            return self.names.get(digest)

    def keep(self, digest: bytes, bundle: X509Bundle, value: VerifiedX509Svid, now: float) -> None:
        """Keep a result until the leaf, its chain, or any authority that is valid now ends: the path may rest on it."""
        ends = [authority.not_valid_after_utc.timestamp() for authority in bundle.authorities]
        until = min([value.not_after, *(end for end in ends if end > now)])
        with self._lock():
            self.results[digest, bundle.digest] = (value, until)
            self.names[digest] = bundle.trust_domain
            if len(self.results) > MAX_CACHED:
                self.results.popitem(last=False)
            if len(self.names) > MAX_CACHED:
                self.names.popitem(last=False)

    def store(self, bundle: X509Bundle) -> verification.Store:
        with self._lock():
            found = self.stores.get(bundle.digest)
        if found is None:
            authorities = [cert for cert in bundle.authorities if _is_authority(cert)]
            if not authorities:
                raise refusal(f"the bundle of `{bundle.trust_domain}` has no authority", "bundle")
            found = verification.Store(authorities)
            with self._lock():
                self.stores[bundle.digest] = found
                if len(self.stores) > MAX_CACHED:
                    self.stores.popitem(last=False)
        return found

    def _lock(self) -> threading.Lock:
        """Return this process's lock: the parent's may have been held by a thread that is not in the forked child."""
        return self._locks.setdefault(os.getpid(), threading.Lock())


_memory = _Memory()


def verify_x509_svid(chain_der: Sequence[bytes], bundles: BundleSource | X509Bundle, *, now: float) -> VerifiedX509Svid:
    """Verify a chain against the current bundle of the leaf's own trust domain.

    Args:
        chain_der: DER certificates, leaf first, without the root.
        bundles: Where the bundle comes from; a single bundle counts for its own trust domain only.
        now: Seconds since the epoch.

    Returns:
        Who the leaf is, and its key. That the peer holds the key is the caller's to check.

    Raises:
        InvalidSvidError: Any check failed; `reasons` says which.

    Note:
        Not checked: revocation lists, which SPIRE does not send.

    Source: X509-SVID §5; SPIFFE-ID §3.3; TDB §3.
    """
    # 1. Bounds before anything is parsed.
    if not chain_der:
        raise refusal("there is no certificate", "no-certificate")
    if len(chain_der) > MAX_CHAIN:
        raise refusal(f"the chain has more than {MAX_CHAIN} certificates", "too-many-certificates")
    if any(len(der) > MAX_CERTIFICATE_BYTES for der in chain_der):
        raise refusal(f"a certificate is larger than {MAX_CERTIFICATE_BYTES} bytes", "too-large")
    # 2. A positive result is reused for the same bytes, the current bundle's version, and a time within the chain's.
    digest = b"".join(hashlib.sha256(der).digest() for der in chain_der)
    named = _memory.name(digest)
    if named is not None:
        known = _memory.result((digest, _bundle_of(named, bundles).digest), now)
        if known is not None:
            return known
    # 3. The leaf says who it claims to be: exactly one SPIFFE ID, with a path.
    certificates = [load_certificate(der) for der in chain_der]
    leaf = certificates[0]
    spiffe_id = _leaf_id(leaf)
    # 4. The bundle of that trust domain, as it stands now.
    bundle = _bundle_of(spiffe_id.trust_domain, bundles)
    # 5. The leaf itself: key, usage, lifetime, and that it is no authority.
    _check_leaf(leaf)
    not_before, not_after = _validity(certificates, now)
    for authority in bundle.authorities:
        if authority == leaf:
            raise refusal("the certificate stands in the bundle as an authority", "leaf-in-bundle")
    for certificate in certificates[1:]:
        _check_strength(certificate)
    # 6. RFC 5280 path validation; "now" is this call's.
    _verify_path(leaf, certificates[1:], _memory.store(bundle), now)
    verified = VerifiedX509Svid(
        spiffe_id, leaf.public_key(), not_before, not_after, hashlib.sha256(chain_der[0]).hexdigest()
    )
    _memory.keep(digest, bundle, verified, now)
    return verified


def admit_x509_svid(
    *, spiffe_id: str, chain: bytes, key: bytes, bundles: BundleSource | X509Bundle, now: float
) -> AdmittedX509Svid:
    """Check one SVID of a Workload API answer before it is adopted.

    Args:
        spiffe_id: The answer's field.
        chain: Concatenated DER certificates, leaf first.
        key: DER of the PKCS#8 private key.
        bundles: As for `verify_x509_svid`.
        now: Seconds since the epoch.

    Raises:
        InvalidSvidError: Chain, field or key do not hold, or do not belong together. Source: Workload API §5.2.1.
    """
    if len(chain) > MAX_CHAIN * MAX_CERTIFICATE_BYTES:
        raise refusal("the chain is too large", "too-large")
    ders = split_der(chain, limit=MAX_CHAIN)
    svid = verify_x509_svid(ders, bundles, now=now)
    if str(svid.spiffe_id) != spiffe_id:
        raise refusal("the field `spiffe_id` is not the certificate's SPIFFE ID", "spiffe-id-field")
    private = load_private_key(key)
    if private.public_key() != svid.public_key:
        raise refusal("the private key does not belong to the certificate", "key-mismatch")
    return AdmittedX509Svid(svid, ders, private)


def _bundle_of(trust_domain: TrustDomain, bundles: BundleSource | X509Bundle) -> X509Bundle:
    if isinstance(bundles, X509Bundle):
        bundle = bundles if bundles.trust_domain == trust_domain else None
    else:
        bundle = bundles.x509_bundle(trust_domain)
    if bundle is None or bundle.trust_domain != trust_domain:
        raise refusal(f"there is no bundle of trust domain `{trust_domain}`: it is untrusted", "untrusted-domain")
    return bundle


def _leaf_id(leaf: x509.Certificate) -> SpiffeId:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
        is_nameless = not names.critical and not leaf.subject.rdns
    except x509.ExtensionNotFound as exc:
        raise refusal("the certificate has no SPIFFE ID", "uri-san") from exc
    except _EXTENSION_ERRORS as exc:
        raise refusal("the certificate has an extension that cannot be read", "extension") from exc
    if len(uris) != 1:
        raise refusal(f"the certificate has {len(uris)} URI names instead of one", "uri-san")
    if is_nameless:
        raise refusal("the certificate has no subject, so its names must be critical", "san-criticality")
    try:
        return SpiffeId.parse(uris[0]).require_workload()
    except InvalidSpiffeIdError as exc:
        raise refusal(f"the certificate's URI name does not name a workload: {exc.message}", "spiffe-id") from exc


def _check_leaf(leaf: x509.Certificate) -> None:
    try:
        constraints = _extension(leaf, x509.BasicConstraints)
        usage = _extension(leaf, x509.KeyUsage)
        purposes = _extension(leaf, x509.ExtendedKeyUsage)
    except _EXTENSION_ERRORS as exc:
        raise refusal("the certificate has an extension that cannot be read", "extension") from exc
    if constraints is not None and constraints.value.ca:
        raise refusal("the certificate is a signing certificate", "leaf-is-ca")
    if usage is None or not usage.critical:
        raise refusal("the certificate's key usage is missing or not critical", "key-usage")
    if not usage.value.digital_signature:
        raise refusal("the certificate may not sign", "key-usage")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise refusal("the certificate may sign certificates or revocation lists", "key-usage")
    if purposes is not None and not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(
        purposes.value
    ):
        raise refusal("the certificate is not for servers and clients alike", "extended-key-usage")
    _check_strength(leaf)


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> x509.Extension[_Kind] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = _extension(certificate, x509.BasicConstraints)
        usage = _extension(certificate, x509.KeyUsage)
    except _EXTENSION_ERRORS:
        return False
    return constraints is not None and constraints.value.ca and (usage is None or usage.value.key_cert_sign)


def _check_strength(certificate: x509.Certificate) -> None:
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise refusal("a certificate's key cannot be read", "key") from exc
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise refusal(f"an RSA key of {key.key_size} bits is not accepted", "weak-key")
    elif not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise refusal("a certificate's key is of a kind that is not supported", "key", remedy="use P-256 or RSA")


def _validity(certificates: Sequence[x509.Certificate], now: float) -> tuple[float, float]:
    starts = [certificate.not_valid_before_utc.timestamp() for certificate in certificates]
    ends = [certificate.not_valid_after_utc.timestamp() for certificate in certificates]
    if ends[0] - starts[0] > MAX_X509_LIFETIME:
        raise refusal(f"the certificate lives longer than {MAX_X509_LIFETIME:.0f} s", "lifetime")
    if now < max(starts):
        raise refusal("the certificate is not valid yet", "not-yet-valid", remedy="compare the clocks")
    if now >= min(ends):
        raise refusal("the certificate has expired", "expired")
    return max(starts), min(ends)


def _verify_path(
    leaf: x509.Certificate, intermediates: list[x509.Certificate], store: verification.Store, now: float
) -> None:
    try:
        verifier = (
            verification.PolicyBuilder()
            .store(store)
            .time(as_datetime(now))
            .max_chain_depth(MAX_CHAIN)
            .extension_policies(ee_policy=_LEAF_POLICY, ca_policy=_AUTHORITY_POLICY)
            .build_client_verifier()
        )
        verifier.verify(leaf, intermediates)
    except verification.VerificationError as exc:
        why = ascii(str(exc)).strip("'\"")[:160]
        raise refusal(f"the chain does not lead to the bundle: {why}", "chain") from exc
    except (*_EXTENSION_ERRORS, OverflowError) as exc:
        raise refusal("the chain cannot be checked", "chain") from exc
