# SPDX-License-Identifier: Apache-2.0
"""Cedar, behind the only door to it.

Holds the calls into the engine and turns its answers and failures into values of this room. Does not hold rules: what
an answer means is decided by `judge`, in one place, after rule 1 of the design.
"""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import cedarpy

from jitwi.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "Answer",
    "EngineError",
    "EntitiesHandle",
    "PoliciesHandle",
    "SchemaHandle",
    "ask",
    "invalid_policies",
    "on_large_stack",
    "parents_of",
    "parse_entities",
    "parse_policies",
    "parse_schema",
    "parse_slice",
    "require_self_test",
]

PoliciesHandle = cedarpy.PolicySet
SchemaHandle = cedarpy.Schema
EntitiesHandle = cedarpy.Entities

MAX_ERRORS = 8
MAX_ERROR_CHARS = 256
_STACK_BYTES = 64 * 2**20
_LOAD_SECONDS = 120.0
_FEW = 50
_T = TypeVar("_T")


class EngineError(PolicyError):
    """The engine refused a text or failed; this room turns it into a refused load or a deny."""

    code = "policy-engine"


class Answer(NamedTuple):
    """What the engine said, already judged.

    Attributes:
        is_allowed: Allow, and no evaluation error.
        reason: `allow`, `forbid`, `no-permit`, `evaluation-error` or `no-decision`.
        determining: Ids that the engine gave to the determining policies.
        annotated: Engine's id -> `@id`.
        errors: Evaluation errors, bounded.
    """

    is_allowed: bool
    reason: str
    determining: list[str]
    annotated: dict[str, str]
    errors: tuple[str, ...]


def _call(function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    try:
        return function(*args, **kwargs)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:  # a panic of the engine is a BaseException
        if isinstance(exc, Exception) or type(exc).__name__ == "PanicException":
            raise EngineError(_bounded(str(exc)) or type(exc).__name__, reasons=("engine",)) from exc
        raise


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else f"{text[: MAX_ERROR_CHARS - 3]}..."


def parse_schema(text: str) -> SchemaHandle:
    """Parse a schema.

    Raises:
        EngineError: It is not one.
    """
    return _call(cedarpy.Schema.from_str, text, release_gil=True)


def parse_policies(text: str) -> PoliciesHandle:
    """Parse policies; their ids are `policy0`, `policy1`, ... in the order of the text.

    Raises:
        EngineError: They are not policies.
    """
    return _call(cedarpy.PolicySet.from_str, text, release_gil=True)


def parse_slice(texts: Sequence[str]) -> PoliciesHandle:
    """Parse some policies of a set that was parsed before; their ids are `policy0`, `policy1`, ... in this order.

    Raises:
        EngineError: They are not one policy each.
    """
    # Giving the GIL away and getting it back costs more than a few policies do.
    handle = _call(cedarpy.PolicySet.from_str, "\n".join(texts), release_gil=len(texts) > _FEW)
    if len(handle) != len(texts) or handle.templates():
        raise EngineError(f"{len(texts)} policies are {len(handle)} without the others", reasons=("slice",))
    return handle


def parse_entities(text: str, schema: SchemaHandle) -> EntitiesHandle:
    """Build an entities handle with its schema: without, policies on action groups would silently stop matching.

    Raises:
        EngineError: They do not conform to the schema.
    """
    return _call(cedarpy.Entities.from_json_str, text, schema)


def invalid_policies(text: str, schema: SchemaHandle) -> list[tuple[str, str]]:
    """Return (engine's policy id, complaint) for all that does not validate; empty if all does.

    Raises:
        EngineError: The engine failed.
    """
    result = _call(cedarpy.validate_policies, text, schema, release_gil=True)
    if result.validation_passed and not result.errors:
        return []
    return [(error.policy_id, _bounded(error.error)) for error in result.errors] or [("", "validation failed")]


def ask(request: Mapping[str, Any], policies: PoliciesHandle, entities: EntitiesHandle, schema: SchemaHandle) -> Answer:
    """Ask one question.

    Args:
        request: `principal`, `action` and `resource` as type and id, `context` as JSON text.
        policies: Handle.
        entities: Handle, built with `schema`.
        schema: Handle.

    Raises:
        EngineError: The engine failed; counts as a deny.
    """
    try:
        result = cedarpy.is_authorized(request, policies, entities, schema)  # type: ignore[arg-type, unused-ignore]
        diagnostics = result.diagnostics
        return judge(
            result.decision.value, diagnostics.reasons, diagnostics.id_annotations_by_reason, diagnostics.errors
        )
    except Exception as exc:
        raise EngineError(_bounded(str(exc)) or type(exc).__name__, reasons=("engine",)) from exc
    except BaseException as exc:
        if type(exc).__name__ == "PanicException":
            raise EngineError("the engine panicked", reasons=("engine",)) from exc
        raise


def judge(decision: str, determining: list[str], annotated: dict[str, str], errors: list[str]) -> Answer:
    """Say what an answer means: allowed only if it is Allow **and** no policy failed to evaluate.

    Args:
        decision: `Allow`, `Deny` or `NoDecision`.
        determining: The engine's ids of the determining policies.
        annotated: The engine's id -> `@id`.
        errors: Evaluation errors.
    """
    if decision == "Allow" and not errors:
        return Answer(True, "allow", determining, annotated, ())  # noqa: FBT003
    bounded = tuple(_bounded(error) for error in errors[:MAX_ERRORS])
    if decision not in {"Allow", "Deny"}:
        reason = "no-decision"
    elif decision == "Deny" and determining:
        reason = "forbid"
    elif errors:
        reason = "evaluation-error"
    else:
        reason = "no-permit"
    return Answer(False, reason, determining, annotated, bounded)  # noqa: FBT003


def on_large_stack(work: Callable[[], _T]) -> _T:
    """Run `work` in a thread whose stack has room for everything that the guards let through.

    Args:
        work: Load-time work; its exception is raised here.

    Raises:
        EngineError: It took longer than two minutes.
    """
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as exc:  # noqa: BLE001 - handed to the caller's thread
            failure.append(exc)

    thread = threading.Thread(target=run, name="jitwi-policy-load", daemon=True)
    with _stack_lock:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        except RuntimeError as exc:
            raise EngineError("no thread to load in", reasons=("thread",)) from exc
        finally:
            threading.stack_size(before)
    thread.join(_LOAD_SECONDS)
    if failure:
        raise failure[0]
    if not outcome:
        raise EngineError(f"loading took longer than {_LOAD_SECONDS:g} s", reasons=("timeout",))
    return outcome[0]


_stack_lock = threading.Lock()


def _forget_lock() -> None:
    global _stack_lock  # noqa: PLW0603 - a lock that was held while forking is never given back
    _stack_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)

_PERMIT_ALL = "permit(principal, action, resource);"
_TEST_SCHEMA = """
entity U; entity R;
action group;
action act in [group] appliesTo { principal: U, resource: R, context: { n: Long } };
"""
_TEST_ACTIONS = (
    # what, policies, context, expected reason
    ("a permit allows", _PERMIT_ALL, '{"n": 1}', "allow"),
    (
        "a forbid on an action group denies",
        _PERMIT_ALL + 'forbid(principal, action in Action::"group", resource);',
        '{"n": 1}',
        "forbid",
    ),
    (
        "a forbid that cannot be evaluated denies",
        _PERMIT_ALL + "forbid(principal, action, resource) when { 9223372036854775807 + context.n > 0 };",
        '{"n": 1}',
        "evaluation-error",
    ),
    ("an empty set denies", "", '{"n": 1}', "no-permit"),
    ("a missing fact denies", _PERMIT_ALL, "{}", "no-decision"),
    ("an unknown fact denies", _PERMIT_ALL, '{"n": 1, "m": 1}', "no-decision"),
    ("a fact of another type denies", _PERMIT_ALL, '{"n": "1"}', "no-decision"),
)
_TEST_INVALID = "permit(principal, action, resource) when { context.m == 1 };"
_tested = threading.Event()


def require_self_test() -> None:
    """Put must-deny vectors to this very engine, once per process.

    Raises:
        EngineError: The engine answers otherwise than it must; nothing is loaded.
    """
    if _tested.is_set():
        return
    schema = parse_schema(_TEST_SCHEMA)
    entities = parse_entities("[]", schema)
    for what, policies, context, expected in _TEST_ACTIONS:
        request = {
            "principal": {"type": "U", "id": "u"},
            "action": {"type": "Action", "id": "act"},
            "resource": {"type": "R", "id": "r"},
            "context": context,
        }
        answer = ask(request, parse_policies(policies), entities, schema)
        if answer.reason != expected or answer.is_allowed != (expected == "allow"):
            msg = f"self-test of the policy engine failed: {what}, but the answer was `{answer.reason}`"
            raise EngineError(
                msg, reasons=("self-test",), remedy="install a cedarpy release that jitwi was tested with"
            )
    if not invalid_policies(_TEST_INVALID, schema):
        raise EngineError("self-test of the policy engine failed: an invalid policy validates", reasons=("self-test",))
    try:
        parse_schema("entity A in [Nowhere];")
    except EngineError:
        _tested.set()
        return
    raise EngineError("self-test of the policy engine failed: a broken schema loads", reasons=("self-test",))


def actions_of(schema: SchemaHandle) -> set[tuple[str, str]]:
    """Return (type, id) of every action that the schema declares, as the engine lists them.

    Raises:
        EngineError: The engine failed.
    """
    listed = _call(json.loads, _call(str, parse_entities("[]", schema)))
    return {(entity["uid"]["type"], entity["uid"]["id"]) for entity in listed}


def parents_of(entities: EntitiesHandle) -> dict[tuple[str, str], tuple[tuple[str, str], ...]]:
    """Return what each entity of a handle is in, as the engine prints it; those that are in nothing are left out.

    Args:
        entities: Handle; it also holds the actions of the schema that it was built with.

    Raises:
        EngineError: The engine failed, or prints something else than entities.
    """
    listed = _call(json.loads, _call(str, entities))
    try:
        return {
            (entity["uid"]["type"], entity["uid"]["id"]): tuple(
                (each["type"], each["id"]) for each in entity["parents"]
            )
            for entity in listed
            if entity["parents"]
        }
    except (KeyError, TypeError) as exc:
        raise EngineError("the engine prints entities in another form", reasons=("entities",)) from exc
