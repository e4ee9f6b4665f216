# SPDX-License-Identifier: Apache-2.0
"""The context of a request: exactly the keys that the action declares, field by field.

Holds the builder of one action's context and the bounds on what a caller may put in. Does not hold the schema: a
builder is made from it once, at load.

Example:
    >>> from jitwi.policy.context import bounded_json
    >>> bounded_json({"amount": 30})
    '{"amount":30}'
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jitwi.errors import PolicyEvaluationError
from jitwi.policy.decision import Evidence, Facts
from jitwi.policy.schema import EntityRef, Primitive, RecordOf, SetOf, Type

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_KEYS", "NO_TASK", "ContextBuilder", "bounded_json", "mismatch", "task_json"]

MAX_DEPTH = 16
"""Containers within each other, the outermost counted."""
MAX_BYTES = 64 * 1024
"""Bytes of JSON."""
MAX_KEYS = 1_000
"""Members of all records together."""
RESERVED = frozenset({"__entity", "__extn", "__expr"})
"""Keys with which the engine reads an entity or an extension value where a record was meant."""

_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1
_EVIDENCE = {evidence: f'"evidence":"{evidence.value}"' for evidence in Evidence}
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False, check_circular=False).encode


class ContextError(PolicyEvaluationError):
    """A context cannot be built; `reasons` says which deny it becomes."""


class _Budget:
    __slots__ = ("characters", "keys")

    def __init__(self) -> None:
        self.characters = 0
        self.keys = 0


def bounded_json(value: Mapping[str, Any], *, what: str = "input") -> str:
    """Return a caller's record as JSON text, or refuse it before any engine sees it.

    Args:
        value: Text, whole numbers of 64 bits, booleans, lists and records of these.
        what: Its name, for the error.

    Raises:
        ContextError: Another kind of value, a reserved key, a surrogate, or more than the bounds allow.
    """
    if not isinstance(value, Mapping):
        raise _bad(what, "is not a record")
    text = _encode(_plain(value, what, 1, _Budget()))
    if len(text) > MAX_BYTES:
        raise _bad(what, f"is over {MAX_BYTES} bytes of JSON")
    return text


def _bad(what: str, why: str) -> ContextError:
    return ContextError(f"`{what}` {why}", reasons=(f"bad-{what}",))


def _text(value: str, what: str, budget: _Budget) -> str:
    budget.characters += len(value)
    if budget.characters > MAX_BYTES:
        raise _bad(what, f"is over {MAX_BYTES} bytes of JSON")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _bad(what, "has a surrogate in it") from None
    return str(value)


def _plain(value: Any, what: str, depth: int, budget: _Budget) -> Any:
    """Copy while checking, so that what was checked is what is sent."""
    if isinstance(value, str):
        return _text(value, what, budget)
    if value is True or value is False:
        return value
    if type(value) is int:
        if not _LONG_MIN <= value <= _LONG_MAX:
            raise _bad(what, "has a number beyond 64 bits")
        return value
    is_record = isinstance(value, Mapping)
    if not is_record and not isinstance(value, list | tuple):
        raise _bad(what, f"has a `{type(value).__name__}` in it; only text, whole numbers, booleans, lists and records")
    if depth > MAX_DEPTH:
        raise _bad(what, f"is nested deeper than {MAX_DEPTH}")
    if not is_record:
        copied = []
        for item in value:
            budget.characters += 2
            if budget.characters > MAX_BYTES:
                raise _bad(what, f"is over {MAX_BYTES} bytes of JSON")
            copied.append(_plain(item, what, depth + 1, budget))
        return copied
    record: dict[str, Any] = {}
    for key, item in value.items():
        budget.keys += 1
        if budget.keys > MAX_KEYS:
            raise _bad(what, f"has more than {MAX_KEYS} keys")
        if not isinstance(key, str):
            raise _bad(what, "has a key that is not text")
        if key in RESERVED:
            raise _bad(what, f"has the reserved key `{key}`")
        record[_text(key, what, budget)] = _plain(item, what, depth + 1, budget)
    return record


def task_json(facts: Mapping[str, str | int]) -> str:
    """Return a task's facts as JSON text for `Facts.task_json`; made once per task.

    Args:
        facts: `Task.facts()`, or the same facts from verified evidence.

    Raises:
        ContextError: A value that is neither text nor a whole number.
    """
    return bounded_json(facts, what="task")


def _now(wall: float) -> str:
    try:
        instant = datetime.fromtimestamp(wall, UTC)
    except (ValueError, OverflowError, OSError, TypeError) as exc:
        raise ContextError("`now` is not an instant", reasons=("bad-context",)) from exc
    return f'"now":"{instant:%Y-%m-%dT%H:%M:%S}.{instant.microsecond // 1000:03d}Z"'


def _long(key: str, value: int) -> str:
    if type(value) is not int or not _LONG_MIN <= value <= _LONG_MAX:
        raise ContextError(f"`{key}` is not a whole number", reasons=("bad-context",))
    return f'"{key}":{value}'


class ContextBuilder:
    """Builds the contexts of one action.

    Args:
        context: The action's declared context.
    """

    __slots__ = ("_declares_evidence", "_input", "_parts")

    def __init__(self, context: RecordOf) -> None:
        self._parts: list[Callable[[Facts], str | None]] = []
        self._input: tuple[Type, bool] | None = context.field("input")
        self._declares_evidence = context.field("evidence") is not None
        for key, _, is_required in context.fields:
            part = _PARTS.get(key)
            if part is not None:
                self._parts.append(_required(key, part) if is_required and key not in _ALWAYS else part)

    def build(self, facts: Facts) -> tuple[str, str]:
        """Return the context as JSON text, and the same without `input` for the record.

        Args:
            facts: Everything there is; what the action does not declare is not sent.

        Raises:
            ContextError: A required fact is missing, or a fact is out of its bounds.
        """
        if facts.evidence in _TASKLESS and not self._declares_evidence and not _has_task(facts):
            raise ContextError(
                "evidence without a task decides only actions that declare `evidence`", reasons=("evidence",)
            )
        built = [text for part in self._parts if (text := part(facts)) is not None]
        recorded = "{" + ",".join(built) + "}"
        given = None if facts.input is None else bounded_json(facts.input)
        if self._input is None:
            return recorded, recorded
        if given is None:
            if self._input[1]:
                raise ContextError(
                    "this action needs `input`", reasons=("missing-input",), remedy="give `input={...}` at the use"
                )
            return recorded, recorded
        return f'{recorded[:-1]},"input":{given}}}', recorded

    def explain(self, facts: Facts) -> str:
        """Return where `input` differs from its declared type, or an empty text."""
        if self._input is None or facts.input is None:
            return ""
        return next(mismatch(facts.input, self._input[0], "input"), "")


def _has_task(facts: Facts) -> bool:
    """True if there is a declared task behind the evidence: a declared name is never empty."""
    try:
        return bool(json.loads(facts.task_json)["name"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _required(key: str, part: Callable[[Facts], str | None]) -> Callable[[Facts], str | None]:
    def build(facts: Facts) -> str:
        text = part(facts)
        if text is None:
            raise ContextError(f"nobody supplied `{key}`, which this action requires", reasons=("missing-fact",))
        return text

    return build


def _record(key: str) -> Callable[[Facts], str | None]:
    def build(facts: Facts) -> str | None:
        value = getattr(facts, key)
        return None if value is None else f'"{key}":{bounded_json(value, what=key)}'

    return build


NO_TASK = '{"name":"","ttl":0}'
"""`Facts.task_json` where the evidence comes without a task."""
_TASKLESS = frozenset({Evidence.MTLS, Evidence.JWT_SVID})
_ALWAYS = frozenset({"task", "used", "now", "evidence"})
_PARTS: dict[str, Callable[[Facts], str | None]] = {
    "task": lambda facts: f'"task":{facts.task_json}',
    "used": lambda facts: _long("used", facts.used),
    "now": lambda facts: _now(facts.now),
    "evidence": lambda facts: _EVIDENCE[facts.evidence],
    "risk": lambda facts: None if facts.risk is None else _long("risk", facts.risk),
    "posture": _record("posture"),
    "approval": _record("approval"),
    "delegation": _record("delegation"),
    "credential": _record("credential"),
}


def mismatch(value: Any, kind: Type, where: str) -> Iterator[str]:
    """Yield where a value differs from its declared type, for the reader of a deny.

    Args:
        value: What was given.
        kind: What the schema declares.
        where: Name of the value.
    """
    if isinstance(kind, RecordOf):
        if not isinstance(value, Mapping):
            yield f"`{where}` is not a record"
            return
        for name, inner, is_required in kind.fields:
            if name in value:
                yield from mismatch(value[name], inner, f"{where}.{name}")
            elif is_required:
                yield f"`{where}.{name}` is missing"
        for name in value:
            if kind.field(name) is None:
                yield f"`{where}` has the member {ascii(name)[:80]}, which the schema does not know"
    elif isinstance(kind, SetOf):
        if not isinstance(value, list | tuple):
            yield f"`{where}` is not a list"
            return
        for item in value:
            yield from mismatch(item, kind.element, f"{where}[]")
    elif isinstance(kind, EntityRef):
        yield f"`{where}` refers to an entity"
    elif isinstance(kind, Primitive):
        expected = {"Bool": bool, "Long": int}.get(kind.name, str)
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            yield f"`{where}` is not a `{kind.name}`"
