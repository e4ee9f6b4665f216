# SPDX-License-Identifier: Apache-2.0
"""The task token: an SVID key's endorsement of a task key, with the declared task in it.

Holds minting and the numbered verification. Does not hold what a Guard adds: the proof (`proof.py`), replay, counts,
revocation and policy.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import secrets
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import attrs

from jitwi.errors import (
    GrantExpiredError,
    InvalidSpiffeIdError,
    IssuanceError,
    JitwiError,
)
from jitwi.identity.x509_svid import VerifiedX509Svid, verify_x509_svid
from jitwi.secret import NoCopy
from jitwi.spiffe_id import SpiffeId
from jitwi.task import MAX_PERMISSIONS, Entity, Permission, Task, TaskDigest, Under, digest_of, permission_hash
from jitwi.tokens import errors, jose, names
from jitwi.tokens.details import parse_permission, permission_entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jitwi.identity import BundleSource, Identity, X509Bundle

__all__ = [
    "MintedToken",
    "ParsedTaskToken",
    "VerifiedTaskToken",
    "certificate_of",
    "mint_task_token",
    "parse_task_token",
    "verify_chain",
    "verify_claims",
    "verify_task_token",
]

PROFILE = jose.JwsProfile(
    what="task token",
    typ=names.TOKEN_TYP,
    headers=names.TOKEN_HEADERS,
    algorithms=names.ALGORITHMS,
    max_chars=names.MAX_TOKEN_CHARS,
    malformed=errors.MalformedEvidenceError,
    unknown=errors.UnknownFieldError,
    wrong_type=errors.WrongTypeError,
    algorithm=errors.AlgorithmRefusedError,
)
_ID = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_RANDOM_BYTES = 16


# ---------------------------------------------------------------------------------------------- mint


class _HiddenText(str):
    """Text that is itself where it is formatted, and shows nothing to tools that walk over attributes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


@attrs.define(slots=True, repr=False, eq=False)
class MintedToken(NoCopy):
    """A task token as it was made.

    Args:
        text: The token. Worth nothing without the task key.
        ath: Its hash, as proofs carry it. Source: RFC 9449 §4.2.
        jti: Its id.
        expires_at: Its `exp`, seconds since the epoch.
        version: Version of the identity that signed it.
    """

    text: str
    ath: str
    jti: str
    expires_at: int
    version: int

    def __repr__(self) -> str:
        """Its id only."""
        return f"<MintedToken {self.jti}>"


def mint_task_token(
    identity: Identity,
    *,
    task: Task,
    digest: TaskDigest,
    permissions: Sequence[Permission],
    audience: str,
    jkt: str,
    txn: str,
    now: float,
    ends_at: float,
) -> MintedToken:
    """Endorse a task key with the SVID's key.

    Args:
        identity: The current X.509 identity.
        task: The task, actions resolved.
        digest: `task.digest(txn=txn)`.
        permissions: Those of the task's permissions that this credential serves.
        audience: The one recipient.
        jkt: Thumbprint of the task key.
        txn: Transaction id of the task.
        now: Seconds since the epoch.
        ends_at: When the credential ends at the latest, seconds since the epoch; `exp` is the earlier of this and the
            SVID's end, in whole seconds, never later.

    Raises:
        IssuanceError: The identity has no key (a JWT-SVID), or the token would be too long to be sent.
        GrantExpiredError: Less than a whole second is left.
        StateError: The SVID's key was dropped meanwhile.
    """
    if identity.key is None:
        raise IssuanceError(
            "a task token needs the SVID's key", reasons=("no-svid-key",), remedy="use an X.509-SVID as the identity"
        )
    issued_at = math.floor(now)
    expires_at = math.floor(min(ends_at, identity.not_after))
    if expires_at <= issued_at:
        raise GrantExpiredError("less than a whole second of the task or of its SVID is left", reasons=("too-late",))
    who = str(identity.spiffe_id)
    jti = random_id()
    claims = {
        names.ISS: who,
        names.SUB: who,
        names.AUD: audience,
        names.IAT: issued_at,
        names.NBF: issued_at,
        names.EXP: expires_at,
        names.JTI: jti,
        names.TXN: txn,
        names.CNF: {names.JKT: jkt},
        names.AUTHORIZATION_DETAILS: [permission_entry(p) for p in permissions],
        names.TCTX: task.facts() | {names.TCTX_DIGEST: digest.value, names.TCTX_PERMISSIONS: digest.permissions},
    }
    head = _header(identity.key.algorithm, identity.chain)
    signing_input = f"{head}.{jose.b64url_encode(jose.json_text(claims).encode())}"
    text = f"{signing_input}.{jose.b64url_encode(identity.key.sign(signing_input.encode()))}"
    if len(text) > names.MAX_TOKEN_CHARS:
        raise IssuanceError(
            f"the task token would have {len(text)} characters, more than {names.MAX_TOKEN_CHARS}",
            reasons=("token-too-long",),
            remedy="declare fewer permissions, shorter ids, or `under(...)`",
        )
    return MintedToken(_HiddenText(text), token_hash(text), jti, expires_at, identity.version)


@lru_cache(maxsize=8)
def _header(algorithm: str, chain: tuple[bytes, ...]) -> str:
    x5c = [base64.b64encode(der).decode() for der in chain]
    header = {names.HEADER_ALG: algorithm, names.HEADER_TYP: names.TOKEN_TYP, names.HEADER_X5C: x5c}
    return jose.b64url_encode(jose.json_text(header).encode())


def random_id() -> str:
    """Return a fresh `jti`: 128 random bits."""
    return jose.b64url_encode(secrets.token_bytes(_RANDOM_BYTES))


def token_hash(text: str) -> str:
    """Return `ath` of a token: base64url SHA-256 of its ASCII. Source: RFC 9449 §4.2."""
    return jose.b64url_encode(hashlib.sha256(text.encode()).digest())


# ---------------------------------------------------------------------------------------------- verify


@attrs.define(slots=True, eq=False, repr=False)
class VerifiedTaskToken:
    """What a verified task token says. The holder is not authenticated before a proof by `jkt` was verified too.

    Args:
        spiffe_id: Who: `iss`, proven by the chain.
        audience: For whom; one.
        issued_at: `iat`, seconds since the epoch.
        not_before: `nbf`, seconds since the epoch.
        expires_at: `exp`, seconds since the epoch.
        jti: Id of this token; another one after each re-minting.
        txn: Transaction id of the task.
        jkt: Thumbprint of the task key; the same over re-minting. Uses are counted per (`spiffe_id`, `jkt`).
        permissions: What this credential serves, actions as uids.
        facts: The task's facts, the shape of `Jitwi::Task`.
        task_digest: Digest over the whole task.
        permission_hashes: Hashes of all the task's permissions, in its order.
        thumbprint: Of the leaf that signed, for the record.
        ath: Hash of the token, as a proof must carry it.
    """

    spiffe_id: SpiffeId
    audience: str
    issued_at: int
    not_before: int
    expires_at: int
    jti: str
    txn: str
    jkt: str
    permissions: tuple[Permission, ...]
    facts: Mapping[str, str | int]
    task_digest: str
    permission_hashes: tuple[str, ...]
    thumbprint: str
    ath: str

    @property
    def max_uses(self) -> int | None:
        """How many uses the task has in all; None = not limited by number."""
        value = self.facts.get("max_uses")
        return value if isinstance(value, int) else None

    def permissions_for(self, action: Entity) -> tuple[Permission, ...]:
        """Return the permissions for `action`, exact resources before `under` ones; the Guard compares resources."""
        found = [p for p in self.permissions if p.action == action]
        return tuple(sorted(found, key=lambda p: isinstance(p.resource, Under)))

    def __repr__(self) -> str:
        """Who, which task, which id."""
        return f"<VerifiedTaskToken {self.spiffe_id} {self.facts.get('name')} {self.jti}>"


@attrs.define(slots=True, eq=False)
class ParsedTaskToken:
    """A token of the right shape; nothing in it is verified but its header and the types of its claims."""

    jws: jose.Jws
    claims: dict[str, Any]
    issuer: SpiffeId
    chain: tuple[str, ...]
    ath: str


def parse_task_token(text: str) -> ParsedTaskToken:
    """Steps 1 to 3: the token's form, its header, the shape of its claims.

    Raises:
        TokenError: MalformedEvidenceError, UnknownFieldError, WrongTypeError, AlgorithmRefusedError or
            DelegationRefusedError.
    """
    # 1 size, compact serialisation, base64url, JSON; 2 header: only `alg`, `typ`, `x5c`
    jws = jose.parse_jws(text, PROFILE)
    x5c = jws.header[names.HEADER_X5C]
    if not isinstance(x5c, list) or not 1 <= len(x5c) <= names.MAX_CHAIN_CERTIFICATES:
        raise _malformed(f"`x5c` is not an array of 1 to {names.MAX_CHAIN_CERTIFICATES} certificates", "x5c")
    if not all(isinstance(item, str) and item for item in x5c):
        raise _malformed("`x5c` has a member that is not text", "x5c")
    # 3 exactly the claims of the profile, each of its type
    claims = jws.payload
    if claims.keys() != names.TOKEN_CLAIMS:
        _refuse_claim_names(claims)
    for name in (names.EXP, names.IAT, names.NBF):
        if type(claims[name]) is not int or claims[name] < 0:
            raise _malformed(f"`{name}` is not a whole number of seconds", name)
    for name in (names.JTI, names.TXN):
        value = claims[name]
        if not isinstance(value, str) or len(value) > names.MAX_ID_CHARS or _ID.fullmatch(value) is None:
            raise _malformed(f"`{name}` is not an id", name)
    if not isinstance(claims[names.AUD], str):
        raise _malformed("`aud` is not one audience", "aud")
    cnf = claims[names.CNF]
    if not isinstance(cnf, dict) or cnf.keys() != {names.JKT} or not _is_digest(cnf[names.JKT]):
        raise _malformed("`cnf` is not exactly one `jkt`", "cnf")
    try:
        issuer = _workload(claims[names.ISS])
    except (InvalidSpiffeIdError, TypeError) as exc:
        raise _malformed("`iss` is not a workload's SPIFFE ID", "iss") from exc
    return ParsedTaskToken(jws, claims, issuer, tuple(x5c), token_hash(text))


@lru_cache(maxsize=1024)
def _workload(text: str) -> SpiffeId:
    return SpiffeId.parse(text).require_workload()


def verify_chain(parsed: ParsedTaskToken, bundle: X509Bundle | None, *, now: float) -> VerifiedX509Svid:
    """Step 4: the chain against the current bundle of the ID's own trust domain, and no other.

    Raises:
        UntrustedChainError: No bundle, or the chain does not hold at `now`.
        MalformedEvidenceError: `x5c` is not standard base64.

    Source:
        X509-SVID §5, SPIFFE-ID §3, Trust Domain and Bundle §3.
    """
    if bundle is None:
        raise errors.UntrustedChainError(
            f"there is no bundle for trust domain `{parsed.issuer.trust_domain}`",
            reasons=("unknown-trust-domain",),
            remedy="federate the trust domain, if it should be trusted",
        )
    try:
        chain = tuple(certificate_of(item) for item in parsed.chain)
    except ValueError as exc:
        raise _malformed("`x5c` is not standard base64", "x5c") from exc
    try:
        return verify_x509_svid(chain, bundle, now=now)
    except JitwiError as exc:
        raise errors.UntrustedChainError(
            f"the chain does not hold: {exc.message}", reasons=("chain", *exc.reasons)
        ) from exc


def verify_claims(
    parsed: ParsedTaskToken, leaf: VerifiedX509Svid, *, audience: str, now: float, max_ttl: timedelta
) -> VerifiedTaskToken:
    """Steps 5 to 11, under a leaf that was verified.

    Raises:
        TokenError: The class says which step.
    """
    claims, jws = parsed.claims, parsed.jws
    # 5 the algorithm is the one of the leaf's key
    if jose.algorithm_of(leaf.public_key) != jws.header[names.HEADER_ALG]:
        raise errors.AlgorithmRefusedError("`alg` is not the one of the leaf's key", reasons=("alg-key",))
    # 6 signature
    if not jose.is_signed_by(leaf.public_key, jws.signature, jws.signing_input):
        raise errors.BadSignatureError("the leaf's key did not sign this", reasons=("signature",))
    # 7 who: `iss` is the ID that the leaf proves, `sub` is the same
    if parsed.issuer != leaf.spiffe_id:
        raise errors.WrongIssuerError("`iss` is not the SPIFFE ID of the leaf", reasons=("iss",))
    if claims[names.SUB] != claims[names.ISS]:
        raise errors.DelegationRefusedError("`sub` is not `iss`", reasons=("sub",))
    # 8 for whom
    if claims[names.AUD] != audience:
        raise errors.WrongAudienceError(
            f"the token is for `{ascii(claims[names.AUD])[:200]}`", reasons=("aud",), remedy=f"this is `{audience}`"
        )
    # 9 when: no leeway on the end, 5 s on the beginning
    check_times(claims[names.IAT], claims[names.NBF], claims[names.EXP], now=now)
    # 10 for how long: the task's ttl, ours, the SVID's
    facts = _facts(claims[names.TCTX])
    lifetime = claims[names.EXP] - claims[names.IAT]
    if not 0 < lifetime <= min(float(facts["ttl"]), max_ttl.total_seconds()):
        raise errors.LifetimeError(
            f"the token is valid for {lifetime} s, more than the task's ttl or ours allows",
            reasons=("max-ttl",),
            remedy="raise `max_ttl` of the Guard, or lower that of the issuer",
        )
    if claims[names.EXP] > leaf.not_after or claims[names.IAT] < math.floor(leaf.not_before):
        raise errors.LifetimeError("the token reaches beyond its SVID", reasons=("svid-validity",))
    # 11 what: the digest is over these facts and hashes, and each permission is among them
    permissions, hashes = _scope(claims, facts)
    return VerifiedTaskToken(
        spiffe_id=leaf.spiffe_id,
        audience=audience,
        issued_at=claims[names.IAT],
        not_before=claims[names.NBF],
        expires_at=claims[names.EXP],
        jti=claims[names.JTI],
        txn=claims[names.TXN],
        jkt=claims[names.CNF][names.JKT],
        permissions=permissions,
        facts=facts,
        task_digest=claims[names.TCTX][names.TCTX_DIGEST],
        permission_hashes=hashes,
        thumbprint=leaf.thumbprint,
        ath=parsed.ath,
    )


def verify_task_token(
    text: str, *, audience: str, bundles: BundleSource, now: float, max_ttl: timedelta
) -> VerifiedTaskToken:
    """Verify a token from nothing; `TaskTokenVerifier` does the same and remembers.

    Args:
        text: The token.
        audience: Who we are.
        bundles: The current bundles.
        now: Seconds since the epoch.
        max_ttl: The longest life of a token that we accept, whatever the task says.

    Raises:
        TokenError: The class says which step.
    """
    parsed = parse_task_token(text)
    leaf = verify_chain(parsed, bundles.x509_bundle(parsed.issuer.trust_domain), now=now)
    return verify_claims(parsed, leaf, audience=audience, now=now, max_ttl=max_ttl)


def check_times(iat: int, nbf: int, exp: int, *, now: float) -> None:
    """Check the three instants: `exp` without leeway, `iat` and `nbf` with 5 s.

    Raises:
        ExpiredEvidenceError: `now >= exp`.
        NotYetValidError: `iat` or `nbf` lie in the future.

    Source:
        RFC 7519 §4.1.4 to §4.1.6.
    """
    if now >= exp:
        raise errors.ExpiredEvidenceError("the token has expired", reasons=("exp",))
    if max(iat, nbf) > now + names.NOT_BEFORE_LEEWAY_SECONDS:
        raise errors.NotYetValidError("the token is from the future", reasons=("iat" if iat >= nbf else "nbf",))
    if nbf >= exp:
        raise errors.LifetimeError("the token is never valid", reasons=("nbf",))


def _scope(claims: dict[str, Any], facts: dict[str, str | int]) -> tuple[tuple[Permission, ...], tuple[str, ...]]:
    txn, tctx = claims[names.TXN], claims[names.TCTX]
    hashes = tctx[names.TCTX_PERMISSIONS]
    if not isinstance(hashes, list) or not 1 <= len(hashes) <= MAX_PERMISSIONS or not all(map(_is_digest, hashes)):
        raise _malformed("the permission hashes of `tctx` are not 1 to 64 digests", "tctx")
    given = claims[names.AUTHORIZATION_DETAILS]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_PERMISSIONS:
        raise _malformed("`authorization_details` is not an array of 1 to 64 entries", "authorization_details")
    try:
        permissions = tuple(parse_permission(entry) for entry in given)
        # All that a task is bound by holds for what a token says of it: texts, ttl, counts, no two permissions alike.
        Task(permissions=permissions, **(facts | {"ttl": timedelta(seconds=facts["ttl"])}))  # type: ignore[arg-type]
        digest = digest_of(facts, tuple(hashes), txn=txn)
    except ValueError as exc:
        raise _malformed(f"the task is out of bounds: {exc}", "task") from exc
    if digest != tctx[names.TCTX_DIGEST]:
        raise errors.DigestMismatchError("the digest is not over these facts", reasons=("digest",))
    known = set(hashes)
    for permission in permissions:
        action: Entity = permission.action  # type: ignore[assignment]
        if permission_hash(action, permission.resource, permission.max_uses, txn=txn) not in known:
            raise errors.DigestMismatchError(
                f"`{permission}` is not among the task's permissions", reasons=("authorization_details",)
            )
    return permissions, tuple(hashes)


def _facts(tctx: object) -> dict[str, str | int]:
    if not isinstance(tctx, dict) or not tctx.keys() >= {"name", "ttl", names.TCTX_DIGEST, names.TCTX_PERMISSIONS}:
        raise _malformed("`tctx` is not an object with name, ttl, digest and permissions", "tctx")
    unknown = tctx.keys() - names.TCTX_MEMBERS
    if unknown:
        raise errors.UnknownFieldError(
            f"`tctx` has a member that is not known: `{ascii(min(unknown))[:40]}`", reasons=("tctx",)
        )
    facts = {name: value for name, value in tctx.items() if name in names.TCTX_FACTS}
    for name, value in facts.items():
        kind = int if name in ("ttl", "max_uses") else str
        if type(value) is not kind:
            raise _malformed(f"`{name}` of `tctx` is not of its type", "tctx")
    if not 0 < facts["ttl"] <= _MAX_TTL_SECONDS:
        raise _malformed("`ttl` of `tctx` is out of bounds", "tctx")
    return facts


_MAX_TTL_SECONDS = 24 * 60 * 60


def _refuse_claim_names(claims: dict[str, Any]) -> None:
    delegated = claims.keys() & names.DELEGATION_CLAIMS
    if delegated:
        raise errors.DelegationRefusedError(f"`{min(delegated)}` is not supported", reasons=("act",))
    unknown = claims.keys() - names.TOKEN_CLAIMS
    if unknown:
        raise errors.UnknownFieldError(
            f"the token has a claim that is not known: `{ascii(min(unknown))[:40]}`", reasons=("claim",)
        )
    missing = min(names.TOKEN_CLAIMS - claims.keys())
    raise _malformed(f"the token lacks `{missing}`", missing)


def certificate_of(text: str) -> bytes:
    """Decode one member of `x5c`: standard base64 in its one spelling. Source: RFC 7515 §4.1.6.

    Raises:
        ValueError: Any other spelling.
    """
    der = base64.b64decode(text, validate=True)
    if base64.b64encode(der).decode() != text:
        raise binascii.Error("not the one spelling")
    return der


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _malformed(message: str, reason: str) -> errors.MalformedEvidenceError:
    return errors.MalformedEvidenceError(message, reasons=(reason,))
