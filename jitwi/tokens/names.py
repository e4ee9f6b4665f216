# SPDX-License-Identifier: Apache-2.0
"""Every name and every limit of the wire profile, with the standard it comes from.

Holds constants and nothing else. A name that is not here is not understood, and what is not understood is refused.
`docs/wire-profile.md` is the same list for people; a test holds this list still.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ALGORITHMS",
    "DIGEST_CHARS",
    "HEADER_ALG",
    "HEADER_JWK",
    "HEADER_TYP",
    "HEADER_X5C",
    "HTTP_AUTHORIZATION",
    "HTTP_DPOP",
    "MAX_CHAIN_CERTIFICATES",
    "MAX_ID_CHARS",
    "MAX_INPUT_BYTES",
    "MAX_INPUT_DEPTH",
    "MAX_INPUT_KEYS",
    "MAX_NUMBER_DIGITS",
    "MAX_PROOF_CHARS",
    "MAX_TOKEN_CHARS",
    "MAX_URL_CHARS",
    "NOT_BEFORE_LEEWAY_SECONDS",
    "PERMISSION_TYPE",
    "PROOF_ALGORITHM",
    "PROOF_CLAIMS",
    "PROOF_HEADERS",
    "PROOF_TYP",
    "PROOF_WINDOW_SECONDS",
    "SCHEME_DPOP",
    "TCTX_MEMBERS",
    "TOKEN_CLAIMS",
    "TOKEN_HEADERS",
    "TOKEN_TYP",
    "USE_TYPE",
]

# Headers of a JWS.
HEADER_ALG: Final = "alg"  # RFC 7515 §4.1.1
HEADER_TYP: Final = "typ"  # RFC 7515 §4.1.9, RFC 8725 §3.11
HEADER_X5C: Final = "x5c"  # RFC 7515 §4.1.6: the SVID's chain, leaf first, standard base64
HEADER_JWK: Final = "jwk"  # RFC 7515 §4.1.3, RFC 9449 §4.2
TOKEN_HEADERS: Final = frozenset({HEADER_ALG, HEADER_TYP, HEADER_X5C})
PROOF_HEADERS: Final = frozenset({HEADER_ALG, HEADER_TYP, HEADER_JWK})

# Types of the two documents. Never `JWT`: that would pass validators of JWT-SVIDs and of OIDC.
TOKEN_TYP: Final = "jit+jwt"  # noqa: S105 - RFC 8725 §3.11 (explicit typing); the name is this profile's
PROOF_TYP: Final = "dpop+jwt"  # RFC 9449 §4.2

# Algorithms, each bound to one kind of key. Source: RFC 7518 §3.1, §3.3, §3.4.
ALGORITHMS: Final = frozenset({"ES256", "ES384", "ES512", "RS256"})
PROOF_ALGORITHM: Final = "ES256"  # task keys are P-256

# Claims of the task token.
ISS: Final = "iss"  # RFC 7519 §4.1.1: the SPIFFE ID of the SVID that signed
SUB: Final = "sub"  # RFC 7519 §4.1.2: the same
AUD: Final = "aud"  # RFC 7519 §4.1.3: one string, never an array
EXP: Final = "exp"  # RFC 7519 §4.1.4
NBF: Final = "nbf"  # RFC 7519 §4.1.5
IAT: Final = "iat"  # RFC 7519 §4.1.6
JTI: Final = "jti"  # RFC 7519 §4.1.7
TXN: Final = "txn"  # RFC 8417 §2.2; draft-ietf-oauth-transaction-tokens-10
CNF: Final = "cnf"  # RFC 7800 §3.1
JKT: Final = "jkt"  # RFC 9449 §6.1, a member of `cnf`
AUTHORIZATION_DETAILS: Final = "authorization_details"  # RFC 9396 §2, §9.1
TCTX: Final = "tctx"  # draft-ietf-oauth-transaction-tokens-10
TOKEN_CLAIMS: Final = frozenset({ISS, SUB, AUD, EXP, NBF, IAT, JTI, TXN, CNF, AUTHORIZATION_DETAILS, TCTX})

# Claims that say "on behalf of": refused until delegation is built.
ACT: Final = "act"  # RFC 8693 §4.1
MAY_ACT: Final = "may_act"  # RFC 8693 §4.4
DELEGATION_CLAIMS: Final = frozenset({ACT, MAY_ACT})

# Claims of the proof: RFC 9449 §4.2, and `authorization_details` for the use that the proof is for.
HTM: Final = "htm"  # RFC 9449 §4.2
HTU: Final = "htu"  # RFC 9449 §4.2
ATH: Final = "ath"  # RFC 9449 §4.2
PROOF_CLAIMS: Final = frozenset({JTI, HTM, HTU, IAT, ATH, AUTHORIZATION_DETAILS})

# One entry of `authorization_details`: the common fields of RFC 9396 §2.2, each array with exactly one member ...
PERMISSION_TYPE: Final = "jitwi_permission"  # in a task token
USE_TYPE: Final = "jitwi_use"  # in a proof
TYPE: Final = "type"  # RFC 9396 §2
ACTIONS: Final = "actions"  # RFC 9396 §2.2: the action's id
DATATYPES: Final = "datatypes"  # RFC 9396 §2.2: the resource's Cedar type
IDENTIFIER: Final = "identifier"  # RFC 9396 §2.2: the resource's id
# ... and fields of our two types (RFC 9396 §2: a type defines its own).
ACTION_TYPE: Final = "action_type"  # the action's Cedar type
UNDER: Final = "under"  # true = everything below the resource; absent = the resource itself
MAX_USES: Final = "max_uses"  # absent = only the task's own limit
INPUT: Final = "input"  # SHA-256 of the input's RFC 8785 JSON, base64url; absent = no input
PERMISSION_REQUIRED: Final = frozenset({TYPE, ACTIONS, ACTION_TYPE, DATATYPES, IDENTIFIER})
PERMISSION_OPTIONAL: Final = frozenset({UNDER, MAX_USES})
USE_REQUIRED: Final = PERMISSION_REQUIRED
USE_OPTIONAL: Final = frozenset({INPUT})

# Members of `tctx`: the facts that policies read (`Jitwi::Task`), the digest over the task, the permission hashes.
TCTX_DIGEST: Final = "digest"
TCTX_PERMISSIONS: Final = "permissions"
TCTX_FACTS: Final = frozenset({"name", "ttl", "purpose", "owner", "on_behalf_of", "agent", "max_uses"})
TCTX_MEMBERS: Final = TCTX_FACTS | {TCTX_DIGEST, TCTX_PERMISSIONS}

# HTTP.
HTTP_AUTHORIZATION: Final = "Authorization"  # RFC 9449 §7.1
HTTP_DPOP: Final = "DPoP"  # RFC 9449 §4.1
SCHEME_DPOP: Final = "DPoP"  # RFC 9449 §7.1
SCHEME_BEARER: Final = "Bearer"  # RFC 6750 §2.1; JWT-SVID §5.2

# Limits, checked before anything is decoded.
MAX_TOKEN_CHARS: Final = 16_384
"""A whole task token. Most HTTP servers take 8 to 64 KiB of headers: few permissions are better than many."""
MAX_PROOF_CHARS: Final = 8_192
MAX_CHAIN_CERTIFICATES: Final = 8
MAX_ID_CHARS: Final = 128
"""`jti` and `txn`: 1 to 128 characters of `A-Z a-z 0-9 - _ .`."""
MAX_URL_CHARS: Final = 4_096
DIGEST_CHARS: Final = 43
"""A SHA-256 in base64url without padding."""
MAX_NUMBER_DIGITS: Final = 15
"""More digits than any instant or limit needs; below 2**53."""
MAX_INPUT_DEPTH: Final = 16
MAX_INPUT_KEYS: Final = 1_000
MAX_INPUT_BYTES: Final = 65_536

# Times.
NOT_BEFORE_LEEWAY_SECONDS: Final = 5
"""On `iat` and `nbf`, as fresh evidence crosses hosts. On `exp` there is none."""
PROOF_WINDOW_SECONDS: Final = 60
"""How old a proof may be. Source: RFC 9449 §11.1."""
