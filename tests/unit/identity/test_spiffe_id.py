# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs and trust domains against the grammar, clause by clause (bar 15)."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.errors import InvalidSpiffeIdError
from jitwi.spiffe_id import SpiffeId, TrustDomain

ALLOWED_DOMAIN = set(string.ascii_lowercase + string.digits + ".-_")
ALLOWED_PATH = set(string.ascii_letters + string.digits + ".-_")
PRINTABLE = [chr(number) for number in range(0x20, 0x7F)]

GOOD = [
    ("ID-1", "spiffe://example.org/a"),
    ("ID-1", "spiffe://example.org"),
    ("ID-2", "spiffe://1.2.3.4/a"),
    ("ID-2", "spiffe://a_b-c.d/a"),
    ("ID-2", "spiffe://-._/a"),
    ("ID-3", "spiffe://td/A/b.c/d_e/f-g/..."),
    ("ID-3", "spiffe://td/.a"),
    ("ID-3", "spiffe://td/a..b"),
    ("ID-4", "spiffe://td/" + "a" * (2048 - len("spiffe://td/"))),
    ("ID-4", "spiffe://" + "a" * 255 + "/a"),
]
BAD = [
    ("ID-1", ""),
    ("ID-1", "spiffe"),
    ("ID-1", "spiffe:"),
    ("ID-1", "spiffe:/td/a"),
    ("ID-1", "spiffe://"),
    ("ID-1", "spiffe:///a"),
    ("ID-1", "http://td/a"),
    ("ID-1", "/td/a"),
    ("ID-1", "td/a"),
    ("ID-1", "xspiffe://td/a"),
    ("ID-1", "spiffe://td/a?q"),
    ("ID-1", "spiffe://td/a?"),
    ("ID-1", "spiffe://td/a#f"),
    ("ID-1", "spiffe://td?q"),
    ("ID-1", "spiffe://td#f"),
    ("ID-2", "spiffe://user@td/a"),
    ("ID-2", "spiffe://user:pw@td/a"),
    ("ID-2", "spiffe://td:80/a"),
    ("ID-2", "spiffe://[::1]/a"),
    ("ID-2", "spiffe://t%64/a"),
    ("ID-2", "spiffe://b\u00fccher/a"),
    ("ID-2", "spiffe://\u212aelvin/a"),
    ("ID-3", "spiffe://td/"),
    ("ID-3", "spiffe://td//"),
    ("ID-3", "spiffe://td/a/"),
    ("ID-3", "spiffe://td//a"),
    ("ID-3", "spiffe://td/a//b"),
    ("ID-3", "spiffe://td/."),
    ("ID-3", "spiffe://td/.."),
    ("ID-3", "spiffe://td/a/./b"),
    ("ID-3", "spiffe://td/a/../b"),
    ("ID-3", "spiffe://td/%61"),
    ("ID-3", "spiffe://td/a\u00e4"),
    ("ID-3", "spiffe://td/\u0661"),
    ("ID-4", "spiffe://td/" + "a" * (2049 - len("spiffe://td/"))),
    ("ID-4", "spiffe://" + "a" * 256 + "/a"),
    ("ID-5", "SPIFFE://td/a"),
    ("ID-5", "Spiffe://td/a"),
    ("ID-5", "spiffe://TD/a"),
    ("ID-5", "spiffe://tD/a"),
]
BAD += [("line ends", f"spiffe://td/a{end}") for end in ("\n", "\r", "\r\n", "\x00", "\t", " ", "\u2028", "\x85")]
BAD += [("line ends", f"{end}spiffe://td/a") for end in ("\n", " ", "\ufeff", "\x00")]
BAD += [("line ends", f"spiffe://td{end}/a") for end in ("\n", " ", "\x00", "\t")]
DOMAIN_CHARACTERS = [(char, char in ALLOWED_DOMAIN) for char in PRINTABLE if char != "/"]
PATH_CHARACTERS = [(char, char in ALLOWED_PATH) for char in PRINTABLE if char != "/"]


@pytest.mark.parametrize(("clause", "text"), GOOD)
def test_good_id(clause: str, text: str) -> None:
    """What the grammar allows is parsed and comes out as it went in."""
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(("clause", "text"), BAD, ids=[f"{clause}-{n}" for n, (clause, _) in enumerate(BAD)])
def test_bad_id(clause: str, text: str) -> None:
    """What the grammar does not allow is refused."""
    with pytest.raises(InvalidSpiffeIdError):
        SpiffeId.parse(text)


@pytest.mark.parametrize(("char", "is_good"), DOMAIN_CHARACTERS)
def test_domain_character(char: str, is_good: bool) -> None:
    """ID-2: exactly lower-case letters, digits, dot, dash and underscore are allowed in a trust domain."""
    text = f"spiffe://a{char}b/c"
    if is_good:
        assert str(SpiffeId.parse(text)) == text
    else:
        with pytest.raises(InvalidSpiffeIdError):
            SpiffeId.parse(text)


@pytest.mark.parametrize(("char", "is_good"), PATH_CHARACTERS)
def test_path_character(char: str, is_good: bool) -> None:
    """ID-3: exactly letters, digits, dot, dash and underscore are allowed in a path segment."""
    text = f"spiffe://td/a{char}b"
    if is_good:
        assert str(SpiffeId.parse(text)) == text
    else:
        with pytest.raises(InvalidSpiffeIdError):
            SpiffeId.parse(text)


@pytest.mark.parametrize("value", [None, 1, b"spiffe://td/a", ["spiffe://td/a"], object()])
def test_not_text(value: object) -> None:
    """Only text is an ID."""
    with pytest.raises(InvalidSpiffeIdError):
        SpiffeId.parse(value)
    with pytest.raises(InvalidSpiffeIdError):
        TrustDomain.parse(value)


def test_table_is_large_enough() -> None:
    """Bar 15: at least 200 cases."""
    assert len(GOOD) + len(BAD) + len(DOMAIN_CHARACTERS) + len(PATH_CHARACTERS) >= 200


def is_by_the_grammar(text: str) -> bool:
    """Decide by loops over characters, written apart from the parser."""
    if len(text.encode("utf-8", "surrogatepass")) > 2048 or text[:9] != "spiffe://":
        return False
    parts = text[9:].split("/")
    domain = parts[0]
    if not 1 <= len(domain) <= 255 or any(char not in ALLOWED_DOMAIN for char in domain):
        return False
    return all(
        segment not in ("", ".", "..") and all(char in ALLOWED_PATH for char in segment) for segment in parts[1:]
    )


PIECES = st.sampled_from(
    [
        "spiffe://",
        "SPIFFE://",
        "td",
        "example.org",
        "/",
        "//",
        ".",
        "..",
        "a",
        "Z9",
        "%41",
        "?",
        "#",
        "@",
        ":",
        "\n",
        " ",
        "\u212a",
        "\u0661",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=40).map("spiffe://td/".__add__)))
def test_differential(text: str) -> None:
    """Parser and a plain reading of the grammar agree, and `str(parse(x)) == x`."""
    try:
        parsed = SpiffeId.parse(text)
    except InvalidSpiffeIdError:
        assert not is_by_the_grammar(text)
    else:
        assert is_by_the_grammar(text)
        assert str(parsed) == text
