# SPDX-License-Identifier: Apache-2.0
"""Entities are read strictly, and reach evaluation as a closure. Source: vocabulary §2."""

from __future__ import annotations

import json

import pytest

from jitwi.errors import InvalidPolicyError
from jitwi.policy import engine
from jitwi.policy.entities import MAX_ANCESTRY, MAX_CLOSURE, workload_record
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity

SCHEMA = """namespace Shop {
  entity Person = { name: String, boss?: Person, since?: datetime };
  entity Folder in [Folder] = { open?: Bool };
  entity Plain;
  entity Colour enum ["red", "blue"];
  entity File in [Folder] = { owner: Person, size: Long, price?: decimal, marks?: Set<Person>,
                              box?: { at: Plain, lid: { shut: Bool } }, colour?: Colour } tags String;
  action read appliesTo { principal: [Jitwi::Workload], resource: [File, Folder, Plain, Colour, Jitwi::Workload],
                          context: { task: Jitwi::Task } };
}
"""
PERMIT = "permit(principal, action, resource);"


def _entity(kind, name, parents=(), /, **attrs):
    return {
        "uid": {"type": f"Shop::{kind}", "id": name},
        "attrs": attrs,
        "parents": [{"type": f"Shop::{parent[0]}", "id": parent[1]} for parent in parents],
    }


def _ref(kind, name):
    return {"__entity": {"type": f"Shop::{kind}", "id": name}}


ANN = _entity("Person", "ann", name="Ann")
GOOD = [
    _entity(
        "File",
        "f",
        [("Folder", "a")],
        owner=_ref("Person", "ann"),
        size=1,
        price={"__extn": {"fn": "decimal", "arg": "1.5"}},
    ),
    _entity("Folder", "a", [("Folder", "root")]),
    _entity("Folder", "root"),
    ANN,
]


def _changed(**changes):
    return [{**_entity("File", "f", owner=_ref("Person", "ann"), size=1), **changes}, ANN]


def _file(**attrs):
    return [_entity("File", "f", **{"owner": _ref("Person", "ann"), "size": 1, **attrs}), ANN]


BAD = {
    "extra member": _changed(more=1),
    "no attrs": [{"uid": {"type": "Shop::Plain", "id": "p"}, "parents": []}],
    "no parents": [{"uid": {"type": "Shop::Plain", "id": "p"}, "attrs": {}}],
    "extra in uid": _changed(uid={"type": "Shop::File", "id": "f", "x": 1}),
    "uid without type": _changed(uid={"id": "f"}),
    "uid as text": _changed(uid='Shop::File::"f"'),
    "empty id": _changed(uid={"type": "Shop::File", "id": ""}),
    "control character": _changed(uid={"type": "Shop::File", "id": "a\nb"}),
    "surrogate": _changed(uid={"type": "Shop::File", "id": "\ud800"}),
    "long id": _changed(uid={"type": "Shop::File", "id": "x" * 513}),
    "long id in bytes": _changed(uid={"type": "Shop::File", "id": "é" * 257}),
    "number as id": _changed(uid={"type": "Shop::File", "id": 1}),
    "bad type": _changed(uid={"type": "Shop:File", "id": "f"}),
    "unknown type": _changed(uid={"type": "Shop::Nope", "id": "f"}),
    "parents no list": _changed(parents={}),
    "parent of wrong type": _changed(parents=[{"type": "Shop::Person", "id": "ann"}]),
    "extra in parent": _changed(parents=[{"type": "Shop::Folder", "id": "a", "x": 1}]),
    "unknown attribute": _file(more=1),
    "missing attribute": _changed(attrs={"size": 1}),
    "wrong type": _file(size="1"),
    "boolean as number": _file(size=True),
    "number too large": _file(size=2**63),
    "fraction": _file(size=1.0),
    "null": _file(size=None),
    "extra in reference": _file(owner={"__entity": {"type": "Shop::Person", "id": "ann", "x": 1}}),
    "beside a reference": _file(owner={"__entity": {"type": "Shop::Person", "id": "ann"}, "x": 1}),
    "reference to wrong type": _file(owner=_ref("Plain", "ann")),
    "set is no list": _file(marks={}),
    "element of wrong type": _file(marks=[_ref("Plain", "p")]),
    "record lacks member": _file(box={"at": _ref("Plain", "p")}),
    "record has more": _file(box={"at": _ref("Plain", "p"), "lid": {"shut": True, "x": 1}}),
    "extension with more": _file(price={"__extn": {"fn": "decimal", "arg": "1.5", "x": 1}}),
    "extension of no value": _file(price={"__extn": {"fn": "decimal", "arg": "x"}}),
    "extension of other type": _file(price={"__extn": {"fn": "ip", "arg": "1.1.1.1"}}),
    "unlisted id": _file(colour=_ref("Colour", "green")),
    "tag of wrong type": _changed(tags={"a": 1}),
    "tags no object": _changed(tags=[]),
    "tags where none are": [{**_entity("Plain", "p"), "tags": {"a": "b"}}],
    "same twice": [*GOOD, ANN],
    "cycle": [_entity("Folder", "a", [("Folder", "b")]), _entity("Folder", "b", [("Folder", "a")])],
    "own parent": [_entity("Folder", "a", [("Folder", "a")])],
    "our own type": [{"uid": {"type": "Jitwi::Path", "id": "a/b"}, "attrs": {}, "parents": []}],
    "a workload": [{"uid": {"type": "Jitwi::Workload", "id": "spiffe://a/b"}, "attrs": {}, "parents": []}],
    "an action": [{"uid": {"type": "Shop::Action", "id": "read"}, "attrs": {}, "parents": []}],
    "unknown parent": [_entity("Folder", "a", [("Folder", "b")])],
    "unknown reference": [GOOD[0], *GOOD[1:3]],
    "too deep": [_entity("Folder", str(n), [("Folder", str(n + 1))]) for n in range(MAX_ANCESTRY)]
    + [_entity("Folder", str(MAX_ANCESTRY))],
}


@pytest.mark.parametrize("bad", BAD)
def test_loose_entities_are_refused(bad, shop) -> None:
    """What the engine would pass over, or what no schema allows, refuses the load with its place."""
    text = json.dumps(BAD[bad], indent=1)
    with pytest.raises(InvalidPolicyError) as caught:
        shop.store(policies=PERMIT, schema=SCHEMA, entities=text).load()
    assert caught.value.reasons == ("entities",)
    assert caught.value.path == "entities.json"
    assert caught.value.remedy


def test_strict_entities_load(shop) -> None:
    """The set that the refusals start from is good, and decides."""
    snapshot = shop.store(policies=PERMIT, schema=SCHEMA, entities=json.dumps(GOOD)).load()
    assert shop.decide(snapshot, "read", Entity("Shop::File", "f")).is_allowed
    assert snapshot.is_under(Entity("Shop::File", "f"), Entity("Shop::Folder", "root")) is True


@pytest.mark.parametrize("text", [
    '[{"uid": {"type": "Shop::Plain", "id": "p", "id": "q"}, "attrs": {}, "parents": []}]',
    '[{"uid": {"type": "Shop::Plain", "id": "p"}, "attrs": {}, "attrs": {}, "parents": []}]',
    '[{"uid": {"type": "Shop::Folder", "id": "p"}, "attrs": {"open": true, "open": false}, "parents": []}]',
])  # fmt: skip
def test_repeated_members_are_refused(text, shop) -> None:
    """A member that is there twice could be read in two ways."""
    with pytest.raises(InvalidPolicyError, match="twice"):
        shop.store(policies=PERMIT, schema=SCHEMA, entities=text).load()


def test_a_refusal_names_the_line_of_the_entity(shop) -> None:
    """The line is where the entity begins."""
    text = '[\n{"uid": {"type": "Shop::Plain", "id": "p"}, "attrs": {}, "parents": []},\n\n{"uid": 1}\n]'
    with pytest.raises(InvalidPolicyError) as caught:
        shop.store(policies=PERMIT, schema=SCHEMA, entities=text).load()
    assert caught.value.line == 4


def test_a_long_chain_of_parents_is_refused_before_the_engine(shop, monkeypatch) -> None:
    """The engine's cost grows with the square of a chain; ours does not (bar 38)."""
    chain = [_entity("Folder", str(n), [("Folder", str(n + 1))]) for n in range(5_000)] + [_entity("Folder", "5000")]
    asked = []
    original = engine.parse_entities
    monkeypatch.setattr(
        engine, "parse_entities", lambda text, schema: asked.append(len(text)) or original(text, schema)
    )
    with pytest.raises(InvalidPolicyError, match="chain"):
        shop.store(policies=PERMIT, schema=SCHEMA, entities=json.dumps(chain)).load()
    assert max(asked, default=0) < 1_000


@pytest.mark.parametrize(("count", "good"), [(MAX_CLOSURE - 3, True), (MAX_CLOSURE, False)])
def test_the_entities_of_one_request_are_bounded(count, good, shop) -> None:
    """A resource that reaches too many entities is denied, not asked (bar 38)."""
    people = [_entity("Person", str(n), name="x") for n in range(count)]
    file = _entity("File", "f", owner=_ref("Person", "0"), size=1, marks=[_ref("Person", str(n)) for n in range(count)])
    snapshot = shop.store(policies=PERMIT, schema=SCHEMA, entities=json.dumps([file, *people])).load()
    decision = shop.decide(snapshot, "read", Entity("Shop::File", "f"))
    assert decision.is_allowed is good
    assert good or decision.reason == "unknown-resource"


def test_only_the_closure_is_sent(shop, monkeypatch) -> None:
    """A handle holds what the request reaches: parents and references, theirs too, and nothing else."""
    sent = []
    original = engine.parse_entities
    others = [_entity("Folder", f"other{n}") for n in range(50)]
    snapshot = shop.store(policies=PERMIT, schema=SCHEMA, entities=json.dumps([*GOOD, *others])).load()
    monkeypatch.setattr(engine, "parse_entities", lambda text, schema: sent.append(text) or original(text, schema))
    assert shop.decide(snapshot, "read", Entity("Shop::File", "f")).is_allowed
    (text,) = sent
    uids = {(each["uid"]["type"], each["uid"]["id"]) for each in json.loads(text)}
    assert uids == {
        ("Shop::File", "f"), ("Shop::Folder", "a"), ("Shop::Folder", "root"), ("Shop::Person", "ann"),
        ("Jitwi::Workload", str(shop.caller)),
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "reason"), [
    ("File", "nope", "unknown-resource"),
    ("Folder", "nope", "unknown-resource"),
    ("Plain", "anything", "allow"),
    ("Colour", "red", "allow"),
    ("Colour", "green", "no-decision"),
])  # fmt: skip
def test_a_resource_with_facts_must_be_known(kind, name, reason, shop) -> None:
    """A type with attributes, parents or tags needs a record; one with neither needs only its uid."""
    snapshot = shop.store(policies=PERMIT, schema=SCHEMA, entities=json.dumps(GOOD)).load()
    assert shop.decide(snapshot, "read", Entity(f"Shop::{kind}", name)).reason == reason


def test_a_workload_as_resource_is_built_from_its_id(shop) -> None:
    """A resource that is a workload gets its facts from its SPIFFE ID; text that is none is unknown."""
    policies = 'permit(principal, action, resource in Jitwi::Path::"example.org/ns/dev");'
    snapshot = shop.store(policies=policies, schema=SCHEMA, entities="[]").load()

    def ask(name):
        return shop.decide(snapshot, "read", Entity("Jitwi::Workload", name))

    assert ask("spiffe://example.org/ns/dev/x").is_allowed
    assert ask("spiffe://example.org/ns/prod/x").reason == "no-permit"
    assert ask("example.org/ns/dev/x").reason == "unknown-resource"
    assert ask(str(shop.caller)).reason == "no-permit"


def test_paths_and_workloads_in_attributes_have_their_hierarchy(shop) -> None:
    """An attribute may refer to a path or a workload; a misspelt one is unknown, not merely without ancestors."""
    schema = """entity Desk = { of: Jitwi::Path, by?: Jitwi::Workload };
    action read appliesTo { principal: [Jitwi::Workload], resource: [Desk], context: { task: Jitwi::Task } };"""
    policies = """permit(principal, action == Action::"read", resource);
    @id("prod") forbid(principal, action == Action::"read", resource)
    when { resource.of in Jitwi::Path::"example.org/ns/prod" || resource.of in Jitwi::TrustDomain::"example.com" };"""

    def ask(of, **more):
        attrs = {"of": {"__entity": {"type": "Jitwi::Path", "id": of}}, **more}
        entities = [{"uid": {"type": "Desk", "id": "d"}, "attrs": attrs, "parents": []}]
        snapshot = shop.store(policies=policies, schema=schema, entities=json.dumps(entities)).load()
        return shop.decide(snapshot, "read", Entity("Desk", "d"))

    assert ask("example.org/ns/dev/x").is_allowed
    assert ask("example.org/ns/prod/x").policy_ids == ("prod",)
    assert ask("example.org/ns/prod").policy_ids == ("prod",)
    assert ask("example.com/ns/dev").policy_ids == ("prod",)
    for bad in ("spiffe://example.org/ns/prod", "example.org", "example.org/ns/prod/"):
        with pytest.raises(InvalidPolicyError, match="nobody describes"):
            ask(bad)
    by = {"__entity": {"type": "Jitwi::Workload", "id": "spiffe://example.org"}}
    with pytest.raises(InvalidPolicyError, match="nobody describes"):
        ask("example.org/ns/dev", by=by)


def test_the_longest_spiffe_id_is_a_principal(shop) -> None:
    """2048 bytes with a thousand segments build one entity, flat."""
    longest = SpiffeId.parse("spiffe://example.org/" + "a/" * 1_000 + "b" * 20)
    record = json.loads(workload_record(longest).json)
    assert len(record["parents"]) == 1_002
    policies = 'permit(principal in Jitwi::Path::"example.org/a/a/a", action, resource);'
    snapshot = shop.store(policies=policies, schema=SCHEMA, entities="[]").load()
    assert shop.decide(snapshot, "read", Entity("Shop::Plain", "x"), longest).is_allowed
