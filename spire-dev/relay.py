# SPDX-License-Identifier: Apache-2.0
"""Persona relay: passes bytes between a client and the SPIRE agent, so that the agent sees this process.

The agent attests whoever connected. One test process gets many identities by talking through several relays, each
running as another user or from another copy of the interpreter. A control socket switches faults on. Standard library
only, run with ``-S``; holds no SPIRE or gRPC knowledge.

Control protocol: one line in, one line out. ``ok`` | ``delay SECONDS`` | ``cut`` | ``drop`` | ``status``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import time

BLOCK_BYTES = 65536
LINE_BYTES = 128
MAX_DELAY_SECONDS = 600.0


class Fault:
    """What happens to the bytes, and the connections it happens to."""

    def __init__(self) -> None:
        """Everything passes."""
        self._lock = threading.Lock()
        self._mode = "ok"
        self._delay = 0.0
        self._tainted: set[int] = set()
        self._links: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._next = 0

    def set(self, line: str) -> str:
        """Act on one control line and say what holds now."""
        words = line.split()
        if words == ["status"]:
            return self.describe()
        mode, delay = (words or [""])[0], 0.0
        if mode not in {"ok", "delay", "cut", "drop"} or len(words) != (2 if mode == "delay" else 1):
            return f"refused: `{line.strip()}`"
        if mode == "delay":
            try:
                delay = float(words[1])
            except ValueError:
                delay = -1.0
            if not 0 <= delay <= MAX_DELAY_SECONDS:
                return f"refused: `{line.strip()}`"
        with self._lock:
            self._mode, self._delay = mode, delay
            # A stream that lost bytes is no stream any more: its client has to connect anew.
            victims = list(self._links) if mode == "cut" else [key for key in self._links if key in self._tainted]
            for key in victims if mode in {"cut", "ok", "delay"} else []:
                self._break(key)
        return self.describe()

    def describe(self) -> str:
        """Mode and number of open connections."""
        with self._lock:
            mode = f"delay {self._delay:g}" if self._mode == "delay" else self._mode
            return f"{mode} connections={len(self._links)}"

    def refuses(self) -> bool:
        """Whether new connections are closed at once."""
        with self._lock:
            return self._mode == "cut"

    def add(self, client: socket.socket, agent: socket.socket) -> int | None:
        """Register a pair of sockets; ``None`` when connections are being cut."""
        with self._lock:
            if self._mode == "cut":
                return None
            self._next += 1
            self._links[self._next] = (client, agent)
            return self._next

    def remove(self, key: int) -> None:
        """Break and forget a pair."""
        with self._lock:
            self._break(key)

    def passes(self, key: int) -> bool:
        """Wait out a delay; whether the bytes read from this pair may go on."""
        with self._lock:
            mode, delay = self._mode, self._delay
            if mode == "drop":
                self._tainted.add(key)
                return False
        if mode == "delay":
            time.sleep(delay)
        return True

    def _break(self, key: int) -> None:
        self._tainted.discard(key)
        for end in self._links.pop(key, ()):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, target: socket.socket, fault: Fault, key: int) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK_BYTES):
            if fault.passes(key):
                target.sendall(block)
    fault.remove(key)


def _serve(client: socket.socket, agent_path: str, fault: Fault) -> None:
    with client, socket.socket(socket.AF_UNIX) as agent:
        if fault.refuses():
            return
        with contextlib.suppress(OSError):
            agent.connect(agent_path)
            key = fault.add(client, agent)
            if key is None:
                return
            back = threading.Thread(target=_pump, args=(agent, client, fault, key), daemon=True)
            back.start()
            _pump(client, agent, fault, key)
            back.join()


def _accept(listener: socket.socket, agent_path: str, fault: Fault) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_serve, args=(client, agent_path, fault), daemon=True).start()


def _control(listener: socket.socket, fault: Fault) -> None:
    while True:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.settimeout(2)
            line = peer.recv(LINE_BYTES).decode("ascii", "replace")
            peer.sendall(fault.set(line).encode() + b"\n")


def _listen(path: str) -> socket.socket:
    # Only our own user may use the persona: the mask is set before the socket can be seen.
    os.umask(0o177)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    return listener


def _become(uid: int | None, gid: int | None, groups: list[int]) -> None:
    if uid is None and gid is None and not groups:
        return
    os.setgroups(groups)
    if gid is not None:
        os.setgid(gid)
    if uid is not None:
        os.setuid(uid)


def main(arguments: list[str] | None = None) -> int:
    """Bind both sockets, become the persona, relay until ended."""
    parser = argparse.ArgumentParser(description="persona relay of the development SPIRE")
    parser.add_argument("--listen", required=True, help="socket that clients use")
    parser.add_argument("--control", required=True, help="socket for the fault switch")
    parser.add_argument("--agent", required=True, help="Workload API socket of the agent")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--groups", default="", help="supplementary groups, comma separated numbers")
    options = parser.parse_args(arguments)
    listener, control = _listen(options.listen), _listen(options.control)
    _become(options.uid, options.gid, [int(group) for group in options.groups.split(",") if group])
    fault = Fault()
    threading.Thread(target=_control, args=(control, fault), daemon=True).start()
    _accept(listener, options.agent, fault)
    return 0


if __name__ == "__main__":
    sys.exit(main())
