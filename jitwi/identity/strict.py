# SPDX-License-Identifier: Apache-2.0
"""Reading bytes of strangers: JSON, base64url and DER lengths, strictly.

Holds decoders that accept one spelling per value and raise one error type. Does not know what the values mean.
Whoever calls has bounded the size before.

Example:
    >>> from jitwi.identity.strict import decode_base64url, load_object
    >>> decode_base64url("eyJhIjoxfQ")
    b'{"a":1}'
    >>> load_object('{"a": 1}')
    {'a': 1}
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from typing import Any, NoReturn

from jitwi.errors import InvalidSvidError

__all__ = ["decode_base64", "decode_base64url", "is_deep", "load_object", "refusal", "split_der"]

MAX_NUMBER_CHARACTERS = 32
"""Longer numbers are nobody's instant or key size; Python's own limit would raise a bare ValueError."""
MAX_NESTING = 64
"""Lists and objects inside each other; Python's own limit differs by version and by how deep the caller is."""

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
_DER_SEQUENCE = 0x30
_DER_LONG_FORM = 0x80
_DER_MAX_LENGTH_BYTES = 4


def refusal(message: str, *reasons: str, remedy: str = "") -> InvalidSvidError:
    """Build the one error of this room for a document that does not hold."""
    return InvalidSvidError(message, reasons=reasons, remedy=remedy)


def _reject_constant(name: str) -> NoReturn:
    raise refusal(f"JSON has the constant `{name[:16]}`", "json")


def _integer(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARACTERS:
        raise refusal(f"JSON has a number of {len(text)} characters", "json")
    return int(text)


def _real(text: str) -> float:
    if len(text) > MAX_NUMBER_CHARACTERS or not math.isfinite(value := float(text)):
        raise refusal("JSON has a number out of range", "json")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise refusal("JSON has two members with one name", "json", "duplicate-member")
    return found


def is_deep(value: Any, text: str) -> bool:
    """Whether lists and objects are nested deeper than `MAX_NESTING`.

    Args:
        value: What was parsed.
        text: What it was parsed from: with few brackets there is nothing to look for.
    """
    if text.count("[") + text.count("{") <= MAX_NESTING:
        return False
    level = [value]
    for _ in range(MAX_NESTING + 1):
        nested = [item for item in level if isinstance(item, dict | list)]
        if not nested:
            return False
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def load_object(text: str | bytes) -> dict[str, Any]:
    """Parse one JSON object; UTF-8 only, no duplicate names, no NaN, bounded numbers, bounded nesting.

    Raises:
        InvalidSvidError: It is anything else. Source: RFC 8259; TDB §5.1.1 for duplicate names.
    """
    try:
        # From text, never from bytes: `json.loads(bytes)` would guess among UTF-8, UTF-16 and UTF-32.
        text = text if isinstance(text, str) else text.decode("utf-8")
        found = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_reject_constant,
            parse_float=_real,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as exc:
        raise refusal("text is not JSON", "json") from exc
    if not isinstance(found, dict):
        raise refusal("JSON is not an object", "json")
    if is_deep(found, text):
        raise refusal(f"JSON is nested deeper than {MAX_NESTING}", "json")
    return found


def decode_base64url(text: str) -> bytes:
    """Decode base64url without padding; exactly one spelling per value.

    Raises:
        InvalidSvidError: Padding, other characters, or bits left over. Source: RFC 7515 §2.
    """
    if _BASE64URL.fullmatch(text) is None or len(text) % 4 == 1:
        raise refusal("text is not base64url", "base64url")
    decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != text:
        raise refusal("base64url has bits left over", "base64url")
    return decoded


def decode_base64(text: str) -> bytes:
    """Decode standard base64 with padding, as `x5c` has it.

    Raises:
        InvalidSvidError: It is not. Source: RFC 7517 §4.7.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise refusal("text is not base64", "base64") from exc


def split_der(data: bytes, *, limit: int) -> tuple[bytes, ...]:
    """Cut concatenated DER sequences into one `bytes` each.

    Args:
        data: What the Workload API sends for a chain or a bundle.
        limit: How many are allowed.

    Raises:
        InvalidSvidError: Lengths do not add up, it is empty, or there are too many.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data):
        end = _sequence_end(data, at)
        found.append(data[at:end])
        at = end
        if len(found) > limit:
            raise refusal(f"there are more than {limit} certificates", "too-many-certificates")
    if not found:
        raise refusal("there is no certificate", "no-certificate")
    return tuple(found)


def _sequence_end(data: bytes, at: int) -> int:
    if data[at] != _DER_SEQUENCE or at + 2 > len(data):
        raise refusal("bytes are not a certificate", "der")
    length, start = data[at + 1], at + 2
    if length >= _DER_LONG_FORM:
        count = length - _DER_LONG_FORM
        if not 1 <= count <= _DER_MAX_LENGTH_BYTES or start + count > len(data):
            raise refusal("bytes are not a certificate", "der")
        length, start = int.from_bytes(data[start : start + count]), start + count
    if start + length > len(data):
        raise refusal("a certificate is cut off", "der")
    return start + length
