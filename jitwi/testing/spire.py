# SPDX-License-Identifier: Apache-2.0
"""A real SPIRE for tests, by way of the `spire-dev` folder.

Holds how that folder is found, and the stack as a context manager. Does not hold SPIRE or the folder: the wheel has
neither. The fixture over this is `jitwi_spire` of `jitwi.testing.pytest_plugin`.

Example::

    with spire_stack() as stack:
        refunds = stack.add_persona("refunds")
        stack.add_entry("/ns/prod/refunds", refunds)
        subprocess.run([refunds.executable, "refunds.py"], env=refunds.environment(), timeout=60, check=True)
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jitwi.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

__all__ = [
    "REQUIRE_VARIABLE",
    "SPIRE_DEV_VARIABLE",
    "find_spire_dev",
    "is_spire_required",
    "load_spire_dev",
    "spire_stack",
]

SPIRE_DEV_VARIABLE = "JITWI_SPIRE_DEV"
"""Names the `spire-dev` folder, where it is not in the root folder of the tests."""
REQUIRE_VARIABLE = "JITWI_REQUIRE_SPIRE"
"""`1`: a SPIRE that cannot be used is a failure and not a skip."""

_FOLDER = "spire-dev"
_MODULE = "spiredev"


def is_spire_required() -> bool:
    """Tell whether this run must not do without SPIRE."""
    return os.environ.get(REQUIRE_VARIABLE) == "1"


def find_spire_dev(root: Path | None = None) -> Path:
    """Return the `spire-dev` folder.

    Args:
        root: The folder that has it, unless `JITWI_SPIRE_DEV` names another; None = the current folder.

    Raises:
        ConfigurationError: It is not there.
    """
    named = os.environ.get(SPIRE_DEV_VARIABLE)
    folder = Path(named) if named else (Path.cwd() if root is None else root) / _FOLDER
    if not (folder / f"{_MODULE}.py").is_file():
        raise ConfigurationError(
            f"there is no `{_MODULE}.py` in `{folder}`",
            reasons=("no-spire-dev",),
            remedy=f"set `{SPIRE_DEV_VARIABLE}` to the folder `spire-dev` of jitwi's source",
        )
    return folder.resolve()


def load_spire_dev(root: Path | None = None) -> ModuleType:
    """Import `spiredev` from its folder, which is put on `sys.path`, and check that it has a SPIRE to start.

    Args:
        root: As for `find_spire_dev`.

    Raises:
        ConfigurationError: There is no folder, no usable SPIRE, or the module came from another folder before.
    """
    folder = find_spire_dev(root)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(_MODULE)
    except ImportError as exc:
        raise ConfigurationError(f"`{folder}` cannot be imported: {exc}", reasons=("spire-dev",)) from exc
    loaded = Path(module.__file__ or "").resolve().parent
    if loaded != folder:
        raise ConfigurationError(
            f"`{_MODULE}` was imported from `{loaded}`, not from `{folder}`", reasons=("spire-dev",)
        )
    try:
        module.find_binaries()
    except module.BinariesError as exc:
        raise ConfigurationError(f"SPIRE cannot be used: {exc}", reasons=("no-spire",)) from exc
    return module


@contextlib.contextmanager
def spire_stack(root: Path | None = None, **settings: Any) -> Iterator[Any]:
    """Run a SPIRE server and agent for the length of a `with` block.

    Args:
        root: As for `find_spire_dev`.
        **settings: Arguments of `SpireStack`. `fast` is True unless given: changes arrive within a second, and
            X.509-SVIDs live for a minute.

    Yields:
        The `SpireStack`; see `spire-dev/README.md` for what it does.

    Raises:
        ConfigurationError: There is none to run.
    """
    with load_spire_dev(root).SpireStack(**{"fast": True, **settings}) as stack:
        yield stack
