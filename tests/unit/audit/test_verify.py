# SPDX-License-Identifier: Apache-2.0
"""What was written is what is read: every change before the last anchor is found (bar 34)."""

from __future__ import annotations

import hashlib
import os
import random
import shutil

import pytest

from jitwi.audit import Anchor, ChainStatus, read, verify
from jitwi.audit.chain import GENESIS, MAX_LINE, link, parse_line
from jitwi.audit.events import GrantEnded
from jitwi.errors import AuditError

RECORDS = 20


@pytest.fixture
def trail(folder, open_log, make_subject):
    """A closed chain of twenty events; its path."""
    log = open_log()
    for number in range(RECORDS):
        log.record(
            GrantEnded(make_subject(txn=f"txn-{number}"), "block", "x" * number, number, ()), durable=number == 0
        )
    log.close()
    (chain,) = folder.glob("chain-*")
    return chain


def lines_of(path):
    """Return the lines of a chain."""
    return path.read_bytes().splitlines(keepends=True)


def only(found):
    """Return the report of the only chain."""
    (report,) = found.chains
    return report


def relink(lines, start=0, prev=GENESIS):
    """Recompute all hashes from `start` on: what an attacker does who knows the format."""
    done = list(lines[:start])
    if start:
        prev = parse_line(lines[start - 1]).digest.encode()
    for seq, line in enumerate(lines[start:], start):
        at = line[line.index(b'"at":"') + 6 :][: len("2026-01-01T00:00:00.000000Z")]
        body = line[line.index(b'"kind":') : line.rindex(b',"hash":')]
        made, prev = link(seq, prev, at, body)
        done.append(made)
    return done


def test_clean_trail(folder, trail):
    """A closed chain that nobody touched is intact, all of it anchored, and reads back."""
    found = verify(folder)
    report = only(found)
    assert (found.is_intact, report.status, report.records, report.unanchored) == (
        True,
        ChainStatus.CLOSED,
        RECORDS + 2,
        0,
    )
    assert [record["seq"] for record in read(folder)] == list(range(RECORDS + 2))
    assert [record["uses"] for record in read(folder, txn="txn-7")] == [7]
    found.require_intact()


def mutate(data, chance):
    """Return a random change of a file, and its name."""
    lines = data.splitlines(keepends=True)
    where = chance.randrange(len(lines))
    kind = chance.choice(
        ["bit", "byte", "insert", "delete", "line", "repeat", "swap", "cut", "copy", "relink", "append"]
    )
    offset = chance.randrange(len(data))
    if kind == "bit":
        changed = data[:offset] + bytes([data[offset] ^ (1 << chance.randrange(8))]) + data[offset + 1 :]
    elif kind == "byte":
        changed = data[:offset] + bytes([chance.randrange(256)]) + data[offset + 1 :]
    elif kind == "insert":
        changed = data[:offset] + chance.randbytes(chance.randint(1, 4)) + data[offset:]
    elif kind == "delete":
        changed = data[:offset] + data[offset + chance.randint(1, 40) :]
    elif kind == "line":
        changed = b"".join(lines[:where] + lines[where + chance.randint(1, 3) :])
    elif kind == "repeat":
        changed = b"".join([*lines[:where], lines[where], *lines[where:]])
    elif kind == "swap":
        other = chance.randrange(len(lines))
        lines[where], lines[other] = lines[other], lines[where]
        changed = b"".join(lines)
    elif kind == "cut":
        changed = data[:offset]
    elif kind == "copy":
        changed = b"".join([*lines[:where], lines[chance.randrange(len(lines))], *lines[where + 1 :]])
    elif kind == "relink":
        lines[where] = lines[where].replace(b'"cause":"block"', b'"cause":"ttl"')
        changed = b"".join(relink(lines, where))
    else:
        changed = data + lines[where]
    return kind, changed


def test_a_thousand_mutations(folder, trail):
    """Each of 1,000 random changes of a closed chain is found; a rewritten hash does not help (bar 34)."""
    chance = random.Random(34)
    clean = trail.read_bytes()
    missed, seen = [], 0
    while seen < 1000:
        kind, changed = mutate(clean, chance)
        if changed == clean:
            continue
        seen += 1
        trail.write_bytes(changed)
        found = verify(folder)
        if found.is_intact or only(found).line < 1:
            missed.append((kind, seen))
    assert missed == []


def test_mutations_of_the_index(folder, trail):
    """Each of 200 random changes of the index is found; a cut tail only takes an anchor away."""
    chance = random.Random(35)
    index = folder / "index.jsonl"
    clean = index.read_bytes()
    first = len(clean.splitlines(keepends=True)[0])
    missed = []
    for _ in range(200):
        kind, changed = mutate(clean, chance)
        if changed == clean or kind == "relink":
            continue
        index.write_bytes(changed)
        if verify(folder).is_intact and not (clean.startswith(changed) and len(changed) >= first):
            missed.append(kind)
    assert missed == []


TAMPERED = {
    "edited": (lambda lines: [*lines[:3], lines[3].replace(b"block", b"clock"), *lines[4:]], 4, "edited"),
    "deleted": (lambda lines: lines[:5] + lines[6:], 6, "deleted: record 5"),
    "deleted three": (lambda lines: lines[:5] + lines[8:], 6, "deleted: records 5 to 7"),
    "reordered": (lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]], 6, "reordered"),
    "repeated": (lambda lines: [*lines[:5], lines[4], *lines[5:]], 6, "inserted"),
    "inserted": (lambda lines: [*relink([*lines[:5], lines[4]], 5), *lines[5:]], 7, "inserted"),
    "replaced": (
        lambda lines: [*relink([*lines[:4], lines[4].replace(b"block", b"clock")], 4), *lines[5:]],
        6,
        "edited",
    ),
    "head gone": (lambda lines: lines[1:], 1, "deleted: record 0"),
    "tail cut": (lambda lines: lines[:-3], RECORDS, "cut: an anchor"),
    "tail added": (lambda lines: relink([*lines, lines[3]], len(lines)), RECORDS + 3, "inserted: a record after"),
    "blank line": (lambda lines: [*lines[:3], b"\n", *lines[3:]], 4, "edited"),
    "other line end": (lambda lines: [*lines[:3], lines[3][:-1] + b"\r\n", *lines[4:]], 4, "edited"),
    "all rewritten": (lambda lines: relink([lines[0], *lines[2:-1]]), RECORDS + 1, "cut: an anchor"),
    "all rewritten, same length": (
        lambda lines: relink([*lines[:4], lines[4].replace(b"block", b"clock"), *lines[5:]]),
        RECORDS + 2,
        "replaced: an anchor",
    ),
    "emptied": (lambda _: [], 1, "cut"),
    "line too long": (lambda lines: [*lines[:3], b"x" * (MAX_LINE + 9) + b"\n", *lines[3:]], 4, "edited"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_the_report_names_line_and_kind(folder, trail, name):
    """A change is reported with its exact line and what it was."""
    change, line, what = TAMPERED[name]
    trail.write_bytes(b"".join(change(lines_of(trail))))
    found = verify(folder)
    report = only(found)
    assert not found.is_intact
    assert (report.status, report.line) == (ChainStatus.TAMPERED, line)
    assert report.problem.startswith(what)
    with pytest.raises(AuditError, match=f"line {line}"):
        found.require_intact()


HOSTILE = {
    "duplicate member": b'{"seq":0,"prev":"%b","at":"2026-01-01T00:00:00.000000Z","kind":"a","kind":"b"',
    "second seq": b'{"seq":0,"prev":"%b","at":"2026-01-01T00:00:00.000000Z","kind":"a","seq":1',
    "not a number": b'{"seq":0,"prev":"%b","at":"2026-01-01T00:00:00.000000Z","kind":"a","x":NaN',
    "deep": b'{"seq":0,"prev":"%b","at":"2026-01-01T00:00:00.000000Z","kind":"a","x":' + b"[" * 100_000,
    "long number": b'{"seq":0,"prev":"%b","at":"2026-01-01T00:00:00.000000Z","kind":"a","x":' + b"9" * 10_000,
    "not ASCII": '{"seq":0,"prev":"%b","at":"2026-01-01T00:00:00.000000Z","kind":"\u00e4"'.encode(),
    "two values": b'{"seq":0,"prev":"%b","at":"2026-01-01T00:00:00.000000Z","kind":"a"}{"b":1',
    "seq too long": b'{"seq":' + b"9" * 30 + b',"prev":"%b","at":"2026-01-01T00:00:00.000000Z","kind":"a"',
    "array": b'["seq",0,"prev","%b"',
    **{
        f"{depth} lists": b'{"seq":0,"prev":"%b","at":"2026-01-01T00:00:00.000000Z","kind":"a","x":'
        + b"[" * depth
        + b"]" * depth
        for depth in (300, 900, 5_000, 30_000)
    },
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_contents_are_not_trusted(folder, name):
    """A line with a good hash that is not strict JSON is refused with a typed error and nothing else."""
    head = HOSTILE[name].replace(b"%b", GENESIS)
    line = head + b',"hash":"' + hashlib.sha256(head).hexdigest().encode() + b'"}\n'
    with pytest.raises(AuditError):
        parse_line(line)
    folder.mkdir(mode=0o700)
    path = folder / "chain-x.jsonl"
    path.write_bytes(line)
    assert not verify(path).is_intact
    with pytest.raises(AuditError):
        list(read(path))


def test_random_bytes_are_not_a_trail(folder):
    """Whatever bytes a file has, the answer is a report (bar 34: never trusts contents)."""
    chance = random.Random(36)
    folder.mkdir(mode=0o700)
    path = folder / "chain-x.jsonl"
    for _ in range(300):
        path.write_bytes(chance.randbytes(chance.randrange(400)))
        assert not verify(path).is_intact or only(verify(path)).status is ChainStatus.TORN


def test_missing_chain(folder, trail):
    """A chain that the index names and that is gone is reported by its name."""
    trail.unlink()
    found = verify(folder)
    assert not found.is_intact
    assert (only(found).name, only(found).status) == (trail.name, ChainStatus.MISSING)


def test_renamed_chain(folder, trail):
    """A chain under another name is reported twice: missing, and not what its name says."""
    trail.rename(trail.with_name("chain-other.jsonl"))
    found = {report.name: report for report in verify(folder).chains}
    assert found[trail.name].status is ChainStatus.MISSING
    assert found["chain-other.jsonl"].problem.startswith("renamed")


def test_added_chain(folder, trail, tmp_path):
    """A whole chain from somewhere else, which the index does not name, is reported; so is any other file."""
    name = trail.name.replace("chain-", "chain-added-")
    lines = [line.replace(trail.name.encode(), name.encode()) for line in lines_of(trail)]
    (folder / name).write_bytes(b"".join(relink(lines)))
    (folder / "notes.txt").write_bytes(b"x")
    found = {report.name: report.problem for report in verify(folder).chains}
    assert found == {
        trail.name: "",
        name: "inserted: the index does not name it",
        "notes.txt": "inserted: not a file of this log",
    }


def test_lost_index(folder, trail):
    """Without its index a folder is not intact, and neither is an empty one."""
    (folder / "index.jsonl").unlink()
    assert not verify(folder).is_intact
    trail.unlink()
    assert not verify(folder).is_intact


def test_unreadable_path(folder, trail):
    """What is no trail at all is a typed error; a link is not followed."""
    with pytest.raises(AuditError):
        verify(folder / "nothing")
    for look in (verify, lambda path: list(read(path))):
        with pytest.raises(AuditError):
            look("no\0path")
    link_to = folder.parent / "link"
    link_to.symlink_to(folder)
    with pytest.raises(AuditError):
        verify(link_to)
    os.mkfifo(folder.parent / "fifo")
    with pytest.raises(AuditError):
        verify(folder.parent / "fifo")


def test_live_chain_states_what_is_unanchored(folder, open_log, make_subject):
    """A chain that is not closed is no error; what could be cut is counted, and an anchor tells."""
    log = open_log()
    for number in range(10):
        log.record(GrantEnded(make_subject(), "block", "", number, ()))
    kept = log.anchor()
    assert kept.seq == 10
    report = only(verify(folder))
    assert (report.status, report.records, report.unanchored) == (ChainStatus.OPEN, 11, 10)
    assert only(verify(folder, anchors=[kept])).unanchored == 0
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    (chain,) = copy.glob("chain-*")
    chain.write_bytes(b"".join(lines_of(chain)[:-2]))
    cut = verify(copy)
    assert (cut.is_intact, only(cut).unanchored) == (True, 8)
    told = only(verify(copy, anchors=[kept]))
    assert (told.status, told.line) == (ChainStatus.TAMPERED, 10)
    lines = lines_of(chain)
    chain.write_bytes(b"".join(relink([*lines[:3], lines[3].replace(b"block", b"clock"), *lines[4:]], 3)))
    assert not verify(copy, anchors=[Anchor(chain.name, 5, parse_line(lines[5]).digest)]).is_intact


def test_index_is_an_anchor(folder, open_log, make_subject):
    """A long chain is anchored in the index as it grows: a cut before that point is found although it is not closed."""
    log = open_log()
    for number in range(3000):
        log.record(GrantEnded(make_subject(), "block", "", number, ()), durable=number % 500 == 0)
    log.flush()
    log.flush()  # the anchor is made after the callers were answered
    report = only(verify(folder))
    assert report.status is ChainStatus.OPEN
    assert report.unanchored < 1500
    (chain,) = folder.glob("chain-*")
    lines = lines_of(chain)
    for keep, intact in ((len(lines) - report.unanchored, True), (len(lines) - report.unanchored - 1, False)):
        copy = folder.parent / f"copy{keep}"
        shutil.copytree(folder, copy)
        (copy / chain.name).write_bytes(b"".join(lines[:keep]))
        assert verify(copy).is_intact is intact


@pytest.mark.parametrize("keep", [1, 3, 10])
def test_forged_end_is_not_anchored(folder, open_log, make_subject, keep):
    """A closing record that no anchor confirms hides no cut: what stands before it is stated as unanchored."""
    log = open_log()
    for number in range(10):
        log.record(GrantEnded(make_subject(), "block", "", number, ()))
    log.flush()
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    log.close()
    (chain,) = copy.glob("chain-*")
    lines = lines_of(chain)[:keep]
    closing = b'"kind":"chain.closed","records":%d' % (keep + 1)
    line, _ = link(keep, parse_line(lines[-1]).digest.encode(), b"2026-01-01T00:00:00.000000Z", closing)
    chain.write_bytes(b"".join([*lines, line]))
    report = only(verify(copy))
    assert (report.status, report.records, report.unanchored) == (ChainStatus.CLOSED, keep + 1, keep)
    assert "no anchor" in report.problem
    assert only(verify(folder)).unanchored == 0


@pytest.mark.parametrize("cut", [1, 2, 40, 200])
def test_torn_last_line(folder, open_log, make_subject, cut):
    """An incomplete last line of a chain that is not closed is stated as torn, with its line, and is no tampering."""
    log = open_log()
    log.record(GrantEnded(make_subject(), "block", "x" * 200, 1, ()))
    log.flush()
    (chain,) = folder.glob("chain-*")
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    (copy / chain.name).write_bytes(chain.read_bytes()[:-cut])
    found = verify(copy)
    assert found.is_intact
    assert (only(found).status, only(found).line, only(found).records) == (ChainStatus.TORN, 2, 1)
    assert len(list(read(copy))) == 1


def test_torn_index_is_repaired(folder, open_log, make_subject):
    """An entry that a dying process left half written is taken away by the next one, which says so."""
    first = open_log()
    first.record(GrantEnded(make_subject(), "block", "", 1, ()), durable=True)
    with (folder / "index.jsonl").open("ab") as index:
        index.write(b'{"seq":1,"prev":"')
    second = open_log()
    second.record(GrantEnded(make_subject(), "block", "", 1, ()), durable=True)
    assert b'"repaired":17' in (folder / "index.jsonl").read_bytes()
    assert verify(folder).is_intact


def test_damaged_index_refuses(folder, trail, open_log, make_subject):
    """No chain is begun under an index whose last entry was changed."""
    index = folder / "index.jsonl"
    index.write_bytes(index.read_bytes().replace(b"chain.closed", b"chain.clozed"))
    with pytest.raises(AuditError, match="damaged"):
        open_log().open()
    assert [path for path in folder.glob("chain-*") if path != trail] == []
