# SPDX-License-Identifier: Apache-2.0
"""THE OTHER SIDE: the resource's own enforcement point.

Holds `Guard`, the request it reads, the call it returns, its refusals and what a stranger is told. Does not hold
anything of the caller's side, and no framework.
"""

from jitwi.guard.answer import Answer, answer
from jitwi.guard.call import Call, CallTask
from jitwi.guard.errors import (
    AmbiguousEvidenceError,
    ForgottenError,
    ForgottenProofError,
    InvalidRequestError,
    MissingEvidenceError,
    ReplayedProofError,
    TaskClassError,
    TaskEndedError,
    UsesExhaustedError,
)
from jitwi.guard.guard import Guard
from jitwi.guard.request import Request
from jitwi.tokens import (
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

__all__ = [
    "AlgorithmRefusedError",
    "AmbiguousEvidenceError",
    "Answer",
    "BadSignatureError",
    "Call",
    "CallTask",
    "DelegationRefusedError",
    "DigestMismatchError",
    "ExpiredEvidenceError",
    "ForgottenError",
    "ForgottenProofError",
    "Guard",
    "InputMismatchError",
    "InvalidRequestError",
    "LifetimeError",
    "MalformedEvidenceError",
    "MalformedProofError",
    "MissingEvidenceError",
    "NotYetValidError",
    "ProofError",
    "ProofKeyError",
    "ProofSignatureError",
    "ProofTargetError",
    "ProofTimeError",
    "ProofTokenError",
    "ReplayedProofError",
    "Request",
    "ScopeMismatchError",
    "TaskClassError",
    "TaskEndedError",
    "TokenError",
    "UnknownFieldError",
    "UntrustedChainError",
    "UseMismatchError",
    "UsesExhaustedError",
    "WrongAudienceError",
    "WrongIssuerError",
    "WrongTypeError",
    "answer",
]
