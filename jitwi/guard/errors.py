# SPDX-License-Identifier: Apache-2.0
"""The refusals that a Guard adds to those of tokens and proofs.

Holds one class per step that is the Guard's own. Does not hold what a stranger is told: that is `answer.py`.

Tree::

    EvidenceError
    ├── MissingEvidenceError        no evidence at all, or of another scheme; challenge without an error
    ├── AmbiguousEvidenceError      more than one `Authorization` or `DPoP` header
    ├── InvalidRequestError         method or URL that cannot be compared safely
    ├── TokenError ...              see `jitwi.tokens`
    │   ├── TaskEndedError          the task is over before its time
    │   └── ForgottenError          made before the store of this Guard: its uses may have been forgotten
    ├── ProofError ...              see `jitwi.tokens`
    │   ├── ReplayedProofError      shown before
    │   └── ForgottenProofError     made before the store of this Guard: it may have been shown before
    ├── ScopeMismatchError          see `jitwi.tokens`; 403
    ├── TaskClassError              the Guard's own task classes refuse the task; 403
    └── UsesExhaustedError          `max_uses` of the task or of the permission are used up; 403
"""

from __future__ import annotations

from typing import ClassVar

from jitwi.errors import EvidenceError
from jitwi.tokens import ProofError, TokenError

__all__ = [
    "AmbiguousEvidenceError",
    "ForgottenError",
    "ForgottenProofError",
    "InvalidRequestError",
    "MissingEvidenceError",
    "ReplayedProofError",
    "TaskClassError",
    "TaskEndedError",
    "UsesExhaustedError",
]


class MissingEvidenceError(EvidenceError):
    """No task token, or no proof, or another authentication scheme (a bearer token, for example)."""

    code = "evidence-missing"
    challenge: ClassVar[str] = ""


class AmbiguousEvidenceError(EvidenceError):
    """More than one `Authorization` or `DPoP` header. Source: RFC 9449 §4.3."""

    code = "evidence-ambiguous"
    challenge: ClassVar[str] = "invalid_dpop_proof"


class InvalidRequestError(EvidenceError):
    """A method or URL with more than one reading: dot segments, backslashes, bytes that a URL cannot have."""

    code = "request-invalid"
    challenge: ClassVar[str] = "invalid_dpop_proof"


class TaskEndedError(TokenError):
    """The task, or this key of it, was ended before its time."""

    code = "task-ended"


class ForgottenError(TokenError):
    """A token whose uses are counted is older than the store: how often it was used may be forgotten."""

    code = "uses-forgotten"


class ReplayedProofError(ProofError):
    """A proof with this `jti` was shown before. Source: RFC 9449 §11.1."""

    code = "proof-replayed"


class ForgottenProofError(ProofError):
    """The proof is older than the store: whether it was shown before may be forgotten."""

    code = "proof-forgotten"


class TaskClassError(EvidenceError):
    """The Guard's task classes refuse the task: unregistered, another owner, over a ceiling, a field missing."""

    code = "task-class"
    status = 403
    challenge: ClassVar[str] = "insufficient_scope"


class UsesExhaustedError(EvidenceError):
    """`max_uses` of the task or of the permission are used up."""

    code = "uses-exhausted"
    status = 403
    challenge: ClassVar[str] = "insufficient_scope"
