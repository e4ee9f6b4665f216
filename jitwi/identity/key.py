# SPDX-License-Identifier: Apache-2.0
"""The private key of an X.509-SVID: it signs, it is not shown, and it dies with the identity.

Holds `LeafKey`. Does not hold documents, and nothing here decides when an identity ends: the source does.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from jitwi.errors import StateError
from jitwi.identity.strict import refusal
from jitwi.secret import NoCopy

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from jitwi.clock import Clock, Deadline

__all__ = ["LeafKey", "SigningKey", "load_private_key"]

MAX_KEY_BYTES = 16 * 1024

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_CURVES: dict[str, tuple[str, hashes.HashAlgorithm]] = {
    "secp256r1": ("ES256", hashes.SHA256()),
    "secp384r1": ("ES384", hashes.SHA384()),
    "secp521r1": ("ES512", hashes.SHA512()),
}
_live: weakref.WeakSet[LeafKey] = weakref.WeakSet()


def load_private_key(der: bytes) -> SigningKey:
    """Load an unencrypted PKCS#8 key of a kind that an X.509-SVID may have.

    Raises:
        InvalidSvidError: It is not such a key. Source: Workload API §5.2.1.
    """
    if not der or len(der) > MAX_KEY_BYTES:
        raise refusal("the private key is missing or too large", "key")
    try:
        key = serialization.load_der_private_key(der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise refusal("the private key cannot be read", "key") from exc
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return key
    if isinstance(key, rsa.RSAPrivateKey):
        return key
    raise refusal("the private key is of a kind that is not supported", "key", remedy="use P-256, P-384, P-521 or RSA")


class LeafKey(NoCopy):
    """Sign with an X.509-SVID's key, inside its process and its validity.

    Args:
        key: The key.
        deadline: From then on it signs nothing.
        clock: What tells the time.
    """

    __slots__ = ("__key", "__weakref__", "_algorithm", "_clock", "_deadline", "_pid")

    def __init__(self, key: SigningKey, *, deadline: Deadline, clock: Clock) -> None:
        self.__key: SigningKey | None = key
        self._algorithm = _CURVES[key.curve.name][0] if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
        self._deadline = deadline
        self._clock = clock
        self._pid = os.getpid()
        _live.add(self)

    @property
    def algorithm(self) -> str:
        """JOSE name bound to the key's type: `ES256`, `ES384`, `ES512` or `RS256`."""
        return self._algorithm

    def sign(self, data: bytes) -> bytes:
        """Sign `data` and return the signature in JOSE form. Source: RFC 7518 §3.3, §3.4.

        Raises:
            StateError: The identity was withdrawn, replaced or closed, it has expired, or this is a forked child.
        """
        if os.getpid() != self._pid:
            raise StateError("the key belongs to the parent process", reasons=("forked",), remedy="start a new source")
        key = self.__key
        if key is None:
            raise StateError("the key was dropped", reasons=("dropped",), remedy="take the current identity")
        if self._deadline.is_passed(self._clock.now()):
            self.drop()
            raise StateError("the key's certificate has expired", reasons=("expired",), remedy="take the current one")
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_CURVES[key.curve.name][1])))
        size = (key.curve.key_size + 7) // 8
        return r.to_bytes(size) + s.to_bytes(size)

    @property
    def is_dropped(self) -> bool:
        """True once it can sign no more in this process."""
        return self.__key is None or os.getpid() != self._pid

    def public_key(self) -> PublicKeyTypes:
        """Return the public half.

        Raises:
            StateError: The key was dropped.
        """
        if self.__key is None:
            raise StateError("the key was dropped", reasons=("dropped",))
        return self.__key.public_key()

    def drop(self) -> None:
        """Forget the key; idempotent. The memory of the crypto library is freed, which is all that Python can do."""
        self.__key = None

    def __repr__(self) -> str:
        """Algorithm and life only."""
        return f"<LeafKey {self._algorithm}{', dropped' if self.is_dropped else ''}>"


def _drop_in_child() -> None:
    for key in list(_live):
        key.drop()


os.register_at_fork(after_in_child=_drop_in_child)
