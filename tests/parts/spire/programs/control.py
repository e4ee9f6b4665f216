# SPDX-License-Identifier: Apache-2.0
"""How a test drives a process of another identity: one JSON command per line in, one JSON answer per line out."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def configuration() -> dict[str, Any]:
    """What the test gave on the command line."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def serve(commands: Mapping[str, Callable[..., Any]], **greeting: Any) -> None:
    """Answer commands until standard input ends; errors of jitwi are answers too."""
    from jitwi.errors import JitwiError

    _say(greeting)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            _say({"ok": commands[asked.pop("do")](**asked)})
        except JitwiError as error:
            _say({"error": type(error).__name__, "reasons": error.reasons, "message": str(error), **_fields(error)})
        except Exception as error:  # noqa: BLE001 - the test shows it
            _say({"error": repr(error), "reasons": (), "message": repr(error)})


def _fields(error: Exception) -> dict[str, Any]:
    return {name: getattr(error, name) for name in ("cause", "candidates", "wider") if hasattr(error, name)}


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
