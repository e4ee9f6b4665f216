# SPDX-License-Identifier: Apache-2.0
"""What a change is checked with, each session in an environment of its own; `.ci/run` picks the ones that gate."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)  # from the classifiers
CONSTRAINTS = ("-c", str(ROOT / "tools" / "constraints.txt"))

nox.needs_version = ">=2026.2"
nox.options.sessions = ["lint", "typing", "docs", "minimal", "wheel", "unit"]
nox.options.error_on_external_run = True
nox.options.error_on_missing_interpreters = False  # the Pythons that are here, at least one
nox.options.reuse_venv = "yes"


def groups(*names: str) -> list[str]:
    """Return the requirements of the dependency groups called `names`."""
    return list(nox.project.dependency_groups(PROJECT, *names))


@nox.session
def lint(session: nox.Session) -> None:
    """Rules (docstrings among them), format, import contracts."""
    session.install(*CONSTRAINTS, *groups("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": str(ROOT)})


@nox.session
def typing(session: nox.Session) -> None:
    """Run mypy strict over the package, its users' view and the programs beside it."""
    session.install(*CONSTRAINTS, "-e", ".[httpx,testing]", *groups("typing"))
    session.run("mypy")
    session.run("mypy", "run.py", "conftest.py", "tools")
    session.chdir("spire-dev")
    session.run("mypy", "--config-file", "../pyproject.toml", "spiredev.py", "spirestack")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages; a warning is an error. The code blocks in them are run by the tests."""
    session.install(*CONSTRAINTS, "-e", ".[httpx,testing]", *groups("docs"))
    target = ROOT / "docs" / "_build" / "html"
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-q", "-E", "docs", str(target))


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """Run the unit tests, on every Python that is found."""
    session.install(*CONSTRAINTS, "-e", ".[httpx,testing]", *groups("test"))
    session.run("pytest", "-m", "not spire and not timing", *(session.posargs or ["tests/unit", "jitwi"]))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests, on every Python that is found."""
    session.install(*CONSTRAINTS, "-e", ".[httpx,testing]", *groups("test"))
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def tests_oldest(session: nox.Session) -> None:
    """Run the unit tests with the oldest versions of the dependencies that the package allows."""
    oldest = [re.sub(r">=([^,;]+).*", r"==\1", line) for line in PROJECT["project"]["dependencies"]]
    session.install("-e", ".[httpx,testing]", *groups("test"), *oldest)
    session.run("pytest", "-m", "not spire and not timing", *(session.posargs or ["tests/unit"]))


@nox.session
def minimal(session: nox.Session) -> None:
    """Import every public module without any extra; what needs one says which."""
    session.install(*CONSTRAINTS, ".")
    session.run("python", str(ROOT / "tools" / "import_public.py"), env={"PYTHONSAFEPATH": "1"})
    session.run("jitwi", "--help", silent=True)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it in an empty environment and test it from a folder without the checkout."""
    work = Path(session.create_tmp())
    session.env.pop("TMPDIR", None)  # below the checkout, where pytest's own tests would find its configuration
    for old in work.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    session.install(*CONSTRAINTS, *groups("wheel"))
    session.run("python", "-m", "build", "--outdir", str(work / "dist"), str(ROOT), silent=True)
    (built,) = (work / "dist").glob("*.whl")
    session.install(*CONSTRAINTS, "--force-reinstall", "--no-deps", str(built))
    session.install(*CONSTRAINTS, f"jitwi[httpx,testing] @ {built.resolve().as_uri()}", *groups("test"))
    elsewhere = work / "elsewhere"
    shutil.copytree(ROOT / "tests", elsewhere / "tests")
    shutil.copy(ROOT / "pyproject.toml", elsewhere)
    session.chdir(elsewhere)
    wanted = session.posargs or ["tests/unit", "tests/test_public_api.py", "--ignore=tests/unit/benchmarks"]
    session.run("pytest", "-m", "not spire and not timing and not slow", *wanted)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure branch coverage of the tests that need no SPIRE."""
    session.install(*CONSTRAINTS, "-e", ".[httpx,testing]", *groups("test"))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-m", "not spire and not timing", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def spire(session: nox.Session) -> None:
    """Run the tests on the real SPIRE alone."""
    session.install(*CONSTRAINTS, "-e", ".[httpx,testing]", *groups("test"))
    session.run("python", "spire-dev/spiredev.py", "build")
    session.run("pytest", "-m", "spire", *session.posargs, env={"JITWI_REQUIRE_SPIRE": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks: ratios within one run, see the budgets in the documentation."""
    session.install(*CONSTRAINTS, "-e", ".[httpx,testing]", *groups("test"))
    session.run("python", "-m", "benchmarks", *session.posargs)
