# SPDX-License-Identifier: Apache-2.0
"""Personas: several workloads for one test process, each a relay that the agent attests in our place.

Works without root by copying the interpreter to a path of its own (selector ``unix:path``); with root also as another
user or group. Knows nothing about registration entries beyond the selectors it can satisfy.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
import shutil
import socket
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spirestack.config import HOME, write_private
from spirestack.errors import SpireDevError, StackStateError, WaitTimeoutError
from spirestack.process import ProcessRef, spawn, tail, wait_until

RELAY = HOME / "relay.py"
CONTROL_SECONDS = 3.0
READY_SECONDS = 10.0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")


@dataclass(frozen=True, slots=True)
class Persona:
    """A relay in front of the agent, and who the agent takes it for.

    Args:
        name: Short name, also its folder under RUN/p.
        folder: That folder.
        process: The relay.
        uid: User the relay runs as.
        gid: Group the relay runs as.
        groups: Supplementary groups.
        executable: Program file the agent sees.
        copied: Whether that file is a copy of its own (so ``unix:path`` tells this persona from others).
    """

    name: str
    folder: Path
    process: ProcessRef
    uid: int
    gid: int
    groups: tuple[int, ...]
    executable: Path
    copied: bool
    agent_socket: Path = field(repr=False)

    @property
    def socket(self) -> str:
        """Endpoint for this identity, as ``SPIFFE_ENDPOINT_SOCKET`` wants it."""
        return f"unix://{self.folder}/api.sock"

    @property
    def selectors(self) -> tuple[str, ...]:
        """What identifies this persona and no other: put it on its entries."""
        own = (f"unix:uid:{self.uid}",)
        return (*own, f"unix:path:{self.executable}") if self.copied else own

    def satisfies(self, selectors: tuple[str, ...] | list[str]) -> bool:
        """Whether the agent would give this persona an entry with these selectors."""
        return satisfies(selectors, uid=self.uid, gid=self.gid, groups=self.groups, executable=self.executable)

    def is_open(self) -> bool:
        """Whether the relay runs and no fault is switched on."""
        return self.process.is_running() and self.fault().startswith("ok ")

    def environment(self) -> dict[str, str]:
        """Environment for a real process of this identity: run `executable` with it.

        The process talks to the agent directly. Packages of the calling interpreter stay importable.
        """
        packages = [entry for entry in sys.path if entry and Path(entry).is_dir()]
        return {
            **_interpreter_environment(),
            "PYTHONPATH": os.pathsep.join(packages),
            "SPIFFE_ENDPOINT_SOCKET": f"unix://{self.agent_socket}",
        }

    def ok(self) -> str:
        """Pass everything again; connections that lost bytes are closed."""
        return self._switch("ok")

    def delay(self, seconds: float) -> str:
        """Hold every block of bytes, in both directions, for so many seconds."""
        return self._switch(f"delay {seconds:g}")

    def cut(self) -> str:
        """Close all connections, and new ones at once, until `ok`."""
        return self._switch("cut")

    def drop(self) -> str:
        """Keep connections open and swallow all bytes, until `ok`."""
        return self._switch("drop")

    def fault(self) -> str:
        """What the relay does now."""
        return self._switch("status")

    def _switch(self, line: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(CONTROL_SECONDS)
                peer.connect(str(self.folder / "ctl.sock"))
                peer.sendall(line.encode() + b"\n")
                answer = peer.recv(256).decode("ascii", "replace").strip()
        except OSError as exc:
            raise StackStateError(
                f"relay of persona `{self.name}` does not answer", remedy="look at `status` and `logs`"
            ) from exc
        if answer.startswith("refused"):
            raise SpireDevError(f"fault switch of persona `{self.name}` {answer}")
        return answer

    def to_json(self) -> dict[str, Any]:
        """For state.json."""
        return {
            "process": self.process.to_json(),
            "uid": self.uid,
            "gid": self.gid,
            "groups": list(self.groups),
            "executable": str(self.executable),
            "copied": self.copied,
        }

    @classmethod
    def from_json(cls, name: str, run: Path, value: dict[str, Any]) -> Persona:
        """Read what `to_json` wrote."""
        return cls(
            name=name,
            folder=run / "p" / name,
            process=ProcessRef.from_json(value["process"]),
            uid=int(value["uid"]),
            gid=int(value["gid"]),
            groups=tuple(int(group) for group in value["groups"]),
            executable=Path(value["executable"]),
            copied=bool(value["copied"]),
            agent_socket=run / "w" / "api.sock",
        )


def start_persona(
    run: Path,
    name: str,
    *,
    uid: int | None = None,
    gid: int | None = None,
    groups: tuple[int, ...] = (),
    copy: bool = True,
) -> Persona:
    """Start the relay of a new persona and wait until it answers.

    Args:
        run: Run directory of the stack.
        name: Up to 20 lowercase letters, digits and dashes.
        uid: Another user (root only).
        gid: Another group (root only).
        groups: Supplementary groups (root only).
        copy: Run from a copy of the interpreter, which makes `unix:path` and `unix:sha256` unique.

    Raises:
        SpireDevError: Name unusable or taken, or root needed, or the relay did not start.
    """
    if _NAME.fullmatch(name) is None:
        raise SpireDevError(f"`{name}` cannot name a persona", remedy="up to 20 lowercase letters, digits and dashes")
    if (uid is not None or gid is not None or groups) and os.geteuid() != 0:
        raise SpireDevError(
            f"persona `{name}` as another user or group needs root", remedy="leave it a copied interpreter"
        )
    folder = run / "p" / name
    try:
        folder.mkdir()
    except FileExistsError:
        raise SpireDevError(f"persona `{name}` exists already") from None
    folder.chmod(0o711)
    executable = _copy_interpreter(folder, name) if copy else _real_interpreter()
    command = [str(executable), "-S", "-B", str(RELAY)]
    command += ["--listen", str(folder / "api.sock"), "--control", str(folder / "ctl.sock")]
    command += ["--agent", str(run / "w" / "api.sock")]
    command += [] if uid is None else ["--uid", str(uid)]
    command += [] if gid is None else ["--gid", str(gid)]
    command += ["--groups", ",".join(map(str, groups))] if groups else []
    log = run / "log" / f"persona-{name}.out"
    process = spawn(command, output=log, cwd=run, env=_interpreter_environment())
    effective_gid = os.getegid() if gid is None else gid
    own_groups = groups if uid is not None or gid is not None or groups else tuple(os.getgroups())
    persona = Persona(
        name=name,
        folder=folder,
        process=process,
        uid=os.geteuid() if uid is None else uid,
        gid=effective_gid,
        groups=own_groups,
        executable=executable,
        copied=copy,
        agent_socket=run / "w" / "api.sock",
    )
    try:
        wait_until(lambda: _answers(persona), f"relay of persona `{name}`", timeout=READY_SECONDS)
    except (WaitTimeoutError, StackStateError) as exc:
        process.stop()
        raise SpireDevError(f"relay of persona `{name}` did not start", remedy=f"its last words: {tail(log)}") from exc
    return persona


def satisfies(
    selectors: tuple[str, ...] | list[str], *, uid: int, gid: int, groups: tuple[int, ...], executable: Path
) -> bool:
    """Whether a process of these properties has all of these ``unix`` selectors; unknown kinds count as no."""
    has = {f"unix:uid:{uid}", f"unix:gid:{gid}", f"unix:path:{executable}"}
    has |= {f"unix:supplementary_gid:{group}" for group in groups}
    if any(selector.startswith("unix:user:") for selector in selectors):
        has |= {f"unix:user:{entry.pw_name}" for entry in pwd.getpwall() if entry.pw_uid == uid}
    if any(selector.startswith("unix:group:") for selector in selectors):
        has |= {f"unix:group:{entry.gr_name}" for entry in grp.getgrall() if entry.gr_gid == gid}
    if any(selector.startswith("unix:sha256:") for selector in selectors):
        has.add(f"unix:sha256:{hashlib.sha256(executable.read_bytes()).hexdigest()}")
    return has.issuperset(selectors)


def _answers(persona: Persona) -> bool:
    if not persona.process.is_running():
        raise StackStateError(f"relay of persona `{persona.name}` ended")
    try:
        return bool(persona.fault())
    except StackStateError:
        return False


def _real_interpreter() -> Path:
    # In a virtual environment sys.executable is a link; the agent sees what it points to.
    return Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))


def _copy_interpreter(folder: Path, name: str) -> Path:
    base = _real_interpreter()
    target = folder / "python"
    shutil.copyfile(base, target)
    with target.open("ab") as file:
        # Bytes behind the end of an ELF file are never read: they only make the digest unique.
        file.write(f"\0persona {name}".encode())
    target.chmod(0o755)
    # How a copied interpreter finds its standard library: the mechanism of venv.
    write_private(folder / "pyvenv.cfg", f"home = {base.parent}\n".encode()).chmod(0o644)
    return target


def _interpreter_environment() -> dict[str, str]:
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        # A run path relative to the original place does not follow the copy.
        environment["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    return environment
