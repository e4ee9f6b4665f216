# SPDX-License-Identifier: Apache-2.0
"""One class per verification step of tokens and proofs.

Holds the refusals of this room; `jitwi.guard` adds its own and shows all of them. Messages are for the operator's log:
a stranger is told `status` and `challenge`, never the step.

Tree::

    EvidenceError
    ├── TokenError                      about the task token; challenge `invalid_token`
    │   ├── MalformedEvidenceError      size, base64url, JSON, shape of a claim
    │   ├── UnknownFieldError           a header, claim or member that this version does not know
    │   ├── WrongTypeError              `typ`: another kind of document
    │   ├── AlgorithmRefusedError       `alg`: not allowed, or not the one of the leaf's key
    │   ├── UntrustedChainError         the chain against the current bundle of its own trust domain
    │   ├── BadSignatureError
    │   ├── WrongIssuerError            `iss` is not the ID that the leaf proves
    │   ├── DelegationRefusedError      `sub` other than `iss`, `act`: not built yet
    │   ├── WrongAudienceError
    │   ├── ExpiredEvidenceError
    │   ├── NotYetValidError
    │   ├── LifetimeError               `exp` beyond what the task, the Guard or the SVID allow
    │   └── DigestMismatchError         the task's facts or permissions are not those that the digest stands for
    ├── ProofError                      about the proof; challenge `invalid_dpop_proof`
    │   ├── MalformedProofError
    │   ├── ProofSignatureError
    │   ├── ProofKeyError               not the key that the token endorses
    │   ├── ProofTokenError             made for another token
    │   ├── ProofTargetError            made for another method or URL
    │   ├── ProofTimeError              outside its window
    │   ├── UseMismatchError            made for another action or resource
    │   └── InputMismatchError          made for another input
    └── ScopeMismatchError              the token does not hold this permission; 403, challenge `insufficient_scope`
"""

from __future__ import annotations

from typing import ClassVar

from jitwi.errors import EvidenceError

__all__ = [
    "AlgorithmRefusedError",
    "BadSignatureError",
    "DelegationRefusedError",
    "DigestMismatchError",
    "ExpiredEvidenceError",
    "InputMismatchError",
    "LifetimeError",
    "MalformedEvidenceError",
    "MalformedProofError",
    "NotYetValidError",
    "ProofError",
    "ProofKeyError",
    "ProofSignatureError",
    "ProofTargetError",
    "ProofTimeError",
    "ProofTokenError",
    "ScopeMismatchError",
    "TokenError",
    "UnknownFieldError",
    "UntrustedChainError",
    "UseMismatchError",
    "WrongAudienceError",
    "WrongIssuerError",
    "WrongTypeError",
]


class TokenError(EvidenceError):
    """Base: the task token was refused.

    Attributes:
        challenge: The `error` of `WWW-Authenticate`. Source: RFC 6750 §3.1, RFC 9449 §7.1.
    """

    code = "evidence-token"
    challenge: ClassVar[str] = "invalid_token"


class MalformedEvidenceError(TokenError):
    """It is not a task token: too long, not strict base64url, not strict JSON, a claim missing or of another shape."""

    code = "evidence-malformed"


class UnknownFieldError(TokenError):
    """A header, claim or member that this version does not know: it could restrict what we would then allow."""

    code = "evidence-unknown-field"


class WrongTypeError(TokenError):
    """`typ` is not `jit+jwt`: a document made for another purpose. Source: RFC 8725 §3.11."""

    code = "evidence-wrong-type"


class AlgorithmRefusedError(TokenError):
    """`alg` is not on the list, or is not the one of the leaf's key. Source: RFC 8725 §3.1."""

    code = "evidence-algorithm"


class UntrustedChainError(TokenError):
    """`x5c` does not lead to the current bundle of its ID's own trust domain. Source: X509-SVID §5, SPIFFE-ID §3."""

    code = "evidence-untrusted-chain"


class BadSignatureError(TokenError):
    """The leaf's key did not sign this."""

    code = "evidence-signature"


class WrongIssuerError(TokenError):
    """`iss` is not the SPIFFE ID that the leaf proves."""

    code = "evidence-issuer"


class DelegationRefusedError(TokenError):
    """`sub` is not `iss`, or there is an `act`: delegated tasks are not supported by this version."""

    code = "evidence-delegation"


class WrongAudienceError(TokenError):
    """`aud` is another service. Source: RFC 7519 §4.1.3."""

    code = "evidence-audience"


class ExpiredEvidenceError(TokenError):
    """`exp` has passed; there is no leeway."""

    code = "evidence-expired"


class NotYetValidError(TokenError):
    """`iat` or `nbf` lie in the future, more than the leeway."""

    code = "evidence-not-yet-valid"


class LifetimeError(TokenError):
    """`exp` is later than the task's ttl, the Guard's `max_ttl` or the SVID allow, or `iat` is before the SVID."""

    code = "evidence-lifetime"


class DigestMismatchError(TokenError):
    """The digest is not over these facts, or a permission is not among the hashes it is over."""

    code = "evidence-digest"


class ProofError(EvidenceError):
    """Base: the proof was refused.

    Attributes:
        challenge: The `error` of `WWW-Authenticate`. Source: RFC 9449 §7.1.
    """

    code = "proof"
    challenge: ClassVar[str] = "invalid_dpop_proof"


class MalformedProofError(ProofError):
    """It is not a DPoP proof of this profile: size, encoding, `typ`, `alg`, `jwk`, an unknown or missing field."""

    code = "proof-malformed"


class ProofSignatureError(ProofError):
    """The key in its header did not sign it."""

    code = "proof-signature"


class ProofKeyError(ProofError):
    """It is signed by another key than the one that the token endorses in `cnf.jkt`. Source: RFC 9449 §6.1."""

    code = "proof-key"


class ProofTokenError(ProofError):
    """`ath` is the hash of another token. Source: RFC 9449 §4.3."""

    code = "proof-token"


class ProofTargetError(ProofError):
    """`htm` or `htu` are not the method and URL of this request. Source: RFC 9449 §4.3."""

    code = "proof-target"


class ProofTimeError(ProofError):
    """`iat` is outside the window. Source: RFC 9449 §11.1."""

    code = "proof-time"


class UseMismatchError(ProofError):
    """It is for another action or another resource."""

    code = "proof-use"


class InputMismatchError(ProofError):
    """It is for another input than the one about to be executed."""

    code = "proof-input"


class ScopeMismatchError(EvidenceError):
    """The token holds no permission for this action and resource.

    Attributes:
        challenge: The `error` of `WWW-Authenticate`. Source: RFC 6750 §3.1.
    """

    code = "evidence-scope"
    status = 403
    challenge: ClassVar[str] = "insufficient_scope"
