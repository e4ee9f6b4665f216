# SPDX-License-Identifier: Apache-2.0
"""A backend for tests: a real process that makes, honours, lists and ends credentials, and that can misbehave.

Holds `TestingBackend`, which runs one as a child process (`python -m jitwi.testing.backend`), and `call_backend`. Does
not hold the server (`backend_server.py`) or an issuer (`backend_issuer.py`). For tests and demonstrations only: it
speaks plain HTTP on 127.0.0.1 and keeps its credentials, as hashes, in one file.

It honours a credential until it expires or is ended, for the permissions and the number of uses it was made for. A
session that was opened with one lives on until it is closed, as in a database.

Faults, per operation (`create`, `end`, `list`, `check`, `use`, `session`):

| kind | what happens |
|---|---|
| `fail` | nothing is done, the answer is an error |
| `hang` | nothing is done, no answer until the fault is lifted |
| `slow` | waits, then does it and answers |
| `late` | does it, waits, then answers |
| `cut` | does it, closes the connection without an answer |
| `die` | does it, and the process exits without an answer |
| `lie` | only `end`: says that it is done; the credential is still honoured and listed |
| `hide` | only `end`: the same, and it is not listed any more |
| `keep-sessions` | only `end`: ends the credential, its sessions live on |

Example:
    >>> from jitwi.testing.backend import TestingBackend
    >>> with TestingBackend() as backend:
    ...     backend.leases()
    []
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jitwi.errors import ConfigurationError, IssuanceError, StateError
from jitwi.secret import Secret
from jitwi.testing.backend_server import main

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Refusal", "TestingBackend", "call_backend"]

MAX_ANSWER = 1 << 22
START_SECONDS = 30.0
DEFAULT_TIMEOUT = 3.0


class Refusal(IssuanceError):  # noqa: N818 - an answer of the backend, not a failure to reach it
    """The backend answered no.

    Attributes:
        status: HTTP status.
    """

    code = "backend-refused"
    status: int = 0


def call_backend(
    address: str, operation: str, body: dict[str, Any], *, admin: Secret | None = None, timeout: float = DEFAULT_TIMEOUT
) -> dict[str, Any]:
    """Send one request and return the answer.

    Args:
        address: `host:port`.
        operation: Last part of the URL.
        body: The request. A `Secret` in it is revealed on the wire only.
        admin: The admin token, where the operation needs it.
        timeout: Seconds for each step of the exchange.

    Raises:
        Refusal: The backend said no.
        IssuanceError: It could not be reached or did not answer (`unreachable`).
    """
    status, answer = _exchange(address, operation, body, admin, timeout)
    if isinstance(answer, Exception):
        raise IssuanceError(
            f"the backend at `{address}` did not answer `{operation}`", reasons=("unreachable",)
        ) from answer
    if status != http.client.OK or not isinstance(answer, dict):
        raise Refusal(f"the backend refused `{operation}` with status {status}", reasons=("refused",), status=status)
    return answer


def _exchange(
    address: str, operation: str, body: dict[str, Any], admin: Secret | None, timeout: float
) -> tuple[int, Any]:
    """Return status and answer, or 0 and what went wrong without its frames: they hold what was sent."""
    headers = {"Content-Type": "application/json"}
    if admin is not None:
        headers["Authorization"] = f"Bearer {admin.reveal()}"
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("POST", f"/{operation}", json.dumps(body, default=Secret.reveal).encode(), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read(MAX_ANSWER))
    except (OSError, http.client.HTTPException, ValueError) as exc:
        exc.__cause__ = exc.__context__ = None
        return 0, exc.with_traceback(None)
    finally:
        connection.close()


class TestingBackend:
    """Runs the backend as a child process; `with` starts and ends it.

    Args:
        store: Its file; None = a file in a temporary folder that is removed at the end. Give the same one to a second
            `TestingBackend`, or `kill()` and `start()`, to see what survives.
        port: 0 = any; kept over restarts.
    """

    __test__ = False  # not a test case, whatever its name

    def __init__(self, store: str | os.PathLike[str] | None = None, *, port: int = 0) -> None:
        self._folder: Path | None = None
        self._store = None if store is None else Path(store)
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self.admin_token = Secret(secrets.token_urlsafe(32), kind="admin token")

    @property
    def address(self) -> str:
        """Host and port, with a colon between; known once it was started."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the backend.

        Raises:
            StateError: It does not run.
        """
        if self._process is None:
            raise StateError("the backend does not run", remedy="call `start()`")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ConfigurationError: It did not start in time.
            StateError: It runs already.
        """
        if self._process is not None:
            raise StateError("the backend runs already")
        if self._store is None:
            self._folder = Path(tempfile.mkdtemp(prefix="jw"))
            self._store = self._folder / "backend.jsonl"
        command = [
            sys.executable,
            "-m",
            "jitwi.testing.backend",
            "--store",
            str(self._store),
            "--port",
            str(self._port),
        ]
        process = subprocess.Popen(  # noqa: S603 - our own module, under our own interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=_environment()
        )
        self._process = process
        if process.stdin is None or process.stdout is None:
            raise StateError("the backend has no pipes")
        process.stdin.write(self.admin_token.reveal_bytes() + b"\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        line = process.stdout.readline() if ready else b""
        if not line:
            self.kill()
            raise ConfigurationError(f"the testing backend did not start within {START_SECONDS:g} s")
        self._port = int(json.loads(line)["port"])

    def kill(self) -> None:
        """Kill it; what it was told is in its store. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.kill()
        process.wait(START_SECONDS)

    def wait_until_dead(self) -> None:
        """Wait for a backend that was told to die, so that it can be started again."""
        if self._process is not None:
            self._process.wait(START_SECONDS)
            self.kill()

    def pause(self) -> None:
        """Stop the process where it stands; connections are taken and not answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def fault(self, operation: str, kind: str, *, seconds: float = 1.0, times: int | None = None) -> None:
        """Misbehave from now on; see the table of the module.

        Args:
            operation: Which operation.
            kind: How.
            seconds: How long `slow` and `late` wait.
            times: How often; None = until `heal`.
        """
        self._admin("fault", {"on": operation, "kind": kind, "seconds": seconds, "times": times})

    def heal(self) -> None:
        """Lift all faults; calls that hang are let go."""
        self._admin("heal", {})

    def leases(self) -> list[str]:
        """Ids of the credentials that it really honours, whatever it lists."""
        return list(self._admin("truth", {})["honoured"])

    def sessions(self) -> list[str]:
        """Lease ids of the open sessions."""
        return list(self._admin("truth", {})["sessions"])

    def uses(self) -> list[dict[str, Any]]:
        """Every accepted use, in order: `lease_id`, `action`, `resource`, `input`, `at`."""
        return list(self._admin("truth", {})["uses"])

    def ends(self) -> list[str]:
        """Lease id of every `end` that had an effect, in order."""
        return list(self._admin("truth", {})["ends"])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _admin(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        return call_backend(self.address, operation, body, admin=self.admin_token)


def _environment() -> dict[str, str]:
    """Ours, and the package that runs here is found wherever the current folder is."""
    package = str(Path(__file__).resolve().parent.parent.parent)
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{before}" if before else package}


if __name__ == "__main__":
    sys.exit(main())
