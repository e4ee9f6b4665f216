# SPDX-License-Identifier: Apache-2.0
"""The list of names and limits stands still: a change here is a change of the wire."""

from __future__ import annotations

from pathlib import Path

from jitwi.tokens import names

DOC = Path(__file__).resolve().parents[3] / "docs" / "wire-profile.md"


def test_names_stand_still() -> None:
    """Every header, claim and member of the profile is on this list, and nothing else is."""
    assert names.TOKEN_TYP == "jit+jwt"
    assert names.PROOF_TYP == "dpop+jwt"
    assert sorted(names.TOKEN_HEADERS) == ["alg", "typ", "x5c"]
    assert sorted(names.PROOF_HEADERS) == ["alg", "jwk", "typ"]
    assert sorted(names.ALGORITHMS) == ["ES256", "ES384", "ES512", "RS256"]
    assert sorted(names.TOKEN_CLAIMS) == sorted(
        ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "txn", "cnf", "authorization_details", "tctx"]
    )
    assert sorted(names.PROOF_CLAIMS) == ["ath", "authorization_details", "htm", "htu", "iat", "jti"]
    assert sorted(names.TCTX_MEMBERS) == sorted(
        ["name", "ttl", "purpose", "owner", "on_behalf_of", "agent", "max_uses", "digest", "permissions"]
    )
    assert sorted(names.PERMISSION_REQUIRED) == ["action_type", "actions", "datatypes", "identifier", "type"]
    assert sorted(names.PERMISSION_OPTIONAL) == ["max_uses", "under"]
    assert sorted(names.USE_OPTIONAL) == ["input"]
    assert (names.PERMISSION_TYPE, names.USE_TYPE) == ("jitwi_permission", "jitwi_use")


def test_limits_stand_still() -> None:
    """A limit that moves is seen."""
    assert names.MAX_TOKEN_CHARS == 16_384
    assert names.MAX_PROOF_CHARS == 8_192
    assert names.MAX_CHAIN_CERTIFICATES == 8
    assert names.NOT_BEFORE_LEEWAY_SECONDS == 5
    assert names.PROOF_WINDOW_SECONDS == 60
    assert names.MAX_INPUT_DEPTH == 16


def test_every_name_is_in_the_profile_document() -> None:
    """The document lists what the code understands."""
    if not DOC.exists():
        return  # tests of the installed wheel have no docs
    text = DOC.read_text(encoding="utf-8")
    known = names.TOKEN_HEADERS | names.PROOF_HEADERS | names.TOKEN_CLAIMS | names.PROOF_CLAIMS | names.TCTX_MEMBERS
    known |= names.PERMISSION_REQUIRED | names.PERMISSION_OPTIONAL | names.USE_OPTIONAL | names.ALGORITHMS
    known |= {names.TOKEN_TYP, names.PROOF_TYP, names.PERMISSION_TYPE, names.USE_TYPE}
    assert sorted(name for name in known if f"`{name}`" not in text) == []
