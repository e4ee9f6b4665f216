# SPDX-License-Identifier: Apache-2.0
"""Declarations: every bound and the value just beyond it, and the canonical digest."""

from __future__ import annotations

import base64
import collections
import copy
import hashlib
import itertools
import json
import pickle
import types
from datetime import timedelta

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.errors import InvalidTaskError
from jitwi.task import (
    MAX_ENTITY_ID_BYTES,
    MAX_ENTITY_TYPE_BYTES,
    MAX_NAME_BYTES,
    MAX_PERMISSIONS,
    MAX_TEXT_BYTES,
    MAX_TTL,
    MAX_USES,
    Entity,
    Permission,
    Task,
    Under,
    canonical_json,
    digest_of,
    permission_hash,
    sha256_base64url,
    under,
)

ORDER = Entity("Shop::Order", "42")
READ, REFUND = Entity("Shop::Action", "read"), Entity("Shop::Action", "refund")
TTL = timedelta(minutes=2)
_KEEP = object()


def _task(**changes) -> Task:
    fields = {"name": "refund-order", "permissions": [Permission(REFUND, ORDER)], "ttl": TTL} | changes
    return Task.declare(fields.pop("name"), **fields)


def _entities(count) -> list[Entity]:
    return [Entity("Shop::Order", str(number)) for number in range(count)]


def _refused(reason, build, *args, **kwargs) -> InvalidTaskError:
    with pytest.raises(InvalidTaskError) as caught:
        build(*args, **kwargs)
    assert caught.value.reasons == (reason,)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return caught.value


# --------------------------------------------------------------------------------------------------------------- texts

TEXTS = {
    "name": (lambda text: _task(name=text), MAX_NAME_BYTES, "a"),
    "purpose": (lambda text: _task(purpose=text), MAX_TEXT_BYTES, "a"),
    "owner": (lambda text: _task(owner=text), MAX_TEXT_BYTES, "a"),
    "on_behalf_of": (lambda text: _task(on_behalf_of=text), MAX_TEXT_BYTES, "a"),
    "agent": (lambda text: _task(agent=text), MAX_TEXT_BYTES, "a"),
    "entity type": (lambda text: Entity(text, "42"), MAX_ENTITY_TYPE_BYTES, "A"),
    "entity id": (lambda text: Entity("Shop::Order", text), MAX_ENTITY_ID_BYTES, "a"),
    "action": (lambda text: Permission(text, ORDER), MAX_ENTITY_ID_BYTES, "a"),
}
FREE = ["purpose", "owner", "on_behalf_of", "agent", "entity id", "action"]
CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]


@pytest.mark.parametrize("field", TEXTS)
def test_length_is_bounded(field):
    """The bound is allowed, one more is refused, and so is a megabyte."""
    build, limit, letter = TEXTS[field]
    build(letter * limit)
    _refused("too-long", build, letter * (limit + 1))
    _refused("too-long", build, letter * 1_000_000)


@pytest.mark.parametrize("field", FREE)
def test_length_is_counted_in_bytes(field):
    """A letter of two or four bytes counts as such."""
    build, limit, _ = TEXTS[field]
    for letter in ("ü", "\U0001f600"):
        size = len(letter.encode())
        build(letter * (limit // size))
        _refused("too-long", build, letter * (limit // size) + "a" * (limit % size + 1))


@pytest.mark.parametrize("field", TEXTS)
def test_empty_is_refused(field):
    """A text that is given says something."""
    _refused("empty", TEXTS[field][0], "")


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("value", [5, True, b"text", ["text"], object(), 1.0], ids=repr)
def test_only_text_is_text(field, value):
    """Another type is refused, not converted."""
    _refused("type", TEXTS[field][0], value)


@pytest.mark.parametrize("field", ["name", "entity type", "entity id", "action"])
def test_required_texts_are_not_none(field):
    """What must be stated cannot be None."""
    _refused("type", TEXTS[field][0], None)


@pytest.mark.parametrize("field", TEXTS)
def test_control_characters_are_refused(field):
    """Every C0 and C1 control character is refused wherever it stands."""
    for code in CONTROLS:
        for text in (chr(code), f"a{chr(code)}b", f"ab{chr(code)}"):
            _refused("control-character", TEXTS[field][0], text)


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc80b", "\ud83d\ude00"], ids=ascii)
def test_surrogates_are_refused(field, text):
    """A lone surrogate is no character, and two of them in a Python text are not one."""
    _refused("control-character", TEXTS[field][0], text)


@pytest.mark.parametrize("field", FREE)
@pytest.mark.parametrize(
    "text",
    [
        "\u2028",
        "a\u2029b",
        "\u202eevil",
        "\u2066x\u2069",
        "\ufeff",
        "\u200b",
        "\u00ad",
        " ",
        "\u00a0",
        "\uffff",
        "\ue000",
    ],
    ids=ascii,
)
def test_other_unicode_is_allowed(field, text):
    """Only control characters and surrogates are refused: line separators and bidi marks are escaped where shown."""
    TEXTS[field][0](text)


@pytest.mark.parametrize("field", FREE)
def test_quotes_and_escapes_stay_what_they_are(field):
    """Nothing in a text is interpreted: it comes back letter by letter."""
    text = '"\\" ) when { true }; // ${x} %s __entity'
    built = TEXTS[field][0](text)
    assert text in attrs.astuple(built, recurse=False)


@pytest.mark.parametrize("name", ["a", "9", "refund-order", "a.b_c:d/e-f", "A" * MAX_NAME_BYTES])
def test_good_names(name):
    """Letters, digits and `. _ : / -`, the first one a letter or digit."""
    assert _task(name=name).name == name


@pytest.mark.parametrize(
    "name", ["-a", ".a", "_a", "/a", " a", "a ", "a b", "ü", "aü", "a*", "a\\b", 'a"', "a,b", "\u0661"]
)
def test_bad_names(name):
    """A name with anything else is refused, digits of other scripts included."""
    _refused("name", _task, name=name)


@pytest.mark.parametrize("type_", ["A", "_a", "Shop::Order", "A::B::C", "a1_B"])
def test_good_entity_types(type_):
    """Cedar names, joined by `::`."""
    assert Entity(type_, "x").type == type_


@pytest.mark.parametrize(
    "type_", ["1A", "A:B", "A::", "::A", "A:::B", "A::1", "A B", "Ä", "A-B", 'A::"x"', "A.B", "A :: B", "A::B "]
)
def test_bad_entity_types(type_):
    """What is not a Cedar type name is refused before it reaches an engine."""
    _refused("entity-type", Entity, type_, "x")


# --------------------------------------------------------------------------------------------- permissions and numbers


@pytest.mark.parametrize("count", [1, 2, MAX_PERMISSIONS])
def test_number_of_permissions(count):
    """One to 64 permissions are a task."""
    assert len(_task(permissions={"read": _entities(count)}).permissions) == count


@pytest.mark.parametrize("empty", [{}, [], (), set(), iter([]), {"read": []}, {"read": (), "refund": set()}], ids=repr)
def test_no_permission_is_no_task(empty):
    """A task that asks for nothing is refused, in every form."""
    _refused("no-permission", _task, permissions=empty)


@pytest.mark.parametrize(
    "form",
    [
        lambda: [Permission("read", e) for e in _entities(MAX_PERMISSIONS + 1)],
        lambda: {"read": _entities(MAX_PERMISSIONS + 1)},
        lambda: {"read": set(_entities(MAX_PERMISSIONS + 1))},
        lambda: {f"read{number}": ORDER for number in range(MAX_PERMISSIONS + 1)},
        lambda: {"read": _entities(200_000)},
        lambda: (Permission("read", Entity("A", str(number))) for number in itertools.count()),
    ],
    ids=["list", "mapping", "set", "actions", "many", "endless generator"],
)
def test_too_many_permissions(form):
    """The sixty-fifth permission is refused, and whatever comes after it is not even looked at."""
    _refused("too-many", _task, permissions=form())


def test_duplicates_are_refused():
    """Two permissions alike in action and resource are one too many, whatever their limits; `under` is not alike."""
    _refused("duplicate", _task, permissions=[Permission("read", ORDER), Permission("read", ORDER, 3)])
    _refused("duplicate", _task, permissions={"read": [ORDER, ORDER]})
    _refused("duplicate", _task, permissions=[Permission(READ, under(ORDER)), Permission(READ, under(ORDER), 1)])
    assert len(_task(permissions={"read": [ORDER, under(ORDER)], "refund": ORDER}).permissions) == 3


def test_forms_of_permissions():
    """A mapping to one or several resources, and any iterable of permissions, say the same."""
    expected = (Permission("read", ORDER), Permission("read", under(ORDER)))
    for form in (
        {"read": [ORDER, under(ORDER)]},
        {"read": (ORDER, under(ORDER))},
        {"read": {ORDER, under(ORDER)}},
        {"read": frozenset({ORDER, under(ORDER)})},
        types.MappingProxyType({"read": [ORDER, under(ORDER)]}),
        collections.OrderedDict(read=[ORDER, under(ORDER)]),
        list(expected),
        expected,
        (permission for permission in expected),
        iter(expected),
    ):
        assert _task(permissions=form).permissions == expected


def test_sets_have_one_order():
    """The order of a set does not change from run to run, as the digest depends on it."""
    entities = _entities(20)
    assert _task(permissions={"read": set(entities)}).permissions == tuple(
        Permission("read", e) for e in sorted(entities, key=str)
    )


def test_no_cross_product():
    """Each action of a mapping has its own resources only."""
    task = _task(permissions={"read": _entities(2), "refund": ORDER})
    assert [(p.action, p.resource) for p in task.permissions if p.action == "refund"] == [("refund", ORDER)]
    assert len(task.permissions) == 3


@pytest.mark.parametrize(
    "form",
    [
        "read",
        b"read",
        None,
        5,
        Permission("read", ORDER),
        ORDER,
        ["read"],
        [("read", ORDER)],
        [ORDER],
        {"read": "Shop::Order::42"},
        {"read": None},
        {"read": ["42"]},
        {"read": {"42"}},
        {"read": {"Shop::Order": "42"}},
        {"read": (e for e in [ORDER])},
        {"read": [[ORDER]]},
        {5: ORDER},
        {("read", "refund"): ORDER},
        bytearray(b"read"),
    ],
    ids=lambda form: type(form).__name__,
)
def test_other_forms_are_refused(form):
    """Resources as text, bare entities, nested lists and generators of resources are refused, not guessed at."""
    _refused("type", _task, permissions=form)


def test_a_list_is_not_taken_for_the_frozen_form():
    """The class itself takes a tuple only, as a list could change after it was checked."""
    _refused("type", Task, "a", [Permission("read", ORDER)], TTL)


@pytest.mark.parametrize("entity", ["Shop::Order", None, Under(ORDER), READ.type])
def test_under_takes_an_entity(entity):
    """Both spellings of `under` refuse anything else with our error."""
    _refused("type", under, entity)
    _refused("type", Under, entity)


USES = {
    "task": lambda value: _task(max_uses=value).max_uses,
    "permission": lambda value: Permission("read", ORDER, value).max_uses,
}


@pytest.mark.parametrize("where", USES)
@pytest.mark.parametrize("value", [None, 1, 2, MAX_USES])
def test_good_max_uses(where, value):
    """None or a whole number from 1."""
    assert USES[where](value) == value


@pytest.mark.parametrize("where", USES)
@pytest.mark.parametrize(
    "value",
    [0, -1, MAX_USES + 1, True, False, 1.0, float("nan"), "1", b"1", [1], 10**5000],
    ids=lambda value: type(value).__name__ if isinstance(value, list) or value == 10**5000 else repr(value),
)
def test_bad_max_uses(where, value):
    """Zero, negative, a boolean, a fraction, text, or a number too large to print: refused."""
    _refused("max-uses", USES[where], value)


@pytest.mark.parametrize("ttl", [timedelta(seconds=1), TTL, MAX_TTL, timedelta(hours=23, minutes=59, seconds=59)])
def test_good_ttl(ttl):
    """Whole seconds from one second to 24 hours."""
    assert _task(ttl=ttl).ttl_seconds == ttl.total_seconds()


@pytest.mark.parametrize(
    "ttl",
    [
        timedelta(0),
        timedelta(microseconds=1),
        timedelta(microseconds=999_999),
        timedelta(seconds=1, microseconds=1),
        timedelta(seconds=-1),
        timedelta(days=-1, seconds=86_399),
        MAX_TTL + timedelta(seconds=1),
        MAX_TTL + timedelta(microseconds=1),
        timedelta.max,
        timedelta.min,
        120,
        120.0,
        "120",
        None,
        True,
    ],
    ids=repr,
)
def test_bad_ttl(ttl):
    """No ttl, a fraction of a second, zero, negative, over 24 hours or a bare number: refused."""
    _refused("ttl", _task, ttl=ttl)


def test_ttl_is_required():
    """There is no default lifetime."""
    with pytest.raises(TypeError):
        Task.declare("a", permissions={"read": ORDER})


# -------------------------------------------------------------------------------------------------------------- values


def test_frozen_and_plain():
    """A task is a value: nothing can be set, and a pickled one is equal and has the same digest."""
    task = _task(purpose="x", max_uses=2)
    for frozen, name in ((task, "ttl"), (task.permissions[0], "max_uses"), (ORDER, "id"), (under(ORDER), "entity")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(frozen, name, _KEEP)
    for again in (pickle.loads(pickle.dumps(task)), copy.deepcopy(task)):  # noqa: S301 - ours
        assert (again, hash(again), again.digest(txn="t")) == (task, hash(task), task.digest(txn="t"))


def test_changing_a_copy_checks_again():
    """`attrs.evolve` passes the same bounds as the declaration."""
    with pytest.raises(InvalidTaskError):
        attrs.evolve(_task(), ttl=timedelta(0))
    with pytest.raises(InvalidTaskError):
        attrs.evolve(_task(), permissions=())


def test_text_forms():
    """For people: Cedar's spelling."""
    assert str(Permission(REFUND, under(ORDER))) == 'Shop::Action::"refund" on under Shop::Order::"42"'


@given(a=st.tuples(st.sampled_from(["A", "A::B"]), st.text(min_size=1, max_size=9)), b=st.data())
@settings(max_examples=150)
def test_text_form_of_an_entity_is_one_to_one(a, b):
    """Two entities that look alike in a record are the same entity."""
    other = b.draw(st.tuples(st.sampled_from(["A", "A::B"]), st.one_of(st.just(a[1]), st.text(min_size=1, max_size=9))))
    try:
        first, second = Entity(*a), Entity(*other)
    except InvalidTaskError:
        return
    assert (str(first) == str(second)) is (first == second)


def test_facts_hold_what_was_stated():
    """What policies read: name and ttl always, the rest only if it was stated."""
    assert _task().facts() == {"name": "refund-order", "ttl": 120}
    stated = {"purpose": "p", "owner": "o", "on_behalf_of": "b", "agent": "a", "max_uses": 5}
    assert _task(**stated).facts() == {"name": "refund-order", "ttl": 120, **stated}


# -------------------------------------------------------------------------------------------------------------- digest

FULL = {"purpose": "p", "owner": "o", "on_behalf_of": "b", "agent": "a", "max_uses": 5}
OTHERS = {
    "name": {"name": "refund-order2"},
    "ttl": {"ttl": TTL + timedelta(seconds=1)},
    "purpose": {"purpose": "p2"},
    "no purpose": {"purpose": None},
    "owner": {"owner": "o2"},
    "no owner": {"owner": None},
    "on_behalf_of": {"on_behalf_of": "b2"},
    "no on_behalf_of": {"on_behalf_of": None},
    "agent": {"agent": "a2"},
    "no agent": {"agent": None},
    "swapped": {"owner": "a", "agent": "o"},
    "max_uses": {"max_uses": 6},
    "no max_uses": {"max_uses": None},
    "action": {"permissions": [Permission(READ, ORDER)]},
    "action type": {"permissions": [Permission(Entity("Shop2::Action", "refund"), ORDER)]},
    "resource": {"permissions": [Permission(REFUND, Entity("Shop::Order", "43"))]},
    "resource type": {"permissions": [Permission(REFUND, Entity("Shop::Order2", "42"))]},
    "under": {"permissions": [Permission(REFUND, under(ORDER))]},
    "permission max_uses": {"permissions": [Permission(REFUND, ORDER, 1)]},
    "more": {"permissions": [Permission(REFUND, ORDER), Permission(READ, ORDER)]},
    "order": {"permissions": [Permission(READ, ORDER), Permission(REFUND, ORDER)]},
}


def test_every_field_is_in_the_digest():
    """No two of the tasks that differ in one field have one digest, and the table covers every field."""
    digests = [_task(**FULL | changes).digest(txn="t").value for changes in ({}, *OTHERS.values())]
    assert len(set(digests)) == len(OTHERS) + 1
    assert {name for changes in OTHERS.values() for name in changes} == {field.name for field in attrs.fields(Task)}


def test_digest_is_frozen():
    """The digest is SHA-256 over this very text and never changes: tokens of other versions carry it."""

    def sha256(text) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")

    permission = sha256(
        '{"action":["Shop::Action","refund"],"max_uses":null,"resource":["Shop::Order","42"],"txn":"t-1","under":false}'
    )
    facts = '{"agent":"a","max_uses":5,"name":"refund-order","on_behalf_of":"b","owner":"o","purpose":"p","ttl":120}'
    whole = sha256(f'{{"permissions":["{permission}"],"task":{facts},"txn":"t-1","version":1}}')
    for _ in range(2):
        digest = _task(**FULL).digest(txn="t-1")
        assert (digest.permissions, digest.value) == ((permission,), whole)


def test_digest_is_salted_by_the_transaction():
    """In another transaction every hash is another one."""
    one, two = _task(**FULL).digest(txn="a"), _task(**FULL).digest(txn="b")
    assert one.value != two.value
    assert set(one.permissions).isdisjoint(two.permissions)


def test_a_permission_hash_hides_the_permission():
    """What stands for a permission is 43 letters of base64url, whatever the permission."""
    for resource in (ORDER, under(ORDER), Entity("A", "secret-customer" * 30)):
        shown = permission_hash(REFUND, resource, 3, txn="t")
        assert len(shown) == 43
        assert set(shown) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
        assert "secret" not in shown


def test_a_guard_can_recompute_the_digest():
    """Facts, permission hashes and transaction are enough; none of them can be exchanged."""
    task = _task(**FULL, permissions=[Permission(REFUND, ORDER), Permission(READ, ORDER)])
    digest = task.digest(txn="t")
    assert digest_of(task.facts(), digest.permissions, txn="t") == digest.value
    assert digest_of(task.facts(), digest.permissions[::-1], txn="t") != digest.value
    assert digest_of(task.facts(), digest.permissions[:1], txn="t") != digest.value
    assert digest_of(task.facts() | {"ttl": 121}, digest.permissions, txn="t") != digest.value


def test_an_unresolved_action_has_no_digest():
    """A name stands for an action only after it was resolved against a schema."""
    _refused("unresolved", _task(permissions={"refund": ORDER}).digest, txn="t")


def test_a_transaction_that_is_not_text_is_refused():
    """A surrogate or another type in the transaction id has no canonical form."""
    _refused("surrogate", _task().digest, txn="\ud800")
    _refused("type", _task().digest, txn=b"t")


# ------------------------------------------------------------------------------------------------------ canonical JSON


def _jcs(value) -> str:
    """RFC 8785 for the kinds that we allow, written from the RFC's text: §3.2.2 (values), §3.2.3 (order of keys)."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return f"{value:d}"
    if isinstance(value, str):
        short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 0x22: '\\"', 0x5C: "\\\\"}
        return '"' + "".join(short.get(ord(c)) or (f"\\u{ord(c):04x}" if ord(c) < 0x20 else c) for c in value) + '"'
    if isinstance(value, list):
        return "[" + ",".join(map(_jcs, value)) + "]"
    keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
    return "{" + ",".join(f"{_jcs(key)}:{_jcs(value[key])}" for key in keys) + "}"


SAFE = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | SAFE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(value=VALUES)
@settings(max_examples=200)
def test_canonical_json_is_rfc_8785(value):
    """Our form is that of an implementation from the RFC's text, byte by byte, and reads back as the same value."""
    assert canonical_json(value) == _jcs(value).encode()
    assert json.loads(canonical_json(value)) == value


VECTORS = [
    # RFC 8785 §3.2.2.2, the text of its example, and §3.2.4, its bytes.
    (
        {"string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/", "literals": [None, True, False]},
        '{"literals":[null,true,false],"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
    ),
    # RFC 8785 §3.2.3: the keys of its sorting example that are ASCII.
    ({"1": "One", "\r": "Carriage Return"}, '{"\\r":"Carriage Return","1":"One"}'),
    # RFC 8785 appendix B: the largest integers that are exact, and minus zero's whole form.
    ([0, -0, 9007199254740991, -9007199254740991], "[0,0,9007199254740991,-9007199254740991]"),
    ({}, "{}"),
    ([], "[]"),
    ("\x7f\u2028\u2029\ufeff\U0001f600", '"\x7f\u2028\u2029\ufeff\U0001f600"'),
    ("\x00\x08\x0b\x1f", '"\\u0000\\b\\u000b\\u001f"'),
    ({"b": 1, "a": {"d": [], "c": ()}, "B": 2, "": 3}, '{"":3,"B":2,"a":{"c":[],"d":[]},"b":1}'),
    (types.MappingProxyType({"b": types.MappingProxyType({}), "a": 1}), '{"a":1,"b":{}}'),
]


@pytest.mark.parametrize(("value", "text"), VECTORS)
def test_canonical_json_vectors(value, text):
    """RFC 8785's own examples, as far as numbers are whole, and the corners of escaping."""
    assert canonical_json(value) == text.encode()


def _nested(depth, wrap):
    value = wrap(0)
    for _ in range(depth - 1):
        value = wrap(value)
    return value


CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        ("number", 2**53),
        ("number", -(2**53)),
        ("number", 10**5000),
        ("type", 1.0),
        ("type", float("nan")),
        ("type", b"x"),
        ("type", {1, 2}),
        ("type", ORDER),
        ("type", object()),
        ("surrogate", "\ud800"),
        ("surrogate", ["a", {"b": "\udfff"}]),
        ("key", {"ü": 1}),
        ("key", {1: 1}),
        ("key", {None: 1}),
        ("key", {10**5000: 1}),
        ("key", {"\ud800": 1}),
        ("key", {"ü" * 100_000: 1}),
        ("depth", _nested(65, lambda value: [value])),
        ("depth", _nested(65, lambda value: {"a": value})),
        ("depth", _nested(100_000, lambda value: (value,))),
        ("depth", CYCLE),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else type(value).__name__,
)
def test_no_canonical_form(reason, value):
    """What has no one form is refused with our error: never rounded, never a recursion error."""
    _refused(reason, canonical_json, value)


def test_depth_up_to_the_bound():
    """Sixty-four levels are allowed."""
    assert canonical_json(_nested(64, lambda value: [value])) == b"[" * 64 + b"0" + b"]" * 64


def test_hashes_are_base64url_without_padding():
    """SHA-256 of nothing, as known from FIPS 180-4's examples."""
    assert sha256_base64url(b"") == "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
