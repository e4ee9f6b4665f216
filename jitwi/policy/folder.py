# SPDX-License-Identifier: Apache-2.0
"""A policy folder: which files it has, their bytes, and the manifest that vouches for them.

Holds reading and checking of files; the folder is opened once, so that a swap of a symbolic link in between cannot mix
two sets. Does not hold what the files mean: that is `loader.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from jitwi.policy.entities import MAX_ENTITIES_BYTES, STRICT_JSON, RecordError
from jitwi.policy.text import check_json_text, refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "ENTITIES",
    "MANIFEST",
    "MAX_POLICY_BYTES",
    "MAX_SCHEMA_BYTES",
    "TASKS",
    "Sources",
    "manifest_text",
    "read_folder",
    "sources_from",
    "write_manifest",
]

ENTITIES = "entities.json"
TASKS = "tasks.toml"
MANIFEST = "manifest.json"
MAX_POLICY_BYTES = 32 * 2**20
MAX_SCHEMA_BYTES = 2 * 2**20
MAX_TASKS_BYTES = 2**20
MANIFEST_VERSION = 1
MAX_READINGS = 4
_HEX_DIGITS = 64


@attrs.frozen
class Sources:
    """The texts of one policy set.

    Args:
        root: Folder, for messages; empty for texts.
        policies: (name, text), sorted by name.
        schemas: (name, text), sorted by name.
        entities: Text of `entities.json`, or None.
        tasks: Text of `tasks.toml`, or None.
        policy_count: What the manifest says, or None without one.
        manifest_digest: SHA-256 of the manifest, or empty without one.
    """

    root: str
    policies: tuple[tuple[str, str], ...]
    schemas: tuple[tuple[str, str], ...]
    entities: str | None = None
    tasks: str | None = None
    policy_count: int | None = None
    manifest_digest: str = ""

    def path(self, name: str) -> str:
        """Return the place of a file, for messages."""
        return str(Path(self.root) / name) if self.root else name


def read_folder(folder: str | os.PathLike[str]) -> Sources:
    """Read a folder whole.

    Args:
        folder: Where `*.cedar`, `*.cedarschema`, `entities.json`, `tasks.toml` and `manifest.json` are.

    Raises:
        InvalidPolicyError: It cannot be read, holds files that would be passed over by mistake, or differs from its
            manifest.
    """
    root = os.fspath(folder)
    try:
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            data = _stable(handle, root)
        finally:
            os.close(handle)
    except OSError as exc:
        raise refusal(
            f"cannot be read: {exc.strerror or type(exc).__name__}",
            path=str(exc.filename if isinstance(exc.filename, str) else root),
            reason="unreadable",
            remedy="give a folder that this process may read",
        ) from exc
    return sources_from(data, root=root)


def _stable(handle: int, root: str) -> dict[str, bytes]:
    """Read until two readings agree: files that are links may be swapped between one and the next."""
    before: dict[str, bytes] | None = None
    for _ in range(MAX_READINGS):
        names = _names(handle, root)
        wanted = names if MANIFEST in names else [name for name in names if _is_ours(name)]
        data = {name: _read(handle, root, name) for name in wanted}
        if data == before:
            return data
        before = data
    raise refusal(
        "the folder changes while it is read", path=root, reason="unreadable", remedy="reload when it is still"
    )


def _names(handle: int, root: str) -> list[str]:
    names: list[str] = []
    for name in sorted(os.listdir(handle)):
        if name.startswith("."):
            continue
        path = str(Path(root) / name)
        mode = os.stat(name, dir_fd=handle).st_mode
        if stat.S_ISDIR(mode):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
            try:
                lost = [each for each in os.listdir(inner) if _is_ours(each)]  # noqa: PTH208 - a descriptor
            finally:
                os.close(inner)
            if lost:
                raise refusal(
                    f"folders within a policy folder are not read, and this one holds `{lost[0]}`",
                    path=path,
                    reason="subfolder",
                    remedy="move its files up",
                )
            continue
        if not stat.S_ISREG(mode):
            if _is_ours(name):
                raise refusal("not a regular file", path=path, reason="unreadable", remedy="replace it by a file")
            continue
        names.append(name)
    return names


def _is_ours(name: str) -> bool:
    return name.lower().endswith((".cedar", ".cedarschema")) or name in {ENTITIES, TASKS}


def _limit(name: str) -> int:
    if name.endswith(".cedar"):
        return MAX_POLICY_BYTES
    if name.endswith(".cedarschema"):
        return MAX_SCHEMA_BYTES
    return MAX_TASKS_BYTES if name in {TASKS, MANIFEST} else MAX_ENTITIES_BYTES


def _read(handle: int, root: str, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=handle)
    with os.fdopen(file, "rb") as opened:
        data = opened.read(_limit(name) + 1)
    if len(data) > _limit(name):
        raise refusal(
            f"over {_limit(name)} bytes", path=str(Path(root) / name), reason="too-large", remedy="split the set"
        )
    return data


def sources_from(files: Mapping[str, bytes | str], *, root: str = "") -> Sources:
    """Sort files into a set of sources, and hold them against their manifest.

    Args:
        files: Name -> content.
        root: Their folder, for messages.

    Raises:
        InvalidPolicyError: Not UTF-8, a name that looks like ours and is not, or a difference to the manifest.
    """

    def place(name: str) -> str:
        return str(Path(root) / name) if root else name

    data = {
        name: each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each for name, each in files.items()
    }
    count, digest = _check_manifest(data, place(MANIFEST)) if MANIFEST in data else (None, "")
    texts: dict[str, str] = {}
    for name, content in data.items():
        if not _is_ours(name):
            continue
        if not name.endswith((".cedar", ".cedarschema", ".json", ".toml")):
            raise refusal(
                "the ending is not in lower case", path=place(name), reason="file-name", remedy="rename the file"
            )
        try:
            texts[name] = content.decode()
        except UnicodeDecodeError as exc:
            raise refusal(
                "not UTF-8",
                path=place(name),
                line=content.count(b"\n", 0, exc.start) + 1,
                reason="encoding",
                remedy="save the file as UTF-8",
            ) from exc
    return Sources(
        root,
        tuple(sorted((name, text) for name, text in texts.items() if name.endswith(".cedar"))),
        tuple(sorted((name, text) for name, text in texts.items() if name.endswith(".cedarschema"))),
        texts.get(ENTITIES),
        texts.get(TASKS),
        count,
        digest,
    )


def _check_manifest(data: Mapping[str, bytes], path: str) -> tuple[int, str]:
    """Check every file against its SHA-256; no file more, none less."""

    def refuse(message: str, remedy: str = "write the manifest again, or restore the files") -> Exception:
        return refusal(message, path=path, reason="manifest", remedy=remedy)

    listed, count = _parse_manifest(data[MANIFEST], path)
    here = data.keys() - {MANIFEST}
    if missing := listed.keys() - here:
        raise refuse(f"the file `{min(missing)}` is missing")
    if extra := here - listed.keys():
        raise refuse(f"the file `{min(extra)}` is not in the manifest")
    for name, expected in listed.items():
        if hashlib.sha256(data[name]).hexdigest() != expected:
            raise refuse(f"the file `{name}` differs from the manifest")
    return count, hashlib.sha256(data[MANIFEST]).hexdigest()


def _parse_manifest(raw: bytes, path: str) -> tuple[dict[str, str], int]:
    problem = "not a manifest: an object of `version`, `files` and `policies`"
    try:
        text = raw.decode()
        check_json_text(text, path, limit=MAX_TASKS_BYTES)
        value: Any = STRICT_JSON.decode(text)
    except (ValueError, RecursionError, RecordError) as exc:
        raise refusal(problem, path=path, reason="manifest", remedy="write it with `write_manifest`") from exc
    if isinstance(value, dict) and value.keys() == {"version", "files", "policies"}:
        files, count = value["files"], value["policies"]
        if (
            value["version"] == MANIFEST_VERSION
            and type(value["version"]) is int
            and type(count) is int
            and isinstance(files, dict)
            and all(isinstance(each, str) and len(each) == _HEX_DIGITS for each in files.values())
        ):
            return files, count
    raise refusal(problem, path=path, reason="manifest", remedy="write it with `write_manifest`")


def manifest_text(files: Mapping[str, bytes], *, policies: int) -> str:
    """Return the manifest of a set of files.

    Args:
        files: Name -> content, without the manifest.
        policies: Number of policies in them.
    """
    digests = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    return json.dumps({"version": MANIFEST_VERSION, "policies": policies, "files": digests}, indent=2) + "\n"


def write_manifest(folder: str | os.PathLike[str], *, policies: int) -> Path:
    """Write `manifest.json` for the files of a folder, in one step.

    Args:
        folder: The policy folder.
        policies: Number of policies in it.

    Returns:
        The manifest.

    Raises:
        InvalidPolicyError: The folder cannot be read or written.
    """
    root = Path(folder)
    try:
        names: Iterable[Path] = (path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
        files = {path.name: path.read_bytes() for path in names if path.name != MANIFEST}
        target = root / MANIFEST
        draft = root / f".{MANIFEST}.new"
        draft.write_text(manifest_text(files, policies=policies), encoding="utf-8")
        draft.replace(target)
    except OSError as exc:
        raise refusal(
            f"cannot be written: {exc.strerror}",
            path=str(root / MANIFEST),
            reason="unreadable",
            remedy="check its mode",
        ) from exc
    return target
