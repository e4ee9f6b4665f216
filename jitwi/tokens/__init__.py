# SPDX-License-Identifier: Apache-2.0
"""ON THE WIRE: the task token and the proof of possession: build, strict parse, verify; shared by issuers and Guard.

Does not hold replay, counts, revocation or policy: a Guard adds these. The profile is `docs/wire-profile.md`.

At a Guard, per request::

    verifier = TaskTokenVerifier(audience, bundles, max_ttl=timedelta(hours=1))     # once; thread-safe, bounded cache
    token = verifier.verify(token_text, now=instant.wall)                           # VerifiedTaskToken, or TokenError
    proof = verify_proof(proof_text, token=token, method="POST", url="https://orders.example.org/orders/42",
                         now=instant.wall)                                          # VerifiedProof, or ProofError
    proof.require_use(action, resource, input=input)                                # UseMismatch-, InputMismatchError
    token.permissions_for(action)                                                   # exact ones first
    # the Guard's own: replay on (proof.jkt, proof.jti) until proof.replay_until; uses on (token.spiffe_id, token.jkt)
"""

from jitwi.tokens.errors import (
    AlgorithmRefusedError,
    BadSignatureError,
    DelegationRefusedError,
    DigestMismatchError,
    ExpiredEvidenceError,
    InputMismatchError,
    LifetimeError,
    MalformedEvidenceError,
    MalformedProofError,
    NotYetValidError,
    ProofError,
    ProofKeyError,
    ProofSignatureError,
    ProofTargetError,
    ProofTimeError,
    ProofTokenError,
    ScopeMismatchError,
    TokenError,
    UnknownFieldError,
    UntrustedChainError,
    UseMismatchError,
    WrongAudienceError,
    WrongIssuerError,
    WrongTypeError,
)
from jitwi.tokens.jose import TaskKey
from jitwi.tokens.proof import VerifiedProof, input_digest, mint_proof, normalise_url, verify_proof
from jitwi.tokens.task_token import MintedToken, VerifiedTaskToken, mint_task_token, verify_task_token
from jitwi.tokens.verifier import TaskTokenVerifier

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
    "MintedToken",
    "NotYetValidError",
    "ProofError",
    "ProofKeyError",
    "ProofSignatureError",
    "ProofTargetError",
    "ProofTimeError",
    "ProofTokenError",
    "ScopeMismatchError",
    "TaskKey",
    "TaskTokenVerifier",
    "TokenError",
    "UnknownFieldError",
    "UntrustedChainError",
    "UseMismatchError",
    "VerifiedProof",
    "VerifiedTaskToken",
    "WrongAudienceError",
    "WrongIssuerError",
    "WrongTypeError",
    "input_digest",
    "mint_proof",
    "mint_task_token",
    "normalise_url",
    "verify_proof",
    "verify_task_token",
]
