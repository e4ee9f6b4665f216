# SPDX-License-Identifier: Apache-2.0
"""What a schema says, as values.

Holds a reader of the one canonical form in which the engine prints a schema, and the resolved shapes: entity types
with their attributes and parents, actions with their context. Does not read what people write: that is the engine's
business. A construct that this reader does not know refuses the load.

Example:
    >>> from jitwi.policy.schema import read_schema
    >>> shape = read_schema('entity B; action "c" appliesTo { principal: [B], resource: [B], context: {} };')
    >>> sorted(shape.entities), [str(action.uid) for action in shape.actions]
    (['B'], ['Action::"c"'])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

from jitwi.errors import InvalidPolicyError, InvalidTaskError
from jitwi.policy.text import Token, refusal, tokens, unescape
from jitwi.task import Entity

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ActionType", "EntityRef", "EntityType", "Primitive", "RecordOf", "Schema", "SetOf", "Type", "read_schema"]

PRIMITIVES = frozenset({"Bool", "Long", "String"})
EXTENSIONS = frozenset({"datetime", "decimal", "duration", "ipaddr"})
RESERVED_NAMES = PRIMITIVES | EXTENSIONS | {"Boolean", "Entity", "Extension", "Record", "Set"}


@attrs.frozen
class Primitive:
    """`Bool`, `Long`, `String` or an extension type."""

    name: str


@attrs.frozen
class SetOf:
    """A set."""

    element: Type


@attrs.frozen
class EntityRef:
    """A reference to an entity of a type."""

    type: str


@attrs.frozen
class RecordOf:
    """A record: (name, type, is_required), sorted by name; equal records are equal types."""

    fields: tuple[tuple[str, Type, bool], ...] = ()

    def field(self, name: str) -> tuple[Type, bool] | None:
        """Return type and whether it is required, or None."""
        for known, kind, is_required in self.fields:
            if known == name:
                return kind, is_required
        return None


Type: TypeAlias = Primitive | SetOf | EntityRef | RecordOf


@attrs.frozen
class EntityType:
    """One entity type.

    Args:
        name: With its namespace.
        parents: Types it can be in.
        attributes: Its attributes.
        tags: Type of its tags, or None.
        is_enum: True if its ids are listed in the schema.
    """

    name: str
    parents: frozenset[str] = frozenset()
    attributes: RecordOf = RecordOf()
    tags: Type | None = None
    is_enum: bool = False

    @property
    def has_facts(self) -> bool:
        """True if an entity of this type is more than its uid."""
        return bool(self.parents or self.attributes.fields or self.tags is not None)


@attrs.frozen
class ActionType:
    """One action.

    Args:
        uid: Its uid.
        namespace: Where it is declared.
        principals: Principal types; empty for a mere group.
        resources: Resource types; empty for a mere group.
        context: Its context.
    """

    uid: Entity
    namespace: str
    principals: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()
    context: RecordOf = RecordOf()


@attrs.frozen
class Schema:
    """A whole schema, resolved.

    Args:
        entities: Name -> type.
        types: Name of a common type -> what it stands for.
        actions: In the order of the text.
    """

    entities: Mapping[str, EntityType]
    types: Mapping[str, Type]
    actions: tuple[ActionType, ...]


def holds_entities(kind: Type) -> bool:
    """True if a value of this type can refer to an entity."""
    if isinstance(kind, EntityRef):
        return True
    if isinstance(kind, SetOf):
        return holds_entities(kind.element)
    return isinstance(kind, RecordOf) and any(holds_entities(each) for _, each, _ in kind.fields)


# What stands in the text: names not yet resolved.
_Raw: TypeAlias = "tuple[str, object]"  # ("name", path) | ("set", raw) | ("record", [(name, raw, is_required)])


@attrs.define
class _RawEntity:
    namespace: str
    name: str
    parents: list[str] = attrs.Factory(list)
    shape: _Raw = ("record", ())
    tags: _Raw | None = None
    is_enum: bool = False


@attrs.define
class _RawAction:
    namespace: str
    name: str
    principals: list[str] = attrs.Factory(list)
    resources: list[str] = attrs.Factory(list)
    context: _Raw = ("record", ())


def read_schema(printed: str) -> Schema:
    """Read a schema in the engine's canonical print.

    Args:
        printed: `str()` of a parsed schema.

    Raises:
        InvalidPolicyError: A construct that this version does not know.
    """
    reader = _Reader(printed)
    reader.read()
    return _Resolver(reader).resolve()


def _unknown(what: str) -> InvalidPolicyError:
    return refusal(
        f"this version does not understand {what} in a schema",
        path="",
        reason="unknown-schema-construct",
        remedy="remove the construct, or update jitwi",
    )


class _Reader:
    """Recursive descent over the printed form; its depth is bounded by the guards before it."""

    def __init__(self, printed: str) -> None:
        self._tokens = [*tokens(printed, ""), Token("end", "", len(printed))]
        self._at = 0
        self.entities: list[_RawEntity] = []
        self.actions: list[_RawAction] = []
        self.types: dict[tuple[str, str], _Raw] = {}

    def _peek(self) -> str:
        token = self._tokens[self._at]
        return "" if token.kind == "text" else token.value

    def _next(self) -> Token:
        token = self._tokens[self._at]
        self._at += token.kind != "end"
        return token

    def _take(self, value: str) -> None:
        if self._peek() != value:
            raise _unknown(f"`{ascii(self._tokens[self._at].value)[1:-1][:40]}` where `{value}` was expected")
        self._at += 1

    def _maybe(self, value: str) -> bool:
        if self._peek() != value:
            return False
        self._at += 1
        return True

    def _word(self) -> str:
        token = self._next()
        if token.kind != "word":
            raise _unknown(f"`{ascii(token.value)[1:-1][:40]}` where a name was expected")
        return token.value

    def _name(self) -> str:
        """A name: a word, or text in quotes."""
        token = self._next()
        if token.kind == "text":
            try:
                return unescape(token.value)
            except ValueError as exc:
                raise _unknown(str(exc)) from exc
        if token.kind != "word":
            raise _unknown(f"`{ascii(token.value)[1:-1][:40]}` where a name was expected")
        return token.value

    def _path(self) -> str:
        names = [self._word()]
        while self._maybe("::"):
            names.append(self._word())
        return "::".join(names)

    def _paths(self) -> list[str]:
        if not self._maybe("["):
            return [self._path()]
        found: list[str] = []
        while not self._maybe("]"):
            found.append(self._path())
            self._maybe(",")
        return found

    def read(self) -> None:
        while self._tokens[self._at].kind != "end":
            self._annotations()
            if self._maybe("namespace"):
                namespace = self._path()
                self._take("{")
                while not self._maybe("}"):
                    self._declaration(namespace)
            else:
                self._declaration("")

    def _annotations(self) -> None:
        while self._maybe("@"):
            self._word()
            if self._maybe("("):
                self._name()
                self._take(")")

    def _declaration(self, namespace: str) -> None:
        self._annotations()
        kind = self._word()
        if kind == "type":
            name = self._word()
            self._take("=")
            self.types[namespace, name] = self._type()
        elif kind == "entity":
            self._entity(namespace)
        elif kind == "action":
            self._action(namespace)
        else:
            raise _unknown(f"the declaration `{kind}`")
        self._take(";")

    def _entity(self, namespace: str) -> None:
        entity = _RawEntity(namespace, self._word())
        if self._maybe("enum"):
            entity.is_enum = True
            self._take("[")
            while not self._maybe("]"):
                self._name()
                self._maybe(",")
        else:
            if self._maybe("in"):
                entity.parents = self._paths()
            self._maybe("=")
            if self._peek() not in {"tags", ";"}:
                entity.shape = self._type()
            if self._maybe("tags"):
                entity.tags = self._type()
        self.entities.append(entity)

    def _action(self, namespace: str) -> None:
        action = _RawAction(namespace, self._name())
        if self._maybe("in"):
            self._groups()
        if self._maybe("appliesTo"):
            self._take("{")
            while not self._maybe("}"):
                part = self._word()
                self._take(":")
                if part == "principal":
                    action.principals = self._paths()
                elif part == "resource":
                    action.resources = self._paths()
                elif part == "context":
                    action.context = self._type()
                else:
                    raise _unknown(f"`{part}` in `appliesTo`")
                self._maybe(",")
        self.actions.append(action)

    def _groups(self) -> None:
        """Names of action groups: the engine's own hierarchy has them, so they are only passed over."""
        is_list = self._maybe("[")
        while True:
            while self._tokens[self._at].kind in {"word", "text"} or self._peek() == "::":
                self._at += 1
            if not is_list or self._maybe("]"):
                return
            self._take(",")

    def _type(self) -> _Raw:
        self._annotations()
        if self._maybe("{"):
            fields: list[tuple[str, _Raw, bool]] = []
            while not self._maybe("}"):
                self._annotations()
                name = self._name()
                is_required = not self._maybe("?")
                self._take(":")
                fields.append((name, self._type(), is_required))
                self._maybe(",")
            return ("record", tuple(fields))
        path = self._path()
        if path in {"Set", "__cedar::Set"} and self._maybe("<"):
            element = self._type()
            self._take(">")
            return ("set", element)
        return ("name", path)


class _Resolver:
    """Names to what they stand for: first in the own namespace, then without one, then the built-in ones."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._entities = {_joined(entity.namespace, entity.name) for entity in reader.entities}
        self._raw_types = {_joined(*key): (key[0], raw) for key, raw in reader.types.items()}
        self._types: dict[str, Type] = {}

    def resolve(self) -> Schema:
        for declared in (*self._entities, *self._raw_types):
            if declared.rpartition("::")[2] in RESERVED_NAMES:
                raise refusal(
                    f"the schema declares `{declared}`, the name of a built-in type",
                    path="",
                    reason="reserved-name",
                    remedy="give it another name",
                )
        if both := self._entities & self._raw_types.keys():
            raise refusal(
                f"`{min(both)}` is an entity type and a common type",
                path="",
                reason="ambiguous-name",
                remedy="rename one of them",
            )
        for name in self._raw_types:
            self._common(name)
        entities = [self._entity(raw) for raw in self._reader.entities]
        actions = tuple(self._action(raw) for raw in self._reader.actions)
        return Schema({entity.name: entity for entity in entities}, dict(self._types), actions)

    def _common(self, name: str) -> Type:
        if name not in self._types:
            namespace, raw = self._raw_types[name]
            self._types[name] = self._resolved(raw, namespace)
        return self._types[name]

    def _resolved(self, raw: _Raw, namespace: str) -> Type:
        kind, what = raw
        if kind == "set":
            return SetOf(self._resolved(what, namespace))  # type: ignore[arg-type]
        if kind == "record":
            fields = [(name, self._resolved(each, namespace), must) for name, each, must in what]  # type: ignore[attr-defined]
            return RecordOf(tuple(sorted(fields, key=lambda field: field[0])))
        path = str(what)
        for candidate in dict.fromkeys((_joined(namespace, path), path)):
            if candidate in self._raw_types:
                return self._common(candidate)
            if candidate in self._entities:
                return EntityRef(candidate)
        bare = path.removeprefix("__cedar::")
        if bare in PRIMITIVES | EXTENSIONS:
            return Primitive(bare)
        raise _unknown(f"the type `{path}`")

    def _entity_names(self, paths: list[str], namespace: str) -> frozenset[str]:
        found: set[str] = set()
        for path in paths:
            candidates = [name for name in (_joined(namespace, path), path) if name in self._entities]
            if not candidates:
                raise _unknown(f"the entity type `{path}`")
            found.add(candidates[0])
        return frozenset(found)

    def _record(self, raw: _Raw, namespace: str, where: str) -> RecordOf:
        kind = self._resolved(raw, namespace)
        if not isinstance(kind, RecordOf):
            raise _unknown(f"{where}, which is not a record,")
        return kind

    def _entity(self, raw: _RawEntity) -> EntityType:
        name = _joined(raw.namespace, raw.name)
        return EntityType(
            name,
            self._entity_names(raw.parents, raw.namespace),
            self._record(raw.shape, raw.namespace, f"the attributes of `{name}`"),
            None if raw.tags is None else self._resolved(raw.tags, raw.namespace),
            raw.is_enum,
        )

    def _action(self, raw: _RawAction) -> ActionType:
        try:
            uid = Entity(_joined(raw.namespace, "Action"), raw.name)
        except InvalidTaskError as exc:
            raise refusal(
                f"the name of an action is out of bounds: {exc.message}",
                path="",
                reason="action-name",
                remedy="use 1 to 512 bytes without control characters",
            ) from exc
        return ActionType(
            uid,
            raw.namespace,
            self._entity_names(raw.principals, raw.namespace),
            self._entity_names(raw.resources, raw.namespace),
            self._record(raw.context, raw.namespace, f"the context of `{uid}`"),
        )


def _joined(namespace: str, name: str) -> str:
    return f"{namespace}::{name}" if namespace else name
