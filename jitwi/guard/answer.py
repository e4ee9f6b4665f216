# SPDX-License-Identifier: Apache-2.0
"""What a stranger is told of a refusal: as little as the standards ask for.

Holds `answer`. The reason is in the operator's audit, never in the answer: which policy, which limit or which step it
was would tell an attacker what to try next.
"""

from __future__ import annotations

import json

import attrs

from jitwi.errors import AccessDeniedError, EvidenceError
from jitwi.tokens.names import PROOF_ALGORITHM, SCHEME_DPOP

__all__ = ["Answer", "answer"]

_UNAUTHORIZED = 401
_FORBIDDEN = 403
_UNAVAILABLE = 503


@attrs.frozen
class Answer:
    """An HTTP response to a refused request.

    Args:
        status: 401 for evidence, 403 for a denial, 503 where the Guard itself could not decide.
        headers: Pairs of names and values.
        body: JSON, the same for every refusal of one kind.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def answer(error: BaseException) -> Answer:
    """Return what to answer a request that `guard.check` refused with `error`.

    Args:
        error: What was raised. Anything that is neither evidence nor a denial (store, audit, identity, policies, a
            fault of the service) is 503: the Guard could not say yes.

    Source:
        RFC 6750 §3 and §3.1, RFC 9449 §7.1.
    """
    if isinstance(error, EvidenceError):
        status, code = error.status, getattr(error, "challenge", "invalid_token")
    elif isinstance(error, AccessDeniedError):
        status, code = _FORBIDDEN, "insufficient_scope"
    else:
        status, code = _UNAVAILABLE, "temporarily_unavailable"
    headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        challenge = f'{SCHEME_DPOP} algs="{PROOF_ALGORITHM}"'
        headers.append(("WWW-Authenticate", f'{challenge}, error="{code}"' if code else challenge))
    else:
        headers.append(("Retry-After", "1"))
    body = {"error": code or "unauthorized"}
    return Answer(status, tuple(headers), json.dumps(body, separators=(",", ":")).encode())
