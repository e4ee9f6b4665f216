# SPDX-License-Identifier: Apache-2.0
"""The names of `jitwi.testing` are what they say, whatever was imported before."""

import importlib
import pkgutil
import types

import pytest

import jitwi.testing


@pytest.mark.parametrize("name", jitwi.testing.__all__)
def test_no_module_hides_a_public_name(name) -> None:
    """Importing a module of the package must not put it in the place of a function or class of that name."""
    names = {module.name for module in pkgutil.iter_modules(jitwi.testing.__path__)}
    assert name not in names
    for module in names - {"pytest_plugin"}:
        importlib.import_module(f"jitwi.testing.{module}")
    assert not isinstance(getattr(jitwi.testing, name), types.ModuleType)
