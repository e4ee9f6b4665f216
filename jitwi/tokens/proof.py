# SPDX-License-Identifier: Apache-2.0
"""The proof of possession: one DPoP proof per use, bound to the use itself.

Holds minting and the numbered verification of RFC 9449 §4.3, and what this profile adds: `authorization_details` with
the action, the resource and the hash of the input, so that a proof serves the one use it was made for. Does not hold
replay: a Guard remembers (`jkt`, `jti`) until `replay_until`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

from jitwi.errors import ConfigurationError, InvalidTaskError
from jitwi.task import Entity, canonical_json, sha256_base64url
from jitwi.tokens import errors, jose, names
from jitwi.tokens.details import parse_use, use_entry
from jitwi.tokens.task_token import VerifiedTaskToken, random_id

__all__ = ["VerifiedProof", "input_digest", "mint_proof", "normalise_url", "verify_proof"]

PROFILE = jose.JwsProfile(
    what="proof",
    typ=names.PROOF_TYP,
    headers=names.PROOF_HEADERS,
    algorithms=frozenset({names.PROOF_ALGORITHM}),
    max_chars=names.MAX_PROOF_CHARS,
    malformed=errors.MalformedProofError,
    unknown=errors.MalformedProofError,
    wrong_type=errors.MalformedProofError,
    algorithm=errors.MalformedProofError,
)
_JTI = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}", re.ASCII)
_AUTHORITY = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?", re.ASCII)
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*", re.ASCII)
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})", re.ASCII)
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_PORT = 65_535


# ---------------------------------------------------------------------------------------------- what a proof is about


def input_digest(given: Mapping[str, Any] | None) -> str | None:
    """Return the hash that stands for the input of a use: SHA-256 over its RFC 8785 JSON; None for no input.

    Args:
        given: Text keys in ASCII; text, booleans, whole numbers below 2**53, lists and records. `{}` is an input.

    Raises:
        InvalidTaskError: It has no canonical form, or is too deep or too large.
    """
    if given is None:
        return None
    return sha256_base64url(canonical_input(given))


def canonical_input(given: Mapping[str, Any]) -> bytes:
    """Return the bytes that `input_digest` hashes.

    Raises:
        InvalidTaskError: It has no canonical form, or is too deep or too large.
    """
    if not isinstance(given, Mapping):
        raise InvalidTaskError(f"`input` is a mapping, not `{type(given).__name__}`", reasons=("type",))
    _check_bounds(given)
    text = canonical_json(dict(given))
    if len(text) > names.MAX_INPUT_BYTES:
        raise InvalidTaskError(f"`input` is longer than {names.MAX_INPUT_BYTES} bytes", reasons=("too-long",))
    return text


def _check_bounds(given: Mapping[str, Any]) -> None:
    level: list[Any] = [given]
    values = 0
    for _ in range(names.MAX_INPUT_DEPTH):
        below: list[Any] = []
        for item in level:
            below.extend(item.values() if isinstance(item, Mapping) else item)
        values += len(below)
        if values > names.MAX_INPUT_KEYS:
            raise InvalidTaskError(f"`input` has more than {names.MAX_INPUT_KEYS} values", reasons=("too-many",))
        level = [item for item in below if isinstance(item, Mapping | list | tuple)]
        if not level:
            return
    raise InvalidTaskError(f"`input` is nested deeper than {names.MAX_INPUT_DEPTH}", reasons=("too-deep",))


def normalise_url(url: str) -> str:
    """Return `htu` of a URL: scheme, host, port and path in one spelling, without query and fragment.

    Args:
        url: An absolute `http` or `https` URL. Non-ASCII hosts and paths must be in their ASCII form.

    Raises:
        ConfigurationError: Not such a URL; user information, dot segments, or a character that must be escaped.

    Source:
        RFC 9449 §4.3 (9), RFC 3986 §6.2.2 and §6.2.3.
    """
    scheme, host, port, path = _split(url)
    authority = host if port in (None, _DEFAULT_PORTS[scheme]) else f"{host}:{port}"
    return f"{scheme}://{authority}{path}"


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL in one spelling.

    Raises:
        ConfigurationError: As for `normalise_url`.

    Source:
        RFC 6454 §4, §6.2.
    """
    scheme, host, port, _ = _split(url)
    return f"{scheme}://{host}" if port in (None, _DEFAULT_PORTS[scheme]) else f"{scheme}://{host}:{port}"


def _split(url: str) -> tuple[str, str, int | None, str]:
    if not isinstance(url, str) or len(url) > names.MAX_URL_CHARS:
        raise _bad_url("it is not text, or too long")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise _bad_url("it has a character that must be escaped")
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise _bad_url("it cannot be parsed") from exc
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise _bad_url("its scheme is neither `https` nor `http`")
    authority = _AUTHORITY.fullmatch(parts.netloc.lower())
    if authority is None:
        raise _bad_url("it has no plain host and port")
    host, digits = authority.groups()
    port = None if digits is None else int(digits)
    if port is not None and not 0 < port <= _MAX_PORT:
        raise _bad_url("its port is out of range")
    path = parts.path or "/"
    if _PATH.fullmatch(path) is None:
        raise _bad_url("its path has a character that must be escaped")
    if "%" in path:
        path = _ESCAPE.sub(_escape, path)
    if any(segment in (".", "..") for segment in path.split("/")):
        raise _bad_url("its path has dot segments")
    return scheme, host, port, path


def _escape(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    return char if _UNRESERVED.fullmatch(char) else match[0].upper()


def _bad_url(why: str) -> ConfigurationError:
    return ConfigurationError(f"a proof cannot name this URL: {why}", reasons=("url",))


# ---------------------------------------------------------------------------------------------- mint


def mint_proof(
    key: jose.TaskKey,
    *,
    ath: str,
    method: str,
    url: str,
    action: Entity,
    resource: Entity,
    digest: str | None,
    now: float,
) -> str:
    """Make the proof for one use.

    Args:
        key: The task key.
        ath: Hash of the token that it goes with.
        method: The HTTP method; sent and compared in upper case.
        url: The URL of the request; its query is not covered.
        action: What is done, as a uid.
        resource: To what.
        digest: `input_digest(input)`.
        now: Seconds since the epoch.

    Raises:
        ConfigurationError: Method or URL are not of a kind that a proof can name.
        StateError: The task key was destroyed.
    """
    htm = method.upper()
    if _METHOD.fullmatch(htm) is None:
        raise ConfigurationError("a proof cannot name this method", reasons=("method",))
    claims = {
        names.JTI: random_id(),
        names.HTM: htm,
        names.HTU: normalise_url(url),
        names.IAT: math.floor(now),
        names.ATH: ath,
        names.AUTHORIZATION_DETAILS: [use_entry(action, resource, digest)],
    }
    header = {names.HEADER_TYP: names.PROOF_TYP, names.HEADER_ALG: names.PROOF_ALGORITHM, names.HEADER_JWK: key.jwk}
    head = jose.b64url_encode(jose.json_text(header).encode())
    signing_input = f"{head}.{jose.b64url_encode(jose.json_text(claims).encode())}"
    return f"{signing_input}.{jose.b64url_encode(key.sign(signing_input.encode()))}"


# ---------------------------------------------------------------------------------------------- verify


@attrs.define(slots=True, eq=False, repr=False)
class VerifiedProof:
    """A proof that fits its token and its request. What it says of the use is compared by `require_use`.

    Args:
        jti: Its id; with `jkt` the key of replay, whatever the encoding of the proof was.
        jkt: Thumbprint of the key that signed it.
        issued_at: `iat`, seconds since the epoch.
        replay_until: Until when the same proof would pass again: how long to remember it, seconds since the epoch.
        action: What it is for.
        resource: On what.
        input_digest: With which input; None = without.
    """

    jti: str
    jkt: str
    issued_at: int
    replay_until: float
    action: Entity
    resource: Entity
    input_digest: str | None

    def require_use(self, action: Entity, resource: Entity, *, input: Mapping[str, Any] | None = None) -> None:
        """Require that the proof was made for exactly this use.

        Args:
            action: What is about to be done, as a uid.
            resource: To what.
            input: What the service read from the request and is about to execute.

        Raises:
            UseMismatchError: Another action or resource.
            InputMismatchError: Another input, or one that no proof can stand for.
        """
        if self.action != action or self.resource != resource:
            raise errors.UseMismatchError(
                f"the proof is for `{self.action}` on `{self.resource}`", reasons=("use",), remedy="make one per use"
            )
        try:
            digest = input_digest(input)
        except InvalidTaskError as exc:
            raise errors.InputMismatchError(f"no proof stands for it: {exc.message}", reasons=("input",)) from exc
        if digest != self.input_digest:
            raise errors.InputMismatchError(
                "the proof is for another input than the one about to be executed", reasons=("input",)
            )

    def __repr__(self) -> str:
        """Its id and what it is for."""
        return f"<VerifiedProof {self.jti} {self.action} on {self.resource}>"


def verify_proof(
    text: str,
    *,
    token: VerifiedTaskToken,
    method: str,
    url: str,
    now: float,
    window: float = names.PROOF_WINDOW_SECONDS,
) -> VerifiedProof:
    """Verify a proof against its token and the request that it came with.

    Args:
        text: The one `DPoP` header of the request.
        token: The verified token.
        method: The method of the request.
        url: Its URL: from the Guard's configuration and the request target, never from a header that the client sets.
        now: Seconds since the epoch.
        window: How old a proof may be, seconds.

    Raises:
        ProofError: The class says which step.
        ConfigurationError: `url` is not one that a proof can name.

    Source:
        RFC 9449 §4.3; the numbers in brackets are its own.
    """
    # 1 one well-formed JWT (2), `typ` (4), `alg` (5), only known headers; exactly the claims of the profile (3)
    jws = jose.parse_jws(text, PROFILE)
    claims = jws.payload
    if claims.keys() != names.PROOF_CLAIMS:
        raise _malformed("it has not exactly the claims of the profile", "claim")
    jti, iat = claims[names.JTI], claims[names.IAT]
    if not isinstance(jti, str) or len(jti) > names.MAX_ID_CHARS or _JTI.fullmatch(jti) is None:
        raise _malformed("`jti` is not an id", "jti")
    if type(iat) is not int or iat < 0:
        raise _malformed("`iat` is not a whole number of seconds", "iat")
    # 2 the key that the token endorses (7, 12)
    try:
        key, jkt = jose.public_key_of_jwk(jws.header[names.HEADER_JWK])
    except ValueError as exc:
        raise _malformed("`jwk` is not exactly a public P-256 key", "jwk") from exc
    if jkt != token.jkt:
        raise errors.ProofKeyError("the proof is by another key than the token's", reasons=("jkt",))
    # 3 signature (6)
    if not jose.is_signed_by(key, jws.signature, jws.signing_input):
        raise errors.ProofSignatureError("the key did not sign this proof", reasons=("signature",))
    # 4 for this token (12)
    if claims[names.ATH] != token.ath:
        raise errors.ProofTokenError("the proof goes with another token", reasons=("ath",))
    # 5 for this request (8, 9)
    if claims[names.HTM] != method.upper():
        raise errors.ProofTargetError("the proof is for another method", reasons=("htm",))
    if not _is_same_url(claims[names.HTU], normalise_url(url)):
        raise errors.ProofTargetError("the proof is for another URL", reasons=("htu",))
    # 6 now (11)
    if iat > now + names.NOT_BEFORE_LEEWAY_SECONDS:
        raise errors.ProofTimeError("the proof is from the future", reasons=("iat",), remedy="check the clocks")
    if now - iat > window:
        raise errors.ProofTimeError(f"the proof is older than {window} s", reasons=("iat",))
    # 7 for which use: compared with what is about to be executed by `require_use`
    details = claims[names.AUTHORIZATION_DETAILS]
    try:
        if not isinstance(details, list) or len(details) != 1:
            raise ValueError("not an array of one")  # noqa: TRY301 - one refusal for one cause
        action, resource, digest = parse_use(details[0])
    except ValueError as exc:
        raise _malformed(f"`authorization_details` is not one use: {exc}", "authorization_details") from exc
    return VerifiedProof(jti, jkt, iat, iat + window + 1, action, resource, digest)


def _is_same_url(claimed: object, url: str) -> bool:
    try:
        return isinstance(claimed, str) and normalise_url(claimed) == url
    except ConfigurationError:
        return False


def _malformed(message: str, reason: str) -> errors.MalformedProofError:
    return errors.MalformedProofError(f"the proof was refused: {message}", reasons=(reason,))
