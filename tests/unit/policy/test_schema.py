# SPDX-License-Identifier: Apache-2.0
"""The reader of the engine's print of a schema, held against the engine itself."""

from __future__ import annotations

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.errors import InvalidPolicyError
from jitwi.policy import engine
from jitwi.policy.schema import EntityRef, Primitive, RecordOf, SetOf, read_schema
from jitwi.policy.vocabulary import built_in_policies, built_in_schema
from jitwi.task import Entity

NAMES = [
    "a",
    "b1",
    "_c",
    "task",
    "in",
    "if",
    "we ird",
    'qu"ote',
    "back\\slash",
    "new\nline",
    "é",
    "😀",
    "type",
    "context",
]


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _types():
    leaf = st.sampled_from(["Long", "String", "Bool", "datetime", "Thing", "N::Other", "N::Alias", "__cedar::Long"])

    def fields(inner):
        return st.dictionaries(st.sampled_from(NAMES), st.tuples(inner, st.booleans()), max_size=3)

    return st.recursive(
        leaf,
        lambda inner: (
            inner.map(lambda each: f"Set<{each}>")
            | fields(inner).map(
                lambda each: (
                    "{" + ", ".join(f"{_quoted(k)}{'' if must else '?'}: {t}" for k, (t, must) in each.items()) + "}"
                )
            )
        ),
        max_leaves=5,
    )


@settings(max_examples=150, deadline=None)
@given(
    context=st.dictionaries(st.sampled_from(NAMES), st.tuples(_types(), st.booleans()), max_size=5),
    name=st.sampled_from([name for name in NAMES if name.isprintable()]),
)
def test_context_keys_are_what_the_engine_says(context, name) -> None:
    """Required, optional or absent: each key as the engine's own validator answers for a probe."""
    body = ", ".join(f"{_quoted(key)}{'' if must else '?'}: {kind}" for key, (kind, must) in context.items())
    text = f"""
    entity Thing; namespace N {{ entity Other in [Thing]; type Alias = {{ x: Set<Other> }};
    action {_quoted(name)} appliesTo {{ principal: [Thing], resource: [Other], context: {{ {body} }} }}; }}"""
    handle = engine.parse_schema(text)
    shape = read_schema(str(handle))
    (action,) = shape.actions
    assert action.uid.id == name
    for key in NAMES:
        probe = f"permit(principal, action, resource) when {{ context[{_quoted(key)}] == context[{_quoted(key)}] }};"
        complaints = " ".join(error.error for error in cedarpy.validate_policies(probe, handle).errors)
        expected = None if "not found" in complaints else "unable to guarantee safety" not in complaints
        found = action.context.field(key)
        assert (None if found is None else found[1]) is expected, (key, complaints)


def test_types_are_resolved() -> None:
    """Names stand for what Cedar takes them for: own namespace first, then none, then built in."""
    handle = engine.parse_schema("""
    entity Top; type Shared = { n: Long };
    namespace A::B { entity Mine in [Top, Mine] = { n: Long } tags Set<Top>;
      type T = Set<Mine>; type Own = { t: T, s?: Shared };
      entity Listed enum ["x", "y"];
      action group; action "do it" in [group] appliesTo { principal: Mine, resource: [Top, Listed], context: Own }; }
    """)
    shape = read_schema(str(handle))
    mine = shape.entities["A::B::Mine"]
    assert mine.parents == {"Top", "A::B::Mine"}
    assert mine.attributes == RecordOf((("n", Primitive("Long"), True),))
    assert mine.tags == SetOf(EntityRef("Top"))
    assert (mine.has_facts, shape.entities["Top"].has_facts, shape.entities["A::B::Listed"].is_enum) == (
        True,
        False,
        True,
    )
    action = next(each for each in shape.actions if each.uid == Entity("A::B::Action", "do it"))
    assert action.principals == {"A::B::Mine"}
    assert action.resources == {"Top", "A::B::Listed"}
    assert action.context.field("t") == (SetOf(EntityRef("A::B::Mine")), True)
    assert action.context.field("s") == (mine.attributes, False)
    assert engine.actions_of(handle) == {("A::B::Action", "group"), ("A::B::Action", "do it")}


@pytest.mark.parametrize("printed", [
    "relation A;", "entity A = { x: Nowhere };", "entity A in [Nowhere];", "entity A", "entity ;",
    "namespace A { entity B;",
    'action "a" appliesTo { principal: [A], resource: [A], obligations: {} };', "entity A = { x: Map<Long> };",
    "type A = Long; entity A;", "entity Set;", "namespace N { type Boolean = Long; }", "entity A = Long;",
    "entity A enum [1];",
])  # fmt: skip
def test_an_unknown_construct_is_refused(printed) -> None:
    """What this reader does not know refuses the load: unknown means no."""
    with pytest.raises(InvalidPolicyError) as caught:
        read_schema(printed)
    assert caught.value.remedy


def test_an_action_name_out_of_bounds_is_refused(shop) -> None:
    """Action ids follow the rules of entity ids."""
    for name in ("a\\nb", "x" * 513):
        schema = shop.schema.replace("action open", f'action "{name}"')
        with pytest.raises(InvalidPolicyError) as caught:
            shop.store(schema=schema, policies="permit(principal, action, resource);").load()
        assert caught.value.reasons == ("action-name",)


def test_our_own_data_is_sound() -> None:
    """The packaged schema parses, the packaged policy validates against it."""
    handle = engine.parse_schema(built_in_schema())
    assert engine.invalid_policies(built_in_policies(), handle) == []
    assert engine.actions_of(handle) == {("Jitwi::Action", "obtain")}
