# SPDX-License-Identifier: Apache-2.0
"""The current set: lazy, kept when a new one is bad, bounded in staleness, whole or not at all (bar 20)."""

from __future__ import annotations

import functools
import json
import threading
from datetime import timedelta

import pytest

from jitwi.errors import ConfigurationError, InvalidPolicyError, PolicyStaleError, StateError
from jitwi.policy import PolicyStore, engine, folder, write_manifest
from jitwi.policy.folder import MANIFEST

FORBID = '@id("freeze")\nforbid (principal, action, resource);\n'


@pytest.fixture
def home(tmp_path, shop):
    """A folder with the shop's set."""
    (tmp_path / "a.cedar").write_text(shop.policies)
    (tmp_path / "s.cedarschema").write_text(shop.schema)
    (tmp_path / "entities.json").write_text(shop.entities)
    return tmp_path


def test_nothing_is_read_before_load(tmp_path) -> None:
    """A constructor does no I/O; using a set that is not there is misuse."""
    store = PolicyStore(tmp_path / "nowhere")
    with pytest.raises(StateError):
        _ = store.snapshot
    assert store.is_stale is False
    with pytest.raises(InvalidPolicyError):
        store.load()


def test_load_is_done_once(home) -> None:
    """A second `load` answers with the set in force; `reload` makes a new one."""
    store = PolicyStore(home)
    first = store.load()
    assert store.load() is first
    assert store.snapshot is first
    assert store.reload() is not first
    assert store.snapshot.digest == first.digest


@pytest.mark.parametrize("name", ["provider_timeout", "staleness_limit"])
@pytest.mark.parametrize("value", [timedelta(0), timedelta(seconds=-1), 5])
def test_durations_are_positive(name, value, tmp_path) -> None:
    """A duration that is none is a configuration error, before anything is read."""
    with pytest.raises(ConfigurationError):
        PolicyStore(tmp_path, **{name: value})


def test_a_good_reload_is_in_force_at_once(home, shop) -> None:
    """All of a new set replaces all of the old one; whoever holds the old one keeps a whole old one."""
    store = PolicyStore(home)
    before = store.load()
    (home / "b.cedar").write_text(FORBID)
    (home / "entities.json").write_text("[]")
    after = store.reload()
    assert store.snapshot is after
    assert shop.decide(before, "read").is_allowed
    assert shop.decide(after, "read").reason == "unknown-resource"
    assert after.digest != before.digest


BAD = {
    "syntax": ("a.cedar", "permit("),
    "no permit": ("a.cedar", FORBID),
    "schema": ("s.cedarschema", "entity ;"),
    "entities": ("entities.json", "{}"),
    "tasks": ("tasks.toml", "[tasks.x]\n"),
    "gone": ("s.cedarschema", None),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_reload_leaves_the_last_good_set(bad, home, shop) -> None:
    """The last good set goes on, and the refusal is raised and told."""
    events = []
    store = PolicyStore(home, on_event=events.append)
    good = store.load()
    name, text = BAD[bad]
    if text is None:
        (home / name).unlink()
    else:
        (home / name).write_text(text)
    with pytest.raises(InvalidPolicyError) as caught:
        store.reload()
    assert store.snapshot is good
    assert shop.decide(store.snapshot, "read").is_allowed
    assert [(event.kind, event.digest) for event in events] == [("loaded", good.digest), ("refused", good.digest)]
    assert events[1].error is caught.value


def test_after_the_staleness_limit_everything_is_denied(home, shop, clock) -> None:
    """Counted from the first failed reload; a good reload ends it."""
    store = PolicyStore(home, clock=clock, staleness_limit=timedelta(minutes=5))
    store.load()
    clock.advance(10_000)
    assert shop.decide(store.snapshot, "read").is_allowed
    good = (home / "a.cedar").read_text()
    (home / "a.cedar").write_text("permit(")
    for _ in range(3):
        with pytest.raises(InvalidPolicyError):
            store.reload()
        clock.advance(99)
    assert not store.is_stale
    assert shop.decide(store.snapshot, "read").is_allowed
    clock.advance(3)
    assert store.is_stale
    stale = store.snapshot
    assert stale is store.snapshot
    decision = shop.decide(stale, "read")
    assert (decision.is_allowed, decision.reason) == (False, "stale")
    for ask in (stale.require_fresh, lambda: stale.check_task_facts({"name": "x", "ttl": 1})):
        with pytest.raises(PolicyStaleError):
            ask()
    (home / "a.cedar").write_text(good)
    store.reload()
    assert not store.is_stale
    assert shop.decide(store.snapshot, "read").is_allowed


def test_a_clock_set_back_does_not_revive_a_stale_set(home, shop, clock) -> None:
    """The boot-time clock counts as well."""
    store = PolicyStore(home, clock=clock, staleness_limit=timedelta(minutes=5))
    store.load()
    (home / "a.cedar").write_text("permit(")
    with pytest.raises(InvalidPolicyError):
        store.reload()
    clock.advance(301)
    clock.instant = clock.instant._replace(wall=0.0)
    assert shop.decide(store.snapshot, "read").reason == "stale"


def test_a_hook_that_fails_stops_the_load(home) -> None:
    """What cannot be told does not take effect."""

    def refuse(_: object) -> None:
        raise OSError("no record")

    store = PolicyStore(home, on_event=refuse)
    with pytest.raises(OSError, match="no record"):
        store.load()
    with pytest.raises(StateError):
        _ = store.snapshot


def test_readers_see_one_set_or_the_other(home, shop) -> None:
    """While sets are swapped, every decision is one of an old or a new set, with that set's digest."""
    store = PolicyStore(home)
    open_digest = store.load().digest
    (home / "b.cedar").write_text(FORBID)
    closed_digest = store.reload().digest
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            decision = shop.decide(store.snapshot, "read")
            if decision.policy_digest != (open_digest if decision.is_allowed else closed_digest):
                wrong.append(decision)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(10):
            if turn % 2:
                (home / "b.cedar").write_text(FORBID)
            else:
                (home / "b.cedar").unlink()
            store.reload()
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert wrong == []


# Manifest and bar 20.
def test_a_manifest_is_honoured(home, shop) -> None:
    """With a manifest, a file more, less or different refuses the set; so does another number of policies."""
    (home / "README").write_text("notes")
    write_manifest(home, policies=3)
    assert PolicyStore(home).load().policy_count == 4
    cases = {
        "different": lambda: (home / "a.cedar").write_text(shop.policies + "\n"),
        "extra": lambda: (home / "b.cedar").write_text(FORBID),
        "missing": (home / "entities.json").unlink,
        "extra note": lambda: (home / "NOTES").write_text(""),
        "other note": lambda: (home / "README").write_text("other"),
        "count": functools.partial(write_manifest, home, policies=2),
        "not json": lambda: (home / MANIFEST).write_text("{"),
        "other version": lambda: (home / MANIFEST).write_text(
            (home / MANIFEST).read_text().replace('"version": 1', '"version": 2')
        ),
        "repeated member": lambda: (home / MANIFEST).write_text(
            (home / MANIFEST).read_text().replace('"version": 1', '"version": 1, "version": 1')
        ),
    }
    saved = {path.name: path.read_bytes() for path in home.iterdir()}
    for change in cases.values():
        change()
        with pytest.raises(InvalidPolicyError) as caught:
            PolicyStore(home).load()
        assert caught.value.reasons == ("manifest",)
        assert caught.value.path == str(home / MANIFEST)
        for path in home.iterdir():
            if path.name not in saved:
                path.unlink()
        for name, content in saved.items():
            (home / name).write_bytes(content)
    PolicyStore(home).load()


def _four_kilobytes(shop) -> str:
    text = shop.policies
    number = 0
    while len(text) < 4_000:
        number += 1
        text += (
            f'\n// rule {number}\n@id("guard-{number}")\nforbid (principal, action, resource)\n'
            f'when {{ context.task.name == "forbidden-{number};}}" }};\n'
        )
    return text + FORBID


def test_a_cut_file_never_becomes_a_set_with_a_manifest(shop) -> None:
    """At every byte offset of a 4 kB file: refused by the manifest (bar 20)."""
    whole = _four_kilobytes(shop).encode()
    files = {"a.cedar": whole, "s.cedarschema": shop.schema.encode()}
    manifest = folder.manifest_text(files, policies=whole.count(b"@id("))
    assert PolicyStore({**files, MANIFEST: manifest}).load().policy_count == whole.count(b"@id(") + 1
    for offset in range(len(whole)):
        with pytest.raises(InvalidPolicyError) as caught:
            PolicyStore({**files, "a.cedar": whole[:offset], MANIFEST: manifest}).load()
        assert caught.value.reasons == ("manifest",)


def test_without_a_manifest_only_cuts_between_policies_load(shop, monkeypatch) -> None:
    """At every byte offset: refused, but for the known exception, a cut right behind a whole policy (bar 20)."""
    from jitwi.policy import loader

    whole = _four_kilobytes(shop)
    boundaries = {policy.end for policy in loader.scan_policies(whole, "a.cedar")}
    monkeypatch.setattr(engine, "on_large_stack", lambda work: work())
    accepted = 0
    for offset in range(len(whole)):
        cut = whole[:offset]
        try:
            loader._policy_texts("a.cedar", cut)
        except InvalidPolicyError:
            continue
        # What the scanner lets through is asked of the whole load.
        behind = max((end for end in boundaries if end <= offset), default=0)
        rest = cut[behind:].strip()
        assert rest == "" or rest.startswith("//"), cut[behind:]
        if offset in boundaries:
            accepted += 1
            store = shop.store(policies=cut, schema=shop.schema)
            assert store.load().policy_count == sum(end <= offset for end in boundaries) + 1
    assert accepted == len(boundaries) - 1 or accepted == len(boundaries)


def test_a_swap_while_reading_never_mixes_two_sets(home, shop, monkeypatch) -> None:
    """Files that are links into a folder that is swapped are read until two readings agree (bar 20)."""
    for version, more in (("one", ""), ("two", FORBID)):
        (home / f".{version}").mkdir()
        (home / f".{version}" / "a.cedar").write_text(f"{shop.policies}// {version}\n")
        (home / f".{version}" / "z.cedar").write_text(more or "// none\n")
    for name in ("a.cedar", "z.cedar"):
        (home / name).unlink(missing_ok=True)
        (home / name).symlink_to(f".data/{name}")
    (home / ".data").symlink_to(".one")
    original, reads = folder._read, []

    def swapping(handle, root, name):
        reads.append(name)
        if len(reads) == 2:
            (home / ".new").symlink_to(".two")
            (home / ".new").replace(home / ".data")
        return original(handle, root, name)

    monkeypatch.setattr(folder, "_read", swapping)
    snapshot = PolicyStore(home).load()
    assert "freeze" in [info.id for info in snapshot.policies]
    assert len(reads) == 12


def test_a_folder_that_never_rests_is_refused(home, monkeypatch) -> None:
    """Reading gives up in time."""
    original, count = folder._read, iter(range(1000))
    monkeypatch.setattr(folder, "_read", lambda *given: original(*given) + b"\n" * next(count))
    with pytest.raises(InvalidPolicyError) as caught:
        PolicyStore(home).load()
    assert caught.value.reasons == ("unreadable",)


@pytest.mark.parametrize("limit", [0, 10])
def test_a_file_over_its_limit_is_refused_unread(limit, home, monkeypatch) -> None:
    """A huge file is not read whole."""
    monkeypatch.setattr(folder, "MAX_POLICY_BYTES", limit)
    with pytest.raises(InvalidPolicyError) as caught:
        PolicyStore(home).load()
    assert caught.value.reasons == ("too-large",)


# The engine's own test.
@pytest.mark.parametrize("defect", ["errors", "groups", "everything", "validation", "schema"])
def test_an_engine_that_fails_the_self_test_loads_nothing(defect, shop, monkeypatch) -> None:
    """A must-deny vector that is allowed, or a broken schema that parses, refuses to start."""
    monkeypatch.setattr(engine, "_tested", threading.Event())
    if defect == "errors":
        original = engine.judge
        monkeypatch.setattr(
            engine, "judge", lambda decision, reasons, named, errors: original(decision, reasons, named, [])
        )
    elif defect == "groups":
        plain = engine.parse_entities
        monkeypatch.setattr(engine, "parse_entities", lambda text, schema: plain(text, None))
    elif defect == "everything":
        monkeypatch.setattr(engine, "ask", lambda *_: engine.Answer(True, "allow", [], {}, ()))
    elif defect == "validation":
        monkeypatch.setattr(engine, "invalid_policies", lambda *_: [])
    else:
        good = engine.parse_schema
        monkeypatch.setattr(engine, "parse_schema", lambda text: good("entity A;" if "Nowhere" in text else text))
    with pytest.raises(InvalidPolicyError, match="self-test"):
        shop.store().load()


def test_the_self_test_runs_once_per_process(shop, monkeypatch) -> None:
    """It costs the first load only."""
    shop.store().load()
    monkeypatch.setattr(engine, "_TEST_ACTIONS", ())
    monkeypatch.setattr(engine, "invalid_policies", engine.invalid_policies)
    assert engine._tested.is_set()
    shop.store().load()


def test_texts_are_copied(shop) -> None:
    """A mapping that changes later does not change what a reload reads by surprise of its owner."""
    files = {"a.cedar": shop.policies, "s.cedarschema": shop.schema, "entities.json": json.dumps([])}
    store = PolicyStore(files)
    files["a.cedar"] = "permit("
    store.load()
    assert repr(store) == "PolicyStore('<3 texts>', loaded)"
