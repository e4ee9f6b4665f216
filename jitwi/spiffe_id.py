# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs and trust domains, parsed strictly.

Holds two values, valid by construction. Does not hold documents that prove an ID: those are in `jitwi.identity`.
Upper case is refused on input, although SPIFFE-ID §2.4 compares the trust domain case-insensitively: one spelling per
identity, so that `str(SpiffeId.parse(x)) == x` always holds.

Example:
    >>> from jitwi.spiffe_id import SpiffeId
    >>> caller = SpiffeId.parse("spiffe://example.org/ns/prod/refunds")
    >>> caller.trust_domain.name, caller.path
    ('example.org', '/ns/prod/refunds')
"""

from __future__ import annotations

import re

import attrs

from jitwi.errors import InvalidSpiffeIdError

__all__ = ["MAX_SPIFFE_ID_BYTES", "MAX_TRUST_DOMAIN_BYTES", "SpiffeId", "TrustDomain"]

MAX_SPIFFE_ID_BYTES = 2048
"""Source: SPIFFE-ID §2.3."""
MAX_TRUST_DOMAIN_BYTES = 255
"""Source: SPIFFE-ID §2.3."""

_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+", re.ASCII)
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+", re.ASCII)
_SHOWN = 80


def _refusal(what: str, value: object, why: str) -> InvalidSpiffeIdError:
    shown = ascii(value[:_SHOWN]) if isinstance(value, str) else f"`{type(value).__name__}`"
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return InvalidSpiffeIdError(f"{shown} is not a {what}: {why}", reasons=("spiffe-id",))


@attrs.frozen(order=True)
class TrustDomain:
    """The authority part of a SPIFFE ID.

    Args:
        name: Lower-case name without scheme, 1 to 255 bytes of `a-z 0-9 . - _`.

    Raises:
        InvalidSpiffeIdError: Any other name. Source: SPIFFE-ID §2.1.
    """

    name: str = attrs.field()

    @name.validator
    def _check_name(self, _: object, value: object) -> None:
        if not isinstance(value, str):
            raise _refusal("trust domain", value, "it is not text")
        if not value:
            raise _refusal("trust domain", value, "it is empty")
        if len(value) > MAX_TRUST_DOMAIN_BYTES:
            raise _refusal("trust domain", value, f"it is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")
        if _TRUST_DOMAIN.fullmatch(value) is None:
            raise _refusal("trust domain", value, "only lower-case letters, digits, `.`, `-` and `_` are allowed")

    @classmethod
    def parse(cls, value: str) -> TrustDomain:
        """Parse a bare name or the ID of a trust domain, `spiffe://name`.

        Raises:
            InvalidSpiffeIdError: It is neither.
        """
        if isinstance(value, str) and value.startswith(_SCHEME):
            return cls(value[len(_SCHEME) :])
        return cls(value)

    def __str__(self) -> str:
        """The bare name."""
        return self.name


@attrs.frozen(order=True)
class SpiffeId:
    """The ID of a workload.

    Args:
        trust_domain: Its trust domain.
        path: `/segment/segment`, or empty for the ID of the trust domain itself.

    Invariants:
        `str(SpiffeId.parse(x)) == x`; at most 2048 bytes, all ASCII.

    Raises:
        InvalidSpiffeIdError: A path that SPIFFE-ID §2.2 does not allow, an ID that is too long, or a trust domain that
            was not parsed.
    """

    trust_domain: TrustDomain = attrs.field()
    path: str = attrs.field()
    _text: str = attrs.field(init=False, repr=False, eq=False, order=False)

    @trust_domain.validator
    def _check_trust_domain(self, _: object, value: object) -> None:
        if not isinstance(value, TrustDomain):
            raise _refusal("trust domain", value, "it is not a `TrustDomain`")

    @path.validator
    def _check_path(self, _: object, path: object) -> None:
        if not isinstance(path, str):
            raise _refusal("SPIFFE ID path", path, "it is not text")
        if not path:
            return
        if not path.startswith("/"):
            raise _refusal("SPIFFE ID path", path, "it does not start with `/`")
        for segment in path[1:].split("/"):
            if not segment:
                raise _refusal("SPIFFE ID path", path, "it has an empty segment or a trailing `/`")
            if segment in (".", ".."):
                raise _refusal("SPIFFE ID path", path, "`.` and `..` are not allowed as segments")
            if _SEGMENT.fullmatch(segment) is None:
                raise _refusal("SPIFFE ID path", path, "only letters, digits, `.`, `-` and `_` are allowed")

    def __attrs_post_init__(self) -> None:
        """Build the text form once and check its length."""
        text = f"{_SCHEME}{self.trust_domain.name}{self.path}"
        if len(text) > MAX_SPIFFE_ID_BYTES:
            raise _refusal("SPIFFE ID", text, f"it is longer than {MAX_SPIFFE_ID_BYTES} bytes")
        object.__setattr__(self, "_text", text)

    @classmethod
    def parse(cls, value: str) -> SpiffeId:
        """Parse `spiffe://trust-domain/path`.

        Raises:
            InvalidSpiffeIdError: Anything that SPIFFE-ID §2 does not allow, and upper case in scheme or trust domain.
        """
        if not isinstance(value, str):
            raise _refusal("SPIFFE ID", value, "it is not text")
        if len(value) > MAX_SPIFFE_ID_BYTES:
            raise _refusal("SPIFFE ID", value, f"it is longer than {MAX_SPIFFE_ID_BYTES} bytes")
        if not value.startswith(_SCHEME):
            raise _refusal("SPIFFE ID", value, "it does not start with `spiffe://`")
        name, slash, rest = value[len(_SCHEME) :].partition("/")
        return cls(TrustDomain(name), slash + rest)

    def require_workload(self) -> SpiffeId:
        """Return self if it names a workload, that is if it has a path. Source: X509-SVID §3.1.

        Raises:
            InvalidSpiffeIdError: It is the ID of a trust domain.
        """
        if not self.path:
            raise _refusal("workload's SPIFFE ID", self._text, "it has no path")
        return self

    def __str__(self) -> str:
        """The whole ID."""
        return self._text
