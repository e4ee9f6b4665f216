# SPDX-License-Identifier: Apache-2.0
r"""An event as bytes: one ASCII JSON fragment that no value can break out of.

Holds the encoder and the bounds of a record. Does not hold the chain (`chain.py`) or files. Everything that is not
printable ASCII is written as `\uXXXX`, so that a record is one line on every console and in every tool. A value of an
unknown type is recorded by the name of its type, never by its `repr`, which might show a secret.

Example:
    >>> from jitwi.audit.encode import Encoder
    >>> from jitwi.audit.events import PolicyLoaded
    >>> Encoder().encode(PolicyLoaded(subject=None, policy_digest="x\u2028y", policies=3))
    b'"kind":"policy.loaded","subject":null,"policy_digest":"x\\u2028y","policies":3'
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import attrs
import orjson

from jitwi.audit.events import DecisionRecord, Event, Subject
from jitwi.errors import ConfigurationError
from jitwi.secret import Secret
from jitwi.task import Entity, Permission, Under

if TYPE_CHECKING:
    from typing import Literal

__all__ = ["MAX_BODY", "MAX_INPUT", "MIN_DIGEST_KEY", "Encoder", "encode_fields", "input_digest"]

MAX_BODY: Final = 128 * 1024
"""Bytes of one encoded event; a larger one is cut to what identifies it."""
MAX_INPUT: Final = 64 * 1024
"""Bytes of an `input` that is recorded in full; a larger one is recorded as its size and SHA-256."""
MIN_DIGEST_KEY: Final = 16
"""Bytes of the key of an input digest; without a good key a small input can be guessed from its digest."""

_MAX_DEPTH: Final = 32
_MAX_CUT: Final = 512
_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def _plain(value: Any, depth: int = 0) -> Any:  # noqa: PLR0911 - one line per type
    """Return `value` as a tree of what JSON knows, without losing or doubling a member."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Enum):
        return _plain(value.value, depth + 1)
    if isinstance(value, int):
        return int.__int__(value) if -(1 << 1024) < value < 1 << 1024 else f"<int of {value.bit_length()} bits>"
    if isinstance(value, float):
        return float.__float__(value) if math.isfinite(value) else str(float.__float__(value))
    if isinstance(value, Entity | Under | Permission):
        return str(value)
    if depth > _MAX_DEPTH:
        return "<too deep>"
    if isinstance(value, DecisionRecord):
        return {name: _plain(item, depth + 1) for name, item in _fields_of(value).items()}
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value):
            return {key: _plain(item, depth + 1) for key, item in value.items()}
        return [[_plain(key, depth + 1), _plain(item, depth + 1)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, depth + 1) for item in value), key=str)
    return f"<{type(value).__name__}>"


def _cut(value: Any) -> Any:
    """Return a tree of JSON values with long text and long collections cut."""
    if isinstance(value, str) and len(value) > _MAX_CUT:
        return f"{value[:_MAX_CUT]}... {len(value) - _MAX_CUT} more"
    if isinstance(value, dict):
        return {_cut(key): _cut(item) for key, item in list(value.items())[:16]}
    if isinstance(value, list):
        return [_cut(item) for item in value[:16]]
    return value


def _dump_carefully(tree: Any, *, sort_keys: bool = False) -> bytes:
    return json.dumps(tree, separators=(",", ":"), sort_keys=sort_keys).encode().replace(b"\x7f", b"\\u007f")


def _dump(value: Any, default: Callable[[Any], Any]) -> bytes:
    try:
        raw = orjson.dumps(value, default, _OPTIONS)
    except TypeError:  # lone surrogates, integers over 64 bits, keys that are not text, too deep
        return _dump_carefully(_plain(value))
    if raw.isascii() and b"\x7f" not in raw:
        return raw
    return _dump_carefully(json.loads(raw))


def encode_fields(fields: Mapping[str, Any]) -> bytes:
    """Return the members of a small record as ASCII JSON without the outer braces."""
    return _dump(dict(fields), _plain)[1:-1]


def input_digest(key: bytes, value: Any) -> str:
    """Return the keyed digest under which an `input` is recorded with `input="digest"`.

    Args:
        key: The log's key, at least 16 bytes.
        value: The input.

    Returns:
        HMAC-SHA-256 in hex over the input as JSON with sorted keys, compact and ASCII.
    """
    return hmac.new(key, _dump_carefully(_plain(value), sort_keys=True), hashlib.sha256).hexdigest()


_SUBJECT: Final = tuple(field.name for field in attrs.fields(Subject) if field.init)


def _fields_of(record: DecisionRecord) -> dict[str, Any]:
    """Return the fields of a decision by name; spelt out, as this is the hot path (a test compares the names)."""
    return {
        "question": record.question,
        "action": record.action,
        "resource": record.resource,
        "permission": record.permission,
        "is_allowed": record.is_allowed,
        "reason": record.reason,
        "policy_ids": record.policy_ids,
        "errors": record.errors,
        "policy_digest": record.policy_digest,
        "entities_digest": record.entities_digest,
        "context": record.context,
        "input": record.input,
        "scope": record.scope,
    }


class _Plan:
    """How one class of event is taken apart."""

    __slots__ = ("get", "head", "names")

    def __init__(self, kind: type[Event]) -> None:
        self.names = tuple(field.name for field in attrs.fields(kind) if field.name != "subject")
        self.head = b'"kind":' + _dump(kind.kind, _plain) + b","
        getter: Callable[[Any], Any] = attrgetter(*self.names) if self.names else lambda _: ()
        self.get: Callable[[Any], tuple[Any, ...]] = getter if len(self.names) != 1 else lambda event: (getter(event),)


class Encoder:
    """Turns events into bytes, with the log's choice of how `input` is recorded.

    Args:
        mode: `full`, or `digest` for a keyed digest only.
        digest_key: Key of the digests, at least 16 bytes; needed with `digest`.

    Raises:
        ConfigurationError: Unknown mode; `digest` without a key, or with a short one.
    """

    __slots__ = ("_key", "_plans")

    def __init__(self, mode: Literal["full", "digest"] = "full", digest_key: bytes | Secret | None = None) -> None:
        if mode not in {"full", "digest"}:
            raise ConfigurationError(f"input=`{mode!r}` is unknown", remedy='use "full" or "digest"')
        key: Secret | None = None
        if mode == "digest":
            key = digest_key if isinstance(digest_key, Secret) else Secret(digest_key or b"", kind="digest key")
            if len(key.reveal_bytes()) < MIN_DIGEST_KEY:
                raise ConfigurationError(
                    f'input="digest" needs a digest_key of at least {MIN_DIGEST_KEY} bytes',
                    remedy="give one key to all logs whose digests are to be compared",
                )
        self._key = key
        self._plans: dict[type[Event], _Plan] = {}

    def encode(self, event: Event) -> bytes:
        """Return the event's members, ASCII JSON without the outer braces. Never fails for any value."""
        kind = type(event)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = _Plan(kind)
        subject = event.subject
        head = plan.head + (b'"subject":null' if subject is None else subject.encoded or self._subject(subject))
        if not plan.names:
            return head
        values = dict(zip(plan.names, plan.get(event)))  # noqa: B905 - one getter per name; the hot path
        body = head + b"," + _dump(values, self._default)[1:-1]
        return body if len(body) <= MAX_BODY else self._cut_down(event, plan, body)

    def _default(self, value: Any) -> Any:
        if type(value) is DecisionRecord:
            fields = _fields_of(value)
            if value.input is not None:
                fields["input"] = self._input(value.input)
            return fields
        return _plain(value)

    def _input(self, value: Any) -> Any:
        if self._key is not None:
            return {"hmac-sha256": input_digest(self._key.reveal_bytes(), value)}
        raw = _dump(value, _plain)
        if b"null" in raw:  # orjson writes NaN as null: look again
            raw = _dump_carefully(_plain(value))
        if len(raw) > MAX_INPUT:
            return {"omitted": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        return orjson.Fragment(raw)

    def _subject(self, subject: Subject) -> bytes:
        raw = _dump({name: getattr(subject, name) for name in _SUBJECT}, _plain)
        if len(raw) > MAX_BODY // 4:
            raw = _dump_carefully(_cut(json.loads(raw)))
        # A concatenation, so that the buffer of the JSON library, of a whole page, is not kept for every live grant.
        subject.encoded = encoded = b'"subject":' + raw
        return encoded

    def _cut_down(self, event: Event, plan: _Plan, body: bytes) -> bytes:
        size = {"oversize": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        members = json.loads(b"{" + body + b"}")
        head = plan.head + b'"subject":' + _dump_carefully(members.pop("subject")) + b","
        cut = {**_cut({name: members[name] for name in plan.names}), **size}
        raw = head + _dump_carefully(cut)[1:-1]
        return raw if len(raw) <= MAX_BODY else head + _dump_carefully(size)[1:-1]
