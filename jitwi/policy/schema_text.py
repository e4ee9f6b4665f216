# SPDX-License-Identifier: Apache-2.0
"""Schema text before any engine sees it: what it declares, where, and how large its types become.

Holds the guards and the lines that the engine does not tell. Does not say what a schema means: `schema.py` reads that
from the engine's own print.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from jitwi.policy.text import CLOSING, MAX_NESTING, OPENING, Lines, Token, refusal, tokens, too_deep, unescape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_TYPE_NODES", "SchemaText", "check_types", "scan_schema"]

MAX_TYPE_NODES = 20_000
"""How many nodes the common types of a schema may have once each name is replaced by what it stands for."""


@attrs.frozen
class SchemaText:
    """What a schema file declares, and where.

    Args:
        path: The file.
        namespaces: Namespace -> line.
        declarations: (namespace, kind, name) -> line; kind is `entity`, `type` or `action`.
        types: Name of a common type -> the words in its definition.
    """

    path: str
    namespaces: dict[str, int]
    declarations: dict[tuple[str, str, str], int]
    types: dict[str, list[str]]


def scan_schema(text: str, path: str) -> SchemaText:
    """Read what a schema file declares, and refuse what would explode in the engine.

    Args:
        text: The text of one file, already through `check_text`.
        path: Its file.

    Raises:
        InvalidPolicyError: Too deep, or an end inside a declaration.
    """
    lines = Lines(text)
    namespaces: dict[str, int] = {}
    declared: dict[tuple[str, str, str], int] = {}
    types: dict[str, list[str]] = {}
    namespace = ""
    statement: list[Token] = []
    level = 0
    for token in tokens(text, path):
        if token.kind == "sign":
            if token.value in OPENING or token.value == "<":
                level += 1
                if level > MAX_NESTING:
                    raise too_deep(path, lines.at(token.start))
            elif token.value in CLOSING or token.value == ">":
                level -= 1
        statement.append(token)
        if token.value == "{" and level == 1 and not namespace and (name := _namespace(statement)):
            namespace = name
            namespaces.setdefault(name, lines.at(statement[0].start))
            statement = []
        elif token.value == "}" and level == 0 and namespace:
            namespace = ""
            statement = []
        elif token.value == ";" and level == (1 if namespace else 0):
            for kind, name in _declared(statement, types):
                declared.setdefault((namespace, kind, name), lines.at(statement[0].start))
            statement = []
    if statement or namespace:
        line = lines.at(statement[0].start) if statement else namespaces[namespace]
        raise refusal(
            "the file ends inside a declaration", path=path, line=line, reason="cut", remedy="write the file whole"
        )
    return SchemaText(path, namespaces, declared, types)


def _namespace(statement: Sequence[Token]) -> str:
    words = [index for index, token in enumerate(statement) if token.kind == "word" and token.value == "namespace"]
    return "".join(token.value for token in statement[words[0] + 1 : -1]) if words else ""


def _declared(statement: Sequence[Token], types: dict[str, list[str]]) -> list[tuple[str, str]]:
    at = 0
    while at + 1 < len(statement) and statement[at].value == "@":
        at += 2
        if at < len(statement) and statement[at].value == "(":
            at += 3
    kind = statement[at].value if at < len(statement) else ""
    if kind not in {"entity", "type", "action"}:
        return []
    names: list[str] = []
    for token in statement[at + 1 :]:
        if token.kind == "word" and token.value not in {"in", "appliesTo", "enum", "tags"}:
            names.append(token.value)
        elif token.kind == "text":
            names.append(_unescaped(token.value))
        elif token.value != ",":
            break
        else:
            continue
    if kind == "type" and names:
        body = [t.value for t in statement[at + 2 :] if t.kind == "word"]
        types.setdefault(names[0], []).extend(body)
    return [(kind, name) for name in names[: 1 if kind == "type" else None]]


def _unescaped(quoted: str) -> str:
    try:
        return unescape(quoted)
    except ValueError:
        return quoted


def check_types(schemas: Sequence[SchemaText]) -> None:
    """Bound the size and depth of common types with names filled in; over-approximates by comparing bare names.

    Args:
        schemas: All files of one schema.

    Raises:
        InvalidPolicyError: A type grows beyond `MAX_TYPE_NODES` or `MAX_NESTING`.
    """
    types: dict[str, list[str]] = {}
    for schema in schemas:
        for name, words in schema.types.items():
            types.setdefault(name, []).extend(words)
    sizes: dict[str, tuple[int, int]] = {}
    for root in types:
        stack: list[tuple[str, bool]] = [(root, False)]
        opened: set[str] = set()
        while stack:
            name, is_done = stack.pop()
            if not is_done:
                if name not in sizes and name not in opened:
                    opened.add(name)
                    stack.append((name, True))
                    stack.extend((word, False) for word in set(types[name]) if word in types)
                continue
            inner = [sizes.get(word, (1, 1)) for word in types[name] if word in types]
            size = 1 + len(types[name]) + sum(each[0] for each in inner)
            depth = 1 + max((each[1] for each in inner), default=0)
            sizes[name] = (size, depth)
            if size > MAX_TYPE_NODES or depth > MAX_NESTING:
                path, line = _place_of_type(name, schemas)
                raise refusal(
                    f"type `{name}` becomes too large once the names in it are filled in",
                    path=path,
                    line=line,
                    reason="too-deep",
                    remedy="use fewer types within types",
                )


def _place_of_type(name: str, schemas: Sequence[SchemaText]) -> tuple[str, int]:
    for schema in schemas:
        for (_, kind, declared), line in schema.declarations.items():
            if kind == "type" and declared == name:
                return schema.path, line
    return "", 0
