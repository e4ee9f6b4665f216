# SPDX-License-Identifier: Apache-2.0
"""RUN/state.json: what a stack consists of, and the pointers by which the command line finds a stack again.

Anything odd about the file or its folder stops the caller: nothing of a stranger is read, signalled or removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spirestack.binaries import cache_dir
from spirestack.config import write_private
from spirestack.errors import StackStateError

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN_VARIABLE = "JITWI_SPIRE_RUN"
FORMAT = 1
FILE_NAME = "state.json"


def load(run: Path) -> dict[str, Any]:
    """Read and check the state of a stack.

    Args:
        run: Run directory.

    Raises:
        StackStateError: No stack there, or not one that we made.
    """
    path = run / FILE_NAME
    try:
        folder, file = run.lstat(), path.lstat()
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise StackStateError(f"no stack in `{run}`", remedy="start one with `up`") from exc
    ours = folder.st_uid == file.st_uid == os.geteuid()
    if not ours or not stat.S_ISDIR(folder.st_mode) or not stat.S_ISREG(file.st_mode) or file.st_mode & 0o077:
        raise StackStateError(f"`{run}` is not a stack of this user")
    try:
        state = json.loads(text)
        usable = state["format"] == FORMAT and state["run_dir"] == str(run)
    except (ValueError, KeyError, TypeError) as exc:
        raise StackStateError(f"`{path}` cannot be read") from exc
    if not usable:
        raise StackStateError(f"`{path}` describes another stack")
    return dict(state)


def create(run: Path, state: dict[str, Any]) -> None:
    """Write the first state of a new stack."""
    write_private(run / FILE_NAME, json.dumps({"format": FORMAT, "run_dir": str(run), **state}, indent=1).encode())


@contextlib.contextmanager
def changing(run: Path) -> Iterator[dict[str, Any]]:
    """Read, let the body change, and write back; one process at a time."""
    load(run)
    with (run / ".state.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = load(run)
        yield state
        write_private(run / FILE_NAME, json.dumps(state, indent=1).encode())


def remember(run: Path) -> None:
    """Let later commands find this stack without being told."""
    folder = cache_dir() / "stacks"
    folder.mkdir(parents=True, exist_ok=True)
    write_private(folder / run.name, f"{run}\n".encode())


def forget(run: Path) -> None:
    """Remove the pointer to a stack, if there is one."""
    pointer = cache_dir() / "stacks" / run.name
    with contextlib.suppress(OSError):
        if pointer.read_text(encoding="utf-8").strip() == str(run):
            pointer.unlink()


def current(explicit: str | None) -> Path:
    """The stack a command means: as told, by environment, or the only one there is.

    Raises:
        StackStateError: None, or several.
    """
    named = explicit or os.environ.get(RUN_VARIABLE, "")
    if named:
        return Path(os.path.abspath(named))  # noqa: PTH100 - resolve() would follow links
    known: list[Path] = []
    with contextlib.suppress(OSError):
        for pointer in sorted((cache_dir() / "stacks").iterdir()):
            run = Path(pointer.read_text(encoding="utf-8").strip())
            if (run / FILE_NAME).exists():
                known.append(run)
            else:
                pointer.unlink(missing_ok=True)
    if not known:
        raise StackStateError("no stack is running", remedy="start one with `up`")
    if len(known) > 1:
        raise StackStateError(
            f"several stacks are running: {', '.join(map(str, known))}",
            remedy=f"choose with --run-dir or `{RUN_VARIABLE}`",
        )
    return known[0]
