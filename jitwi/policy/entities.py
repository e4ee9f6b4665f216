# SPDX-License-Identifier: Apache-2.0
"""Entities of the deciding side: records, strict reading, closure.

Holds the records of `entities.json` or of a provider, checked against the schema by type, and the transitive closure
that one request needs. Does not hold facts of a caller: who calls gives a uid only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import attrs

from jitwi.errors import InvalidSpiffeIdError, InvalidTaskError, JitwiError
from jitwi.policy.schema import EntityRef, Primitive, RecordOf, Schema, SetOf, Type
from jitwi.policy.text import check_json_text, line_at, refusal
from jitwi.policy.vocabulary import NAMESPACE, PATH, TRUST_DOMAIN, WORKLOAD
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["MAX_CLOSURE", "EntityRecord", "EntityStore", "Record", "compile_record", "read_entities", "workload_record"]

MAX_CLOSURE = 1_000
"""Entities that one request may need."""
MAX_ANCESTRY = 64
"""Length of the longest chain of parents; the engine's cost grows with its square."""
MAX_ENTITIES_BYTES = 64 * 2**20
_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1
_WHITE = " \t\n\r"


@attrs.frozen
class EntityRecord:
    """What an entity provider says of one entity.

    Args:
        uid: Its uid.
        attributes: Values: text, whole numbers, booleans, `Entity`, lists and records of these; extension
            types as text.
        parents: What it is directly in.
        tags: Its tags, if its type has any.
    """

    uid: Entity
    attributes: Mapping[str, Any] = attrs.Factory(dict)
    parents: tuple[Entity, ...] = ()
    tags: Mapping[str, Any] = attrs.Factory(dict)


@attrs.frozen(eq=False)
class Record:
    """One entity, checked and ready for the engine.

    Args:
        uid: Its uid.
        json: The record as the engine takes it.
        parents: What it is directly in.
        refers: Parents and entities that its attributes refer to.
    """

    uid: Entity
    json: str
    parents: tuple[Entity, ...]
    refers: tuple[Entity, ...]


class RecordError(JitwiError):
    """A record breaks a rule; becomes a refused load or a deny in this room."""

    code = "entity-record"


def _uid(value: Any, what: str) -> Entity:
    if isinstance(value, Entity):
        return value
    if isinstance(value, Mapping) and value.keys() == {"__entity"}:
        value = value["__entity"]
    if not isinstance(value, Mapping) or value.keys() != {"type", "id"}:
        raise RecordError(f"{what} is not exactly `type` and `id`")
    try:
        return Entity(value["type"], value["id"])
    except InvalidTaskError as exc:
        raise RecordError(f"{what}: {exc.message}") from exc


class _Compiler:
    """One record against the schema, type by type."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._refers: list[Entity] = []

    def compile(self, uid: Entity, attributes: Any, parents: Any, tags: Any) -> Record:
        kind = self._schema.entities.get(uid.type)
        if kind is None:
            raise RecordError(f"`{uid}`: the schema has no entity type `{uid.type}`")
        if not isinstance(parents, list | tuple):
            raise RecordError(f"`{uid}`: `parents` is not a list")
        above = tuple(dict.fromkeys(_uid(parent, f"a parent of `{uid}`") for parent in parents))
        for parent in above:
            if parent.type not in kind.parents:
                raise RecordError(f"`{uid}`: the schema does not let it be in a `{parent.type}`")
        record: dict[str, Any] = {
            "uid": {"type": uid.type, "id": uid.id},
            "attrs": self._record(attributes, kind.attributes, f"`{uid}`"),
            "parents": [{"type": parent.type, "id": parent.id} for parent in above],
        }
        if not isinstance(tags, Mapping):
            raise RecordError(f"`{uid}`: `tags` is not an object")
        if tags:
            if kind.tags is None:
                raise RecordError(f"`{uid}`: the schema gives it no tags")
            record["tags"] = {
                _checked(name, f"a tag of `{uid}`"): self._value(value, kind.tags, f"`{uid}` tag")
                for name, value in tags.items()
            }
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        return Record(uid, text, above, tuple(dict.fromkeys((*above, *self._refers))))

    def _record(self, value: Any, kind: RecordOf, where: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise RecordError(f"{where} is not an object")
        found: dict[str, Any] = {}
        for name, item in value.items():
            known = kind.field(name) if isinstance(name, str) else None
            if known is None:
                raise RecordError(f"{where} has the attribute {ascii(name)[:80]}, which the schema does not know")
            found[name] = self._value(item, known[0], f"{where} `{name}`")
        for name, _, is_required in kind.fields:
            if is_required and name not in found:
                raise RecordError(f"{where} lacks `{name}`")
        return found

    def _value(self, value: Any, kind: Type, where: str) -> Any:
        if isinstance(kind, RecordOf):
            return self._record(value, kind, where)
        if isinstance(kind, SetOf):
            if not isinstance(value, list | tuple | set | frozenset):
                raise RecordError(f"{where} is not a list")
            return [self._value(item, kind.element, where) for item in value]
        if isinstance(kind, EntityRef):
            uid = _uid(value, where)
            if uid.type != kind.type:
                raise RecordError(f"{where} refers to a `{uid.type}`, not to a `{kind.type}`")
            self._refers.append(uid)
            return {"__entity": {"type": uid.type, "id": uid.id}}
        return self._primitive(value, kind, where)

    def _primitive(self, value: Any, kind: Primitive, where: str) -> Any:
        if kind.name == "Bool":
            good = isinstance(value, bool)
        elif kind.name == "Long":
            good = isinstance(value, int) and not isinstance(value, bool) and _LONG_MIN <= value <= _LONG_MAX
        elif kind.name == "String":
            return _checked(value, where)
        else:
            return self._extension(value, where)
        if not good:
            raise RecordError(f"{where} is not a `{kind.name}`")
        return value

    def _extension(self, value: Any, where: str) -> Any:
        if isinstance(value, Mapping) and value.keys() == {"__extn"}:
            inner = value["__extn"]
            if not isinstance(inner, Mapping) or inner.keys() != {"fn", "arg"}:
                raise RecordError(f"{where}: `__extn` is not exactly `fn` and `arg`")
            return {"__extn": {"fn": _checked(inner["fn"], where), "arg": _checked(inner["arg"], where)}}
        return _checked(value, where)


def _checked(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{where} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise RecordError(f"{where} has a surrogate") from exc
    return value


def compile_record(record: EntityRecord, schema: Schema) -> Record:
    """Check a provider's record and make it ready.

    Raises:
        RecordError: It breaks the schema or the rules for uids, or describes one of our own types.
    """
    if not isinstance(record, EntityRecord) or not isinstance(record.uid, Entity):
        raise RecordError("a provider answers with `EntityRecord`s")
    _refuse_own(record.uid)
    return _Compiler(schema).compile(record.uid, record.attributes, record.parents, record.tags)


def _refuse_own(uid: Entity) -> None:
    if uid.type.startswith(f"{NAMESPACE}::"):
        raise RecordError(f"`{uid}`: jitwi builds entities of `{NAMESPACE}` from the authenticated identity")
    if uid.type == "Action" or uid.type.endswith("::Action"):
        raise RecordError(f"`{uid}`: actions come from the schema")


@lru_cache(maxsize=256)
def workload_record(principal: SpiffeId) -> Record:
    """Build the entity of a workload from nothing but its SPIFFE ID.

    Args:
        principal: The ID.
    """
    domain = {"type": TRUST_DOMAIN, "id": principal.trust_domain.name}
    attributes = {"trust_domain": {"__entity": domain}, "path": principal.path}
    return _flat(WORKLOAD, str(principal), attributes, _prefixes(principal), domain)


def _path_record(principal: SpiffeId) -> Record:
    """The path of a SPIFFE ID: in every shorter one, and in the trust domain."""
    *shorter, whole = _prefixes(principal)
    return _flat(PATH, whole, {}, shorter, {"type": TRUST_DOMAIN, "id": principal.trust_domain.name})


def _prefixes(principal: SpiffeId) -> list[str]:
    name = principal.trust_domain.name
    segments = principal.path[1:].split("/") if principal.path else []
    return [f"{name}/{'/'.join(segments[: end + 1])}" for end in range(len(segments))]


def _flat(kind: str, name: str, attributes: dict[str, Any], prefixes: list[str], domain: dict[str, str]) -> Record:
    # Every prefix is a direct parent: no chain of paths for the engine to close.
    record = {
        "uid": {"type": kind, "id": name},
        "attrs": attributes,
        "parents": [*({"type": PATH, "id": prefix} for prefix in reversed(prefixes)), domain],
    }
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    above = (*(_raw_entity(PATH, prefix) for prefix in reversed(prefixes)), _raw_entity(TRUST_DOMAIN, domain["id"]))
    return Record(_raw_entity(kind, name), text, above, ())


def _raw_entity(kind: str, name: str) -> Entity:
    """An entity of ours: a SPIFFE ID may be longer than the ids of users."""
    entity = Entity.__new__(Entity)
    object.__setattr__(entity, "type", kind)
    object.__setattr__(entity, "id", name)
    return entity


def own_record(uid: Entity) -> Record | None:
    """Return the record of a `Jitwi::Workload` or `Jitwi::Path`, or None for other types and for misspelt ids."""
    try:
        if uid.type == WORKLOAD:
            return workload_record(SpiffeId.parse(uid.id).require_workload())
        if uid.type == PATH:
            return _path_record(SpiffeId.parse(f"spiffe://{uid.id}").require_workload())
    except InvalidSpiffeIdError:
        return None
    return None


class EntityStore:
    """Records by uid; never changed after it was built.

    Args:
        records: Each uid once.
        schema: The merged schema.
    """

    __slots__ = ("_records", "_schema")

    def __init__(self, records: Mapping[Entity, Record], schema: Schema) -> None:
        self._records = records
        self._schema = schema

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Any:
        return iter(self._records.values())

    def get(self, uid: Entity) -> Record | None:
        """Return the record of `uid`, or None."""
        return self._records.get(uid)

    def has_facts(self, uid: Entity) -> bool:
        """True if an entity of this type is more than its uid."""
        kind = self._schema.entities.get(uid.type)
        return kind is not None and kind.has_facts

    def closure(
        self, roots: Iterable[Entity], more: Mapping[Entity, Record] | None = None
    ) -> tuple[dict[Entity, Record], list[Entity]]:
        """Return what evaluation can reach from `roots`, and what of it nobody described.

        Args:
            roots: Where to start.
            more: Records of a provider; the store's own come first.

        Raises:
            RecordError: More than `MAX_CLOSURE` entities.
        """
        found: dict[Entity, Record] = {}
        missing: dict[Entity, None] = {}
        stack = list(roots)
        while stack:
            uid = stack.pop()
            if uid in found or uid in missing:
                continue
            record = self._records.get(uid) or (more.get(uid) if more else None) or own_record(uid)
            if record is None:
                if self.has_facts(uid):
                    missing[uid] = None
                continue
            found[uid] = record
            if len(found) > MAX_CLOSURE:
                raise RecordError(
                    f"one request reaches more than {MAX_CLOSURE} entities", reasons=("too-many-entities",)
                )
            stack.extend(record.refers)
        return found, list(missing)


def check_ancestry(records: Mapping[Entity, Record], get: Callable[[Entity], Record | None]) -> None:
    """Bound the length of parent chains and refuse cycles.

    Args:
        records: What to check.
        get: Where further records come from.

    Raises:
        RecordError: A cycle, or a chain longer than `MAX_ANCESTRY`.
    """
    heights: dict[Entity, int] = {}
    for root in records:
        stack: list[tuple[Entity, bool]] = [(root, False)]
        opened: set[Entity] = set()
        while stack:
            uid, is_done = stack.pop()
            record = records.get(uid) or get(uid)
            above = record.parents if record else ()
            if is_done:
                opened.discard(uid)
                heights[uid] = 1 + max((heights.get(parent, 0) for parent in above), default=0)
                if heights[uid] > MAX_ANCESTRY:
                    raise RecordError(
                        f"`{uid}` has a chain of more than {MAX_ANCESTRY} ancestors", reasons=("too-deep",)
                    )
            elif uid in opened:
                raise RecordError(f"`{uid}` is its own ancestor", reasons=("cycle",))
            elif uid not in heights:
                opened.add(uid)
                stack.append((uid, True))
                stack.extend((parent, False) for parent in above if parent not in heights)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RecordError(f"the member {ascii(twice)[:80]} is there twice")
    return found


def _no_float(text: str) -> Any:
    raise RecordError(f"`{text[:40]}` is not a whole number", remedy="write decimals as text of type `decimal`")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_no_float, parse_constant=_no_float)
"""A decoder that refuses repeated members and fractions."""


def read_entities(text: str, path: str, schema: Schema, *, is_whole: bool = True) -> dict[Entity, Record]:
    """Read an entities file strictly.

    Args:
        text: A JSON list of `{"uid", "attrs", "parents", "tags"?}`.
        path: Its file.
        schema: The merged schema.
        is_whole: True if there is no provider, so that every entity with facts must be here.

    Raises:
        InvalidPolicyError: Anything that the engine would pass over or read in more than one way.
    """
    check_json_text(text, path, limit=MAX_ENTITIES_BYTES)
    records: dict[Entity, Record] = {}
    offset = 0
    places: dict[Entity, int] = {}
    try:
        for offset, value in _elements(text):
            record = _from_json(value, schema)
            _add(record, records)
            places[record.uid] = offset
        if is_whole:
            store = EntityStore(records, schema)
            for uid, record in records.items():
                offset = places[uid]
                _require_described(record, store)
        offset = 0
        check_ancestry(records, records.get)
    except RecordError as exc:
        raise refusal(
            exc.message,
            path=path,
            line=line_at(text, offset) if offset else 0,
            reason="entities",
            remedy=exc.remedy or "correct the entity",
        ) from exc
    except (ValueError, RecursionError) as exc:
        at = getattr(exc, "pos", offset)
        raise refusal(
            f"not JSON: {getattr(exc, 'msg', 'nested too deeply')}",
            path=path,
            line=line_at(text, at),
            reason="entities",
            remedy="write a JSON list of entities",
        ) from exc
    return records


def _add(record: Record, records: dict[Entity, Record]) -> None:
    if records.setdefault(record.uid, record) is not record:
        raise RecordError(f"`{record.uid}` is described twice")


def _require_described(record: Record, store: EntityStore) -> None:
    for other in record.refers:
        if store.get(other) is None and store.has_facts(other) and own_record(other) is None:
            raise RecordError(
                f"`{record.uid}` refers to `{other}`, which nobody describes", remedy=f"add `{other}` to the file"
            )


def _elements(text: str) -> Iterable[tuple[int, Any]]:
    """Yield (offset, value) for each element of a JSON list."""

    def skip(at: int) -> int:
        while at < len(text) and text[at] in _WHITE:
            at += 1
        return at

    def expect(at: int, mark: str) -> None:
        if text[at : at + 1] != mark:
            raise json.JSONDecodeError(f"expected `{mark}`", text, min(at, len(text)))

    at = skip(0)
    expect(at, "[")
    at = skip(at + 1)
    if text[at : at + 1] != "]":
        while True:
            try:
                value, end = STRICT_JSON.raw_decode(text, at)
            except RecordError as exc:
                raise refusal_at(exc, at) from exc
            yield at, value
            at = skip(end)
            if text[at : at + 1] == "]":
                break
            expect(at, ",")
            at = skip(at + 1)
    if skip(at + 1) != len(text):
        raise json.JSONDecodeError("text behind the list", text, at + 1)


class _PlacedError(ValueError):
    """A refused element with its offset."""

    def __init__(self, msg: str, pos: int) -> None:
        super().__init__(msg)
        self.msg = msg
        self.pos = pos


def refusal_at(exc: RecordError, offset: int) -> _PlacedError:
    """Keep the offset of a refused element on its way up."""
    return _PlacedError(exc.message, offset)


def _from_json(value: Any, schema: Schema) -> Record:
    if not isinstance(value, dict):
        raise RecordError("an entity is an object")
    if unknown := value.keys() - {"uid", "attrs", "parents", "tags"}:
        raise RecordError(f"an entity has no member {ascii(min(unknown))[:80]}")
    if lacking := {"uid", "attrs", "parents"} - value.keys():
        raise RecordError(f"an entity lacks `{min(lacking)}`")
    uid = _uid(value["uid"], "`uid`")
    _refuse_own(uid)
    return _Compiler(schema).compile(uid, value["attrs"], value["parents"], value.get("tags", {}))
