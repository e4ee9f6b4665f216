# SPDX-License-Identifier: Apache-2.0
"""The parts of spire-dev that need no SPIRE: processes, state, search and build of binaries, relay, templates."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from spiredev import BinariesError, SpireDevError, SpireStack, StackStateError, build_binaries, find_binaries
from spirestack import config, state
from spirestack.config import HOME, Settings
from spirestack.personas import satisfies, start_persona
from spirestack.process import ProcessRef, spawn, start_time, wait_until

FAKE_SPIRE = "#!/bin/sh\necho {version}\n"
FAKE_GO = """#!/bin/sh
case "$1" in
  env) echo go1.26.9 ;;
  install)
    echo call >> "$JW_COUNT"
    [ -n "$JW_FAIL" ] && echo "no such module" && exit 1
    sleep 0.5
    mkdir -p "$GOBIN"
    for name in spire-server spire-agent oidc-discovery-provider; do
      printf '#!/bin/sh\\necho 1.15.3\\n' > "$GOBIN/$name"
      chmod 755 "$GOBIN/$name"
    done ;;
esac
"""


@pytest.fixture
def folder():
    """A short folder, because Unix socket paths are."""
    path = Path(tempfile.mkdtemp(prefix="jw", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def sleeper(folder):
    """A process that is not part of any stack."""
    reference = spawn(["sleep", "300"], output=folder / "out", cwd=folder)
    yield reference
    reference.kill()


@pytest.fixture
def run_dir():
    """The folders of a stack with an echo server in the agent's place."""
    run = config.make_run_dir(None)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(run / "w" / "api.sock"))
    server.listen()

    def echo(peer):
        with peer, contextlib.suppress(OSError):
            while block := peer.recv(4096):
                peer.sendall(block)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield run
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)
    shutil.rmtree(run)


@pytest.fixture
def bare_machine(folder, monkeypatch):
    """No SPIRE in sight: empty cache, PATH with the standard tools and a fake `go`."""
    tools = folder / "bin"
    tools.mkdir()
    script(tools / "go", FAKE_GO)
    monkeypatch.delenv("SPIRE_BIN_DIR", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("JW_COUNT", str(folder / "count"))
    return folder


def script(path, text):
    """Write an executable file."""
    path.write_text(text)
    path.chmod(0o755)


def fake_spire(path, version):
    """Write a folder of programs that only know their version."""
    path.mkdir()
    for name in ("spire-server", "spire-agent", "oidc-discovery-provider"):
        script(path / name, FAKE_SPIRE.format(version=version))
    return path


def talk(persona):
    """Open a connection through a persona's relay."""
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(5)
    peer.connect(str(persona.folder / "api.sock"))
    return peer


def test_a_pid_with_another_start_time_is_never_signalled(sleeper):
    """Rule: a recorded pid that now belongs to another process is left alone."""
    stranger = ProcessRef(sleeper.pid, sleeper.started - 1)
    assert not stranger.is_running()
    assert not stranger.send(signal.SIGKILL)
    stranger.stop()
    stranger.kill()
    assert sleeper.is_running()


def test_a_process_runs_in_its_own_group_and_session(sleeper):
    """Rule: a terminal's signals to us do not reach the stack."""
    assert os.getpgid(sleeper.pid) == sleeper.pid
    assert os.getsid(sleeper.pid) == sleeper.pid


def test_a_halted_process_can_be_stopped(sleeper):
    """Rule: `stop` also ends what was halted by SIGSTOP."""
    sleeper.send(signal.SIGSTOP)
    wait_until(sleeper.is_stopped, "a halted process", timeout=10)
    sleeper.stop()
    assert not sleeper.is_running()
    assert start_time(sleeper.pid) is None


def test_down_leaves_a_stranger_with_our_pid_alone(sleeper):
    """Rule: `down` ends recorded processes only while their start time matches, and still cleans up."""
    run = config.make_run_dir(None)
    recorded = {"pid": sleeper.pid, "started": sleeper.started + 7}
    described = {"trust_domain": "example.test", "fast": True, "oidc": False, "bin_dir": "/", "personas": {}}
    state.create(run, {**described, "processes": {"server": recorded}})
    stack = SpireStack()
    stack._run = run
    stack.down()
    assert sleeper.is_running()
    assert not run.exists()


def test_down_with_an_odd_state_file_removes_nothing():
    """Rule: if the state is not as we wrote it, `down` stops; a directory that is gone already is no error."""
    run = config.make_run_dir(None)
    stack = SpireStack()
    try:
        (run / "state.json").write_text("{}")
        stack._run = run
        with pytest.raises(StackStateError):
            stack.down()
        assert run.exists()
    finally:
        shutil.rmtree(run)
    stack._run = run
    assert stack.down() is None


@pytest.mark.parametrize("change", ["run_dir", "format", "text", "mode", "link"])
def test_an_odd_state_file_stops_every_command(folder, change):
    """Rule: nothing is read, signalled or removed on the word of a state file that we did not write."""
    run = folder / "r"
    run.mkdir()
    state.create(run, {"processes": {}})
    path = run / "state.json"
    if change == "mode":
        path.chmod(0o644)
    elif change == "link":
        path.rename(folder / "elsewhere.json")
        path.symlink_to(folder / "elsewhere.json")
    elif change == "text":
        path.write_text("{")
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), change: "other"}))
    with pytest.raises(StackStateError):
        SpireStack.attach(run)
    assert run.exists()


def test_a_missing_stack_is_named_with_the_way_out(folder, monkeypatch):
    """Rule: a command without a stack says how to start one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("JITWI_SPIRE_RUN", raising=False)
    with pytest.raises(StackStateError, match="`up`"):
        state.current(None)


def test_two_stacks_are_not_guessed_between(folder, monkeypatch):
    """Rule: with several stacks a command without a choice is refused and lists them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("JITWI_SPIRE_RUN", raising=False)
    for name in ("a", "b"):
        (folder / name).mkdir()
        state.create(folder / name, {})
        state.remember(folder / name)
    with pytest.raises(StackStateError, match="several"):
        state.current(None)
    state.forget(folder / "a")
    assert state.current(None) == folder / "b"


@pytest.mark.parametrize("name", ["", "Example.test", "a/b", "a b", 'a"b', "spiffe://a"])
def test_what_is_no_trust_domain_is_refused(name):
    """Rule: a name that cannot be a trust domain never reaches a configuration file (SPIFFE-ID section 2.1)."""
    with pytest.raises(SpireDevError):
        SpireStack(name)


@pytest.mark.parametrize("name", ["x" * 60, 'a"b', "a b", "a\nb"])
def test_a_run_directory_is_short_and_plain(folder, name):
    """Rule: a directory whose sockets would pass 107 bytes, or that needs quoting, is refused at once."""
    with pytest.raises(SpireDevError):
        config.make_run_dir(folder / name)


def test_an_existing_directory_is_not_taken(folder):
    """Rule: the run directory is always new, so that removing it removes only ours."""
    with pytest.raises(SpireDevError):
        config.make_run_dir(folder)


@pytest.mark.parametrize("oidc", [None, 4711])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", ["server", "agent", "oidc"])
def test_templates_leave_no_placeholder_and_no_fixed_port(name, fast, oidc):
    """Rule: rendered files are complete, private, and name only ports we chose."""
    run = config.make_run_dir(None)
    try:
        path = config.render(name, run, Settings("example.test", fast=fast), server_port=4712, oidc_port=oidc)
        text = path.read_text()
        assert "$" not in text
        assert path.stat().st_mode & 0o777 == 0o600
        assert ("500ms" in text) == (fast and name != "oidc")
        assert "8081" not in text
    finally:
        shutil.rmtree(run)


def test_binaries_that_are_too_old_are_refused(folder, monkeypatch):
    """Rule: SPIRE before 1.15.2 lacks `-jwtSVIDIncludeJTI` and is refused in a clear sentence."""
    monkeypatch.setenv("SPIRE_BIN_DIR", str(fake_spire(folder / "old", "1.15.1")))
    with pytest.raises(BinariesError, match=r"1\.15\.1.*at least 1\.15\.2"):
        find_binaries()


def test_an_explicit_folder_without_binaries_is_an_error(bare_machine, monkeypatch):
    """Rule: `SPIRE_BIN_DIR` never falls through to another place."""
    fake_spire(bare_machine / "path", "1.15.3")
    monkeypatch.setenv("PATH", f"{bare_machine / 'path'}:/usr/bin:/bin")
    assert find_binaries().version == "1.15.3"
    monkeypatch.setenv("SPIRE_BIN_DIR", str(bare_machine / "nowhere"))
    with pytest.raises(BinariesError, match="SPIRE_BIN_DIR"):
        find_binaries()


def test_mixed_versions_are_refused(folder, monkeypatch):
    """Rule: server and agent of one stack are of one version."""
    mixed = fake_spire(folder / "mixed", "1.15.3")
    script(mixed / "spire-agent", FAKE_SPIRE.format(version="1.16.0"))
    monkeypatch.setenv("SPIRE_BIN_DIR", str(mixed))
    with pytest.raises(BinariesError, match="mixes"):
        find_binaries()


def test_without_binaries_the_way_to_get_them_is_said(bare_machine):
    """Rule: the reason for a skip names the command that helps."""
    with pytest.raises(BinariesError, match=r"spiredev\.py build"):
        find_binaries()


def test_two_builds_at_once_build_once(bare_machine):
    """Rule: a second build waits for the first and uses its result; a third finds it there."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(build_binaries())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found.append(build_binaries())
    assert (bare_machine / "count").read_text().count("call") == 1
    assert {item.server.parent.name for item in found} == {"1.15.3-go1.26.9"}
    assert find_binaries() == found[0]


def test_a_failed_build_says_why_and_leaves_nothing(bare_machine, monkeypatch):
    """Rule: the last words of the compiler are in the error and no half-made folder stays in the cache."""
    monkeypatch.setenv("JW_FAIL", "1")
    with pytest.raises(BinariesError, match="no such module"):
        build_binaries()
    cache = bare_machine / "cache" / "jitwi-spire"
    assert [path.name for path in cache.iterdir()] == ["build.lock"]


def test_an_ended_build_ends_its_compilers(bare_machine):
    """Rule: SIGTERM to `build` takes the Go tool along and leaves no half-made folder."""
    mark = bare_machine / "pid"
    script(
        bare_machine / "bin" / "go",
        f'#!/bin/sh\n[ "$1" = env ] && echo go1.26.9 && exit\necho $$ > {mark}.new; mv {mark}.new {mark}; sleep 300\n',
    )
    with subprocess.Popen([sys.executable, str(HOME / "spiredev.py"), "build"], stderr=subprocess.DEVNULL) as build:
        wait_until(mark.exists, "a started compiler", timeout=30)
        compiler = ProcessRef.of(int(mark.read_text()))
        build.terminate()
        assert build.wait(30) == 128 + signal.SIGTERM
    wait_until(lambda: not compiler.is_running(), "the end of the compiler", timeout=10)
    assert not list((bare_machine / "cache" / "jitwi-spire").glob(".build-*"))


def test_a_build_without_a_c_compiler_says_so(bare_machine, monkeypatch):
    """Rule: the missing compiler is named before minutes are spent."""
    monkeypatch.setenv("PATH", str(bare_machine / "bin"))
    with pytest.raises(BinariesError, match="C compiler"):
        build_binaries()


def test_the_module_pins_spire_alone():
    """Rule: the build module names SPIRE's three programs, one replace line, and nothing else beside them."""
    lines = (HOME / "build" / "go.mod").read_text().splitlines()
    direct = [line for line in lines if line.startswith(("require github", "\tgithub.com/spiffe/spire/"))]
    assert len(direct) == 4
    assert [line for line in lines if line.startswith("replace")] == [
        "replace github.com/Keyfactor/ejbca-go-client-sdk v1.1.0 => github.com/Keyfactor/ejbca-go-client-sdk v1.0.2"
    ]


def test_personas_differ_in_path_and_digest(run_dir):
    """Rule: every persona is a program file of its own, so that selectors tell them apart without root."""
    people = [start_persona(run_dir, name) for name in ("one", "two")]
    try:
        first, second = (person.executable for person in people)
        assert first != second
        assert first.read_bytes() != second.read_bytes()
        for person in people:
            assert Path(f"/proc/{person.process.pid}/exe").resolve() == person.executable
            assert person.satisfies(person.selectors)
            assert (person.folder / "api.sock").stat().st_mode & 0o777 == 0o600
        assert not people[0].satisfies(people[1].selectors)
    finally:
        for person in people:
            person.process.stop()


def test_the_relay_passes_delays_drops_and_cuts(run_dir):
    """Rule: each fault does what its name says and `ok` ends it."""
    person = start_persona(run_dir, "one")
    try:
        with talk(person) as peer:
            peer.sendall(b"a")
            assert peer.recv(1) == b"a"
            assert person.fault() == "ok connections=1"
            assert person.drop().startswith("drop")
            peer.sendall(b"b")
            peer.settimeout(0.3)
            with pytest.raises(TimeoutError):
                peer.recv(1)
            peer.settimeout(5)
            assert person.ok().startswith("ok")
            assert peer.recv(1) == b""
        with talk(person) as peer:
            person.delay(0.2)
            peer.sendall(b"c")
            peer.settimeout(0.1)
            with pytest.raises(TimeoutError):
                peer.recv(1)
            peer.settimeout(5)
            assert peer.recv(1) == b"c"
            person.cut()
            assert peer.recv(1) == b""
        with talk(person) as peer:
            assert peer.recv(1) == b""
        person.ok()
        with talk(person) as peer:
            peer.sendall(b"d")
            assert peer.recv(1) == b"d"
    finally:
        person.process.stop()


@pytest.mark.parametrize("line", ["", "nonsense", "delay", "delay x", "delay -1", "delay nan", "cut now"])
def test_the_relay_refuses_unknown_control_lines(run_dir, line):
    """Rule: a mistyped fault is an error, never silently `ok`."""
    person = start_persona(run_dir, "one")
    try:
        with pytest.raises(SpireDevError, match="refused"):
            person._switch(line)
        assert person.fault().startswith("ok ")
    finally:
        person.process.stop()


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "-a", "x" * 21])
def test_a_persona_name_is_a_plain_word(run_dir, name):
    """Rule: a name that would leave its folder or lengthen its socket path is refused."""
    with pytest.raises(SpireDevError):
        start_persona(run_dir, name)


def test_selectors_must_all_match_and_unknown_kinds_do_not():
    """Rule: an entry fits a process only if each selector does (SPIRE: all selectors of an entry must match)."""
    me = {"uid": 5, "gid": 6, "groups": (7,), "executable": Path(sys.executable)}
    assert satisfies(["unix:uid:5", "unix:gid:6", "unix:supplementary_gid:7"], **me)
    assert not satisfies(["unix:uid:5", "unix:gid:7"], **me)
    assert not satisfies(["docker:label:x:y"], **me)


def test_the_command_line_reports_an_error_in_one_line(folder):
    """Rule: a refused command exits 1 with the reason and the remedy on standard error, without a traceback."""
    command = [sys.executable, str(HOME / "spiredev.py"), "status", "--run-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no stack in")
    assert "Traceback" not in done.stderr
