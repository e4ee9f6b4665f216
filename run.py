#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The commands of this checkout. Needs Python 3.11 or newer and nothing else.

    python3 run.py demo     the walk of one task, on an embedded Workload API
    python3 run.py test     all tests, the real SPIRE included (built once, into a cache outside the checkout)
    python3 run.py check    lint, types, docs, wheel and the unit tests on every other Python that is found

What follows `--` goes to the demo, to pytest or to nox. The first call makes a virtual environment in `.run/`; later
calls use it again until `pyproject.toml` or `tools/constraints.txt` changes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent
RUN = ROOT / ".run"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
MIN_PYTHON = (3, 11)
NEEDS: dict[str, tuple[list[str], list[str]]] = {  # command: extras, dependency groups
    "demo": (["httpx", "testing"], []),
    "test": (["httpx", "testing"], ["test"]),
    "check": ([], ["nox"]),
}
BUILD_DEADLINE = 45 * 60.0
ALREADY_BUILT = 5.0


def main(argv: Sequence[str]) -> int:
    """Parse the command line, prepare the environment, run the command and return its exit status."""
    argv, rest = split(argv)
    parser = argparse.ArgumentParser(
        prog="run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
    )
    parser.add_argument("command", choices=sorted(NEEDS))
    parser.add_argument("--no-spire", action="store_true", help="test: leave out what needs the real SPIRE, and say so")
    args = parser.parse_args(argv)
    python = environment(args.command)
    if args.command == "demo":
        return subprocess.call([python, "examples/demo/main.py", *rest], cwd=ROOT)
    if args.command == "check":
        return subprocess.call([python, "-m", "nox", *rest], cwd=ROOT, env=every_python())
    if args.no_spire:
        say("SPIRE IS LEFT OUT (--no-spire): the tests marked `spire` do not run")
        return pytest(python, ["-m", "not spire and not timing", *rest], os.environ)
    return test(python, rest)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before and after the first `--`."""
    argv = list(argv)
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def test(python: str, rest: list[str]) -> int:
    """Build SPIRE in the background, run the unit tests beside it if that takes a while, then run everything."""
    required = {**os.environ, "JITWI_REQUIRE_SPIRE": "1"}
    with background([python, "spire-dev/spiredev.py", "build"], RUN / "spire-build.log") as build:
        try:
            build.wait(ALREADY_BUILT)
        except subprocess.TimeoutExpired:
            say(f"building SPIRE in the background (minutes, once per machine); its output: {build.log}")
            if not rest:
                say("beside it: the unit tests")
                status = pytest(python, ["tests/unit", "-m", "not spire and not timing"], os.environ)
                if status:
                    return status
            say("waiting for the build of SPIRE")
        try:
            status = build.wait(BUILD_DEADLINE)
        except subprocess.TimeoutExpired:
            say(f"SPIRE was not built within {BUILD_DEADLINE / 60:.0f} minutes")
            status = 1
        if status:
            say(f"the build of SPIRE failed; the end of {build.log}:")
            sys.stdout.write("\n".join(build.log.read_text(errors="replace").splitlines()[-40:]) + "\n")
            return status
    say("all tests, SPIRE included")
    return pytest(python, rest, required)


def pytest(python: str, args: list[str], env: Mapping[str, str]) -> int:
    """Run pytest in this checkout."""
    return subprocess.call([python, "-m", "pytest", *args], cwd=ROOT, env=dict(env))


class Background:
    """A process of ours with its output in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def wait(self, timeout: float) -> int:
        """Return the exit status; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        return self.process.wait(timeout)


@contextlib.contextmanager
def background(command: list[str], log: Path) -> Iterator[Background]:
    """Run `command` beside us, in a process group of its own that ends with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield Background(process, log)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def environment(command: str) -> str:
    """Return the Python of a virtual environment with what `command` needs, made or completed if necessary."""
    extras, groups = NEEDS[command]
    home = RUN / f"venv-{sys.version_info[0]}.{sys.version_info[1]}"
    python = home / "bin" / "python"
    stamp = home / f"ready-{command}"
    wanted = fingerprint()
    RUN.mkdir(exist_ok=True)
    with locked(RUN / "lock"):
        if stamp.exists() and python.exists() and stamp.read_text() == wanted:
            return str(python)
        started = time.monotonic()
        say(f"preparing {home.relative_to(ROOT)}, once")
        if not python.exists() or run_quietly([str(python), "-m", "pip", "--version"]):
            venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(home)
        target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
        subprocess.run([*pip, *(["-e", target] if extras else []), *requirements(groups)], cwd=ROOT, check=True)
        stamp.write_text(wanted)
        say(f"ready after {time.monotonic() - started:.0f} s")
    return str(python)


def requirements(groups: list[str]) -> list[str]:
    """Return the requirements of the dependency groups (PEP 735), groups inside groups included."""
    import tomllib

    table: dict[str, list[Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    found: list[str] = []
    for group in groups:
        for entry in table[group]:
            found += [entry] if isinstance(entry, str) else requirements([entry["include-group"]])
    return sorted(set(found))


def fingerprint() -> str:
    """Return a digest of everything that an environment is made from."""
    parts = [sys.version, str(ROOT), (ROOT / "pyproject.toml").read_text(), CONSTRAINTS.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def every_python() -> dict[str, str]:
    """Return an environment in which nox finds every Python of pyenv, if there is one, by name."""
    env = dict(os.environ)
    if shutil.which("pyenv"):
        listed = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True, check=False)
        here = ".".join(map(str, sys.version_info[:3]))
        versions = [v for v in listed.stdout.split() if re.fullmatch(r"\d+\.\d+\.\d+", v)]
        if versions:
            env["PYENV_VERSION"] = ":".join(sorted(versions, key=lambda v: v != here))
    return env


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Hold a lock on `path`, so that two calls do not prepare one environment at the same time."""
    import fcntl

    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle


def run_quietly(command: list[str]) -> int:
    """Run `command` without output and return its exit status."""
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def say(text: str) -> None:
    """Print one line of our own, before whatever comes next."""
    sys.stdout.write(f"run.py: {text}\n")
    sys.stdout.flush()


def newer_python() -> str | None:
    """Return a Python that is new enough, found by name, or None."""
    for name in ("python3.13", "python3.12", "python3.11"):
        path = shutil.which(name)
        if path and not run_quietly([path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]):
            return path
    return None


if __name__ == "__main__":
    if sys.version_info < MIN_PYTHON:
        newer = newer_python()
        if newer is None:
            sys.exit("run.py: Python 3.11 or newer is needed; this is " + sys.version.split()[0])
        os.execv(newer, [newer, *sys.argv])
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"run.py: `{' '.join(error.cmd[:4])} ...` failed with status {error.returncode}")
    except KeyboardInterrupt:
        sys.exit(130)
