# SPDX-License-Identifier: Apache-2.0
"""Where state lives when nobody says so, and that naming it costs nothing."""

from __future__ import annotations

import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from jitwi.errors import SharedStateError
from jitwi.state.folder import default_folder


def test_default_is_of_the_user_not_of_the_environment(monkeypatch) -> None:
    """`$HOME` does not move the default: two processes of one user agree."""
    monkeypatch.delenv("JITWI_STATE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/somewhere/else")
    assert default_folder() == Path(pwd.getpwuid(__import__("os").geteuid()).pw_dir, ".local", "state", "jitwi")


def test_variable_names_it(monkeypatch) -> None:
    """`$JITWI_STATE_DIR` names the folder."""
    monkeypatch.setenv("JITWI_STATE_DIR", "/run/jitwi")
    assert default_folder() == Path("/run/jitwi")


def test_user_without_home(monkeypatch) -> None:
    """A user without a home is told what to give."""
    monkeypatch.delenv("JITWI_STATE_DIR", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 3_999_999_999)
    with pytest.raises(SharedStateError) as refused:
        default_folder()
    assert "state_dir" in refused.value.remedy


def test_room_is_light() -> None:
    """Importing the room loads no sqlite3; naming a store does."""
    code = "import sys, jitwi.state as s; a = 'sqlite3' in sys.modules; s.SqliteEndings; b = 'sqlite3' in sys.modules"
    code += "; print(a, b)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False True\n"


def test_unknown_name() -> None:
    """A name that does not exist is an AttributeError."""
    import jitwi.state

    with pytest.raises(AttributeError):
        getattr(jitwi.state, "no_such_name")  # noqa: B009
