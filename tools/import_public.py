# SPDX-License-Identifier: Apache-2.0
"""Import every public module of the installed package where no extra is installed.

A module that needs an extra may refuse with `ModuleNotFoundError` or `ConfigurationError`, as long as it stands in
`NEEDS_AN_EXTRA`. Run from an environment that has the wheel and nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import jitwi
from jitwi.errors import ConfigurationError

NEEDS_AN_EXTRA = ("jitwi.integrations", "jitwi.testing")


def main() -> int:
    """Return 0 if everything outside `NEEDS_AN_EXTRA` could be imported."""
    failed = 0
    for found in pkgutil.walk_packages(jitwi.__path__, "jitwi."):
        name = found.name
        if any(part.startswith("_") for part in name.split(".")):
            continue
        try:
            importlib.import_module(name)
        except (ModuleNotFoundError, ConfigurationError) as error:
            optional = name.startswith(NEEDS_AN_EXTRA)
            failed += not optional
            print(f"{'needs an extra' if optional else 'FAILED'}: {name}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
