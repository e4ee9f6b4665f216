# SPDX-License-Identifier: Apache-2.0
"""Slices of a set answer as the whole set does, whatever the scopes and the hierarchy (T8)."""

from __future__ import annotations

import copy
import gc
import json
import random
import weakref
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jitwi.policy import EntityRecord, Evidence, Facts, PolicyStore, engine, slices, task_json
from jitwi.policy import slice as slice_module
from jitwi.policy.slice import ANY, ScopeIndex, ancestors, eq_key, in_key, is_in_key, is_key, request_keys
from jitwi.policy.snapshot import _Ready
from jitwi.policy.text import scan_policies
from jitwi.policy.vocabulary import built_in_schema
from jitwi.spiffe_id import SpiffeId
from jitwi.task import Entity

ODD = ['a"b', "c\\d", 'e\\"f', "g'h;", "// i", "\\", "ü)", "j, k]"]
"""Ids that a careless reader of text would split or unescape in the wrong way."""
LONG_MAX = 2**63 - 1
CALLERS = [
    SpiffeId.parse(f"spiffe://{each}") for each in ("example.org/ns/a/sa/x", "example.org/ns/b", "other.org/ns/a")
]
PATHS = ["example.org/ns", "example.org/ns/a", "example.org/ns/a/sa/x", "other.org/ns", "example.org/ns/c"]
LEAVES, GROUPS, DOCS, FOLDERS, ZONES = 4, 4, 4, 3, 3
FACTS = Facts(
    task_json=task_json({"name": "t", "ttl": 60, "owner": "o", "purpose": "p"}),
    used=0,
    now=1_700_000_000.0,
    evidence=Evidence.LOCAL,
)
RESOURCES = [
    *(Entity("N::Doc", ODD[each]) for each in range(DOCS)),
    *(Entity("N::Folder", ODD[each]) for each in range(FOLDERS)),
    *(Entity("N::Zone", ODD[each]) for each in range(ZONES)),
]


def literal(kind: str, name: str) -> str:
    """A uid as Cedar text."""
    return f"{kind}::{json.dumps(name, ensure_ascii=False)}"


def some(chance: random.Random, items: list[str]) -> list[str]:
    """Each of `items` or not."""
    return [item for item in items if chance.random() < 0.4]


class World:
    """A random schema, hierarchy and set of policies, and requests to it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.leaves = [f"{ODD[each]} leaf" for each in range(LEAVES)]
        self.groups = [f"{ODD[each]} group" for each in range(GROUPS)]
        schema = self.schema()
        lines = [self.policy(number) for number in range(24 + chance.randrange(12))]
        handle = engine.parse_schema(f"{built_in_schema()}\n{schema}")
        # Scopes that the schema makes impossible are refused at a load.
        refused = {name for name, _ in engine.invalid_policies("\n".join(lines), handle)}
        text = "\n".join(line for number, line in enumerate(lines) if f"policy{number}" not in refused)
        permit = 'permit (principal, action == N::Action::"plain", resource);'
        self.store = PolicyStore.from_text(
            policies=f"{text}\n{permit}", schema=schema, entities=json.dumps(self.entities())
        )

    def schema(self) -> str:
        """Actions in a random hierarchy of groups, each group with a member that can be asked about."""
        lines = ["entity Robot; entity Zone;"]
        lines += ["entity Folder in [Folder, Zone] = { level: Long }; entity Doc in [Folder, Zone] = { level: Long };"]
        use = "appliesTo { principal: [Jitwi::Workload, Robot], resource: [Doc, Folder, Zone],"
        use += " context: { task: Jitwi::Task } };"
        lines.append(f"action plain {use}")
        for number, name in enumerate(self.groups):
            above = ", ".join(json.dumps(each) for each in some(self.chance, self.groups[number + 1 :]))
            lines.append(f"action {json.dumps(name, ensure_ascii=False)}{f' in [{above}]' if above else ''};")
        for number, name in enumerate(self.leaves):
            own = [self.groups[number], *some(self.chance, self.groups)]
            above = ", ".join(json.dumps(each) for each in dict.fromkeys(own))
            lines.append(f"action {json.dumps(name, ensure_ascii=False)} in [{above}] {use}")
        return "namespace N {{\n{}\n}}".format("\n".join(lines).replace("\\u00fc", "ü"))

    def entities(self) -> list[dict]:
        """Folders in later folders, documents in folders, both in zones that nobody describes."""

        def record(kind: str, name: str, folders: list[str]) -> dict:
            above = [("Folder", each) for each in some(self.chance, folders)]
            above += [("Zone", each) for each in some(self.chance, ODD[:ZONES])]
            return {
                "uid": {"type": f"N::{kind}", "id": name},
                "attrs": {"level": self.chance.randrange(3)},
                "parents": [{"type": f"N::{kind}", "id": name} for kind, name in above],
            }

        folders = [record("Folder", ODD[each], ODD[each + 1 : FOLDERS]) for each in range(FOLDERS)]
        return [*folders, *(record("Doc", ODD[each], ODD[:FOLDERS]) for each in range(DOCS))]

    def policy(self, number: int) -> str:
        """One policy of any shape that validates, with white space and comments that mean nothing."""
        pick = self.chance.choice
        principal = pick(
            [
                *["", " is Jitwi::Workload", " is N::Robot", ' in N::Robot::"r"', ' == N::Robot::"r"'],
                *[f" == {literal('Jitwi::Workload', str(caller))}" for caller in CALLERS],
                *[f" in {literal('Jitwi::Path', path)}" for path in PATHS],
                *[f" is Jitwi::Workload in {literal('Jitwi::Path', path)}" for path in PATHS[:3]],
                ' in Jitwi::TrustDomain::"example.org"',
            ]
        )
        names = [*self.leaves, *self.groups]
        members = ",".join(
            literal("N::Action", each) for each in self.chance.sample(names, 1 + self.chance.randrange(3))
        )
        action = pick(
            [
                *["", f" == {literal('N::Action', pick(self.leaves))}", f" in [{members}]", f" in [ {members}, ]"],
                *[f" in {literal('N::Action', each)}" for each in names],
            ]
        )
        kind, other = pick(["Doc", "Folder", "Zone"]), pick(["Folder", "Zone"])
        uid, above = literal(f"N::{kind}", pick(ODD[:4])), literal(f"N::{other}", pick(ODD[:3]))
        resource = pick(["", f" == {uid}", f" in {uid}", f" in {above}", f" is N::{kind}", f" is N::{kind} in {above}"])
        overflow = f"+ {LONG_MAX} > 0"
        condition = pick(
            [
                *["", "", "when { context.task.ttl <= 60 }", "unless { context.task.ttl <= 60 }"],
                "when { resource is N::Doc && resource.level > 0 }",
                f"when {{ context.task.ttl {overflow} }}",
                f"when {{ resource is N::Folder && resource.level {overflow} }}",
                f'when {{ principal in {literal("Jitwi::Path", pick(PATHS))} }} // ; "\n',
            ]
        )
        effect = "forbid" if self.chance.random() < 0.2 else "permit"
        name = f'@id("named {number}") ' if self.chance.random() < 0.7 else ""
        comment = pick(["", ' // ")\n', "\n\n", " "])
        return f"{name}{effect}{comment}(principal{principal},{comment}action{action}, resource{resource}) {condition};"

    def mismatches(self) -> tuple[int, list[str]]:
        """Ask everything of the slices and of the whole set: how many requests, and which answers differ."""
        snapshot = self.store.load()
        whole = copy.copy(snapshot)
        assert vars(whole)["_slices"] is not None
        vars(whole)["_slices"] = None
        different: list[str] = []
        asked = 0
        actions = [snapshot.action(Entity("N::Action", name)) for name in self.leaves]
        with mock.patch.object(engine, "MAX_ERRORS", 1_000):
            for number, resource in enumerate(RESOURCES):
                for turn, action in enumerate(actions):
                    caller = CALLERS[(number + turn) % len(CALLERS)]
                    answers = [answer(each.decide(caller, action, resource, FACTS)) for each in (snapshot, whole)]
                    asked += 1
                    if answers[0] != answers[1]:
                        different.append(f"{caller} {action.action} {resource}: {answers[0]} is not {answers[1]}")
        return asked, different


def answer(decision) -> tuple:
    """All that a decision says; the engine lists errors in no particular order."""
    return (
        *(decision.is_allowed, decision.reason, decision.policy_ids, sorted(decision.errors)),
        *(decision.policy_digest, decision.entities_digest, decision.context),
    )


@settings(max_examples=130, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_slices_answer_as_the_whole_set(chance) -> None:
    """Decision, reasons, errors and digests are equal for every request, with a schema: 40 requests an example."""
    asked, different = World(chance).mismatches()
    assert asked == len(RESOURCES) * LEAVES
    assert not different


def test_the_worlds_are_worth_asking() -> None:
    """The generated requests are allowed, denied, forbidden and in error, and most slices are small."""
    reasons: dict[str, int] = {}
    sizes: list[int] = []
    for seed in range(25):
        world = World(random.Random(seed))
        assert world.mismatches()[1] == []
        snapshot = world.store.snapshot
        sizes += [len(each.candidates) for each in snapshot._slices._newer.triples.values() if each.candidates]
        for resource in RESOURCES:
            decision = snapshot.decide(
                CALLERS[0], snapshot.action(Entity("N::Action", world.leaves[0])), resource, FACTS
            )
            reason = "allow with error" if decision.reason == "evaluation-error" else decision.reason
            reasons[reason] = reasons.get(reason, 0) + 1
    assert min(reasons.get(each, 0) for each in ("allow", "forbid", "no-permit", "allow with error")) >= 5, reasons
    assert len(sizes) > 300


real_keys, real_parents, real_index = slice_module.request_keys, engine.parents_of, ScopeIndex.candidates


def _without_operator(name):
    return lambda uid, above: frozenset(key for key in real_keys(uid, above) if key.partition(" ")[0] != name)


BROKEN = {
    "no ancestors": (_Ready, "ancestors", lambda self, uid: {uid}),
    "not itself": (
        slices,
        "request_keys",
        lambda uid, above: (
            real_keys(uid, ()) - {in_key(uid)} | real_keys(uid, above) - {in_key(uid), is_in_key(uid[0], uid)}
        ),
    ),
    "no action groups": (
        engine,
        "parents_of",
        lambda handle: {uid: above for uid, above in real_parents(handle).items() if "Action" not in uid[0]},
    ),
    "no `is`": (slices, "request_keys", _without_operator("is")),
    "no `is in`": (slices, "request_keys", _without_operator("is-in")),
    "no `==`": (slices, "request_keys", _without_operator("==")),
    "no free scopes": (slices, "request_keys", _without_operator("")),
    "one too few": (ScopeIndex, "candidates", lambda self, *keys: real_index(self, *keys)[:-1]),
}


@pytest.mark.parametrize("bug", BROKEN)
def test_a_broken_index_is_caught(bug, monkeypatch) -> None:
    """The test of equality is worth its name: each planted defect of the index turns it red."""
    monkeypatch.setattr(*BROKEN[bug])
    assert any(World(random.Random(seed)).mismatches()[1] for seed in range(100))


# The index against the engine alone: principals of three types in a hierarchy of their own.

KINDS = ["A", "B", "C"]
WIDE = """entity A in [A, B, C]; entity B in [B, C]; entity C; entity R in [R];
action all; action some in [all]; action one in [some]; action two in [all]; action three;
"""
USE = "appliesTo { principal: [A, B, C], resource: [R, C], context: {} };"


class Wide:
    """Scopes of every form over principals of three types."""

    def __init__(self, chance: random.Random) -> None:
        schema = WIDE.replace("in [some];", f"in [some] {USE}").replace("two in [all];", f"two in [all] {USE}")
        self.schema = engine.parse_schema(schema.replace("three;", f"three {USE}"))
        names = ODD[:3]
        records = []
        for place, kind in enumerate(KINDS):
            for number, name in enumerate(names):
                above = [(kind, each) for each in some(chance, names[number + 1 :])] if kind != "C" else []
                above += [(each, name) for each in some(chance, KINDS[place + 1 :])]
                records.append(self.record(kind, name, above))
        records += [
            self.record("R", name, [("R", each) for each in some(chance, names[:at])]) for at, name in enumerate(names)
        ]
        self.entities = engine.parse_entities(json.dumps(chance.sample(records, 9)), self.schema)

        def position(kinds: list[str]) -> str:
            kind, uid = chance.choice(kinds), literal(chance.choice(kinds), chance.choice(names))
            return chance.choice(["", f" == {uid}", f" in {uid}", f" in {uid}", f" is {kind}", f" is {kind} in {uid}"])

        actions = [f'Action::"{each}"' for each in ("all", "some", "one", "two", "three")]
        lines = []
        for _ in range(25):
            uids = some(chance, actions)
            action = chance.choice(
                ["", f" == {chance.choice(actions)}", f" in {chance.choice(actions)}", f" in {uids}"]
            )
            effect = chance.choice(["permit", "permit", "forbid"])
            when = chance.choice(["", "", f"when {{ {LONG_MAX} + 1 > 0 }}"])
            scope = f"principal{position(KINDS)}, action{action}, resource{position(['R', 'C'])}".replace("'", "")
            lines.append(f"{effect} ({scope}) {when};")
        self.texts = lines
        self.whole = engine.parse_policies("\n".join(lines))
        self.index = ScopeIndex([policy.scope for policy in scan_policies("\n".join(lines), "x")])

    @staticmethod
    def record(kind: str, name: str, above: list[tuple[str, str]]) -> dict:
        """One entity without attributes."""
        parents = [{"type": kind, "id": name} for kind, name in above]
        return {"uid": {"type": kind, "id": name}, "attrs": {}, "parents": parents}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_the_index_finds_what_the_engine_needs(chance) -> None:
    """For principals of three types, nested actions and missing entities: 54 requests an example."""
    world = Wide(chance)
    parents = engine.parents_of(world.entities)
    uids = [
        [(kind, name) for kind in KINDS for name in ODD[:3]],
        [("Action", each) for each in ("one", "two", "three")],
    ]
    resources = [("R", ODD[0]), ("C", ODD[1])]
    for principal in uids[0]:
        for action in uids[1]:
            for resource in resources:
                triple = (principal, action, resource)
                found = world.index.candidates(*(request_keys(uid, ancestors(uid, parents)) for uid in triple))
                request = {
                    **{
                        name: {"type": uid[0], "id": uid[1]}
                        for name, uid in zip(("principal", "action", "resource"), triple, strict=True)
                    },
                    "context": "{}",
                }
                sliced = slices.PolicySlice(
                    engine.parse_slice([world.texts[each] for each in found]), tuple(f"policy{each}" for each in found)
                )
                whole = slices.PolicySlice(world.whole, tuple(f"policy{each}" for each in range(25)))
                with mock.patch.object(engine, "MAX_ERRORS", 1_000):
                    told = [
                        (
                            said.is_allowed,
                            said.reason,
                            each.named(said.determining, {}),
                            sorted(map(each.told, said.errors)),
                        )
                        for each in (sliced, whole)
                        for said in [engine.ask(request, each.handle, world.entities, world.schema)]
                    ]
                assert told[0] == told[1]


T, U, V = 'T::"t"', 'N :: T::"\\u{e9}\\"\\\\"', ("N::T", 'é"\\')
SCOPES = {
    "principal, action, resource": (ANY, (ANY,), ANY),
    "principal, action, resource,": (ANY, (ANY,), ANY),
    f"principal == {T}, action, resource": (eq_key(("T", "t")), (ANY,), ANY),
    f"principal in {U}, action, resource": (in_key(V), (ANY,), ANY),
    "principal is N::T, action, resource": (is_key("N::T"), (ANY,), ANY),
    f"principal is T // in\n in {U}, action, resource is T": (is_in_key("T", V), (ANY,), is_key("T")),
    f"principal, action == {T}, resource": (ANY, (eq_key(("T", "t")),), ANY),
    f"principal, action in {T}, resource": (ANY, (in_key(("T", "t")),), ANY),
    f"principal, action in [{T}], resource": (ANY, (in_key(("T", "t")),), ANY),
    f"principal, action in [{T}, {U},], resource in {U}": (ANY, (in_key(("T", "t")), in_key(V)), in_key(V)),
    "principal, action in [], resource": (ANY, (), ANY),
    # Not plain: filed as matching everything.
    f"principal == ({T}), action, resource": (ANY, (ANY,), ANY),
    f"principal in [{T}], action, resource": (ANY, (ANY,), ANY),
    "principal == ?principal, action, resource": (ANY, (ANY,), ANY),
    "principal is T in ?principal, action, resource": (ANY, (ANY,), ANY),
    "principal is ?x, action, resource": (ANY, (ANY,), ANY),
    f"principal = {T}, action, resource": (ANY, (ANY,), ANY),
    f"principal, action is T in {T}, resource": (ANY, (ANY,), ANY),
    f"principal, action in [{T}, ?x], resource": (ANY, (ANY,), ANY),
    f"principal, action in [{T}, [{T}]], resource": (ANY, (ANY,), ANY),
    f"principal, action in [{T},,], resource": (ANY, (ANY,), ANY),
    f"principal == {T}": (ANY, (ANY,), ANY),
    f"resource, action, principal == {T}": (ANY, (ANY,), ANY),
    f"principal, action, resource == {T}, context": (ANY, (ANY,), ANY),
    f"principal:T == {T}, action, resource": (ANY, (ANY,), ANY),
    f"principal == T {T}, action, resource": (ANY, (ANY,), ANY),
    f"principal == T::::{T}, action, resource": (ANY, (ANY,), ANY),
    "principal is T::, action, resource": (ANY, (ANY,), ANY),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_scopes_are_read_or_taken_as_any(scope) -> None:
    """Every plain form has its key; whatever else there may be matches every request."""
    (policy,) = scan_policies(f'@id("(") permit ( {scope} ) when {{ principal == T::"x" }};', "x")
    assert tuple(policy.scope) == SCOPES[scope]


def test_an_empty_list_of_actions_never_matches() -> None:
    """Such a policy is in no slice, and in the whole set it does nothing."""
    world = Wide(random.Random(0))
    request = {"principal": {"type": "A", "id": "x"}, "action": {"type": "Action", "id": "one"}}
    request |= {"resource": {"type": "R", "id": "x"}, "context": "{}"}
    policies = engine.parse_policies("permit (principal, action in [], resource);")
    assert engine.ask(request, policies, world.entities, world.schema).reason == "no-permit"


# What is kept, and for how long.


def many(shop, count: int, more: str = "") -> str:
    """The shop's three policies and others, `count` in all with the built-in one."""
    lines = [
        f'@id("p{each}") permit (principal == Jitwi::Workload::"spiffe://example.org/ns/prod/w{each}",'
        f' action == Shop::Action::"open", resource == Shop::Till::"t{each}");'
        for each in range(count - 4)
    ]
    return "\n".join([shop.policies, *lines, more])


def till(number: int) -> Entity:
    """A resource without facts."""
    return Entity("Shop::Till", f"t{number}")


@pytest.fixture
def parsed(monkeypatch):
    """Sizes of the slices that are parsed from now on."""
    sizes = []
    real = engine.parse_slice
    monkeypatch.setattr(engine, "parse_slice", lambda texts: (sizes.append(len(texts)), real(texts))[1])
    return sizes


@pytest.mark.parametrize(("count", "is_sliced"), [(4, False), (16, False), (17, True)])
def test_small_sets_have_no_index(count, is_sliced, shop, parsed) -> None:
    """Up to 16 policies, the built-in one included, every decision evaluates all."""
    snapshot = shop.store(policies=many(shop, count)).load()
    assert snapshot.policy_count == count
    assert shop.decide(snapshot, "read").policy_ids == ("shop.read",)
    assert (snapshot._slices is not None) == is_sliced
    assert parsed == ([1] if is_sliced else [])


def test_a_slice_is_made_once(shop, parsed) -> None:
    """The same request again parses nothing; another request with the same candidates shares their handle."""
    snapshot = shop.store(policies=many(shop, 60)).load()
    for _ in range(3):
        assert shop.decide(snapshot, "open", till(0)).policy_ids == ("shop.open",)
        assert shop.decide(snapshot, "open", till(1)).policy_ids == ("shop.open",)
    assert parsed == [1]
    kept = snapshot._slices._newer
    assert (len(kept.triples), len(kept.slices)) == (2, 1)
    worker = SpiffeId.parse("spiffe://example.org/ns/prod/w7")
    assert shop.decide(snapshot, "open", till(7), principal=worker).policy_ids == ("p7", "shop.open")
    assert parsed == [1, 2]


@pytest.mark.parametrize("bound", ["MAX_TRIPLES", "MAX_SLICED"])
def test_caches_are_bounded(bound, shop, monkeypatch) -> None:
    """Two generations of bounded size; what was dropped is made again and answers the same."""
    monkeypatch.setattr(slices, bound, 8)
    snapshot = shop.store(policies=many(shop, 60)).load()
    workers = [SpiffeId.parse(f"spiffe://example.org/ns/prod/w{each}") for each in range(50)]
    for _ in range(2):
        for number, worker in enumerate(workers):
            decision = shop.decide(snapshot, "open", till(number), principal=worker)
            assert decision.policy_ids == (f"p{number}", "shop.open")
            assert shop.decide(snapshot, "open", till(number)).policy_ids == ("shop.open",)
            for kept in (snapshot._slices._newer, snapshot._slices._older):
                assert len(kept.triples) <= (8 if bound == "MAX_TRIPLES" else 16)
                assert sum(1 + len(each.candidates) for each in kept.slices.values()) <= (
                    24 if bound == "MAX_TRIPLES" else 11
                )
                assert {id(each) for each in kept.triples.values()} <= {id(each) for each in kept.slices.values()}


def test_a_reload_drops_all_slices(shop, parsed) -> None:
    """A new set starts with empty caches and answers by its own policies; the old one goes with its caches."""
    store = shop.store(policies=many(shop, 30))
    old = store.load()
    assert shop.decide(old, "open", till(0)).is_allowed
    gone = weakref.ref(old)
    store._source["policies.cedar"] = many(shop, 30, '@id("freeze") forbid (principal, action, resource);')
    new = store.reload()
    assert not new._slices._newer.triples
    assert shop.decide(new, "open", till(0)).policy_ids == ("freeze",)
    assert shop.decide(old, "open", till(0)).is_allowed
    del old
    gc.collect()
    assert gone() is None


def test_a_stale_set_denies_whatever_is_kept(shop) -> None:
    """Slices change nothing in what a stale set says."""
    snapshot = shop.store(policies=many(shop, 30)).load()
    assert shop.decide(snapshot, "read").is_allowed
    assert not snapshot.is_stale
    stale = snapshot.as_stale()
    assert (stale.is_stale, shop.decide(stale, "read").reason) == (True, "stale")


def test_what_a_resource_is_in_now_counts(shop) -> None:
    """A provider may move a resource: the slice follows the very entities that are evaluated."""
    parents: list[Entity] = []

    class Provider:
        def entities(self, uids):
            return [EntityRecord(uid, {"total": 1}, tuple(parents)) for uid in uids if uid.type == "Shop::Order"]

    forbid = '@id("locked") forbid (principal, action, resource in Shop::Customer::"locked");'
    snapshot = shop.store(policies=many(shop, 30, forbid), entities=None, provider=Provider()).load()
    for _ in range(2):
        parents[:] = []
        assert shop.decide(snapshot, "read").policy_ids == ("shop.read",)
        parents[:] = [Entity("Shop::Customer", "locked")]
        assert shop.decide(snapshot, "read").policy_ids == ("locked",)


HEAVY = {
    "deep": f"when {{ {'!(' * 15}false{')' * 15} }}",
    "long": f"when {{ {' || '.join(['context.task.ttl == 1'] * 400)} }}",
}


@pytest.mark.parametrize("kind", HEAVY)
def test_heavy_policies_are_never_parsed_again(kind, shop, parsed) -> None:
    """A request that may concern one evaluates the whole set, which was parsed on a large stack; the load says so."""
    heavy = f'@id("heavy") permit (principal, action == Shop::Action::"read", resource) {HEAVY[kind]};'
    snapshot = shop.store(policies=many(shop, 30, heavy)).load()
    assert shop.decide(snapshot, "read").is_allowed
    assert parsed == []
    assert shop.decide(snapshot, "open", till(0)).is_allowed
    assert parsed == [1]
    (warning,) = snapshot.warnings
    assert "`heavy`" in warning


@pytest.mark.parametrize("function", ["parse_slice", "parents_of"])
def test_without_a_slice_the_whole_set_answers(function, shop, monkeypatch) -> None:
    """An engine that cannot print entities or parse a slice costs time and changes no answer."""

    def fail(*_):
        raise engine.EngineError("no", reasons=("engine",))

    monkeypatch.setattr(engine, function, fail)
    snapshot = shop.store(policies=many(shop, 30)).load()
    assert shop.decide(snapshot, "read").policy_ids == ("shop.read",)
    assert shop.decide(snapshot, "open", till(0)).is_allowed


def test_a_text_that_is_not_one_policy_is_no_slice() -> None:
    """The number of policies is compared with what was asked for; no policy at all is a slice like any other."""
    with pytest.raises(engine.EngineError):
        engine.parse_slice(["permit (principal, action, resource); forbid (principal, action, resource);"])
    with pytest.raises(engine.EngineError):
        engine.parse_slice(["permit (principal == ?principal, action, resource);"])
    assert len(engine.parse_slice([])) == 0


def test_wide_slices_are_the_whole_set(shop, parsed) -> None:
    """Where half of the policies are candidates, a slice gains nothing."""
    wide = "\n".join(f'@id("wide{each}") forbid (principal, action, resource) when {{ false }};' for each in range(40))
    snapshot = shop.store(policies=many(shop, 20, wide)).load()
    assert shop.decide(snapshot, "read").policy_ids == ("shop.read",)
    assert parsed == []
