# SPDX-License-Identifier: Apache-2.0
"""The caller's identity as values: one immutable snapshot, the states of a source, and the port that serves both.

Holds what others need to know of an identity. Does not hold how it arrives (`source.py`) or how it is admitted
(`x509_svid.py`, `jwt_svid.py`).
"""

from __future__ import annotations

import enum
import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import attrs
from cryptography.hazmat.primitives.serialization import Encoding

from jitwi.errors import InvalidSvidError
from jitwi.secret import NoCopy, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from jitwi.spiffe_id import SpiffeId, TrustDomain

__all__ = [
    "BundleSource",
    "Identity",
    "IdentityEvent",
    "IdentityEventKind",
    "IdentitySource",
    "JwtBundle",
    "JwtSvid",
    "SourceState",
    "SvidKey",
    "SvidKind",
    "X509Bundle",
]


def _read_only(keys: Mapping[str, PublicKeyTypes]) -> Mapping[str, PublicKeyTypes]:
    return MappingProxyType(dict(keys))


class SvidKind(enum.Enum):
    """In which form the identity is proven."""

    X509 = "x509-svid"
    JWT = "jwt-svid"


class SvidKey(Protocol):
    """The private key of an X509-SVID, as a thing that signs and is never shown."""

    @property
    def algorithm(self) -> str:
        """JOSE name bound to the key's type: `ES256`, `ES384`, `ES512` or `RS256`."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Sign `data` and return the signature in JOSE form.

        Raises:
            StateError: The key was dropped, or the process is a forked child.
        """
        ...


@attrs.frozen(slots=True, repr=False, eq=False)
class Identity(NoCopy):
    """One SVID of the caller as it stood at one moment.

    Args:
        spiffe_id: Who.
        kind: X.509-SVID or JWT-SVID.
        version: Rises with every adopted update of the source.
        not_before: Start of validity, seconds since the epoch.
        not_after: End of validity, seconds since the epoch; never used from that second on.
        chain: DER certificates, leaf first, without the root; empty for a JWT-SVID.
        thumbprint: SHA-256 of the leaf, or of the token, in hex; safe for the record.
        hint: The operator's hint, or an empty string.
        key: The leaf's key; None for a JWT-SVID.

    Invariants:
        Admitted: chain, times, key and ID were checked against the bundle of the ID's own trust domain.
    """

    spiffe_id: SpiffeId
    kind: SvidKind
    version: int
    not_before: float
    not_after: float
    chain: tuple[bytes, ...]
    thumbprint: str
    hint: str = ""
    key: SvidKey | None = None

    def __repr__(self) -> str:
        """Who and which version; no key, no document."""
        return f"<Identity {self.spiffe_id} {self.kind.value} v{self.version}>"


@attrs.frozen(slots=True, repr=False, eq=False)
class JwtSvid(NoCopy):
    """A verified JWT-SVID for one audience.

    Args:
        spiffe_id: Its `sub`.
        audience: Its only audience.
        issued_at: `iat`, seconds since the epoch, or None.
        expires_at: `exp`, seconds since the epoch.
        token: The token itself.
        is_repeat: True if the agent gave bytes that it had given before although a fresh token was asked for.
        hint: The operator's hint, or an empty string.
    """

    spiffe_id: SpiffeId
    audience: str
    issued_at: float | None
    expires_at: float
    token: Secret
    is_repeat: bool = False
    hint: str = ""

    def __repr__(self) -> str:
        """Who and for whom; never the token."""
        return f"<JwtSvid {self.spiffe_id} for {self.audience}>"


@attrs.frozen(eq=False, repr=False)
class X509Bundle:
    """The X.509 authorities of one trust domain, immutable.

    Args:
        trust_domain: Whose.
        authorities: Parsed certificates.
        digest: SHA-256 over the trust domain and the DER of all, in hex: the bundle's version. What was verified is
            remembered by it, so it is checked.

    Raises:
        InvalidSvidError: `digest` is not the one of this content; `x509_bundle(...)` makes it.
    """

    trust_domain: TrustDomain
    authorities: tuple[x509.Certificate, ...]
    digest: str

    def __attrs_post_init__(self) -> None:
        """Check the digest."""
        digest = hashlib.sha256(self.trust_domain.name.encode())
        for one in self.authorities:
            digest.update(hashlib.sha256(one.public_bytes(Encoding.DER)).digest())
        if self.digest != digest.hexdigest():
            raise InvalidSvidError(
                f"the digest of a bundle of `{self.trust_domain}` is not that of its content",
                reasons=("bundle-digest",),
                remedy="build it by `jitwi.identity.x509_bundle(trust_domain, ders)`",
            )


@attrs.frozen(eq=False, repr=False)
class JwtBundle:
    """The JWT authorities of one trust domain, immutable.

    Args:
        trust_domain: Whose.
        keys: `kid` -> public key; read-only.
        digest: SHA-256 over the key set, in hex.
    """

    trust_domain: TrustDomain
    keys: Mapping[str, PublicKeyTypes] = attrs.field(converter=_read_only)
    digest: str


class BundleSource(Protocol):
    """Port: the current bundles, each of its own trust domain; never pooled. Source: TDB §3, Workload API §4.6."""

    def x509_bundle(self, trust_domain: TrustDomain) -> X509Bundle | None:
        """Return the current bundle, or None: that trust domain is then untrusted."""
        ...

    def jwt_bundle(self, trust_domain: TrustDomain) -> JwtBundle | None:
        """Return the current bundle, or None: that trust domain is then untrusted."""
        ...


class SourceState(enum.Enum):
    """What a source knows at this moment."""

    IDLE = "idle"
    STARTING = "starting"
    READY = "ready"
    STALE = "stale"
    WITHDRAWN = "withdrawn"
    REPLACED = "replaced"
    EXPIRED = "expired"
    AMBIGUOUS = "ambiguous"
    CLOSED = "closed"


class IdentityEventKind(enum.Enum):
    """What happened to the identity or the bundles."""

    READY = "ready"
    ROTATED = "rotated"
    STALE = "stale"
    FRESH = "fresh"
    WITHDRAWN = "withdrawn"
    REPLACED = "replaced"
    EXPIRED = "expired"
    REFUSED_UPDATE = "refused-update"
    BUNDLES = "bundles"


@attrs.frozen
class IdentityEvent:
    """One change, as subscribers get it. WITHDRAWN, REPLACED and EXPIRED end all tasks of the identity at once.

    Args:
        kind: What happened.
        identity: The snapshot after the change, or None where there is none any more.
        reason: One sentence, no secret.
        grpc_code: Name of the gRPC status behind it, or an empty string.
    """

    kind: IdentityEventKind
    identity: Identity | None
    reason: str = ""
    grpc_code: str = ""


class IdentitySource(BundleSource, Protocol):
    """Port: a live provider of one pinned identity and of bundles. No I/O before `start()`."""

    @property
    def state(self) -> SourceState:
        """The state now, time taken into account."""
        ...

    def start(self) -> None:
        """Begin to follow; returns at once; idempotent; also restarts in a forked child."""
        ...

    def identity(self, *, timeout: float) -> Identity:
        """Return the current identity, waiting for the first one at most `timeout` seconds.

        Never returns a withdrawn or expired one. A stale one is returned until `max_staleness` has passed.

        Raises:
            IdentityUnavailableError: None in time, or stale for too long; carries the last gRPC code.
            IdentityWithdrawnError: The agent said so.
            IdentityReplacedError: The pinned SPIFFE ID is gone from the SVIDs.
            IdentityExpiredError: The last one has expired.
            AmbiguousIdentityError: Several and none chosen.
            StateError: The source is closed.
        """
        ...

    def peek(self) -> Identity | None:
        """Return the current usable identity without waiting and without raising, else None; under a microsecond."""
        ...

    def latest(self) -> Identity | None:
        """Return the last good identity, however stale, for work that has begun; None once it has ended or expired."""
        ...

    def jwt_svid(self, audience: str, *, fresh: bool = False, timeout: float = 2.0) -> JwtSvid:
        """Return a JWT-SVID of the pinned identity for one audience.

        Raises:
            IdentityError: As for `identity()`.
            InvalidSvidError: What the agent sent does not hold.
        """
        ...

    def subscribe(self, callback: Callable[[IdentityEvent], None]) -> Callable[[], None]:
        """Call `callback` with each event, on the source's own thread; returns the way to stop it."""
        ...

    def close(self) -> None:
        """End the thread and drop keys; idempotent."""
        ...
