# SPDX-License-Identifier: Apache-2.0
"""Bar 17: the secrets of a whole walk are hunted in everything that a program shows, writes, logs or passes on.

One walk holds every kind of secret: the SVID's key, a task key, a task token, a JWT-SVID, a backend's credential, a
session and an admin token. It takes every turn that raises. What came out of it is sorted into sinks; each is a test.
"""

import asyncio
import base64
import contextlib
import copy
import faulthandler
import gc
import inspect
import io
import json
import logging
import os
import pickle
import pprint
import reprlib
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
import weakref
from datetime import timedelta
from pathlib import Path

import attrs
import httpx
import pytest
from _pytest._io.saferepr import saferepr

import jitwi
from jitwi.audit import AuditLog, LoggingSink
from jitwi.errors import StateError
from jitwi.identity import WorkloadApiSource
from jitwi.issuers import JwtSvid, TaskTokens
from jitwi.policy import PolicyStore
from jitwi.secret import Secret
from jitwi.testing import BackendIssuer, FakeWorkloadApi, FixedIdentity, TestingBackend
from jitwi.testing import jit as make_jit
from jitwi.testing.workload_api import MALFORMED
from jitwi.tokens import jose

SCHEMA = """namespace S { entity O;
action a, j, t, no appliesTo { principal: [Jitwi::Workload], resource: [O], context: { task: Jitwi::Task } }; }"""
POLICIES = 'permit (principal, action, resource) unless { action == S::Action::"no" };'
ORDER = jitwi.Entity("S::O", "1")
OTHER = jitwi.Entity("S::O", "2")
URL = "https://orders.example.org/1"
TTL = timedelta(minutes=5)
WIDE = reprlib.Repr()
WIDE.maxstring = WIDE.maxother = 10**6
SINKS = [
    "repr", "str", "format", "percent", "saferepr", "pprint", "reprlib", "vars", "dict", "members", "asdict", "json",
    "pickle", "copy", "deepcopy", "exception text", "exception args", "notes", "traceback", "traceback with locals",
    "logging", "log records", "warnings", "unraisablehook", "thread excepthook", "asyncio debug", "faulthandler",
    "weakref callback", "audit files", "journal and state files", "stdout and stderr", "command line",
]  # fmt: skip


class Canaries:
    """The secrets, in every form in which they could turn up."""

    def __init__(self):
        self.forms = {}

    def add(self, name, value):
        """Hunt for a text or bytes: as it is, as its repr, in hex and in base 64, whole or the larger part of it."""
        raw = value.encode() if isinstance(value, str) else bytes(value)
        assert len(raw) >= 20
        middle = raw[len(raw) // 4 : -(len(raw) // 4)]
        forms = {raw, middle, repr(middle)[2:-1].encode(), raw.hex().encode(), str(list(raw))[1:-1].encode()}
        forms |= {base64.b64encode(raw).rstrip(b"="), base64.urlsafe_b64encode(raw).rstrip(b"=")}
        self.forms[name] = forms

    def add_key(self, name, key):
        """Hunt for a private key: as a number, and its bytes."""
        number = key.private_numbers().private_value
        self.add(name, number.to_bytes(32))
        self.forms[name] |= {str(number).encode(), f"{number:x}".encode()}

    def found_in(self, text):
        """Names of the secrets that are in it."""
        data = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
        return sorted(name for name, forms in self.forms.items() if any(form in data for form in forms))


class Hunt:
    """What came out of the walk, by sink."""

    def __init__(self):
        self.canaries = Canaries()
        self.sinks = {name: [] for name in SINKS}
        self.errors = []
        self.records = []

    def add(self, sink, make, *arguments):
        """Put what `make` returns into a sink, or what it raises."""
        try:
            self.sinks[sink].append(make(*arguments))
        except Exception as error:  # noqa: BLE001 - a refusal is fine, and shown somewhere too
            self.sinks[sink].append(str(error))
            self.errors.append(error)

    def show(self, thing, *, is_copied=True):
        """Render one object in every way; what is machinery and no value is not copied."""
        self.add("repr", repr, thing)
        self.add("str", str, thing)
        self.add("format", "{:>80}".format, thing)
        self.add("format", "{!r} {!s} {!a}".format, thing, thing, thing)
        self.add("percent", lambda: "%r %s" % (thing, thing))  # noqa: UP031 - a sink
        self.add("saferepr", saferepr, thing, 100_000)
        self.add("pprint", pprint.pformat, thing)
        self.add("reprlib", WIDE.repr, thing)
        self.add("vars", lambda: repr(vars(thing)))
        self.add("dict", lambda: repr(thing.__dict__))
        self.add("members", lambda: repr(inspect.getmembers(thing)))
        self.add("members", lambda: repr([getattr(thing, name, None) for name in dir(thing)]))
        self.add("asdict", lambda: repr(attrs.asdict(thing)))
        self.add("asdict", lambda: repr(attrs.astuple(thing)))
        self.add("json", lambda: json.dumps(thing, default=repr))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            self.add("pickle", pickle.dumps, thing, protocol)
        if is_copied:
            self.add("copy", lambda: repr(copy.copy(thing)))
            self.add("deepcopy", lambda: repr(copy.deepcopy(thing)))
        logging.getLogger("walk").info("%s %r", thing, thing, extra={"thing": thing})
        warnings.warn(f"{thing} {thing!r}", UserWarning, stacklevel=1)

    def raises(self, attempt, *arguments, **more):
        """Keep what an attempt raises; it must raise."""
        try:
            attempt(*arguments, **more)
        except BaseException as error:  # noqa: BLE001 - whatever it is
            self.keep(error)
        else:
            pytest.fail(f"it did not raise: {attempt}")

    def keep(self, error):
        """Keep an exception for the sinks of exceptions."""
        self.errors.append(error)
        logging.getLogger("walk").error("it raised", exc_info=error)

    def show_errors(self):
        """Render all exceptions that were kept, with their causes."""
        seen = set()
        queue = list(self.errors)
        while queue:
            error = queue.pop()
            if id(error) in seen:
                continue
            seen.add(id(error))
            queue += [e for e in (error.__cause__, error.__context__) if e is not None]
            queue += getattr(error, "exceptions", ())
            self.add("exception text", lambda error=error: f"{error} {error!r}")
            self.add("exception args", lambda error=error: repr(error.args) + repr(vars(error)))
            self.add("notes", lambda error=error: repr(getattr(error, "__notes__", [])))
            self.add("traceback", lambda error=error: "".join(traceback.format_exception(error)))
            self.add("traceback with locals", _with_locals, error)
        return len(seen)


def _with_locals(error):
    """Render an exception as an error reporter would."""
    return "".join(
        _without_our_locals(traceback.TracebackException.from_exception(error, capture_locals=True)).format()
    )


def _without_our_locals(text):
    """Drop the locals of this file's frames, of causes too: what a user holds in a variable is the user's."""
    for one in (text, text.__cause__, text.__context__):
        if one is None:
            continue
        for part in one.stack:
            if part.filename == __file__:
                part.locals = None
        if one is not text:
            _without_our_locals(one)
    return text


class Collector(logging.Handler):
    """Keeps every record of every logger, formatted and raw."""

    def __init__(self, hunt):
        super().__init__(logging.DEBUG)
        self._hunt = hunt
        self._formatter = logging.Formatter("%(name)s %(message)s")

    def emit(self, record):
        """Keep it."""
        self._hunt.sinks["logging"].append(self._formatter.format(record))
        self._hunt.sinks["log records"].append(repr(record.__dict__))


def make_all(folder, backend):
    """Return a caller with every kind of issuer."""
    return make_jit(
        "spiffe://example.org/a",
        PolicyStore.from_text(policies=POLICIES, schema=SCHEMA),
        issuers={
            "backend": BackendIssuer(backend.address, backend.admin_token, serves=["a"], timeout=1.0),
            "jwt": JwtSvid("https://orders.example.org", serves=["j"]),
            "api": TaskTokens(URL, origin="https://orders.example.org", serves=["t"]),
        },
        identity=FixedIdentity("spiffe://example.org/a"),
        audit=AuditLog(folder / "audit", sinks=[LoggingSink()]),
        state_dir=folder,
        end_timeout=timedelta(seconds=2),
        max_refused_uses=1000,
    )


def walk(hunt, folder, backend):
    """Walk with every kind of secret, and take every turn that raises."""
    jit = make_all(folder, backend)
    with jit:
        block = jit.task("x", permissions={"a": ORDER, "j": ORDER, "t": ORDER}, ttl=TTL, purpose="hunt")
        with block as grant:
            handle, token, bearer = (grant.credential(name) for name in ("backend", "api", "jwt"))
            headers = token.headers("GET", URL, "t", ORDER)
            session = handle.open_session()
            handle.use("a", ORDER)
            session.use("a", ORDER)
            note_secrets(hunt, backend, grant, handle, token, bearer, session)
            auth = token.auth("t", ORDER)
            slots = list(grant.slots.values())
            identity = grant.identity
            for thing in [
                jit, block, grant, handle, token, bearer, session._session, auth, identity, identity.key, token._key,
                token._minted, grant.runtime.settings, handle._secret, bearer._token, backend.admin_token,
                *[s.ref for s in slots], *[s.order for s in slots], *[s.plan for s in slots],
                grant.declaration, grant.subject, jitwi.AsyncGrant(grant), [handle, token],
                {"a": handle}, (Secret("x" * 30),),
                grant.runtime.identity.jwt_svid("https://orders.example.org"),
            ]:  # fmt: skip
                hunt.show(thing)
            machinery = [grant.runtime, token._gate, session, backend, *slots, *jit._issuers.values()]
            rooms = ("watchdog", "journal", "audit", "endings", "policies", "registry", "identity")
            for thing in [*machinery, *[getattr(grant.runtime, room) for room in rooms]]:
                hunt.show(thing, is_copied=False)
            # refused uses
            for action, resource in (("a", OTHER), ("no", ORDER), ("missing", ORDER)):
                hunt.raises(handle.use, action, resource)
                hunt.raises(token.headers, "GET", URL, action, resource)
                hunt.raises(bearer.headers, "GET", URL, action, resource)
            hunt.raises(token.headers, "GET", "https://evil.example.org/1", "t", ORDER)
            hunt.raises(bearer.headers, "GET", "https://evil.example.org/1", "j", ORDER)
            hunt.raises(token.headers, "GET", URL, "t", ORDER, input={"a": float("nan")})
            hunt.raises(token.headers, "GET\n", URL, "t", ORDER)
            assert grant.is_live, grant.ending
            # the backend says no, or nothing
            backend.fault("use", "fail", times=1)
            hunt.raises(handle.use, "a", ORDER)
            backend.fault("session", "fail", times=1)
            hunt.raises(handle.open_session)
            backend.fault("create", "fail", times=1)
            hunt.raises(child_obtains, grant)
            backend.fault("create", "cut", times=1)
            hunt.raises(child_obtains, grant)
            hunt.raises(session.unsafe_use_without_gate, "S::Action::nothing", "x")
            wrong = BackendIssuer(backend.address, Secret("not-the-admin-token-at-all", kind="admin token"))
            hunt.raises(wrong.outstanding)
            backend.pause()
            hunt.raises(handle.use, "a", ORDER)
            backend.resume()
            refused = httpx.Client(transport=httpx.MockTransport(_raise_connect_error))
            hunt.raises(refused.get, URL, auth=auth)
            hunt.raises(httpx.Client(trust_env=False).get, "http://127.0.0.1:9/1", auth=auth)
            hooks(hunt, handle, token, grant)
            asyncio_debug(hunt, jit)
            backend.kill()
            hunt.raises(handle.use, "a", ORDER)
            hunt.raises(handle.open_session)
        assert grant.ending.is_pending
        hunt.show(grant.ending)
        hunt.show(grant)
        backend.start()
        # after the end
        for attempt in (
            lambda: handle.use("a", ORDER),
            lambda: session.use("a", ORDER),
            lambda: token.headers("GET", URL, "t", ORDER),
            lambda: bearer.headers("GET", URL, "j", ORDER),
            bearer._token.reveal,
            handle.open_session,
        ):
            hunt.raises(attempt)
        for thing in (handle, token, bearer, auth, block, *[s.ref for s in slots]):
            hunt.show(thing)
        hunt.raises(identity.key.sign, "no bytes")
        grant.runtime.identity.withdraw()
        hunt.raises(jit.task("x", permissions={"t": ORDER}, ttl=TTL).__enter__)
        command_line(hunt, folder, backend)
    hunt.raises(identity.key.sign, None)
    del headers


def _raise_connect_error(request):
    raise httpx.ConnectError("no", request=request)


def child_obtains(grant):
    """Obtain a second credential, in a child."""
    with grant.task("child", permissions={"a": ORDER}) as child:
        child.credential("backend")


def note_secrets(hunt, backend, grant, handle, token, bearer, session):
    """Read the secrets by the back door."""
    canaries = hunt.canaries
    canaries.add_key("SVID key", grant.identity.key._LeafKey__key)
    canaries.add_key("task key", jose._KEYS[token._key])
    canaries.add("task token", token._minted.text)
    canaries.add("backend credential", handle._secret.reveal())
    canaries.add("session", session._session.reveal())
    canaries.add("JWT-SVID", bearer._token.reveal())
    canaries.add("admin token", backend.admin_token.reveal())
    assert len(canaries.forms) == 7


def hooks(hunt, handle, token, grant):
    """What the interpreter prints by itself when something goes wrong around a handle."""

    class Broken:
        def __init__(self, *held):
            self.held = held

        def __del__(self):
            raise ValueError(self.held)

    out = io.StringIO()
    with contextlib.redirect_stderr(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", sys.__unraisablehook__)
        patch.setattr("threading.excepthook", threading.__excepthook__)
        Broken(handle, token, grant, handle._secret)
        gc.collect()
        hunt.sinks["unraisablehook"].append(out.getvalue() or "nothing")
        thread = threading.Thread(target=lambda: handle.use("no", [handle, token]))
        thread.start()
        thread.join(10)
        hunt.sinks["thread excepthook"].append(out.getvalue())
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        hunt.sinks["faulthandler"].append(file.read())
    weakref.ref(token, lambda dead: hunt.sinks["weakref callback"].append(repr(dead)))
    hunt.sinks["weakref callback"].append(repr(weakref.ref(token)) + repr(weakref.proxy(handle)))


def asyncio_debug(hunt, jit):
    """A loop in debug mode: slow callbacks, tasks that fail, exceptions that nobody retrieves."""

    async def work():
        async with jit.task("x", permissions={"a": ORDER, "t": ORDER}, ttl=TTL) as grant:
            handle = await grant.credential("backend")
            token = await grant.credential("api")
            hunt.canaries.add("second credential", handle._secret.reveal())
            hunt.show(grant)
            hunt.show(asyncio.current_task(), is_copied=False)
            token.headers("GET", URL, "t", ORDER)
            hunt.canaries.add("second task token", token._minted.text)
            await asyncio.to_thread(handle.use, "a", ORDER)
            await grant.check("no", ORDER)

    async def main():
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 0.0
        loop.set_exception_handler(lambda _, context: hunt.sinks["asyncio debug"].append(repr(context)))
        lost = asyncio.create_task(work())
        await asyncio.wait([lost])
        hunt.sinks["asyncio debug"].append(repr(lost))
        hunt.keep(lost.exception())
        unretrieved = asyncio.create_task(work())
        await asyncio.wait([unretrieved])
        del unretrieved
        gc.collect()

    asyncio.run(main(), debug=True)


def command_line(hunt, folder, backend):
    """Every command, with and without JSON, and where it fails."""
    token = folder / "admin"
    token.touch(0o600)
    token.write_text(backend.admin_token.reveal())
    config = folder / "jitwi.toml"
    config.write_text(
        f'state_dir = "{folder}"\n[issuers.backend]\ntype = "testing-backend"\naddress = "{backend.address}"\n'
        f'admin_token_file = "{token}"\n'
    )
    for arguments in (
        ["leases", "--config", config],
        ["leases", "--config", config, "--json"],
        ["reap", "--config", config, "--json"],
        ["reap", "--config", token],
        ["audit", "verify", folder / "audit"],
        ["audit", "--help"],
    ):
        ran = subprocess.run(
            [sys.executable, "-X", "dev", "-m", "jitwi", *map(str, arguments)],
            capture_output=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONWARNINGS": "default"},
        )
        hunt.sinks["command line"].append(ran.stdout + ran.stderr)
    token.unlink()


@pytest.fixture(scope="module")
def hunt():
    """Walk once, and return what came out."""
    folder = Path(tempfile.mkdtemp(prefix="jw"))
    hunt = Hunt()
    root = logging.getLogger()
    level, collector = root.level, Collector(hunt)
    root.addHandler(collector)
    root.setLevel(logging.DEBUG)
    shown = io.StringIO()
    try:
        with (
            warnings.catch_warnings(record=True) as warned,
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(shown),
            TestingBackend(folder / "backend.jsonl") as backend,
        ):
            warnings.simplefilter("always")
            walk(hunt, folder, backend)
            assert hunt.show_errors() > 40
        hunt.sinks["warnings"] += [f"{one.message} {one}" for one in warned]
        hunt.sinks["stdout and stderr"].append(shown.getvalue() or "nothing")
        for file in folder.rglob("*"):
            if file.is_file():
                sink = "audit files" if file.parent.name == "audit" else "journal and state files"
                hunt.sinks[sink].append(file.read_bytes())
        yield hunt
    finally:
        root.removeHandler(collector)
        root.setLevel(level)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("sink", SINKS)
def test_no_secret_reaches_a_sink(hunt, sink):
    """Something came out there, and no secret is in it, in any form."""
    assert hunt.sinks[sink]
    leaks = [(hunt.canaries.found_in(text), text[:2000]) for text in hunt.sinks[sink]]
    assert [leak for leak in leaks if leak[0]] == []


def test_the_hunt_finds_what_is_there(hunt):
    """Every secret is found in every form: the hunt can see."""
    for name, forms in hunt.canaries.forms.items():
        for form in forms:
            assert name in hunt.canaries.found_in(b"before " + form + b" after")
    assert hunt.canaries.found_in("nothing") == []


def test_a_handle_is_refused_by_everything_that_copies(hunt):
    """Pickle, copy and deepcopy of whatever holds authority raise our own error; nothing of it comes back."""
    refused = [error for error in hunt.errors if isinstance(error, StateError) and "not-copyable" in error.reasons]
    assert len(refused) > 50


def test_a_live_source_shows_no_key_and_no_token_whatever_the_agent_sends(caplog):
    """Rotation, every malformed update and a JWT-SVID that is refused: nothing in logs, events or tracebacks."""
    caplog.set_level(logging.DEBUG)
    hunt = Hunt()
    root = logging.getLogger()
    collector = Collector(hunt)
    root.addHandler(collector)
    served = []

    def remember(message):
        served.append(message.svids[0].x509_svid_key)
        message.svids[0].x509_svid_key = served[-1][:-1]

    try:
        with warnings.catch_warnings(), FakeWorkloadApi("spiffe://example.org/a") as agent:
            warnings.simplefilter("ignore")
            source = WorkloadApiSource(endpoint=agent.socket)
            source.subscribe(lambda event: hunt.show(event, is_copied=False))
            source.start()
            identity = source.identity(timeout=10)
            hunt.canaries.add_key("SVID key", identity.key._LeafKey__key)
            hunt.show(source, is_copied=False)
            hunt.show(identity)
            good = source.jwt_svid("https://orders.example.org", timeout=5)
            hunt.canaries.add("JWT-SVID", good.token.reveal())
            hunt.show(good)
            agent.push_malformed(remember)
            for how in MALFORMED:
                agent.push_malformed(how)
            agent.rotate()
            pause = threading.Event()
            for _ in range(500):
                if source.identity(timeout=5).version != identity.version:
                    break
                pause.wait(0.02)
            hunt.canaries.add("SVID key in DER", served[0])
            agent.jwt_subject = "spiffe://example.org/somebody-else"
            hunt.raises(source.jwt_svid, "https://refused.example.org", timeout=1)
            for number, (text, _) in enumerate(agent._jwts.values()):
                hunt.canaries.add(f"JWT-SVID {number}", text)
            with agent.deny("PERMISSION_DENIED"):
                hunt.raises(source.jwt_svid, "https://other.example.org", timeout=1)
            source.close()
            hunt.raises(source.identity, timeout=0.1)
            hunt.show_errors()
    finally:
        root.removeHandler(collector)
    assert len(served) == 1
    assert len(hunt.canaries.forms) >= 5
    leaks = [(s, hunt.canaries.found_in(t), t[:500]) for s in SINKS for t in hunt.sinks[s] if hunt.canaries.found_in(t)]
    assert leaks == []
