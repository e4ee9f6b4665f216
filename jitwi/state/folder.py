# SPDX-License-Identifier: Apache-2.0
"""Folders and files that hold shared state: who may own them, who may write to them.

Holds the checks before a store is opened and the default place. Does not hold what is in the files. A folder that
somebody else can write to is no memory of ours: they could take a file away, and with it what was seen.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import NoReturn

from jitwi.errors import SharedStateError

__all__ = ["STATE_DIR_VARIABLE", "FileId", "boot_id", "create_file", "default_folder", "file_id", "require_folder"]

STATE_DIR_VARIABLE = "JITWI_STATE_DIR"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

FileId = tuple[int, int]
"""Device and inode: two equal ones are one file."""


def _refuse(message: str, reason: str, remedy: str, cause: OSError | None = None) -> NoReturn:
    raise SharedStateError(message, reasons=(reason,), remedy=remedy) from cause


def default_folder() -> Path:
    """Return where the state of this user lives unless told otherwise.

    `$JITWI_STATE_DIR`, else `~/.local/state/jitwi` of the user that the process runs as: by the user database and not
    by `$HOME`, so that all processes of one user on one host agree whatever their environment is.

    Raises:
        SharedStateError: The user has no home.
    """
    named = os.environ.get(STATE_DIR_VARIABLE, "")
    if named:
        return Path(named)
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        home = ""
    if not home.startswith("/") or not Path(home).is_dir():
        _refuse(
            f"user {os.geteuid()} has no home folder to keep shared state in",
            "state-folder",
            f"give `state_dir`, or set `{STATE_DIR_VARIABLE}`",
        )
    return Path(home, ".local", "state", "jitwi")


def require_folder(folder: Path, *, private: bool) -> None:
    """Make the folder with mode 0700 if it is missing, and require that it is fit to hold a store.

    Args:
        folder: The folder itself, not a link to it.
        private: True for a Guard's own memory: owned by this user and writable by nobody else. False for a folder that
            another user may share: not writable by everybody.

    Raises:
        SharedStateError: It is a link, not a folder, somebody else's, or others may write to it; names the way out.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(folder)
    except OSError as exc:
        _refuse(
            f"state folder `{folder}` cannot be made or read: {exc.strerror}",
            "state-folder",
            "give another folder",
            exc,
        )
    if not stat.S_ISDIR(found.st_mode):
        _refuse(f"state folder `{folder}` is a link or no folder", "state-folder-link", "name the real folder")
    if private and found.st_uid != os.geteuid():
        _refuse(
            f"state folder `{folder}` belongs to user {found.st_uid}, not to {os.geteuid()}",
            "state-folder-owner",
            "give a folder of this user",
        )
    if found.st_mode & (0o022 if private else 0o002):
        _refuse(
            f"others may write to state folder `{folder}` (mode {stat.S_IMODE(found.st_mode):o})",
            "state-folder-mode",
            f"run `chmod {'go-w' if private else 'o-w'}` on it, or give another folder",
        )


def file_id(path: Path, *, private: bool) -> FileId | None:
    """Return which file is at `path`, or None if there is none.

    Never opens it: closing any descriptor of a database would drop the locks that this process holds on it.

    Raises:
        SharedStateError: It is a link or no plain file, has a second name, or (with `private`) is somebody else's.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        _refuse(f"state file `{path}` cannot be read: {exc.strerror}", "state-file", "check the folder", exc)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        _refuse(f"state file `{path}` is a link or no plain file", "state-file-link", "remove it")
    if private and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
        _refuse(
            f"state file `{path}` belongs to or is writable by somebody else",
            "state-file-owner",
            "remove it; proofs from before are then refused",
        )
    return found.st_dev, found.st_ino


def create_file(path: Path, *, mode: int) -> None:
    """Create `path` unless it is there.

    Raises:
        SharedStateError: It cannot be created.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode))
    except FileExistsError:
        return
    except OSError as exc:
        _refuse(f"state file `{path}` cannot be made: {exc.strerror}", "state-file", "check the folder", exc)


def boot_id() -> str:
    """Return what names this boot of the machine, or an empty string where the system does not say."""
    try:
        return Path(_BOOT_ID).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
