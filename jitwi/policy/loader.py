# SPDX-License-Identifier: Apache-2.0
"""From texts to a snapshot: every check of a load, in order.

Holds the one procedure that turns sources into a `PolicySnapshot`, or refuses them with file, line and way out. Guards
run before any parser. Does not read files (`folder.py`) and does not keep what was loaded (`store.py`).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from jitwi.errors import InvalidPolicyError, InvalidSpiffeIdError, InvalidTaskError, PolicyEvaluationError
from jitwi.policy import engine, vocabulary
from jitwi.policy.context import ContextBuilder
from jitwi.policy.decision import ActionShape
from jitwi.policy.entities import EntityStore, Record, read_entities
from jitwi.policy.folder import ENTITIES, MAX_POLICY_BYTES, MAX_SCHEMA_BYTES, TASKS
from jitwi.policy.loaded import Asked, Loaded, PolicyInfo
from jitwi.policy.schema import ActionType, Schema, read_schema
from jitwi.policy.schema_text import SchemaText, check_types, scan_schema
from jitwi.policy.slice import ScopeIndex
from jitwi.policy.task_classes import TaskClasses, read_task_classes
from jitwi.policy.text import PolicyText, check_text, line_at, refusal, scan_policies, tokens
from jitwi.spiffe_id import SpiffeId, TrustDomain
from jitwi.task import Entity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jitwi.policy.folder import Sources

__all__ = ["load"]

MAX_ID_BYTES = 256
MAX_WITHOUT_INDEX = 16
"""Policies of a set, ours included, up to which all are evaluated each time: an index would gain nothing."""
MAX_SLICE_DEPTH = 12
MAX_SLICE_TOKENS = 2_000
"""Slices are parsed and dropped on the stack of whoever asks: 256 KiB hold 16 levels, or chains of 8,000 tokens."""
_UNSLICED = (
    "{0.path}:{0.line}: policy `{0.id}` is so long or deeply nested that a request which its scope fits evaluates the "
    "whole set: split it"
)
_END_OF_INPUT = "end of input"


def load(sources: Sources, *, has_provider: bool) -> Loaded:
    """Check and build everything.

    Args:
        sources: The texts.
        has_provider: True if entities may also come from a provider.

    Raises:
        InvalidPolicyError: The set is refused; says where and what to do.
    """
    try:
        return engine.on_large_stack(lambda: _load(sources, has_provider=has_provider))
    except engine.EngineError as exc:
        raise refusal(exc.message, path=sources.root, reason=exc.reasons[0], remedy=exc.remedy) from exc
    except InvalidPolicyError:
        raise
    except Exception as exc:
        raise refusal(
            f"the load failed: {type(exc).__name__}",
            path=sources.root,
            reason="internal",
            remedy="report this to jitwi",
        ) from exc


def _load(sources: Sources, *, has_provider: bool) -> Loaded:
    # 1. The engine itself.
    engine.require_self_test()
    # 2. Guards over every text, before any parser sees one.
    schema_texts = [_schema_text(sources.path(name), text) for name, text in sources.schemas]
    if not schema_texts:
        raise refusal(
            "no schema: a set that cannot be validated is never used",
            path=sources.root,
            reason="no-schema",
            remedy="add a `*.cedarschema` with your resources and actions",
        )
    vocabulary.check_namespaces(schema_texts)
    check_types(schema_texts)
    policy_texts = [each for name, text in sources.policies for each in _policy_texts(sources.path(name), text)]
    built_in = scan_policies(vocabulary.built_in_policies(), vocabulary.BUILT_IN_POLICIES)
    # 3. The schema, ours and the user's together.
    schema, shape, warnings = _schema(sources, schema_texts)
    # 4. The policies against it.
    infos = _infos(sources, policy_texts, built_in)
    _check_set(sources, policy_texts)
    text = "\n".join([*(each for _, each in sources.policies), vocabulary.built_in_policies()])
    policies = _policies(text, sources, schema, infos)
    index, texts, unsliced = _index(sources, policy_texts, built_in)
    warnings += [_UNSLICED.format(infos[each]) for each in sorted(unsliced)]
    # 5. The entities against it.
    records: Mapping[Entity, Record] = {}
    if sources.entities is not None:
        records = _entities(sources.entities, sources.path(ENTITIES), schema, shape, is_whole=not has_provider)
    # 6. Actions by name, task classes.
    actions = {
        action.uid: _asked(action, shape) for action in shape.actions if vocabulary.WORKLOAD in action.principals
    }
    names = _names(actions)
    classes = TaskClasses(None)
    if sources.tasks is not None:
        check_text(sources.tasks, sources.path(TASKS), limit=MAX_SCHEMA_BYTES)
        classes = read_task_classes(sources.tasks, sources.path(TASKS), _resolver(names))
    # 7. Digests.
    schema_digest = _sha256(str(schema))
    literals = {_literal(uid) for policy in policy_texts for uid in policy.condition_uids}
    return Loaded(
        policies=policies,
        policy_infos=tuple(infos),
        texts=texts,
        index=index,
        unsliced=unsliced,
        schema=schema,
        shape=shape,
        entities=EntityStore(records, shape),
        literals=tuple(sorted(uid for uid in literals if uid is not None)),
        actions=actions,
        action_names=names,
        task_classes=classes,
        digest=_digest(sources, schema_digest),
        schema_digest=schema_digest,
        entities_digest=_sha256("\n".join(sorted(record.json for record in records.values()))),
        warnings=tuple(warnings),
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(sources: Sources, schema_digest: str) -> str:
    parts: dict[str, Any] = {
        "built-in": _sha256(vocabulary.built_in_policies()),
        "policies": [[name, _sha256(text)] for name, text in sources.policies],
        "schema": schema_digest,
        "tasks": "" if sources.tasks is None else _sha256(sources.tasks),
        "version": 1,
    }
    return _sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")))


def _schema_text(path: str, text: str) -> SchemaText:
    check_text(text, path, limit=MAX_SCHEMA_BYTES)
    return scan_schema(text, path)


def _policy_texts(path: str, text: str) -> list[PolicyText]:
    check_text(text, path, limit=MAX_POLICY_BYTES)
    return scan_policies(text, path)


def _schema(sources: Sources, texts: Sequence[SchemaText]) -> tuple[engine.SchemaHandle, Schema, list[str]]:
    ours = vocabulary.built_in_schema()
    try:
        handle = engine.parse_schema("\n".join([ours, *(text for _, text in sources.schemas)]))
    except engine.EngineError as exc:
        path, line = _schema_place(sources, exc.message)
        raise refusal(exc.message, path=path, line=line, reason="schema", remedy="correct the schema") from exc
    places = {key: (each.path, line) for each in texts for key, line in each.declarations.items()}
    try:
        shape = read_schema(str(handle))
        expected = read_schema(str(engine.parse_schema(ours)))
    except InvalidPolicyError as exc:
        raise _in_schema(exc, texts) from exc
    if {(action.uid.type, action.uid.id) for action in shape.actions} != engine.actions_of(handle):
        raise refusal(
            "the engine lists other actions than its print of the schema",
            path=sources.root,
            reason="unknown-schema-construct",
            remedy="update jitwi",
        )
    return handle, shape, vocabulary.check_schema(shape, expected, places)


def _in_schema(exc: InvalidPolicyError, texts: Sequence[SchemaText]) -> InvalidPolicyError:
    """The same refusal at the first declaration that it names, or at the first schema file."""
    place = (texts[0].path, 0)
    for each in texts:
        for (namespace, _, name), line in each.declarations.items():
            if f"`{namespace}::{name}`" in exc.message or (not namespace and f"`{name}`" in exc.message):
                place = (each.path, line)
    return refusal(exc.message, path=place[0], line=place[1], reason=exc.reasons[0], remedy=exc.remedy)


def _schema_place(sources: Sources, message: str) -> tuple[str, int]:
    """Where the engine, which names no place, stumbled."""
    for name, text in sources.schemas:
        path = sources.path(name)
        if line := _first_bad_line(text, path, _schema_complaint):
            return path, line
    word = message.rpartition(":")[2].strip(" `").rpartition("::")[2] if ":" in message else ""
    quoted = [part.rpartition("::")[2] for part in message.split("`")[1::2]]
    for name, text in sources.schemas:
        for token in tokens(text, name):
            if token.kind == "word" and token.value in {word, *quoted}:
                return sources.path(name), line_at(text, token.start)
    return sources.path(sources.schemas[0][0]), 0


def _schema_complaint(text: str) -> str:
    try:
        engine.parse_schema(text)
    except engine.EngineError as exc:
        return exc.message if "parsing schema" in exc.message else ""
    return ""


def _policy_complaint(text: str) -> str:
    try:
        engine.parse_policies(text)
    except engine.EngineError as exc:
        return exc.message
    return ""


def _first_bad_line(text: str, path: str, complain: Callable[[str], str]) -> int:
    """Line of the first token after which the text cannot be continued, or 0.

    The parser stops at the first token that fits nowhere: every shorter beginning merely ends too early.
    """
    whole = complain(text)
    if not whole:
        return 0
    found = list(tokens(text, path))
    low, high = 0, len(found)
    while low + 1 < high:
        middle = (low + high) // 2
        complaint = complain(text[: found[middle - 1].end])
        if complaint and _END_OF_INPUT not in complaint:
            high = middle
        else:
            low = middle
    if high < len(found):
        return line_at(text, found[high - 1].start)
    named = whole.rpartition("unexpected token `")[2].removesuffix("`")
    return next((line_at(text, token.start) for token in reversed(found) if token.value == named), 0)


def _infos(sources: Sources, own: Sequence[PolicyText], built_in: Sequence[PolicyText]) -> list[PolicyInfo]:
    seen: dict[str, PolicyText] = {}
    infos: list[PolicyInfo] = []
    for place, policy in enumerate((*own, *built_in)):
        name = policy.path.removeprefix(f"{sources.root}/") if sources.root else policy.path
        identifier = policy.annotations.get("id") or f"{name}:{policy.position}"
        if len(identifier.encode()) > MAX_ID_BYTES or not identifier.isprintable():
            raise refusal(
                f"`@id` is over {MAX_ID_BYTES} bytes or not printable",
                path=policy.path,
                line=policy.line,
                reason="policy-id",
                remedy="use a short, plain `@id`",
            )
        infos.append(PolicyInfo(identifier, policy.effect, policy.path, policy.line, place >= len(own)))
        other = seen.setdefault(identifier, policy)
        if other is not policy:
            mine, theirs = (policy, other) if place < len(own) else (other, policy)
            raise refusal(
                f"`@id` `{identifier}` is also at {theirs.path}:{theirs.line}",
                path=mine.path,
                line=mine.line,
                reason="duplicate-id",
                remedy="give each policy an `@id` of its own",
            )
    return infos


def _check_set(sources: Sources, own: Sequence[PolicyText]) -> None:
    if not any(policy.effect == "permit" for policy in own):
        raise refusal(
            "no permit of your own: nothing could ever be allowed",
            path=sources.path(sources.policies[0][0]) if sources.policies else sources.root,
            reason="no-permit",
            remedy="add a `*.cedar` file with a permit",
        )
    if sources.policy_count is not None and sources.policy_count != len(own):
        raise refusal(
            f"the manifest says {sources.policy_count} policies, the files hold {len(own)}",
            path=sources.path("manifest.json"),
            reason="manifest",
            remedy="write the manifest again",
        )
    for policy in own:
        if policy.has_slot:
            raise refusal(
                "a template: it would load and never fire",
                path=policy.path,
                line=policy.line,
                reason="template",
                remedy="write the principal or resource instead of `?principal` or `?resource`",
            )
        for kind, name in policy.scope_uids | policy.condition_uids:
            _check_literal(kind, name, policy)


def _check_literal(kind: str, name: str, policy: PolicyText) -> None:
    """A SPIFFE ID that is misspelt would load and never match."""
    try:
        if kind == vocabulary.WORKLOAD:
            SpiffeId.parse(name).require_workload()
        elif kind == vocabulary.PATH:
            SpiffeId.parse(f"spiffe://{name}").require_workload()
        elif kind == vocabulary.TRUST_DOMAIN:
            TrustDomain(name)
    except InvalidSpiffeIdError as exc:
        examples = {
            vocabulary.WORKLOAD: 'the whole ID: `Jitwi::Workload::"spiffe://example.org/ns/prod/refunds"`',
            vocabulary.PATH: 'a path without the scheme: `Jitwi::Path::"example.org/ns/prod"`',
            vocabulary.TRUST_DOMAIN: 'the bare name: `Jitwi::TrustDomain::"example.org"`',
        }
        raise refusal(
            f"`{kind}` {ascii(name)[:80]} never matches: {exc.message}",
            path=policy.path,
            line=policy.line,
            reason="never-matches",
            remedy=f"write {examples[kind]}",
        ) from exc


def _policies(
    text: str, sources: Sources, schema: engine.SchemaHandle, infos: Sequence[PolicyInfo]
) -> engine.PoliciesHandle:
    try:
        handle = engine.parse_policies(text)
    except engine.EngineError as exc:
        path, line = _policy_place(sources)
        raise refusal(exc.message, path=path, line=line, reason="syntax", remedy="correct the policy") from exc
    if handle.templates() or len(handle) != len(infos):
        raise refusal(
            f"the engine reads {len(handle)} policies where the text has {len(infos)}",
            path=sources.root,
            reason="template",
            remedy="remove templates",
        )
    for engine_id, complaint in engine.invalid_policies(text, schema):
        index = int(engine_id.removeprefix("policy")) if engine_id.removeprefix("policy").isdecimal() else -1
        info = infos[index] if 0 <= index < len(infos) else PolicyInfo("", "", sources.root, 0)
        remedy = "correct the policy, or declare what it reads in the schema"
        if vocabulary.ISSUER in complaint:
            remedy = f"name its actions or resource types: as it is, it also covers `{vocabulary.OBTAIN}`"
        raise refusal(
            f"policy `{info.id}` does not validate: {complaint.replace(f'`{engine_id}`', f'`{info.id}`')}",
            path=info.path,
            line=info.line,
            reason="validation",
            remedy=remedy,
        )
    return handle


def _index(
    sources: Sources, own: Sequence[PolicyText], built_in: Sequence[PolicyText]
) -> tuple[ScopeIndex | None, tuple[str, ...], frozenset[int]]:
    """Scopes, texts, and the positions of policies that are not parsed again outside of a load."""
    policies = [*own, *built_in]
    if len(policies) <= MAX_WITHOUT_INDEX:
        return None, (), frozenset()
    files = {sources.path(name): text for name, text in sources.policies}
    ours = vocabulary.built_in_policies()
    texts = [files[policy.path][policy.start : policy.end] for policy in own]
    texts += [ours[policy.start : policy.end] for policy in built_in]
    unsliced = frozenset(
        position
        for position, policy in enumerate(policies)
        if policy.depth > MAX_SLICE_DEPTH or policy.size > MAX_SLICE_TOKENS
    )
    return ScopeIndex([policy.scope for policy in policies]), tuple(texts), unsliced


def _policy_place(sources: Sources) -> tuple[str, int]:
    for name, text in sources.policies:
        path = sources.path(name)
        if not _policy_complaint(text):
            continue
        for policy in scan_policies(text, path):
            alone = text[policy.start : policy.end]
            if _policy_complaint(alone):
                line = _first_bad_line(alone, path, _policy_complaint)
                return path, policy.line + line - 1 if line else policy.line
    return sources.root, 0


def _entities(
    text: str, path: str, schema: engine.SchemaHandle, shape: Schema, *, is_whole: bool
) -> Mapping[Entity, Record]:
    records = read_entities(text, path, shape, is_whole=is_whole)
    try:
        engine.parse_entities(f"[{','.join(record.json for record in records.values())}]", schema)
    except engine.EngineError as exc:
        for record in records.values():
            try:
                engine.parse_entities(f"[{record.json}]", schema)
            except engine.EngineError as inner:
                offset = max(text.find(json.dumps(record.uid.id, ensure_ascii=False)), 0)
                raise refusal(
                    f"`{record.uid}`: {inner.message}",
                    path=path,
                    line=line_at(text, offset) if offset else 0,
                    reason="entities",
                    remedy="correct the entity",
                ) from inner
        raise refusal(exc.message, path=path, reason="entities", remedy="correct the entities") from exc
    return records


def _asked(action: ActionType, shape: Schema) -> Asked:
    keys = {name: is_required for name, _, is_required in action.context.fields}
    with_facts = frozenset(name for name in action.resources if shape.entities[name].has_facts)
    return Asked(
        ActionShape(action.uid, keys, action.resources),
        {"type": action.uid.type, "id": action.uid.id},
        ContextBuilder(action.context),
        with_facts,
    )


def _names(actions: Mapping[Entity, Asked]) -> dict[str, tuple[Entity, ...]]:
    """Every spelling of an action's name."""
    names: dict[str, dict[Entity, None]] = {}
    for uid in actions:
        if uid == vocabulary.OBTAIN:
            continue
        namespace = uid.type.rpartition("Action")[0]
        for name in (str(uid), f"{namespace}{uid.id}", uid.id):
            names.setdefault(name, {})[uid] = None
    return {name: tuple(sorted(found)) for name, found in names.items()}


def _resolver(names: Mapping[str, tuple[Entity, ...]]) -> Callable[[str], Entity]:
    def resolve(name: str) -> Entity:
        candidates = names.get(name, ())
        if len(candidates) == 1:
            return candidates[0]
        what = "is the id of more than one action" if candidates else "is no action of the schema"
        raise PolicyEvaluationError(
            f"action {ascii(name)[:80]} {what}",
            reasons=("unknown-action",),
            remedy=f"name one of {', '.join(str(uid) for uid in candidates)}" if candidates else "correct the name",
        )

    return resolve


def _literal(uid: tuple[str, str]) -> Entity | None:
    """An entity that a condition names; None where it can have no record (an action, or an id beyond our bounds)."""
    try:
        return None if uid[0].rpartition("::")[2] == "Action" else Entity(*uid)
    except InvalidTaskError:
        return None
