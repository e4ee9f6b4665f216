# SPDX-License-Identifier: Apache-2.0
"""Text before the engine: nesting in every form (bar 22), and a scanner that agrees with the engine."""

from __future__ import annotations

import json
import string
import subprocess
import sys

import cedarpy
import pytest
from cedarpy import pst
from hypothesis import given, settings
from hypothesis import strategies as st

from jitwi.errors import InvalidPolicyError
from jitwi.policy.text import MAX_NESTING, scan_policies, unescape

# Each form says how deep it is for a given n, and what the text is.
CONDITIONS = {
    "parentheses": lambda n: "(" * n + "true" + ")" * n,
    "sets": lambda n: "[" * n + "]" * n + " == []",
    "records": lambda n: "{a: " * n + "1" + "}" * n + " == {}",
    "negations": lambda n: "!(" * n + "true" + ")" * n,
    "four negations": lambda n: "!!!!(" * n + "true" + ")" * n,
    "minus": lambda n: "-(" * n + "1" + ")" * n + " == 1",
    "else-if": lambda n: "if true then true else " * n + "true",
    "if-if": lambda n: "if " * n + "true" + " then true else true" * n,
    "then-if": lambda n: "if true then " * n + "true" + " else true" * n,
    "members": lambda n: "context" + ".a" * n,
    "indexes": lambda n: "context" + '["a"]' * n,
    "methods": lambda n: "[1]" + ".contains(1)" * n,
    "has": lambda n: "context has a" + ".a" * n,
    "calls": lambda n: "ip(" * n + '"1"' + ")" * n + ' == ip("1")',
    "sets in if": lambda n: "if [" * (n // 2) + "true" + "] == [] then true else true" * (n // 2),
}
FLAT = {
    "and": lambda n: "true" + " && true" * n,
    "or": lambda n: "true" + " || true" * n,
    "plus": lambda n: "1" + " + 1" * n + " == 1",
    "elements": lambda n: "[" + "1, " * n + "1].contains(1)",
    "calls side by side": lambda n: "[" + '"a".contains("b"), ' * 0 + "context.task.ttl, " * n + "1].contains(1)",
    "ifs side by side": lambda n: "[" + "if true then 1 else 2, " * n + "1].contains(1)",
}
SCHEMAS = {
    "sets": lambda n: "entity A { x: " + "Set<" * n + "Long" + ">" * n + " };",
    "records": lambda n: "entity A { x: " + "{x: " * n + "Long" + "}" * n + " };",
    "types": lambda n: "".join(f"type T{i} = {{x: T{i + 1}}};" for i in range(n)) + f"type T{n} = Long;",
    "doubling types": lambda n: (
        "".join(f"type T{i} = {{x: T{i + 1}, y: T{i + 1}}};" for i in range(n)) + f"type T{n} = Long;"
    ),
}
DEPTHS = [60, 70, 200, 2_000, 20_000, 100_000]

CHILD = """
import json, sys, threading
from jitwi.errors import InvalidPolicyError
from jitwi.policy import PolicyStore
from jitwi.policy.store import PolicyStore
threading.stack_size(256 * 1024)  # the caller's stack must not matter
verdicts = []
def run():
    for files in json.load(sys.stdin):
        try:
            PolicyStore(files).load()
            verdicts.append("loaded")
        except InvalidPolicyError as exc:
            verdicts.append(exc.reasons[0] if exc.path and exc.remedy else "no place")
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(json.dumps(verdicts))
"""


def _verdicts(sets) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(sets), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, f"the process ended with {done.returncode}: {done.stderr[-500:]}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("form", CONDITIONS)
def test_nesting_never_ends_the_process(form, shop) -> None:
    """However deep: the load is refused with its place and the process lives (bar 22)."""
    texts = [f"permit(principal, action, resource) when {{ {CONDITIONS[form](depth)} }};" for depth in DEPTHS]
    verdicts = _verdicts([{"p.cedar": text, "s.cedarschema": shop.schema} for text in texts])
    assert verdicts[0] in {"loaded", "validation", "syntax"}
    assert verdicts[1:] == ["too-deep"] * (len(DEPTHS) - 1)


@pytest.mark.parametrize("form", SCHEMAS)
def test_nested_schemas_never_end_the_process(form, shop) -> None:
    """Types within types, by brackets or by names, are bounded before the engine sees them (bar 22)."""
    policies = "permit(principal, action, resource);"
    verdicts = _verdicts(
        [{"p.cedar": policies, "s.cedarschema": shop.schema + SCHEMAS[form](depth)} for depth in (10, *DEPTHS[1:5])]
    )
    assert verdicts == ["loaded", *["too-deep"] * 4]


def test_long_but_flat_text_is_no_nesting(shop) -> None:
    """Chains of operators and long lists load: only nesting is bounded."""
    texts = [f"permit(principal, action, resource) when {{ {make(2_000)} }};" for make in FLAT.values()]
    texts = [text.replace("principal, action,", 'principal, action == Shop::Action::"read",') for text in texts]
    assert _verdicts([{"p.cedar": text, "s.cedarschema": shop.schema} for text in texts]) == ["loaded"] * len(FLAT)


def test_nested_json_never_ends_the_process(shop) -> None:
    """Entities and manifests are bounded too."""
    policies = "permit(principal, action, resource);"
    base = {"p.cedar": policies, "s.cedarschema": shop.schema}
    deep = [
        json.loads(json.dumps({**base, name: text}))
        for name in ("entities.json", "manifest.json")
        for text in ("[" * 10**5, '{"a":' * 10**5)
    ]
    assert _verdicts(deep) == ["too-deep", "too-deep", "too-deep", "too-deep"]


@pytest.mark.parametrize("limit", ["MAX_POLICY_BYTES", "MAX_SCHEMA_BYTES"])
def test_size_is_bounded(limit, shop, monkeypatch) -> None:
    """One byte over the limit is refused."""
    name = "policies" if "POLICY" in limit else "schema"
    text = getattr(shop, name)
    monkeypatch.setattr(f"jitwi.policy.loader.{limit}", len(text))
    shop.store().load()
    with pytest.raises(InvalidPolicyError) as caught:
        shop.store(**{name: text + "\n"}).load()
    assert caught.value.reasons == ("too-large",)


def _expressions():
    word = st.sampled_from(["a", "b", "_x", "has1"])
    text = st.text(alphabet=string.printable.replace("\r", "") + "\\\"'é\u2028😀", max_size=6).map(json_text)
    uid = st.tuples(st.lists(word, min_size=1, max_size=3).map("::".join), text).map(lambda t: f"{t[0]}::{t[1]}")
    leaf = st.one_of(
        text,
        uid,
        uid,
        st.just("principal"),
        st.just("context"),
        st.integers(0, 9).map(str),
        st.sampled_from(["true", "false"]),
    )

    def grow(inner):
        return st.one_of(
            st.tuples(inner, st.sampled_from(["&&", "||", "==", "<", "+", "in"]), inner).map(
                lambda t: f"({t[0]} {t[1]} {t[2]})"
            ),
            st.tuples(inner, word).map(lambda t: f"({t[0]}).{t[1]}"),
            st.tuples(inner, text).map(lambda t: f"({t[0]})[{t[1]}]"),
            st.lists(inner, max_size=3).map(lambda t: f"[{', '.join(t)}]"),
            st.tuples(word, inner).map(lambda t: f"{{{t[0]}: {t[1]}}}"),
            st.tuples(inner, inner, inner).map(lambda t: f"(if {t[0]} then {t[1]} else {t[2]})"),
            st.tuples(inner, word).map(lambda t: f"(({t[0]}) is {t[1]}::T)"),
            inner.map(lambda t: f"!({t}) // ; \" }} '\n"),
        )

    return st.recursive(leaf, grow, max_leaves=8)


def json_text(value: str) -> str:
    """Quote for Cedar."""
    escaped = []
    for char in value:
        if char in '"\\':
            escaped.append("\\" + char)
        elif char in "\t\n" or char.isprintable():
            escaped.append(char)
        else:
            escaped.append(f"\\u{{{ord(char):x}}}")
    return '"' + "".join(escaped) + '"'


@settings(max_examples=200, deadline=None)
@given(
    policies=st.lists(
        st.tuples(
            st.none() | st.text(max_size=5).map(json_text),
            st.sampled_from(["permit", "forbid"]),
            st.sampled_from(
                ["principal", 'principal == A::"p"', 'principal in B::C::"q"', 'principal is A in A::"\\u{41}"']
            ),
            st.sampled_from(["action", 'action == Action::"x"', 'action in [Action::"x", N::Action::"y"]']),
            st.lists(st.tuples(st.sampled_from(["when", "unless"]), _expressions()), max_size=2),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_scanner_agrees_with_the_engine(policies) -> None:
    """Number, effect, `@id` and entity literals of each policy are what the engine reads."""
    text = ""
    for identifier, effect, principal, action, clauses in policies:
        text += f"@id({identifier})\n" if identifier is not None else "// note; permit\n"
        text += f"{effect}({principal}, {action}, resource)"
        text += "".join(f"\n{kind} {{ {body} }}" for kind, body in clauses) + ";\n"
    try:
        read = cedarpy.policies_to_pst(text)
    except ValueError:
        return
    scanned = scan_policies(text, "x")
    assert len(scanned) == len(read.static_policies)
    for index, mine in enumerate(scanned):
        theirs = read.static_policies[f"policy{index}"]
        assert mine.effect == theirs.effect
        assert mine.annotations.get("id") == theirs.annotations.get("id")
        clauses = (
            {(str(uid.type), uid.id) for uid in pst.entity_uids(tuple(theirs.clauses))} if theirs.clauses else set()
        )
        assert mine.condition_uids == clauses
        everything = {(str(uid.type), uid.id) for uid in pst.entity_uids(theirs)}
        assert mine.scope_uids | mine.condition_uids == everything
        assert text[mine.start : mine.end].endswith(";")


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet='ab"\\;(){}[]/\n@.,:=!&|<>ifwhen permt', max_size=60))
def test_the_scanner_raises_only_its_own_error(text) -> None:
    """Whatever the text: statements, or a refusal with a place."""
    caught = None
    try:
        scan_policies(text, "x")
    except InvalidPolicyError as exc:
        caught = exc
    assert caught is None or (caught.path == "x" and caught.line >= 1)


def test_escapes_are_read_as_the_engine_reads_them() -> None:
    """Every escape of Cedar text, and none besides."""
    for escaped in [r"\n", r"\r", r"\t", r"\0", r"\'", r"\"", r"\\", r"\x41", r"\u{41}", r"\u{1F600}"]:
        text = f'permit(principal == A::"{escaped}", action, resource);'
        (policy,) = cedarpy.policies_to_pst(text).static_policies.values()
        assert policy.principal.entity.id == unescape(f'"{escaped}"'), escaped
    for escaped in [r"\q", r"\x80", r"\u{}", r"\u41", r"\u{1234567}", r"\u{D800}", r"\u{110000}"]:
        with pytest.raises(ValueError, match=r".+"):
            unescape(f'"{escaped}"')
        with pytest.raises(ValueError, match=r".+"):
            cedarpy.PolicySet.from_str(f'permit(principal == A::"{escaped}", action, resource);')


def test_the_limit_is_exact() -> None:
    """Sixty-four levels pass, sixty-five do not."""
    for depth, good in ((MAX_NESTING - 1, True), (MAX_NESTING, False)):
        text = f"permit(principal, action, resource) when {{ {'(' * depth}true{')' * depth} }};"
        if good:
            scan_policies(text, "x")
        else:
            with pytest.raises(InvalidPolicyError):
                scan_policies(text, "x")
