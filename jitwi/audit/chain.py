# SPDX-License-Identifier: Apache-2.0
"""The chain: how a record is linked to the one before it, and what a line must look like.

Holds pure functions: values in, bytes or a typed error out. Does not hold files.

A line is `{"seq":N,"prev":"<hash of the line before>","at":"<UTC>",<event>,"hash":"<own hash>"}` and a line feed, ASCII
only. The hash is SHA-256 over everything before `,"hash":"`, so it covers `prev`. An unkeyed chain shows what was
changed *before* the last anchor (an entry of the index, or one kept elsewhere); who can write every file and every
anchor can make a new chain.

Example:
    >>> from jitwi.audit.chain import GENESIS, link, parse_line
    >>> line, digest = link(0, GENESIS, b"2026-01-01T00:00:00.000000Z", b'"kind":"x"')
    >>> parse_line(line).digest == digest.decode()
    True
"""

from __future__ import annotations

import json
import re
from binascii import hexlify
from hashlib import sha256
from typing import Any, Final, NamedTuple, NoReturn

import orjson

from jitwi.clock import as_datetime
from jitwi.errors import AuditError

__all__ = [
    "CHAIN_NAME",
    "FORMAT",
    "GENESIS",
    "INDEX_NAME",
    "MAX_LINE",
    "Line",
    "Stamp",
    "link",
    "parse_line",
]

FORMAT: Final = 1
"""Version of the line format, in the first record of each chain."""
GENESIS: Final = b"0" * 64
"""`prev` of the first record."""
MAX_LINE: Final = 256 * 1024
"""Bytes of a line, line feed included: twice `MAX_BODY`, so that no legal record is refused."""
INDEX_NAME: Final = "index.jsonl"
CHAIN_NAME: Final = re.compile(r"chain-[A-Za-z0-9._-]{1,200}\.jsonl")

_TAIL: Final = re.compile(rb',"hash":"([0-9a-f]{64})"\}\n')
_TAIL_SIZE: Final = len(b',"hash":""}\n') + 64
_HEAD: Final = re.compile(rb'\{"seq":(0|[1-9][0-9]{0,17}),"prev":"([0-9a-f]{64})","at":"[0-9TZ:.+-]{1,40}","kind":"')
_MAX_NESTING: Final = 254
_NO_TIME: Final = "0001-01-01T00:00:00"


def link(seq: int, prev: bytes, at: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return one line and its hash.

    Args:
        seq: Number in the chain, from 0.
        prev: Hash of the record before, 64 hex digits; `GENESIS` for the first.
        at: The instant as text.
        body: The event, from the encoder.
    """
    head = b'{"seq":%d,"prev":"%b","at":"%b",%b' % (seq, prev, at, body)
    digest = hexlify(sha256(head).digest())
    return head + b',"hash":"' + digest + b'"}\n', digest


class Stamp:
    """Writes instants as RFC 3339 text; remembers the last second, as most records share it."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[int, bytes] = (-1, b"")

    def __call__(self, wall: float) -> bytes:
        """Return `wall` (seconds since the epoch) in UTC with microseconds; the year 1 if it is no time at all."""
        try:
            second, micros = divmod(int(wall * 1_000_000), 1_000_000)
        except (ValueError, OverflowError):
            return _NO_TIME.encode() + b".000000Z"
        known, text = self._last
        if second != known:
            try:
                text = as_datetime(second).strftime("%Y-%m-%dT%H:%M:%S").encode()
            except (ValueError, OverflowError, OSError):
                text = _NO_TIME.encode()
            self._last = (second, text)
        return b"%b.%06dZ" % (text, micros)


class Line(NamedTuple):
    """One well-formed record.

    Args:
        seq: Its number.
        prev: The hash that it says the record before it has.
        digest: Its own hash, recomputed.
        record: All members.
    """

    seq: int
    prev: str
    digest: str
    record: dict[str, Any]


def _refuse(what: str, reason: str) -> NoReturn:
    raise AuditError(what, reasons=(reason,))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        _refuse("a member is there twice", "not-a-record")
    return record


def _no_constant(name: str) -> NoReturn:
    _refuse(f"`{name}` is not JSON", "not-a-record")


def _load(raw: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(raw)
        if orjson.dumps(record) == raw and type(record) is dict:  # nothing twice, nothing rounded
            return record
    except ValueError:
        pass
    except TypeError as exc:  # deeper than `_MAX_NESTING`: orjson reads deeper than it writes
        raise AuditError("nested deeper than a record can be", reasons=("not-a-record",)) from exc
    try:
        record = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise AuditError("not JSON", reasons=("not-a-record",)) from exc
    if type(record) is not dict or _is_deep(record, raw):
        _refuse("not a JSON object of bounded depth", "not-a-record")
    return record


def _is_deep(record: dict[str, Any], raw: bytes) -> bool:
    if raw.count(b"[") + raw.count(b"{") <= _MAX_NESTING:
        return False
    level: list[Any] = [record]
    for _ in range(_MAX_NESTING):
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return bool(level)


def parse_line(raw: bytes) -> Line:
    """Check one line by itself: form, strict JSON, own hash.

    Args:
        raw: The line with its line feed.

    Raises:
        AuditError: Too long, not ASCII JSON, a member twice, or not the hash that it carries. The reason code is
            `not-a-record` or `hash-mismatch`.
    """
    if len(raw) > MAX_LINE:
        _refuse("longer than a record can be", "not-a-record")
    head = _HEAD.match(raw)
    tail = _TAIL.fullmatch(raw, max(0, len(raw) - _TAIL_SIZE))
    if head is None or tail is None or not raw.isascii():
        _refuse("not a record of this format", "not-a-record")
    digest = sha256(raw[: tail.start()]).hexdigest()
    if digest != tail[1].decode():
        _refuse("its content does not match its hash", "hash-mismatch")
    record = _load(raw[:-1])
    return Line(int(head[1]), head[2].decode(), digest, record)
