# SPDX-License-Identifier: Apache-2.0
"""What is refused at load, with the place and the way out. Source: vocabulary §5."""

from __future__ import annotations

import json

import pytest

from jitwi.errors import InvalidPolicyError, StateError
from jitwi.policy import PolicyStore
from jitwi.task import Entity

PERMIT = "permit(principal, action, resource);\n"
HEAD = "namespace Shop {\n  entity Order;\n"


def _action(context: str, *, principal: str = "Jitwi::Workload", more: str = "") -> str:
    applies = f"principal: [{principal}], resource: [Order], context: {context}"
    return f"{HEAD}{more}  action pay appliesTo {{ {applies} }};\n}}\n"


GOOD = _action("{ task: Jitwi::Task }")

# reason, file, line, files that differ from a good set
REFUSED = [
    # policies
    ("syntax", "b.cedar", 3, {"b.cedar": PERMIT + "// note\npermit(principal, action resource);\n"}),
    ("syntax", "b.cedar", 4, {"b.cedar": PERMIT + "\npermit(principal, action, resource)\nwhen { 1 + };\n"}),
    ("syntax", "b.cedar", 2, {"b.cedar": PERMIT + "permit(principal, action, resource) when { ; };\n"}),
    ("syntax", "b.cedar", 2, {"b.cedar": PERMIT + "allow(principal, action, resource);\n"}),
    ("syntax", "b.cedar", 2, {"b.cedar": PERMIT + '@id("x") @id("y")\npermit(principal, action, resource);\n'}),
    ("syntax", "b.cedar", 1, {"b.cedar": 'permit(principal, action, resource) when { context.task.name == "x };'}),
    ("syntax", "b.cedar", 1, {"b.cedar": "permit(principal, action, resource) when { # };"}),
    ("syntax", "b.cedar", 1, {"b.cedar": 'permit(principal, action, resource == Shop::Order::"\\q");'}),
    ("cut", "b.cedar", 2, {"b.cedar": PERMIT + "forbid(principal,\n"}),
    ("cut", "b.cedar", 2, {"b.cedar": PERMIT + "forbid(principal, action, resource)\n"}),
    ("validation", "b.cedar", 2, {"b.cedar": PERMIT + "forbid(principal, action, resource) when { context.nope };\n"}),
    ("validation", "b.cedar", 1, {"b.cedar": "forbid(principal, action, resource is Shop::Nope);\n"}),
    ("validation", "b.cedar", 1, {"b.cedar": 'forbid(principal, action == Shop::Action::"nope", resource);\n'}),
    (
        "validation",
        "b.cedar",
        1,
        {"b.cedar": "forbid(principal, action, resource) when { context.task.owner == 1 };\n"},
    ),
    ("template", "b.cedar", 2, {"b.cedar": PERMIT + "forbid(principal == ?principal, action, resource);\n"}),
    ("template", "b.cedar", 1, {"b.cedar": "permit(principal, action, resource in ?resource);\n"}),
    ("no-permit", "a.cedar", 0, {"a.cedar": "forbid(principal, action, resource);\n"}),
    ("no-permit", "a.cedar", 0, {"a.cedar": "// nothing yet\n"}),
    ("no-permit", "", 0, {"a.cedar": None}),
    ("duplicate-id", "b.cedar", 2, {"a.cedar": '@id("x") ' + PERMIT, "b.cedar": PERMIT + '@id("x")\n' + PERMIT}),
    ("duplicate-id", "a.cedar", 1, {"a.cedar": '@id("jitwi.obtain.exact-and-revocable") ' + PERMIT}),
    ("duplicate-id", "b.cedar", 1, {"a.cedar": PERMIT, "b.cedar": '@id("a.cedar:1") ' + PERMIT}),
    ("policy-id", "a.cedar", 1, {"a.cedar": '@id("a\\nb") ' + PERMIT}),
    ("policy-id", "a.cedar", 1, {"a.cedar": f'@id("{"x" * 257}") ' + PERMIT}),
    (
        "too-deep",
        "b.cedar",
        2,
        {"b.cedar": "\npermit(principal, action, resource) when { " + "(" * 65 + "true" + ")" * 65 + "};"},
    ),
    ("hidden-character", "b.cedar", 2, {"b.cedar": PERMIT + "// \u202e\n"}),
    ("hidden-character", "b.cedar", 1, {"b.cedar": "// \x00\n" + PERMIT}),
    ("hidden-character", "b.cedar", 1, {"b.cedar": "// \x1b[2K\n" + PERMIT}),
    ("encoding", "b.cedar", 2, {"b.cedar": PERMIT.encode() + b"// \xff\n"}),
    (
        "never-matches",
        "b.cedar",
        1,
        {"b.cedar": 'forbid(principal in Jitwi::Path::"spiffe://a.org/x", action, resource);'},
    ),
    ("never-matches", "b.cedar", 1, {"b.cedar": 'forbid(principal in Jitwi::Path::"a.org", action, resource);'}),
    ("never-matches", "b.cedar", 1, {"b.cedar": 'forbid(principal in Jitwi::Path::"a.org/x/", action, resource);'}),
    ("never-matches", "b.cedar", 1, {"b.cedar": 'forbid(principal == Jitwi::Workload::"a.org/x", action, resource);'}),
    ("never-matches", "b.cedar", 1, {"b.cedar": 'forbid(principal in Jitwi::TrustDomain::"A.org", action, resource);'}),
    # schema
    ("no-schema", "", 0, {"s.cedarschema": None}),
    ("schema", "s.cedarschema", 2, {"s.cedarschema": "namespace Shop {\n entity in ;\n}"}),
    ("schema", "s.cedarschema", 3, {"s.cedarschema": GOOD.replace("  action", "  entity A in [Nowhere];\n  action")}),
    ("cut", "s.cedarschema", 1, {"s.cedarschema": "namespace Shop {\n entity A;\n"}),
    ("cut", "s.cedarschema", 1, {"s.cedarschema": "entity A in [B"}),
    ("too-deep", "s.cedarschema", 1, {"s.cedarschema": "entity A { x: " + "Set<" * 65 + "Long" + ">" * 65 + " };"}),
    ("too-deep", "s.cedarschema", 1, {"s.cedarschema": "entity A { x: " + "{x: " * 64 + "Long" + "}" * 64 + " };"}),
    (
        "too-deep",
        "s.cedarschema",
        1,
        {
            "s.cedarschema": "".join(f"type T{i} = {{x: T{i + 1}, y: T{i + 1}}};" for i in range(40))
            + "type T40 = Long;"
        },
    ),
    ("reserved-namespace", "s.cedarschema", 2, {"s.cedarschema": "\nnamespace Jitwi { entity A; }" + GOOD}),
    (
        "reserved-namespace",
        "s.cedarschema",
        1,
        {"s.cedarschema": '@doc("x")\nnamespace Jitwi::More { entity A; }' + GOOD},
    ),
    ("reserved-name", "s.cedarschema", 1, {"s.cedarschema": "entity Long;\n" + GOOD}),
    ("reserved-name", "s.cedarschema", 3, {"s.cedarschema": HEAD + "type datetime = Long;\n" + GOOD[len(HEAD) :]}),
    ("schema", "s.cedarschema", 1, {"s.cedarschema": "entity Path;\n" + GOOD}),
    # contexts
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{}")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ used: Long }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task?: Jitwi::Task }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: String }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Approval }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: { name: String, ttl: Long } }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Task, approval: Jitwi::Approval }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Task, approval?: String }")}),
    (
        "context-key",
        "s.cedarschema",
        3,
        {"s.cedarschema": _action("{ task: Jitwi::Task, delegation: Jitwi::Delegation }")},
    ),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Task, used: String }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Task, now: Long }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Task, risk: Bool }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Task, evidence: Long }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Task, ip: ipaddr }")}),
    (
        "context-key",
        "s.cedarschema",
        3,
        {"s.cedarschema": _action("{ task: Jitwi::Task, credential: Jitwi::Credential }")},
    ),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Task, input: Long }")}),
    ("context-key", "s.cedarschema", 3, {"s.cedarschema": _action("{ task: Jitwi::Task, input: { o: Order } }")}),
    (
        "context-key",
        "s.cedarschema",
        3,
        {"s.cedarschema": _action("{ task: Jitwi::Task, posture?: { o: Set<Order> } }")},
    ),
    ("context-key", "s.cedarschema", 4, {"s.cedarschema": _action("C", more="  type C = { other: Long };\n")}),
    # entities
    ("entities", "entities.json", 1, {"entities.json": "{}"}),
    ("entities", "entities.json", 1, {"entities.json": "[1]"}),
    ("entities", "entities.json", 1, {"entities.json": "[] x"}),
    ("entities", "entities.json", 2, {"entities.json": "[\n"}),
    ("too-deep", "entities.json", 1, {"entities.json": "[" * 65 + "]" * 65}),
    # task classes
    ("task-class", "tasks.toml", 2, {"tasks.toml": "\n[tasks.x\n"}),
    # names of files
    ("file-name", "B.CEDAR", 0, {"B.CEDAR": "forbid(principal, action, resource);"}),
]


def _ids(case):
    return f"{case[0]}-{case[1]}-{case[2]}"


@pytest.mark.parametrize("case", REFUSED, ids=_ids)
@pytest.mark.parametrize("form", ["folder", "texts"])
def test_bad_set_is_refused_with_its_place(case, form, tmp_path) -> None:
    """Every load check names reason, file, line and way out, for folders and texts alike."""
    reason, path, line, changes = case
    files = {"a.cedar": PERMIT, "s.cedarschema": GOOD, **changes}
    files = {name: content for name, content in files.items() if content is not None}
    if form == "folder":
        for name, content in files.items():
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    store = PolicyStore(tmp_path if form == "folder" else files)
    with pytest.raises(InvalidPolicyError) as caught:
        store.load()
    assert ((reason,), line) == (caught.value.reasons, caught.value.line)
    assert (
        caught.value.path == str(tmp_path / path if path else tmp_path)
        if form == "folder"
        else caught.value.path == path
    )
    assert caught.value.remedy
    assert caught.value.message == caught.value.message.rstrip(".")
    with pytest.raises(StateError):
        _ = store.snapshot


def test_good_set_loads(tmp_path) -> None:
    """The set that the table of refusals starts from is good."""
    assert PolicyStore({"a.cedar": PERMIT, "s.cedarschema": GOOD}).load().policy_count == 2


GOOD_CONTEXTS = {
    "plain": "{ task: Jitwi::Task }",
    "named": "C",
    "alias": "{ task: T }",
    "spelt out": """{ task: { name: String, purpose?: String, owner?: String, on_behalf_of?: String, agent?: String,
                              ttl: Long, max_uses?: Long } }""",
    "everything": """{ task: Jitwi::Task, approval?: Jitwi::Approval, delegation?: Jitwi::Delegation, used: Long,
                       now: datetime, risk: Long, evidence: String, posture: { patched: Bool },
                       input?: { a: Set<{ b: decimal }> } }""",
    "optional": """{ task: Jitwi::Task, used?: Long, now?: datetime, risk?: Long, evidence?: String, posture?: {},
                     input: {} }""",
    "qualified": "{ task: Jitwi::Task, now: __cedar::datetime }",
}


@pytest.mark.parametrize("context", GOOD_CONTEXTS.values(), ids=GOOD_CONTEXTS)
def test_good_contexts_load(context) -> None:
    """Our keys with our types in any spelling, and records of the user's own below `input` and `posture`."""
    schema = _action(context, more="  type T = Jitwi::Task;\n  type C = { task: T };\n")
    PolicyStore({"a.cedar": PERMIT, "s.cedarschema": schema}).load()


def test_an_action_for_other_principals_is_only_a_warning() -> None:
    """An action that no workload can ask is loaded, never asked, and said."""
    schema = _action("{}", principal="User", more="  entity User;\n") + _action("{ task: Jitwi::Task }").replace(
        "Shop", "Two"
    )
    snapshot = PolicyStore({"a.cedar": PERMIT, "s.cedarschema": schema}).load()
    assert [str(shape.action) for shape in snapshot.actions] == ['Two::Action::"pay"']
    (warning,) = snapshot.warnings
    assert warning.startswith('s.cedarschema:4: action `Shop::Action::"pay"`')


def test_policies_without_an_id_get_a_stable_one() -> None:
    """A policy without `@id`, or with an empty one, is named by file and position."""
    files = {"a.cedar": f'{PERMIT}@id("x") {PERMIT}@id {PERMIT}', "b.cedar": PERMIT, "s.cedarschema": GOOD}
    infos = PolicyStore(files).load().policies
    assert [(info.id, info.path, info.line) for info in infos] == [
        ("a.cedar:1", "a.cedar", 1),
        ("x", "a.cedar", 2),
        ("a.cedar:3", "a.cedar", 3),
        ("b.cedar:1", "b.cedar", 1),
        ("jitwi.obtain.exact-and-revocable", "jitwi/obtain.cedar", 3),
    ]
    assert [info.is_built_in for info in infos] == [False] * 4 + [True]


def test_policies_in_subfolders_are_not_passed_over(tmp_path) -> None:
    """A folder within the folder that holds policies refuses the load: its forbids would be missing."""
    (tmp_path / "a.cedar").write_text(PERMIT)
    (tmp_path / "s.cedarschema").write_text(GOOD)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "README").write_text("x")
    PolicyStore(tmp_path).load()
    (tmp_path / "notes" / "more.cedar").write_text("forbid(principal, action, resource);")
    with pytest.raises(InvalidPolicyError) as caught:
        PolicyStore(tmp_path).load()
    assert caught.value.reasons == ("subfolder",)


@pytest.mark.parametrize("kind", ["missing", "file", "dangling"])
def test_an_unreadable_folder_is_refused(kind, tmp_path) -> None:
    """A folder that cannot be read is a refused load, not a foreign exception."""
    target = tmp_path / "x"
    if kind == "file":
        target.write_text("")
    elif kind == "dangling":
        target.mkdir()
        (target / "a.cedar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidPolicyError) as caught:
        PolicyStore(target).load()
    assert caught.value.reasons == ("unreadable",)


def test_a_file_cannot_complete_another() -> None:
    """Two files that only make a policy together are refused, although the engine would read the sum."""
    files = {"a.cedar": PERMIT + "permit(principal, action,", "b.cedar": " resource);", "s.cedarschema": GOOD}
    with pytest.raises(InvalidPolicyError) as caught:
        PolicyStore(files).load()
    assert (caught.value.path, caught.value.reasons) == ("a.cedar", ("cut",))


@pytest.mark.parametrize("name", ["refund", "Shop::refund", 'Shop::Action::"refund"', Entity("Shop::Action", "refund")])
def test_action_names_resolve(name, shop) -> None:
    """Uid, namespace and id, or the id alone where it is unique."""
    assert shop.store().load().action(name).action == Entity("Shop::Action", "refund")


@pytest.mark.parametrize(
    "name", ["nope", "Other::refund", "obtain", "Jitwi::obtain", Entity("Jitwi::Action", "obtain"), "writes"]
)
def test_unknown_action_names_list_the_candidates(name, shop) -> None:
    """What is no action that can be asked says which are."""
    with pytest.raises(Exception, match=r'Shop::Action::"read"') as caught:
        shop.store().load().action(name)
    assert caught.value.reasons == ("unknown-action",)


def test_an_ambiguous_action_name_lists_the_candidates(shop) -> None:
    """An id of two actions is refused with both."""
    schema = shop.schema + shop.schema.replace("namespace Shop", "namespace Two")
    snapshot = shop.store(schema=schema).load()
    with pytest.raises(Exception, match=r'`Shop::Action::"read"`, `Two::Action::"read"`') as caught:
        snapshot.action("read")
    assert caught.value.reasons == ("ambiguous-action",)
    assert snapshot.action("Two::read").action.type == "Two::Action"


def test_digest_follows_every_part(shop) -> None:
    """Policies, schema and task classes are in the digest; comments of a schema are not, entities have their own."""
    base = shop.store().load()
    same = shop.store(schema="// note\n" + shop.schema).load()
    assert base.digest == same.digest
    others = [
        shop.store(policies=shop.policies + " ").load(),
        shop.store(schema=shop.schema + "entity Extra;").load(),
        shop.store(tasks="").load(),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 4
    changed = shop.store(entities=json.dumps(json.loads(shop.entities)[1:])).load()
    assert (changed.digest, changed.entities_digest != base.entities_digest) == (base.digest, True)
