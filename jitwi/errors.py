# SPDX-License-Identifier: Apache-2.0
"""Every error that leaves jitwi, in one tree.

Holds the exception classes and nothing else: no logging, no rendering. Rooms raise these and never let a third
party's exception through.

Tree::

    JitwiError
    ├── ConfigurationError            wrong arguments, wrong environment, missing extra
    ├── StateError (RuntimeError)     misuse: entered twice, used after close, copied, forked
    ├── InvalidTaskError (ValueError) the declaration itself is out of bounds
    ├── IdentityError
    │   ├── InvalidSpiffeIdError (ValueError)
    │   ├── InvalidSvidError          a document failed admission or verification
    │   ├── IdentityUnavailableError  nothing received in time, or stale for too long
    │   ├── IdentityWithdrawnError    the agent says that there is no identity any more
    │   ├── IdentityReplacedError     the pinned SPIFFE ID is no longer among the SVIDs
    │   ├── IdentityExpiredError
    │   └── AmbiguousIdentityError    several SVIDs and no choice
    ├── PolicyError
    │   ├── InvalidPolicyError        refused at load
    │   ├── PolicyStaleError          the last good set is older than its limit
    │   └── PolicyEvaluationError     a question that could not be asked
    ├── AccessDeniedError             the answer is no
    │   ├── ApprovalRequiredError
    │   ├── LimitExceededError
    │   └── OutOfScopeError
    ├── GrantError                    the grant or credential is over
    │   ├── GrantExpiredError
    │   ├── GrantRevokedError
    │   └── GrantEndedError
    ├── IssuanceError
    │   └── ScopeTooWideError
    ├── RevocationPendingError        only with `raise_on_pending=True`
    ├── EvidenceError                 at a Guard: one class per verification step, see `jitwi.guard`
    ├── JournalError
    ├── SharedStateError
    └── AuditError
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AccessDeniedError",
    "AmbiguousIdentityError",
    "ApprovalRequiredError",
    "AuditError",
    "ConfigurationError",
    "EvidenceError",
    "GrantEndedError",
    "GrantError",
    "GrantExpiredError",
    "GrantRevokedError",
    "IdentityError",
    "IdentityExpiredError",
    "IdentityReplacedError",
    "IdentityUnavailableError",
    "IdentityWithdrawnError",
    "InvalidPolicyError",
    "InvalidSpiffeIdError",
    "InvalidSvidError",
    "InvalidTaskError",
    "IssuanceError",
    "JitwiError",
    "JournalError",
    "LimitExceededError",
    "OutOfScopeError",
    "PolicyError",
    "PolicyEvaluationError",
    "PolicyStaleError",
    "RevocationPendingError",
    "ScopeTooWideError",
    "SharedStateError",
    "StateError",
]


class JitwiError(Exception):
    """Base of all errors of this library.

    Args:
        message: What was wrong, lower case, no secret in it.
        reasons: Stable, machine-readable reason codes (`kebab-case`), most important first.
        remedy: What the reader can do about it, one sentence.
        **fields: Values of the attributes that the subclass declares, for example `path` and `line`. What every error
            or exception has (`code`, `retryable`, `args`) is no field.

    Raises:
        TypeError: The class declares no such field.

    Attributes:
        code: Stable name of the kind of error, low in cardinality: fit for a metric label.
        retryable: True if the same call may succeed later without a change of code, policy or configuration.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, reasons: Iterable[str] = (), remedy: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.reasons = (reasons,) if isinstance(reasons, str) else tuple(reasons)
        self.remedy = remedy
        for name, value in fields.items():
            if hasattr(JitwiError, name) or not hasattr(type(self), name):
                msg = f"{type(self).__name__} has no field {name!r}"
                raise TypeError(msg)
            setattr(self, name, value)

    def __str__(self) -> str:
        """Message and way out on one line."""
        return f"{self.message} ({self.remedy})" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the message, reasons and remedy; attributes of subclasses travel in the state."""
        return (_rebuild, (type(self), self.message, self.reasons, self.remedy, dict(self.__dict__)))


def _rebuild(
    kind: type[JitwiError], message: str, reasons: tuple[str, ...], remedy: str, state: dict[str, Any]
) -> JitwiError:
    error = kind.__new__(kind)
    JitwiError.__init__(error, message, reasons=reasons, remedy=remedy)
    error.__dict__.update(state)
    return error


class ConfigurationError(JitwiError):
    """Arguments or environment are wrong, or an extra is not installed. Raised before anything is issued."""

    code = "configuration"


class StateError(JitwiError, RuntimeError):
    """An object is used in a state that does not allow it: entered twice, closed, copied, or in a forked child."""

    code = "state"


class InvalidTaskError(JitwiError, ValueError):
    """A task declaration is out of bounds: empty name, no permission, a ttl of zero, an id with control characters."""

    code = "invalid-task"


class IdentityError(JitwiError):
    """Base: who is calling could not be established. Nothing is issued."""

    code = "identity"


class InvalidSpiffeIdError(IdentityError, ValueError):
    """Text is not a SPIFFE ID or trust domain. Source: SPIFFE-ID §2."""

    code = "invalid-spiffe-id"


class InvalidSvidError(IdentityError):
    """An X.509-SVID, JWT-SVID or bundle failed admission or verification. Source: X509-SVID §5, JWT-SVID §5."""

    code = "invalid-svid"


class IdentityUnavailableError(IdentityError):
    """No usable identity within the deadline, or the last one is stale for longer than `max_staleness`.

    Attributes:
        grpc_code: Name of the last gRPC status code seen, or an empty string.
    """

    code = "identity-unavailable"
    retryable = True
    grpc_code: str = ""


class IdentityWithdrawnError(IdentityError):
    """The agent answered PermissionDenied: the entry of this workload is gone. Source: Workload API §5.2.1."""

    code = "identity-withdrawn"
    retryable = True


class IdentityReplacedError(IdentityError):
    """The agent serves SVIDs, but the SPIFFE ID that was pinned is not among them any more."""

    code = "identity-replaced"


class IdentityExpiredError(IdentityError):
    """The last SVID has passed its `not_after`."""

    code = "identity-expired"
    retryable = True


class AmbiguousIdentityError(IdentityError):
    """The agent serves several SVIDs and none was chosen by SPIFFE ID or hint.

    Attributes:
        candidates: The SPIFFE IDs served, with their hints, in the agent's order.
    """

    code = "ambiguous-identity"
    candidates: tuple[tuple[str, str], ...] = ()


class PolicyError(JitwiError):
    """Base: policies could not be loaded or asked."""

    code = "policy"


class InvalidPolicyError(PolicyError):
    """A policy folder was refused at load; the last good one stays.

    Attributes:
        path: File the problem is in, or an empty string.
        line: Line in that file, counted from 1, or 0 where no line can be named.
    """

    code = "invalid-policy"
    path: str = ""
    line: int = 0


class PolicyStaleError(PolicyError):
    """No reload succeeded for longer than the staleness limit: everything is denied."""

    code = "policy-stale"


class PolicyEvaluationError(PolicyError):
    """A question could not be put: unknown action, missing `input`, a context over its bounds. Counts as a deny."""

    code = "policy-evaluation"


class AccessDeniedError(JitwiError):
    """Policy, scope or limits say no.

    Attributes:
        policy_ids: `@id`s of the policies that decided; empty when no permit applied.
    """

    code = "access-denied"
    policy_ids: tuple[str, ...] = ()


class ApprovalRequiredError(AccessDeniedError):
    """An approval would be needed and none can be asked for."""

    code = "approval-required"


class LimitExceededError(AccessDeniedError):
    """`max_uses` of the task, of a permission, or a ceiling of the task class is used up."""

    code = "limit-exceeded"


class OutOfScopeError(AccessDeniedError):
    """The action or resource of this use was not declared."""

    code = "out-of-scope"


class GrantError(JitwiError):
    """Base: the grant or credential is not live.

    Attributes:
        cause: Why it ended, one of the values of `jitwi.grants.EndCause`.
    """

    code = "grant"
    cause: str = ""


class GrantExpiredError(GrantError):
    """The ttl, the SVID or the backend's own limit has passed."""

    code = "grant-expired"


class GrantRevokedError(GrantError):
    """Ended by something else than its block: revoked, identity gone, policy changed, parent ended, limits."""

    code = "grant-revoked"


class GrantEndedError(GrantError):
    """The block has ended."""

    code = "grant-ended"


class IssuanceError(JitwiError):
    """An issuer could not make the credential. Whatever was half made is being revoked."""

    code = "issuance"


class ScopeTooWideError(IssuanceError):
    """The credential would be wider than declared or not revocable, and no policy of the user accepts that.

    Attributes:
        wider: In what it would be wider: any of `actions`, `resources`, `uses`, `time`, `network`.
    """

    code = "scope-too-wide"
    wider: tuple[str, ...] = ()


class RevocationPendingError(JitwiError):
    """Some credential's end is not proven yet; the reaper goes on.

    Attributes:
        ending: The `jitwi.Ending` at that moment.
    """

    code = "revocation-pending"
    retryable = True
    ending: Any = None


class EvidenceError(JitwiError):
    """Evidence shown to a Guard was refused. Subclasses in `jitwi.guard` name the verification step.

    Attributes:
        status: HTTP status to answer a stranger with: 401 for evidence, 403 for a denial.
    """

    code = "evidence"
    status: ClassVar[int] = 401


class JournalError(JitwiError):
    """The journal could not be read or written; nothing with effects outside the process is issued."""

    code = "journal"


class SharedStateError(JitwiError):
    """The shared state of this host could not be read or written; uses are refused."""

    code = "shared-state"


class AuditError(JitwiError):
    """The audit trail could not be written in time; issues and uses are refused, revoking is not."""

    code = "audit"
