# SPDX-License-Identifier: Apache-2.0
"""JOSE, as little of it as the profile needs, and strictly.

Holds the compact JWS parser, base64url, JSON, the signature algorithms and the task key. Does not hold what the claims
mean (`task_token.py`, `proof.py`) or trust in a certificate (`jitwi.identity`).

There is one form of everything: compact serialisation, base64url without padding and with its last bits zero, JSON
objects without a duplicate name, whole numbers, exactly the headers of the document's kind. Whatever else arrives is
refused before a signature is looked at, whatever its size.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import os
import weakref
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from jitwi.errors import EvidenceError, StateError
from jitwi.identity.strict import is_deep
from jitwi.secret import NoCopy
from jitwi.tokens import names

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Jws",
    "JwsProfile",
    "TaskKey",
    "algorithm_of",
    "b64url_decode",
    "b64url_encode",
    "is_signed_by",
    "json_text",
    "jwk_thumbprint",
    "parse_jws",
    "public_key_of_jwk",
]

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192

_LAST_OF_ONE_BYTE = frozenset("AQgw")
_LAST_OF_TWO_BYTES = frozenset("AEIMQUYcgkosw048")
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/\0\0\0")
_PADDING = (b"", b"", b"==", b"=")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_COORDINATE_CHARS = 43
_COORDINATE_BYTES = 32

_EC: Final[dict[str, tuple[str, int, hashes.HashAlgorithm]]] = {
    "secp256r1": ("ES256", 32, hashes.SHA256()),
    "secp384r1": ("ES384", 48, hashes.SHA384()),
    "secp521r1": ("ES512", 66, hashes.SHA512()),
}
_ES256 = ec.ECDSA(hashes.SHA256())


class _Invalid(Exception):  # noqa: N818 - a signal inside this module, never leaves it
    """Something is not in the one form."""


# ---------------------------------------------------------------------------------------------- base64url


def b64url_encode(data: bytes) -> str:
    """Return base64url without padding. Source: RFC 7515 §2."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def b64url_decode(text: str) -> bytes:
    """Decode the one base64url spelling of some bytes: no padding, no whitespace, unused bits zero.

    Raises:
        ValueError: Any other spelling, or nothing at all.

    Source:
        RFC 7515 §2, RFC 4648 §3.5.
    """
    rest = len(text) & 3
    if rest == 1 or not text:
        raise ValueError("not base64url")
    if rest and text[-1] not in (_LAST_OF_ONE_BYTE if rest == 2 else _LAST_OF_TWO_BYTES):  # noqa: PLR2004
        raise ValueError("unused bits are not zero")
    return binascii.a2b_base64(text.encode("ascii").translate(_TO_STANDARD) + _PADDING[rest], strict_mode=True)


# ---------------------------------------------------------------------------------------------- JSON


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Invalid("a name appears twice in one object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > names.MAX_NUMBER_DIGITS:
        raise _Invalid("a number has too many digits")
    return int(digits)


def _no_number(_: str) -> NoReturn:
    raise _Invalid("a number is not a whole number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_no_number, parse_constant=_no_number
)


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False)


def json_text(value: Any) -> str:
    """Return compact JSON."""
    return _ENCODER.encode(value)


def _json_object(segment: str, what: str) -> dict[str, Any]:
    try:
        text = b64url_decode(segment).decode()
        value = _DECODER.decode(text)
    except _Invalid as exc:
        raise _Invalid(f"in the {what}, {exc}") from None
    except (ValueError, RecursionError) as exc:
        raise _Invalid(f"the {what} is not strict base64url of strict UTF-8 JSON") from exc
    if not isinstance(value, dict):
        raise _Invalid(f"the {what} is not a JSON object")
    if is_deep(value, text):
        raise _Invalid(f"the {what} is nested too deeply")
    return value


# ---------------------------------------------------------------------------------------------- JWS


@attrs.frozen(eq=False)
class JwsProfile:
    """What one kind of document looks like, and which refusal each fault is.

    Args:
        what: The document in words, for messages.
        typ: Its only `typ`.
        headers: Exactly these headers, each of them.
        algorithms: Allow-list of `alg`.
        max_chars: Longest document.
        malformed: Raised where it is not in the one form.
        unknown: Raised for a header that the profile does not know.
        wrong_type: Raised for another `typ`.
        algorithm: Raised for another `alg`.
    """

    what: str
    typ: str
    headers: frozenset[str]
    algorithms: frozenset[str]
    max_chars: int
    malformed: type[EvidenceError]
    unknown: type[EvidenceError]
    wrong_type: type[EvidenceError]
    algorithm: type[EvidenceError]


@attrs.define(slots=True, eq=False)
class Jws:
    """A parsed document; nothing in it is verified.

    Args:
        header: The protected header, not to be changed: exactly the profile's names, `typ` and `alg` checked.
        payload: The claims.
        signing_input: What the signature is over.
        signature: The signature in JOSE form.
    """

    header: Mapping[str, Any]
    payload: dict[str, Any]
    signing_input: bytes
    signature: bytes


def parse_jws(text: str, profile: JwsProfile) -> Jws:
    """Parse one compact JWS and check its header against the profile.

    Raises:
        EvidenceError: One of the four classes of the profile.

    Source:
        RFC 7515 §5.2, §7.1; RFC 8725 §3.1, §3.11.
    """
    if not isinstance(text, str):
        raise profile.malformed(f"the {profile.what} is `{type(text).__name__}`, not text", reasons=("type",))
    if len(text) > profile.max_chars:
        raise profile.malformed(
            f"the {profile.what} is longer than {profile.max_chars} characters", reasons=("too-long",)
        )
    parts = text.split(".", 3)
    if len(parts) != 3:  # noqa: PLR2004
        raise profile.malformed(f"the {profile.what} is not a compact JWS of three parts", reasons=("jws",))
    try:
        header = _header(parts[0], profile) if len(parts[0]) <= _CACHED_CHARS else _read_header(parts[0], profile)
        payload = _json_object(parts[1], "payload")
        signature = b64url_decode(parts[2])
    except _Invalid as exc:
        raise profile.malformed(f"the {profile.what} was refused: {exc}", reasons=("encoding",)) from None
    except ValueError as exc:
        raise profile.malformed(f"the signature of the {profile.what} is not base64url", reasons=("encoding",)) from exc
    return Jws(header, payload, text[: len(parts[0]) + len(parts[1]) + 1].encode(), signature)


_CACHED_CHARS = 6_144
"""Longer headers are read each time, so that the memory of the cache is bounded by what a real chain needs."""


def _read_header(segment: str, profile: JwsProfile) -> Mapping[str, Any]:
    header = _json_object(segment, "header")
    _check_header(header, profile)
    return header


@lru_cache(maxsize=256)
def _header(segment: str, profile: JwsProfile) -> Mapping[str, Any]:
    """Read a header; the headers of one caller are alike, and refusals are not remembered."""
    return MappingProxyType(_read_header(segment, profile))


def _check_header(header: dict[str, Any], profile: JwsProfile) -> None:
    if header.keys() != profile.headers:
        unknown = header.keys() - profile.headers
        if unknown:
            raise profile.unknown(
                f"the {profile.what} has a header that is not known: {_shown(min(unknown))}", reasons=("header",)
            )
        missing = min(profile.headers - header.keys())
        raise profile.malformed(f"the {profile.what} lacks the header `{missing}`", reasons=("header",))
    if header[names.HEADER_TYP] != profile.typ:
        raise profile.wrong_type(f"the `typ` of the {profile.what} is not `{profile.typ}`", reasons=("typ",))
    alg = header[names.HEADER_ALG]
    if not isinstance(alg, str) or alg not in profile.algorithms:
        raise profile.algorithm(f"the `alg` of the {profile.what} is not allowed: {_shown(alg)}", reasons=("alg",))


def _shown(value: object) -> str:
    return f"`{ascii(value)[:40]}`"


# ---------------------------------------------------------------------------------------------- keys and signatures


def algorithm_of(public_key: object) -> str | None:
    """Return the one `alg` that goes with a key, or None for a key that this profile does not take.

    Source:
        RFC 7518 §3.3 (RSA of 2048 bits or more), §3.4.
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        known = _EC.get(public_key.curve.name)
        return known[0] if known else None
    if isinstance(public_key, rsa.RSAPublicKey) and MIN_RSA_BITS <= public_key.key_size <= MAX_RSA_BITS:
        return "RS256"
    return None


def is_signed_by(public_key: object, signature: bytes, data: bytes) -> bool:
    """Whether `signature`, in JOSE form, is the key's over `data`, by the key's own algorithm.

    Source:
        RFC 7518 §3.3, §3.4.
    """
    try:
        if isinstance(public_key, ec.EllipticCurvePublicKey):
            _, size, algorithm = _EC[public_key.curve.name]
            if len(signature) != 2 * size:
                return False
            der = utils.encode_dss_signature(
                int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
            )
            public_key.verify(der, data, _ES256 if size == _COORDINATE_BYTES else ec.ECDSA(algorithm))
            return True
        if isinstance(public_key, rsa.RSAPublicKey) and algorithm_of(public_key) is not None:
            public_key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            return True
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, KeyError):
        return False
    return False


def jwk_thumbprint(jwk: dict[str, str]) -> str:
    """Return the SHA-256 thumbprint of a P-256 JWK, base64url. Source: RFC 7638 §3."""
    return _thumbprint(jwk["x"], jwk["y"])


def _thumbprint(x: str, y: str) -> str:
    text = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
    return b64url_encode(hashlib.sha256(text.encode()).digest())


def public_key_of_jwk(jwk: object) -> tuple[ec.EllipticCurvePublicKey, str]:
    """Read a public P-256 JWK and return the key and its thumbprint.

    Raises:
        ValueError: Any other key, any further member (a private `d` among them), or a point that is not on the curve.

    Source:
        RFC 7517 §4, RFC 7518 §6.2.1, RFC 7638 §3.
    """
    if not isinstance(jwk, dict) or jwk.keys() != {"kty", "crv", "x", "y"}:
        raise ValueError("not exactly `kty`, `crv`, `x` and `y`")
    x, y = jwk["x"], jwk["y"]
    if jwk["kty"] != "EC" or jwk["crv"] != "P-256" or not isinstance(x, str) or not isinstance(y, str):
        raise ValueError("not a P-256 key")
    if len(x) != _COORDINATE_CHARS or len(y) != _COORDINATE_CHARS:
        raise ValueError("a coordinate has not 32 bytes")
    return _public_key(x, y), _thumbprint(x, y)


@lru_cache(maxsize=256)
def _public_key(x: str, y: str) -> ec.EllipticCurvePublicKey:
    point = b"\x04" + b64url_decode(x) + b64url_decode(y)
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)


# The private keys, apart from the objects that people hold: no attribute of a `TaskKey` leads to its key.
_KEYS: weakref.WeakKeyDictionary[TaskKey, ec.EllipticCurvePrivateKey] = weakref.WeakKeyDictionary()


def _forget_in_child() -> None:
    _KEYS.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class TaskKey(NoCopy):
    """An ephemeral P-256 key that signs and is never shown; destroying it is the end of its credential.

    Attributes:
        jkt: Its thumbprint, the `cnf.jkt` of tokens that endorse it. Source: RFC 7638, RFC 9449 §6.1.
        jwk: The public key as it stands in the header of a proof.
    """

    __slots__ = ("__weakref__", "_pid", "jkt", "jwk")

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        numbers = key.public_key().public_numbers()
        x, y = (b64url_encode(n.to_bytes(_COORDINATE_BYTES, "big")) for n in (numbers.x, numbers.y))
        self.jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
        self.jkt = _thumbprint(x, y)
        self._pid = os.getpid()
        _KEYS[self] = key

    def sign(self, data: bytes) -> bytes:
        """Sign `data` by ES256 and return the signature in JOSE form (r and s, 32 bytes each).

        Raises:
            StateError: The key was destroyed, or the process is a forked child.
        """
        if self._pid != os.getpid():
            raise StateError(
                "a task key cannot be used in a forked child", reasons=("forked",), remedy="open a task in the child"
            )
        key = _KEYS.get(self)
        if key is None:
            raise StateError("the task key was destroyed", reasons=("destroyed",), remedy="open a new task")
        r, s = utils.decode_dss_signature(key.sign(data, _ES256))
        return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")

    @property
    def is_destroyed(self) -> bool:
        """True once there is nothing left to sign with."""
        return _KEYS.get(self) is None

    def destroy(self) -> None:
        """Drop the key. Idempotent, in any thread. Python memory cannot be wiped for certain."""
        _KEYS.pop(self, None)

    def __repr__(self) -> str:
        """The thumbprint, which is public."""
        return f"<TaskKey {self.jkt}>"
