# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs as values; the table of the grammar is with the identity tests."""

from __future__ import annotations

import copy
import pickle

import attrs
import pytest

from jitwi.errors import InvalidSpiffeIdError
from jitwi.spiffe_id import MAX_SPIFFE_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId, TrustDomain

TEXT = "spiffe://example.org/ns/prod/refunds"


def test_parts():
    """An ID is a trust domain and a path."""
    parsed = SpiffeId.parse(TEXT)
    assert (parsed.trust_domain, parsed.path, str(parsed)) == (TrustDomain("example.org"), "/ns/prod/refunds", TEXT)


def test_equal_by_value_and_never_to_text():
    """Two parses are equal and hash alike; an ID is not equal to its text, nor a trust domain to its name."""
    assert SpiffeId.parse(TEXT) == SpiffeId(TrustDomain("example.org"), "/ns/prod/refunds")
    assert len({SpiffeId.parse(TEXT), SpiffeId.parse(TEXT)}) == 1
    assert SpiffeId.parse(TEXT) != TEXT
    assert TrustDomain("example.org") != "example.org"


def test_ordered_by_value():
    """IDs sort by trust domain, then path."""
    texts = ["spiffe://a.org", "spiffe://a.org/b", "spiffe://b.org/a"]
    assert [str(i) for i in sorted(map(SpiffeId.parse, reversed(texts)))] == texts


def test_frozen():
    """Nothing can be set on an ID."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        SpiffeId.parse(TEXT).path = "/other"


def _pickled(value):
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - ours


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, _pickled])
def test_copies_are_equal(again):
    """An ID is a plain value: it may be copied and pickled, its text form included."""
    value = SpiffeId.parse(TEXT)
    assert (again(value), str(again(value))) == (value, TEXT)


@pytest.mark.parametrize(
    "value", [None, 5, b"spiffe://example.org/a", ["spiffe://example.org/a"], 10**5000], ids=lambda v: type(v).__name__
)
def test_only_text_is_parsed(value):
    """Another type is a typed refusal, whatever its size."""
    for parse in (SpiffeId.parse, TrustDomain.parse, TrustDomain):
        with pytest.raises(InvalidSpiffeIdError):
            parse(value)
    with pytest.raises(InvalidSpiffeIdError):
        SpiffeId(TrustDomain("example.org"), value)


@pytest.mark.parametrize("value", ["example.org", None, SpiffeId.parse(TEXT)])
def test_a_trust_domain_is_one(value):
    """Text is not taken for a trust domain that was checked."""
    with pytest.raises(InvalidSpiffeIdError):
        SpiffeId(value, "/a")


def test_trust_domain_bounds():
    """255 bytes are a trust domain, 256 are not. Source: SPIFFE-ID §2.3."""
    assert len(TrustDomain("a" * MAX_TRUST_DOMAIN_BYTES).name) == 255
    with pytest.raises(InvalidSpiffeIdError):
        TrustDomain("a" * (MAX_TRUST_DOMAIN_BYTES + 1))


def test_id_bounds():
    """2048 bytes are an ID, 2049 are not, parsed or built. Source: SPIFFE-ID §2.3."""
    text = "spiffe://example.org/" + "a" * (MAX_SPIFFE_ID_BYTES - len("spiffe://example.org/"))
    assert str(SpiffeId.parse(text)) == text
    with pytest.raises(InvalidSpiffeIdError):
        SpiffeId.parse(text + "a")
    with pytest.raises(InvalidSpiffeIdError):
        SpiffeId(TrustDomain("example.org"), SpiffeId.parse(text).path + "a")


def test_trust_domain_forms():
    """A trust domain is written bare or as its own ID; anything with a path is neither."""
    assert TrustDomain.parse("spiffe://example.org") == TrustDomain.parse("example.org") == TrustDomain("example.org")
    for text in ("spiffe://", "spiffe://example.org/", "spiffe://example.org/a", "https://example.org", ""):
        with pytest.raises(InvalidSpiffeIdError):
            TrustDomain.parse(text)


def test_workload_has_a_path():
    """The ID of a trust domain is an ID, but no workload's. Source: X509-SVID §3.1."""
    assert SpiffeId.parse(TEXT).require_workload() == SpiffeId.parse(TEXT)
    domain = SpiffeId.parse("spiffe://example.org")
    assert domain.path == ""
    with pytest.raises(InvalidSpiffeIdError):
        domain.require_workload()


def test_a_refusal_is_short_and_on_one_line():
    """A megabyte of control characters makes an error of one short ASCII line."""
    with pytest.raises(InvalidSpiffeIdError) as caught:
        SpiffeId.parse("\x1b[2J\n\u2028" * 200_000)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
