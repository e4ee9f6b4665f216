# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints is safe, what it returns is right, and it imports what it needs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from jitwi.audit import AuditLog, Subject
from jitwi.audit.events import GrantEnded, GuardDenied
from jitwi.cli import COMMANDS, main
from jitwi.cli.console import printable

HOSTILE = "refund\x1b[2J\u202egnp.exe\n[bold]x[/]"


def run(*args):
    """Run the command line in this process; return its result."""

    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def proxy(rest):
        main(rest)

    return CliRunner().invoke(proxy, ["--", *map(str, args)])


@pytest.fixture
def trail(tmp_path):
    """An audit folder with two transactions, closed."""
    log = AuditLog(tmp_path / "audit")
    log.record(
        GrantEnded(Subject("txn-1", "grant-1", "spiffe://example.org/a", HOSTILE), "block", "", 1, ("verified",))
    )
    log.record(
        GuardDenied(Subject("txn-2", "", "spiffe://example.org/b", "other"), "j", "aud", "proof", "Replay", HOSTILE)
    )
    log.close()
    return log.folder


def test_verify(trail):
    """An intact trail is a table and exit code 0."""
    done = run("audit", "verify", trail)
    assert done.exit_code == 0, done.output
    assert "intact: 4 records in 1 chains" in done.output
    assert "closed" in done.output


def test_verify_changed_byte(trail):
    """One changed byte is exit code 1, with file, line and what it was."""
    (chain,) = trail.glob("chain-*")
    chain.write_bytes(chain.read_bytes().replace(b"block", b"clock"))
    done = run("audit", "verify", trail)
    assert done.exit_code == 1
    assert f"NOT INTACT: {chain.name}, line 2: edited" in done.output


def test_verify_json(trail):
    """`--json` prints one object with everything that the table has."""
    done = run("audit", "verify", "--json", trail)
    found = json.loads(done.output)
    assert (found["intact"], found["records"], len(found["chains"])) == (True, 4, 2)
    (trail / "index.jsonl").unlink()
    done = run("audit", "verify", "--json", trail)
    assert (done.exit_code, json.loads(done.output)["intact"]) == (1, False)


def test_verify_one_chain(trail):
    """A single chain can be verified by itself, and so can the index."""
    for path in trail.iterdir():
        assert run("audit", "verify", path).exit_code == 0
    (trail / "index.jsonl").write_bytes(b"")
    assert run("audit", "verify", trail / "index.jsonl").exit_code == 1


def test_verify_nothing(tmp_path):
    """A path that cannot be read is one line of error and exit code 1; an empty folder is not intact."""
    done = run("audit", "verify", tmp_path / "nothing\x1b[2J")
    assert done.exit_code == 1
    assert "cannot be read" in done.output
    assert "\x1b" not in done.output
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("audit", "verify", empty).exit_code == 1


def test_show(trail):
    """`show` lists the events in one table, of one transaction if asked, and obeys no character in them."""
    done = run("audit", "show", trail)
    assert done.exit_code == 0, done.output
    assert all(line.isprintable() for line in done.output.split("\n"))
    assert "guard.denied" in done.output
    assert "[bold]x[/]" in done.output
    one = run("audit", "show", trail, "--txn", "txn-1").output
    assert "grant.ended" in one
    assert "guard.denied" not in one
    lines = run("audit", "show", trail, "--json", "--txn", "txn-2").output.splitlines()
    assert [json.loads(line)["detail"] for line in lines] == [HOSTILE]


def test_file_names_are_not_trusted(trail):
    """The name of a file that somebody put into the folder is printed escaped."""
    (trail / "x\x1b[31m\u202e").write_bytes(b"")
    done = run("audit", "verify", trail)
    assert done.exit_code == 1
    assert all(line.isprintable() for line in done.output.split("\n"))


def test_usage():
    """Wrong arguments are exit code 2, `--help` is 0 and lists every command."""
    assert run("no-such-command").exit_code == 2
    assert run("audit", "verify").exit_code == 2
    done = run("--help")
    assert done.exit_code == 0
    assert all(name in done.output for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_there(name):
    """Each command that the list names is a click command that explains itself."""
    command = getattr(importlib.import_module(COMMANDS[name].module), COMMANDS[name].attribute)
    assert isinstance(command, click.Command)
    assert command.help
    assert run(name, "--help").exit_code == 0


def test_help_imports_no_command():
    """Listing the commands imports none of them; `python -m jitwi` is the command."""
    code = "import sys, runpy; sys.argv = ['jitwi', '--help']\ntry: runpy.run_module('jitwi', run_name='__main__')\n"
    code += "except SystemExit as exc: print(exc.code, sorted(n for n in sys.modules if n.startswith('jitwi.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1].startswith("0 ")
    loaded = done.stdout.splitlines()[-1]
    assert "jitwi.cli.audit" not in loaded
    assert "jitwi.cli.leases" not in loaded


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\rd\x00e\x7f", "a\\nb\\tc\\rd\\x00e\\x7f"),
        ("\u202e\u2066\u200b\ufeff\u2028", "\\u202e\\u2066\\u200b\\ufeff\\u2028"),
        ("\u00e4\u05d0\u4e2d", "\u00e4\u05d0\u4e2d"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
    ids=ascii,
)
def test_printable(text, expected):
    """What moves the cursor or hides is escaped; what is seen stays."""
    assert printable(text) == expected
