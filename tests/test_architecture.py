# SPDX-License-Identifier: Apache-2.0
"""The house rules that a program can check: who imports what, what an import does, how large a module is."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jitwi"


def _has_code(path: Path) -> bool:
    lines = map(str.strip, path.read_text(encoding="utf-8").splitlines())
    return any(line and not line.startswith("#") for line in lines)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if _has_code(path))
MAX_LINES = 500
SPDX = "# SPDX-License-Identifier: Apache-2.0"
OURS = ("jitwi", "tests", "examples", "benchmarks", "tools", "docs", "spire-dev")
SOURCES = sorted(
    path
    for folder in OURS
    for path in (ROOT / folder).rglob("*.py")
    if not {"_build", "__pycache__", ".venv"} & set(path.relative_to(ROOT).parts)
) + sorted(ROOT.glob("*.py"))
ROOMS = ("audit", "cli", "credentials", "grants", "guard", "identity", "integrations", "issuers", "journal", "policy")
ROOMS += ("state", "testing", "tokens")

# What `import jitwi` does is measured in a process of its own: `sys.addaudithook` sees each event from its first line.
IMPORT_PROBE = """
import json, sys
seen = []
def hook(event, args):
    if event in {"socket.__new__", "socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "os.system",
                 "_thread.start_new_thread", "_thread.start_joinable_thread", "sqlite3.connect", "os.mkdir"}:
        seen.append(event)
    elif event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append(f"open {args[0]} {args[1]}")
sys.dont_write_bytecode = True
sys.addaudithook(hook)
import jitwi
import threading
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"seen": seen, "loaded": loaded, "threads": threading.active_count()}))
"""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def imported() -> dict[str, object]:
    """What one `import jitwi` did in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_PROBE], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_imports_point_one_way() -> None:
    """Every import contract of pyproject.toml is kept (design: the house)."""
    missing = [room for room in ROOMS if not (PACKAGE / room / "__init__.py").exists()]
    assert missing == []
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("heavy", ["grpc", "spiffe", "google", "click", "rich", "httpx", "pytest", "sqlite3"])
def test_import_is_light(imported: dict[str, object], heavy: str) -> None:
    """`import jitwi` does not import what only some users need (rule 13)."""
    assert heavy not in imported["loaded"]


def test_import_has_no_effect(imported: dict[str, object]) -> None:
    """`import jitwi` starts no thread or process, opens no socket or database, writes no file (rule 13)."""
    assert imported["seen"] == []
    assert imported["threads"] == 1


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_size(path: Path) -> None:
    """A module that needs more than 500 lines has two jobs."""
    assert len(_text(path).splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_spdx_line(path: Path) -> None:
    """The licence of every source file is its first line, after a shebang at most."""
    lines = _text(path).splitlines()
    assert SPDX in lines[: 2 if lines and lines[0].startswith("#!") else 1]


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_says_what_it_holds(path: Path) -> None:
    """Every module opens with a docstring."""
    assert ast.get_docstring(ast.parse(_text(path)))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_assert_in_the_package(path: Path) -> None:
    """A rule that `python -O` switches off is not a rule."""
    assert [node.lineno for node in ast.walk(ast.parse(_text(path))) if isinstance(node, ast.Assert)] == []


def _public_packages() -> list[str]:
    names = ["jitwi", *(found.name for found in pkgutil.iter_modules([str(PACKAGE)], "jitwi."))]
    written = {path.parent if path.name == "__init__.py" else path.with_suffix("") for path in MODULES}
    places = {name: ROOT.joinpath(*name.split(".")) for name in names if not name.rpartition(".")[2].startswith("_")}
    return [name for name, place in places.items() if place in written]


def test_no_module_is_empty() -> None:
    """A module without a statement, not even a docstring, is a room that somebody forgot to write."""
    assert [_name(path) for path in PACKAGE.rglob("*.py") if path not in MODULES] == []


@pytest.mark.parametrize("name", _public_packages())
def test_public_surface(name: str) -> None:
    """A public module has an `__all__` (ruff sorts it) whose names exist and are documented."""
    module = importlib.import_module(name)
    names = module.__all__
    assert len(set(names)) == len(names)
    for public in names:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"


def test_every_error_is_ours() -> None:
    """All exceptions that the package defines derive from `JitwiError`, or are warnings (one tree)."""
    from jitwi.errors import JitwiError

    strangers = []
    for name in ["jitwi", *(found.name for found in pkgutil.walk_packages([str(PACKAGE)], "jitwi."))]:
        module = importlib.import_module(name)
        for thing in vars(module).values():
            if inspect.isclass(thing) and issubclass(thing, BaseException) and thing.__module__.startswith("jitwi"):
                private = thing.__name__.startswith("_")
                if not (private or issubclass(thing, JitwiError | Warning)):
                    strangers.append(f"{thing.__module__}.{thing.__name__}")
    assert sorted(set(strangers)) == []


@pytest.mark.slow
def test_wheel_has_the_data(tmp_path: Path) -> None:
    """The wheel holds each file of the package, `py.typed`, schema and policies included, and nothing else."""
    builder = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", builder, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        _name(path)
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert "jitwi/py.typed" in names
    assert names == expected


def test_entry_points_resolve() -> None:
    """Every script, plugin and issuer that pyproject.toml announces exists."""
    project = tomllib.loads(_text(ROOT / "pyproject.toml"))["project"]
    targets = list(project["scripts"].values())
    for group in project["entry-points"].values():
        targets += group.values()
    for target in targets:
        assert pkgutil.resolve_name(target) is not None
