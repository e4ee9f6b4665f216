# SPDX-License-Identifier: Apache-2.0
"""What a stranger sees of the package: names, types, the walk's vocabulary. Runs on the installed wheel too."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources

import pytest

import jitwi
from jitwi import errors

FRONT_DOOR = ("JIT", "Entity", "Guard", "Permission", "Request", "Task", "under")
ROOMS = ("audit", "credentials", "errors", "guard", "identity", "issuers", "policy", "testing", "tokens")


@pytest.mark.parametrize("name", FRONT_DOOR)
def test_front_door(name: str) -> None:
    """The words of the front door are at the top of the package."""
    assert name in jitwi.__all__
    assert getattr(jitwi, name) is not None


def test_names_come_from_the_package() -> None:
    """A traceback or a repr shows a public object under the package, not under a private module."""
    for name in jitwi.__all__:
        module = getattr(getattr(jitwi, name), "__module__", "jitwi")
        assert not any(part.startswith("_") for part in module.split(".")), f"{name} says that it lives in {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_importable(room: str) -> None:
    """Each public room is imported by its own name."""
    assert importlib.import_module(f"jitwi.{room}").__all__


def test_errors_are_reachable() -> None:
    """Each error that a caller may catch is a name of `jitwi.errors`."""
    assert all(issubclass(getattr(errors, name), errors.JitwiError) for name in errors.__all__)


def test_package_is_typed() -> None:
    """Type checkers of users read our annotations (PEP 561)."""
    assert importlib.resources.files("jitwi").joinpath("py.typed").is_file()


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that does not exist is an AttributeError, lazily loaded names or not."""
    with pytest.raises(AttributeError):
        getattr(jitwi, "no_such_name")  # noqa: B009


def test_dir_lists_the_public_names() -> None:
    """`dir(jitwi)` shows the public names before they are loaded."""
    assert set(jitwi.__all__) <= set(dir(jitwi))
