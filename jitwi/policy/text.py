# SPDX-License-Identifier: Apache-2.0
"""Policy and schema text before any engine sees it: bounds, tokens, statements.

Holds the guards that keep hostile or broken text away from the parser (size, nesting, hidden characters), and what
the engine does not tell: the line, effect, annotations and entity literals of each policy. Does not decide what a
policy means: the engine is the only reader of that.

Example:
    >>> from jitwi.policy.text import scan_policies
    >>> [(p.line, p.effect, p.annotations) for p in scan_policies('@id("a") permit(principal, action, resource);', "x")]
    [(1, 'permit', {'id': 'a'})]
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

import attrs

from jitwi.errors import InvalidPolicyError
from jitwi.policy.slice import ANY, ANY_SCOPE, Key, Scope, eq_key, in_key, is_in_key, is_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "CLOSING",
    "MAX_NESTING",
    "OPENING",
    "Lines",
    "PolicyText",
    "Token",
    "check_json_text",
    "check_text",
    "line_at",
    "read_scope",
    "refusal",
    "scan_policies",
    "tokens",
    "too_deep",
    "unescape",
]

MAX_NESTING = 64

_TOKEN = re.compile(
    r"""(?P<skip>\s+|//[^\n\r]*)
      | (?P<text>"(?:\\.|[^"\\])*")
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>[0-9]+)
      | (?P<sign>::|==|!=|<=|>=|&&|\|\||[][(){}<>,;:.@?!+*/%=&|-])""",
    re.VERBOSE,
)
_JSON_MARK = re.compile(r'"(?:\\.|[^"\\])*"|[][{}]', re.DOTALL)
_ALLOWED_CONTROLS = frozenset("\t\n\r")
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
OPENING = frozenset("([{")
CLOSING = frozenset(")]}")
_ESCAPE = re.compile(r"\\(?:u\{(?P<unicode>[0-9A-Fa-f]{1,6})\}|x(?P<hex>[0-7][0-9A-Fa-f])|(?P<one>[nrt0'\"\\*]))")
_ONE = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "'": "'", '"': '"', "\\": "\\", "*": "*"}
_SHOWN = 40


class Token(NamedTuple):
    """One token of Cedar text.

    Attributes:
        kind: `text`, `word`, `number` or `sign`.
        value: As written, quotes and escapes included.
        start: Offset of its first character.
    """

    kind: str
    value: str
    start: int

    @property
    def end(self) -> int:
        """Offset behind its last character."""
        return self.start + len(self.value)


@attrs.frozen
class PolicyText:
    """One policy as it stands in its file.

    Args:
        path: The file.
        line: Line of its first token, counted from 1.
        position: Which policy of its file, counted from 1.
        start: Offset of its first token.
        end: Offset behind its semicolon.
        effect: `permit` or `forbid`, or empty where the engine will refuse the text.
        annotations: `@name("value")`, unescaped.
        condition_uids: Entity literals outside of the scope, as (type, id): what evaluation may look at.
        scope_uids: Entity literals in the scope.
        has_slot: True if it holds a template slot.
        scope: What its scope asks for; over-approximated where it is not plain.
        depth: Its deepest nesting, as a recursive parser meets it.
        size: Its tokens.
    """

    path: str
    line: int
    position: int
    start: int
    end: int
    effect: str
    annotations: dict[str, str]
    condition_uids: frozenset[tuple[str, str]]
    scope_uids: frozenset[tuple[str, str]]
    has_slot: bool
    scope: Scope
    depth: int
    size: int


def refusal(message: str, *, path: str, line: int = 0, reason: str, remedy: str = "") -> InvalidPolicyError:
    """Return the error of a refused load, with its place in front of the message."""
    place = f"{path}:{line}: " if line else f"{path}: " if path else ""
    return InvalidPolicyError(place + message, reasons=(reason,), remedy=remedy, path=path, line=line)


class Lines:
    """Offsets to line numbers, for one text."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer(r"\n", text))]

    def at(self, offset: int) -> int:
        """Return the line of `offset`, counted from 1."""
        return bisect_right(self._starts, offset)


def line_at(text: str, offset: int) -> int:
    """Return the line of `offset` in `text`, counted from 1."""
    return text.count("\n", 0, offset) + 1


def check_text(text: str, path: str, *, limit: int) -> None:
    """Refuse text that is too large or that shows something else than it says.

    Args:
        text: Policies or a schema.
        path: Its file, for the error.
        limit: Bytes allowed.

    Raises:
        InvalidPolicyError: Over the limit, or a control character or direction mark in it.
    """
    if len(text) > limit or (not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > limit):
        raise refusal(f"text is over {limit} bytes", path=path, reason="too-large", remedy="split the set by service")
    if text.isprintable():
        return
    for offset, char in enumerate(text):
        if char.isprintable() or char in _ALLOWED_CONTROLS:
            continue
        if char in _DIRECTION_MARKS or unicodedata.category(char) in {"Cc", "Cs"}:
            raise refusal(
                f"character U+{ord(char):04X} hides what the text says",
                path=path,
                line=line_at(text, offset),
                reason="hidden-character",
                remedy=f"write it as an escape, `\\u{{{ord(char):x}}}`, or remove it",
            )


def check_json_text(text: str, path: str, *, limit: int) -> None:
    """Refuse JSON text that is too large or nested too deeply, before it is parsed.

    Args:
        text: JSON.
        path: Its file, for the error.
        limit: Bytes allowed.

    Raises:
        InvalidPolicyError: Over the limit, or nested deeper than `MAX_NESTING`.
    """
    if len(text) > limit:
        raise refusal(f"text is over {limit} bytes", path=path, reason="too-large", remedy="use an entity provider")
    depth = 0
    for match in _JSON_MARK.finditer(text):
        mark = match.group()
        if mark in "[{":
            depth += 1
            if depth > MAX_NESTING:
                raise too_deep(path, line_at(text, match.start()))
        elif mark in "]}":
            depth -= 1


def too_deep(path: str, line: int) -> InvalidPolicyError:
    """Return the error of text that is nested too deeply."""
    return refusal(
        f"nested deeper than {MAX_NESTING}", path=path, line=line, reason="too-deep", remedy="split it into several"
    )


def tokens(text: str, path: str) -> Iterator[Token]:
    """Yield the tokens of Cedar policy or schema text, without white space and comments.

    Raises:
        InvalidPolicyError: A character that starts no token, or text in quotes that does not end.
    """
    position = 0
    for match in _TOKEN.finditer(text):
        start = match.start()
        if start != position:
            break
        position = match.end()
        kind = match.lastgroup
        if kind != "skip":
            yield Token(kind or "", match.group(), start)
    if position != len(text):
        what = "text in quotes does not end" if text[position] == '"' else f"{text[position]!a} has no meaning here"
        raise refusal(what, path=path, line=line_at(text, position), reason="syntax", remedy="correct the line")


def unescape(quoted: str) -> str:
    """Return the value of a text token.

    Raises:
        ValueError: An escape that Cedar does not know.
    """
    body = quoted[1:-1]
    if "\\" not in body:
        return body
    parts: list[str] = []
    position = 0
    while (found := body.find("\\", position)) >= 0:
        match = _ESCAPE.match(body, found)
        if match is None:
            msg = f"unknown escape in {ascii(quoted)[:_SHOWN]}"
            raise ValueError(msg)
        parts.append(body[position:found])
        digits = match["unicode"] or match["hex"]
        char = chr(int(digits, 16)) if digits else _ONE[match["one"]]
        if "\ud800" <= char <= "\udfff":
            msg = f"an escape in {ascii(quoted)[:_SHOWN]} names a surrogate"
            raise ValueError(msg)
        parts.append(char)
        position = match.end()
    return "".join((*parts, body[position:]))


class _Depth:
    """Nesting as a recursive parser meets it: brackets, `if` chains and member chains."""

    __slots__ = ("_chains", "_ifs", "_total", "deepest")

    def __init__(self) -> None:
        self._ifs = [0]
        self._chains = [0]
        self._total = 0
        self.deepest = 0

    @property
    def brackets(self) -> int:
        return len(self._ifs) - 1

    def feed(self, token: Token, before: Token | None) -> bool:
        """Take one sign or `if`; False once it is too deep."""
        value = token.value
        if value in OPENING:
            if value == "[" and before is not None and (before.kind in {"word", "text"} or before.value in CLOSING):
                self._chains[-1] += 1
            self._ifs.append(0)
            self._chains.append(0)
            self._total += 1
        elif value in CLOSING:
            if len(self._ifs) > 1:
                self._total -= 1 + self._ifs.pop()
                self._chains.pop()
        elif value == "if":
            self._ifs[-1] += 1
            self._total += 1
        elif value == ".":
            self._chains[-1] += 1
        elif value in {",", ";"}:
            self._total -= self._ifs[-1]
            self._ifs[-1] = 0
            self._chains[-1] = 0
        elif token.kind == "sign":
            self._chains[-1] = 0
        depth = self._total + self._chains[-1]
        self.deepest = max(self.deepest, depth)
        return depth <= MAX_NESTING


def scan_policies(text: str, path: str) -> list[PolicyText]:
    """Split policy text at its semicolons.

    Args:
        text: The text of one file, already through `check_text`.
        path: Its file.

    Raises:
        InvalidPolicyError: Too deep, not Cedar's tokens, or an end inside a policy.
    """
    lines = Lines(text)
    found: list[PolicyText] = []
    statement: list[Token] = []
    depth = _Depth()
    before: Token | None = None
    for token in tokens(text, path):
        if (token.kind == "sign" or token.value == "if") and not depth.feed(token, before):
            raise too_deep(path, lines.at(token.start))
        before = token
        statement.append(token)
        if token.value == ";" and not depth.brackets:
            found.append(_policy(statement, path, lines, len(found) + 1, depth.deepest))
            statement = []
            depth = _Depth()
    if statement:
        raise refusal(
            "the file ends inside a policy",
            path=path,
            line=lines.at(statement[0].start),
            reason="cut",
            remedy="write the file whole, or ship a manifest with it",
        )
    return found


def _policy(statement: Sequence[Token], path: str, lines: Lines, position: int, depth: int) -> PolicyText:
    line = lines.at(statement[0].start)
    annotations: dict[str, str] = {}
    at = 0
    try:
        while at + 1 < len(statement) and statement[at].value == "@":
            name = statement[at + 1].value
            value = ""
            at += 2
            if at + 2 < len(statement) and statement[at].value == "(" and statement[at + 1].kind == "text":
                value = unescape(statement[at + 1].value)
                at += 3
            annotations[name] = value
        effect = statement[at].value if at < len(statement) else ""
        scope_end = _scope_end(statement, at)
        uids, conditions = _uids(statement[:scope_end]), _uids(statement[scope_end:])
        scope = read_scope(statement[at + 1 : scope_end])
    except ValueError as exc:
        raise refusal(str(exc), path=path, line=line, reason="syntax", remedy="correct the escape") from exc
    return PolicyText(
        path=path,
        line=line,
        position=position,
        start=statement[0].start,
        end=statement[-1].end,
        effect=effect if effect in {"permit", "forbid"} else "",
        annotations=annotations,
        condition_uids=conditions,
        scope_uids=uids,
        has_slot=any(token.value == "?" for token in statement),
        scope=scope,
        depth=depth,
        size=len(statement),
    )


def _scope_end(statement: Sequence[Token], start: int) -> int:
    level = 0
    for index in range(start, len(statement)):
        value = statement[index].value
        if value in OPENING:
            level += 1
        elif value in CLOSING:
            level -= 1
            if level == 0:
                return index + 1
    return len(statement)


def _uids(statement: Sequence[Token]) -> frozenset[tuple[str, str]]:
    """Entity literals: names joined by `::`, then `::` and text."""
    found: set[tuple[str, str]] = set()
    names: list[str] = []
    joined = False
    for token in statement:
        if token.value == "::":
            joined = bool(names)
        elif token.kind == "word":
            if not joined:
                names.clear()
            names.append(token.value)
            joined = False
        else:
            if token.kind == "text" and joined:
                found.add(("::".join(names), unescape(token.value)))
            names.clear()
            joined = False
    return frozenset(found)


def read_scope(statement: Sequence[Token]) -> Scope:
    """Read `(principal ..., action ..., resource ...)`; whatever is not plain is filed as matching everything.

    Args:
        statement: The tokens of the scope, with its brackets.

    Raises:
        ValueError: An escape that Cedar does not know.
    """
    if len(statement) < 2 or statement[0].value != "(" or statement[-1].value != ")":  # noqa: PLR2004
        return ANY_SCOPE
    parts = _parts(statement[1:-1])
    if [part[0].value if part else "" for part in parts] != ["principal", "action", "resource"]:
        return ANY_SCOPE
    principal, action, resource = (part[1:] for part in parts)
    return Scope(_entity_key(principal), _action_keys(action), _entity_key(resource))


def _parts(statement: Sequence[Token]) -> list[list[Token]]:
    """Split at the commas outside of brackets; one at the end adds no part."""
    parts: list[list[Token]] = [[]]
    level = 0
    for token in statement:
        level += (token.value in OPENING) - (token.value in CLOSING)
        if token.value == "," and not level:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts if parts[-1] else parts[:-1]


def _entity_key(condition: Sequence[Token]) -> Key:
    """Of `== uid`, `in uid`, `is T`, `is T in uid`, or nothing."""
    sign = condition[0].value if condition else ""
    if sign in {"==", "in"} and (uid := _uid(condition[1:])) is not None:
        return (eq_key if sign == "==" else in_key)(uid)
    if sign == "is":
        at = next((index for index, token in enumerate(condition) if token.value == "in"), len(condition))
        kind = _name(condition[1:at])
        if kind and at == len(condition):
            return is_key(kind)
        if kind and (uid := _uid(condition[at + 1 :])) is not None:
            return is_in_key(kind, uid)
    return ANY


def _action_keys(condition: Sequence[Token]) -> tuple[Key, ...]:
    """Of `== uid`, `in uid`, `in [uid, ...]`, or nothing; none for `in []`, which never matches."""
    values = [token.value for token in condition[:2]]
    if values == ["in", "["] and condition[-1].value == "]":
        uids = [_uid(part) for part in _parts(condition[2:-1])]
        known = [in_key(uid) for uid in uids if uid is not None]
        return tuple(known) if len(known) == len(uids) else (ANY,)
    return (_entity_key(condition) if values[:1] != ["is"] else ANY,)


def _uid(literal: Sequence[Token]) -> tuple[str, str] | None:
    if len(literal) < 3 or literal[-1].kind != "text" or literal[-2].value != "::":  # noqa: PLR2004
        return None
    kind = _name(literal[:-2])
    return (kind, unescape(literal[-1].value)) if kind else None


def _name(path: Sequence[Token]) -> str:
    """`A::B`, or empty where it is no plain name."""
    for index, token in enumerate(path):
        if (token.value != "::") if index % 2 else (token.kind != "word"):
            return ""
    return "".join(token.value for token in path) if len(path) % 2 else ""
