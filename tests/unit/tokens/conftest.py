# SPDX-License-Identifier: Apache-2.0
"""A small wire laboratory: one CA per trust domain, identities of every key type, and a forge for documents."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from jitwi.clock import Instant
from jitwi.identity import Identity, JwtBundle, SvidKind, X509Bundle
from jitwi.identity.bundle import x509_bundle
from jitwi.spiffe_id import SpiffeId, TrustDomain
from jitwi.task import Entity, Permission, Task, under
from jitwi.testing.ca import TestCa
from jitwi.tokens import TaskKey, mint_proof, mint_task_token, verify_task_token

NOW = 1_800_000_000.0
AUDIENCE = "https://orders.example.org"
URL = "https://orders.example.org/orders/42"
CALLER = "spiffe://example.org/ns/prod/refunds"
READ = Entity("Shop::Action", "read")
REFUND = Entity("Shop::Action", "refund")
ORDER = Entity("Shop::Order", "42")
PERMISSIONS = (
    Permission(READ, ORDER),
    Permission(REFUND, ORDER, 2),
    Permission(READ, under(Entity("Shop::Shop", "1"))),
)
TXN = "txn-1"
KINDS: dict[str, Callable[[], Any]] = {
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
}
_HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}


def b64(data: bytes | str) -> str:
    """Base64url without padding."""
    raw = data if isinstance(data, bytes) else data.encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign_raw(key: Any, data: bytes, alg: str) -> bytes:
    """Sign as `alg` says, by the key at hand."""
    digest = _HASHES[alg[2:]]()
    if isinstance(key, rsa.RSAPrivateKey):
        pad = padding.PKCS1v15() if alg.startswith("RS") else padding.PSS(padding.MGF1(digest), digest.digest_size)
        return key.sign(data, pad, digest)
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
    size = (key.curve.key_size + 7) // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


class Stopped:
    """A clock that stands at `NOW`."""

    def now(self) -> Instant:
        """Always the same."""
        return Instant(NOW, 1000.0)


class Key:
    """A signing key in memory, as `SvidKey` wants it."""

    def __init__(self, key: Any, algorithm: str) -> None:
        self.key, self.algorithm = key, algorithm

    def sign(self, data: bytes) -> bytes:
        """Sign in JOSE form."""
        return sign_raw(self.key, data, self.algorithm)


class Authority:
    """The test CA of one trust domain at `NOW`, and identities from it."""

    def __init__(self, trust_domain: str, *, days: float = 30.0) -> None:
        self.trust_domain = trust_domain
        self.ca = TestCa(trust_domain, clock=Stopped())
        if days != 30.0:
            self.ca._roots = [self.ca._authority(self.ca._roots[0].key, None, "short root", days=days)]

    def bundle(self, *more: Authority) -> X509Bundle:
        """The bundle of this trust domain, with the roots of others if wanted."""
        roots = [root for authority in (self, *more) for root in authority.ca.roots]
        return x509_bundle(TrustDomain(self.trust_domain), roots)

    def identity(
        self,
        spiffe_id: str = CALLER,
        *,
        alg: str = "ES256",
        version: int = 1,
        start: float = NOW - 60,
        end: float = NOW + 3600,
        **bad: Any,
    ) -> Identity:
        """Issue an identity; further arguments are those of `TestCa.issue`."""
        key = KINDS[alg]()
        svid = self.ca.issue(spiffe_id, key=key, not_before=start, not_after=end, **bad)
        return Identity(
            spiffe_id=SpiffeId.parse(spiffe_id),
            kind=SvidKind.X509,
            version=version,
            not_before=start,
            not_after=end,
            chain=svid.chain,
            thumbprint=hashlib.sha256(svid.chain[0]).hexdigest(),
            key=Key(key, alg),
        )


class Bundles:
    """A bundle source whose content can be changed."""

    def __init__(self, *authorities: Authority) -> None:
        self.known = {TrustDomain(a.trust_domain): a.bundle() for a in authorities}

    def x509_bundle(self, trust_domain: TrustDomain) -> X509Bundle | None:
        """The current one."""
        return self.known.get(trust_domain)

    def jwt_bundle(self, trust_domain: TrustDomain) -> JwtBundle | None:
        """None."""
        return None


@attrs.define
class Lab:
    """Everything that a test of the wire needs; the methods make and check documents at `NOW`."""

    ca: Authority
    other_ca: Authority
    identity: Identity
    bundles: Bundles
    task: Task
    key: TaskKey

    NOW = NOW
    AUDIENCE = AUDIENCE
    URL = URL
    READ = READ
    REFUND = REFUND
    ORDER = ORDER
    TXN = TXN
    KINDS = KINDS
    Authority = Authority
    Bundles = Bundles
    Key = Key
    b64 = staticmethod(b64)
    sign_raw = staticmethod(sign_raw)

    def mint(self, **changes: Any) -> str:
        """Mint a good token, or one with other arguments."""
        return self.minted(**changes).text

    def minted(self, identity: Identity | None = None, **changes: Any) -> Any:
        """Mint and return the whole record."""
        task = changes.pop("task", self.task)
        arguments: dict[str, Any] = {
            "task": task,
            "digest": task.digest(txn=changes.get("txn", TXN)),
            "permissions": task.permissions,
            "audience": AUDIENCE,
            "jkt": self.key.jkt,
            "txn": TXN,
            "now": NOW,
            "ends_at": NOW + 120,
        }
        return mint_task_token(identity or self.identity, **{**arguments, **changes})

    def verify(self, token: str, **changes: Any) -> Any:
        """Verify as the Guard of AUDIENCE does."""
        arguments: dict[str, Any] = {
            "audience": AUDIENCE,
            "bundles": self.bundles,
            "now": NOW,
            "max_ttl": timedelta(hours=1),
        }
        return verify_task_token(token, **{**arguments, **changes})

    def prove(self, token: Any = None, **changes: Any) -> str:
        """Make a good proof, or one with other arguments."""
        token = token or self.verify(self.mint())
        arguments: dict[str, Any] = {
            "key": self.key,
            "ath": token.ath,
            "method": "POST",
            "url": URL,
            "action": REFUND,
            "resource": ORDER,
            "digest": None,
            "now": NOW,
        }
        arguments |= changes
        return mint_proof(arguments.pop("key"), **arguments)

    def forge(
        self,
        *,
        header: dict[str, Any] | None = None,
        claims: dict[str, Any] | None = None,
        drop: tuple[str, ...] = (),
        drop_header: tuple[str, ...] = (),
        key: Any = None,
        alg: str = "ES256",
        identity: Identity | None = None,
        payload_text: str | None = None,
        header_text: str | None = None,
    ) -> str:
        """Make a token whose header and claims are changed, validly signed by a key of one's own choice."""
        head, body, _ = self.mint(identity=identity).split(".")
        new_header = self.open(head) | (header or {})
        new_claims = self.open(body) | (claims or {})
        for name in drop:
            del new_claims[name]
        for name in drop_header:
            del new_header[name]
        text = f"{b64(header_text or json.dumps(new_header))}.{b64(payload_text or json.dumps(new_claims))}"
        signer = key or (identity or self.identity).key.key
        return f"{text}.{b64(sign_raw(signer, text.encode(), alg))}"

    @staticmethod
    def open(segment: str) -> Any:
        """Decode one segment."""
        return json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))


@pytest.fixture(scope="session")
def _authorities() -> tuple[Authority, Authority]:
    return Authority("example.org"), Authority("other.org")


@pytest.fixture
def lab(_authorities: tuple[Authority, Authority]) -> Lab:
    """The laboratory."""
    ca, other = _authorities
    task = Task(
        "refund-order", PERMISSIONS, timedelta(minutes=2), purpose="customer request", max_uses=5, owner="team-payments"
    )
    return Lab(ca, other, ca.identity(), Bundles(ca, other), task, TaskKey())
