# SPDX-License-Identifier: Apache-2.0
"""The server behind `jitwi.testing.backend`: store, operations, faults. For tests only.

Holds what runs in the backend's own process. Does not hold the way to start and ask it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

from jitwi.clock import SystemClock

__all__ = ["FAULTS", "OPERATIONS", "main"]

MAX_BODY = 65536
HANG_SECONDS = 600.0
OPERATIONS = ("create", "end", "list", "check", "use", "session")
FAULTS = ("fail", "hang", "slow", "late", "cut", "die", "lie", "hide", "keep-sessions")


class _No(Exception):  # noqa: N818 - private
    """An answer other than 200."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class _Store:
    """Credentials and sessions: in memory, and as a log of what happened in the file."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.RLock()
        self.clock = SystemClock()
        self.credentials: dict[str, dict[str, Any]] = {}
        self.hidden: set[str] = set()
        self.sessions: dict[str, str] = {}
        self.uses: list[dict[str, Any]] = []
        self.ends: list[str] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._apply(json.loads(line))
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def note(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._apply(entry)

    def _apply(self, entry: dict[str, Any]) -> None:
        kind, lease_id = entry["op"], entry["lease_id"]
        if kind == "create":
            self.credentials[lease_id] = entry
        elif kind == "end":
            self.credentials.pop(lease_id, None)
            self.hidden.discard(lease_id)
            self.ends.append(lease_id)
        elif kind == "hide":
            self.hidden.add(lease_id)
        elif kind == "use":
            self.uses.append(entry)

    def honoured(self, secret: str) -> str:
        """The lease of a secret or session that is honoured now."""
        wanted = _hash(secret)
        lease_id = self.sessions.get(wanted)
        if lease_id is not None:
            return lease_id
        for entry in self.credentials.values():
            if secrets.compare_digest(entry["hash"], wanted) and self.clock.now().wall < entry["expires_at"]:
                return str(entry["lease_id"])
        raise _No(401, "not honoured")

    def require_permission(self, lease_id: str, action: str, resource: str) -> None:
        entry = self.credentials.get(lease_id)
        if entry is None:
            return  # a session whose credential is gone keeps what it has: that is what makes it dangerous
        used = [use for use in self.uses if use["lease_id"] == lease_id]
        if entry["max_uses"] is not None and len(used) >= entry["max_uses"]:
            raise _No(403, "used up")
        for permission in entry["permissions"]:
            if permission[:2] == [action, resource]:
                limit = permission[2]
                count = sum(use["action"] == action and use["resource"] == resource for use in used)
                if limit is None or count < limit:
                    return
        raise _No(403, "not permitted")


class _Backend:
    """The operations."""

    def __init__(self, store: _Store, admin: str) -> None:
        self.store = store
        self.admin = admin
        self.faults: dict[str, dict[str, Any]] = {}
        self.healed = threading.Event()

    def take_fault(self, operation: str) -> tuple[str, float, threading.Event]:
        with self.store.lock:
            fault = self.faults.get(operation)
            if fault is None:
                return "", 0.0, self.healed
            if fault["times"] is not None:
                fault["times"] -= 1
                if fault["times"] <= 0:
                    del self.faults[operation]
            return fault["kind"], float(fault["seconds"]), self.healed

    def do(self, operation: str, body: dict[str, Any], *, is_admin: bool, fault: str) -> dict[str, Any]:
        if operation in {"create", "end", "list", "fault", "heal", "truth"} and not is_admin:
            raise _No(401, "admin only")
        if fault == "fail":
            raise _No(500, "told to fail")
        with self.store.lock:
            if operation == "end":
                return self._end(body, fault)
            if operation == "list":
                return self._list(body)
            known = {
                "create": self._create,
                "check": self._check,
                "use": self._use,
                "session": self._session,
                "fault": self._fault,
                "heal": self._heal,
                "truth": self._truth,
            }.get(operation)
            if known is None:
                raise _No(404, "unknown")
            return known(body)

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["lease_id"] in self.store.credentials:
            raise _No(409, "exists")
        secret = secrets.token_urlsafe(32)
        keep = ("lease_id", "permissions", "max_uses", "expires_at")
        self.store.note({"op": "create", "hash": _hash(secret), **{key: body[key] for key in keep}})
        return {"secret": secret, "expires_at": body["expires_at"]}

    def _end(self, body: dict[str, Any], fault: str) -> dict[str, Any]:
        lease_id = body["lease_id"]
        existed = lease_id in self.store.credentials
        if existed and fault == "hide":
            self.store.note({"op": "hide", "lease_id": lease_id})
        if fault in {"lie", "hide"}:
            return {"existed": existed}
        if existed:
            self.store.note({"op": "end", "lease_id": lease_id})
        if fault != "keep-sessions":
            self.store.sessions = {key: owner for key, owner in self.store.sessions.items() if owner != lease_id}
        return {"existed": existed}

    def _list(self, body: dict[str, Any]) -> dict[str, Any]:
        listed = (set(self.store.credentials) | set(self.store.sessions.values())) - self.store.hidden
        return {"leases": sorted(lease_id for lease_id in listed if lease_id.startswith(body["prefix"]))}

    def _check(self, body: dict[str, Any]) -> dict[str, Any]:
        lease_id = self.store.honoured(body["secret"])
        if "action" in body:
            self.store.require_permission(lease_id, body["action"], body["resource"])
        return {"lease_id": lease_id}

    def _use(self, body: dict[str, Any]) -> dict[str, Any]:
        lease_id = self.store.honoured(body["secret"])
        action, resource = body["action"], body["resource"]
        self.store.require_permission(lease_id, action, resource)
        use = {"lease_id": lease_id, "action": action, "resource": resource, "input": body.get("input")}
        self.store.note({"op": "use", "at": self.store.clock.now().wall, **use})
        return use

    def _session(self, body: dict[str, Any]) -> dict[str, Any]:
        lease_id = self.store.honoured(body["secret"])
        session = secrets.token_urlsafe(32)
        self.store.sessions[_hash(session)] = lease_id
        return {"session": session}

    def _fault(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["on"] not in OPERATIONS or body["kind"] not in FAULTS:
            raise _No(400, "unknown fault")
        self.faults[body["on"]] = {key: body[key] for key in ("kind", "seconds", "times")}
        return {}

    def _heal(self, body: dict[str, Any]) -> dict[str, Any]:
        self.faults.clear()
        self.healed.set()
        self.healed = threading.Event()
        return {}

    def _truth(self, body: dict[str, Any]) -> dict[str, Any]:
        store = self.store
        now = store.clock.now().wall
        honoured = sorted(key for key, entry in store.credentials.items() if now < entry["expires_at"])
        return {
            "honoured": honoured,
            "sessions": sorted(store.sessions.values()),
            "uses": store.uses,
            "ends": store.ends,
        }


def _handler(backend: _Backend) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_POST(self) -> None:
            operation = self.path.strip("/")
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(min(size, MAX_BODY)) or b"{}")
            shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
            is_admin = secrets.compare_digest(shown.encode(), backend.admin.encode())
            fault, seconds, healed = backend.take_fault(operation)
            if fault == "hang":
                healed.wait(HANG_SECONDS)
                self.close_connection = True
                return
            if fault == "slow":
                healed.wait(seconds)
            try:
                status, answer = 200, backend.do(operation, body, is_admin=is_admin, fault=fault)
            except _No as no:
                status, answer = no.status, {"error": str(no)}
            except (KeyError, TypeError, AttributeError):
                status, answer = 400, {"error": "malformed"}
            if fault == "die":
                os._exit(1)
            if fault == "late":
                healed.wait(seconds)
            if fault == "cut":
                return
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            """Say nothing."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that went away is no event here."""


def main(arguments: list[str] | None = None) -> int:
    """Run the backend until standard input closes.

    The admin token is the first line of standard input; the port is announced as one line of JSON.
    """
    parser = argparse.ArgumentParser(prog="python -m jitwi.testing.backend", description="A backend for tests.")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(arguments)
    admin = sys.stdin.readline().strip()
    if not admin:
        parser.error("the first line of standard input must be the admin token")
    server = _Server(("127.0.0.1", options.port), _handler(_Backend(_Store(options.store), admin)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(json.dumps({"port": server.server_address[1]}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    return 0
