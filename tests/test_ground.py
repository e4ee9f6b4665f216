# SPDX-License-Identifier: Apache-2.0
"""The rules of the test run itself: a required SPIRE was there, pages run in order, every public module has a page."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "conftest.py").exists():
    pytest.skip("not a checkout", allow_module_level=True)

INI = """
[pytest]
testpaths = tests README.md
markers = spire: needs SPIRE
"""
PASSES = "import pytest\n@pytest.mark.spire\ndef test_real():\n    assert True\n"
SKIPS = "import pytest\n@pytest.mark.spire\ndef test_real():\n    pytest.skip('no SPIRE')\n"
NONE = "def test_other():\n    assert True\n"


def _pytest(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    plugins = ["-p", "no:cacheprovider"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("JITWI_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *args],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=folder,
        env={**clean, **env},
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tiny checkout with the root conftest of this one."""
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "README.md").write_text("# Nothing\n")
    (tmp_path / "tests").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "required", "args", "expected"),
    [
        pytest.param(PASSES, "1", (), 0, id="SPIRE was there"),
        pytest.param(SKIPS, "1", (), 1, id="skipped although required"),
        pytest.param(PASSES + SKIPS.replace("real", "two"), "1", (), 1, id="one of two skipped although required"),
        pytest.param(SKIPS, "", (), 0, id="skipped, not required"),
        pytest.param(NONE, "1", (), 1, id="nobody asked for it although required"),
        pytest.param(NONE, "1", ("tests/test_one.py",), 0, id="a part of the tests, without any for SPIRE"),
    ],
)
def test_required_spire(checkout: Path, source: str, required: str, args: tuple[str, ...], expected: int) -> None:
    """With JITWI_REQUIRE_SPIRE=1 a run that did without the real SPIRE fails."""
    (checkout / "tests" / "test_one.py").write_text(source)
    done = _pytest(checkout, *args, JITWI_REQUIRE_SPIRE=required)
    assert expected == done.returncode, done.stdout + done.stderr
    assert bool(expected) == ("although JITWI_REQUIRE_SPIRE=1" in done.stdout)


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_page_runs_top_to_bottom(checkout: Path, seed: str) -> None:
    """The blocks of a page share a namespace and run in its order, in an empty folder, shuffled tests or not."""
    (checkout / "README.md").write_text(
        "```cedar\npermit (principal, action, resource);\n```\n\n```python\nfrom pathlib import Path\n\n"
        "text = Path('policies/page.cedar').read_text()\n```\n\n```python\nassert text.startswith('permit')\n```\n\n"
        "```python\nlast = [str(path) for path in Path().iterdir()]\nassert last == ['policies']\n```\n"
    )
    done = _pytest(checkout, f"--randomly-seed={seed}", "README.md")
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_page_that_is_wrong_fails(checkout: Path) -> None:
    """An example that does not run is a failing test."""
    (checkout / "README.md").write_text("```python\nimport jitwi\njitwi.no_such_name\n```\n")
    assert _pytest(checkout, "README.md").returncode == 1


def test_every_public_module_has_a_page() -> None:
    """The reference has a page for each public module, and none for what is gone."""
    package = ROOT / "jitwi"
    places = [*package.glob("*.py"), *package.glob("*/__init__.py")]
    names = {path.parent.name if path.name == "__init__.py" else path.stem for path in places} - {"jitwi"}
    modules = {f"jitwi.{name}" for name in names if not name.startswith("_")} | {"jitwi"}
    pages = {path.stem for path in (ROOT / "docs" / "reference").glob("jitwi*.md")}
    assert modules == pages


def test_every_dependency_has_a_reason() -> None:
    """Each runtime dependency stands in the documentation with its bounds."""
    text = (ROOT / "pyproject.toml").read_text()
    page = (ROOT / "docs" / "dependencies.md").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    for name, bounds in re.findall(r'"([a-z]+)([^"]+)"', listed.group(1)):
        assert f"| `{name}` | `{bounds}` |" in page


def test_arguments_after_two_dashes_are_passed_on() -> None:
    """`run.py` keeps what stands before `--` and passes on the rest, further dashes included."""
    run = _run_module()
    assert run.split(["test", "--no-spire", "--", "-k", "lease", "--", "x"]) == (
        ["test", "--no-spire"],
        ["-k", "lease", "--", "x"],
    )
    assert run.split(["demo"]) == (["demo"], [])


def test_groups_inside_groups_are_installed() -> None:
    """`run.py` reads dependency groups as PEP 735 says, without a new pip."""
    wanted = _run_module().requirements(["dev"])
    assert {re.split(r"[\[<>=]", line)[0] for line in wanted} >= {
        "furo",
        "import-linter",
        "mypy",
        "nox",
        "pytest",
        "ruff",
    }


def test_every_pinned_version_is_allowed() -> None:
    """The versions that the tests run with are inside the bounds of the package and its groups."""
    from packaging.requirements import Requirement

    text = (ROOT / "tools" / "constraints.txt").read_text()
    pins = dict(line.lower().split("==") for line in text.splitlines() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in [*project["dependencies"], *_run_module().requirements(["dev"])]:
        requirement = Requirement(line)
        assert pins[requirement.name.lower()] in requirement.specifier, line


def _run_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("jitwi_run", ROOT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
