# SPDX-License-Identifier: Apache-2.0
"""No rendering shows a secret: a canary is hunted through every way out, and copies are refused."""

from __future__ import annotations

import asyncio
import base64
import copy
import dataclasses
import doctest
import faulthandler
import inspect
import io
import json
import logging
import marshal
import multiprocessing.reduction
import pdb  # noqa: T100 - one of the ways out
import pickle
import pprint
import reprlib
import string
import sys
import tempfile
import threading
import traceback
import warnings
import weakref

import attrs
import pytest

from jitwi import secret as module
from jitwi.errors import ConfigurationError, JitwiError, StateError
from jitwi.secret import NoCopy, Secret

CANARY = "c4n4ry-7f3a91d2e8b04c65"
_TRACES = (
    CANARY,
    CANARY.encode().hex(),
    base64.b64encode(CANARY.encode()).decode().rstrip("="),
    repr(list(CANARY.encode()))[1:-1],
    CANARY[6:],
)


@attrs.frozen
class _AttrsHolder:
    value: Secret


@dataclasses.dataclass
class _DataHolder:
    value: Secret


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) + repr(vars(record))


def _log(value) -> str:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    logger = logging.Logger("hunt")  # noqa: LOG001 - of nobody else's tree
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    logger.warning("%s %r %a", value, value, value, extra={"held": value})
    try:
        raise ValueError(value)
    except ValueError:
        logger.exception(value)
    return out.getvalue()


def _traceback(value) -> str:
    def inner(held, *, also) -> None:
        local = {"secret": held, "nested": [also, (held,)]}
        raise LookupError(local)

    try:
        inner(value, also=value)
    except LookupError as error:
        lines = traceback.TracebackException.from_exception(error, capture_locals=True).format()
        return "".join(lines) + "".join(traceback.format_exception(error))
    raise AssertionError


def _warning(value) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(f"{value}", stacklevel=1)
        warnings.warn(RuntimeWarning(value), stacklevel=1)
    return "".join(f"{w} {w.message!r} {w.message.args}" for w in caught)


def _notes(value) -> str:
    error = RuntimeError("x")
    error.add_note(f"{value}")
    error.add_note(repr([value]))
    return "".join(traceback.format_exception(error)) + repr(vars(error))


def _our_error(value) -> str:
    error = JitwiError(f"about {value}", reasons=(f"{value!r}",), remedy=str(value))
    return f"{error} {error!r} {vars(error)} {pickle.dumps(error)!r}"


def _pdb(value) -> str:
    out = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO(), stdout=out, nosigint=True, readrc=False)
    held = {"value": value}
    debugger.setup(inspect.currentframe(), None)
    for command in ("p value", "pp value", "pp held", "p locals()", "args", "whatis value", "p vars()", "p dir(value)"):
        debugger.onecmd(command)
    assert held
    return out.getvalue()


def _doctest(value) -> str:
    out = io.StringIO()
    examples = doctest.DocTestParser().get_doctest(">>> value\n'?'\n>>> [value]\n'?'\n", {"value": value}, "d", None, 0)
    doctest.DocTestRunner(verbose=True).run(examples, out=out.write)
    return out.getvalue()


def _unraisable(value) -> str:
    class Noisy:
        def __init__(self) -> None:
            self.held = value

        def __del__(self) -> None:
            raise RuntimeError(self.held)

    seen, before = [], sys.unraisablehook
    sys.unraisablehook = lambda given: seen.append("".join(traceback.format_exception(given.exc_value)))
    try:
        Noisy()
    finally:
        sys.unraisablehook = before
    assert seen
    return "".join(seen)


def _asyncio(value) -> str:
    async def work(held) -> str:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        handle = loop.call_soon(str, held)
        future = loop.create_future()
        future.set_result(held)
        return f"{handle!r} {future!r} {asyncio.current_task()!r}"

    return asyncio.run(work(value))


def _faulthandler(value) -> str:
    with tempfile.TemporaryFile(prefix="jw") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return f"{value}" + file.read().decode()


def _members(value) -> str:
    return repr(inspect.getmembers(value)) + repr(inspect.getmembers_static(value))


def _slots(value) -> str:
    """What a tool shows that goes by `__slots__` instead of `dir()`."""
    names = [name if not name.startswith("__") else f"_{type(value).__name__}{name}" for name in type(value).__slots__]
    found = [getattr(value, name) for name in names]
    return f"{found!r} {found!s}" + "".join(f"{item} {item!r:s}" for item in found)


def _weak(value) -> str:
    seen = []
    weakref.ref(value, seen.append)
    return repr(seen)


SINKS = {
    "repr": repr,
    "str": str,
    "ascii": ascii,
    "format": format,
    "format with a spec": lambda s: f"{s:>100}{s!r:<100}{s!s:5}{s!a:^5}",
    "percent": lambda s: "%s %r %a" % (s, s, s),  # noqa: UP031 - this way out is meant
    "str.format": lambda s: "{0} {0!r} {0.kind} {x[0]}".format(s, x=[s]),  # noqa: UP032 - this way out is meant
    "string.Template": lambda s: string.Template("$s").substitute(s=s),
    "print": lambda s: print(s, [s]),
    "bytes": bytes,
    "iter": list,
    "join": lambda s: "".join([s]),  # noqa: FLY002 - this way out is meant
    "add": lambda s: s + "",
    "containers": lambda s: f"{[s]} {(s,)} {{'k': s}} {[[s]]!r}",
    "pprint": lambda s: pprint.pformat({"k": [s]}),
    "reprlib": lambda s: reprlib.repr([s]),
    "logging": _log,
    "traceback with locals": _traceback,
    "warnings": _warning,
    "exception args": lambda s: f"{ValueError(s)} {ValueError(s)!r} {KeyError(s)} {ValueError(s).args}",
    "exception notes": _notes,
    "our own errors": _our_error,
    "vars": vars,
    "__dict__": lambda s: s.__dict__,
    "dir": lambda s: [getattr(s, name) for name in dir(s)],
    "inspect members": _members,
    "slots": _slots,
    "object state": object.__getstate__,
    "object reduce": lambda s: object.__reduce_ex__(s, 2),
    "reduce": lambda s: s.__reduce__(),
    "getstate": lambda s: s.__getstate__(),
    "pickle": lambda s: [pickle.dumps(s, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)],
    "pickle of a holder": lambda s: pickle.dumps(_AttrsHolder(s)),
    "multiprocessing": multiprocessing.reduction.ForkingPickler.dumps,
    "marshal": marshal.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of a holder": lambda s: copy.deepcopy({"k": [s]}),
    "json": json.dumps,
    "json by repr": lambda s: json.dumps({"k": s}, default=repr),
    "json by vars": lambda s: json.dumps({"k": s}, default=vars),
    "attrs.asdict": lambda s: attrs.asdict(_AttrsHolder(s)),
    "attrs.astuple": lambda s: attrs.astuple(_AttrsHolder(s)),
    "attrs holder": lambda s: repr(_AttrsHolder(s)),
    "dataclasses.asdict": lambda s: dataclasses.asdict(_DataHolder(s)),
    "dataclass holder": lambda s: repr(_DataHolder(s)),
    "weakref": _weak,
    "hash": hash,
    "pdb": _pdb,
    "doctest": _doctest,
    "unraisable hook": _unraisable,
    "asyncio debug": _asyncio,
    "faulthandler": _faulthandler,
}


@pytest.mark.parametrize("value", [CANARY, CANARY.encode()], ids=["text", "bytes"])
@pytest.mark.parametrize("sink", SINKS)
def test_no_sink_shows_the_canary(sink, value, capsys):
    """What a way out returns, prints or raises never holds the secret."""
    secret = Secret(value, kind="password")
    try:
        shown = SINKS[sink](secret)
    except Exception as error:  # noqa: BLE001 - a refusal is as good, if it does not show it
        shown = "".join(traceback.format_exception(error)) + repr(vars(error))
    printed = capsys.readouterr()
    text = f"{shown} {shown!r} {printed.out} {printed.err}"
    assert [trace for trace in _TRACES if trace in text] == []
    assert secret.reveal_bytes() == CANARY.encode()


REFUSING = ("pickle", "pickle of a holder", "multiprocessing", "copy", "deepcopy", "deepcopy of a holder")
REFUSING += ("dataclasses.asdict", "object reduce", "reduce", "getstate")


@pytest.mark.parametrize("sink", REFUSING)
def test_copies_are_refused_with_our_error(sink):
    """Copying or pickling a secret is misuse, and says so with a reason."""
    with pytest.raises(StateError) as caught:
        SINKS[sink](Secret(CANARY))
    assert caught.value.reasons == ("not-copyable",)


def test_only_reveal_reads_it():
    """Text comes back as text and as bytes, bytes only as bytes."""
    assert Secret("ü" + CANARY).reveal() == "ü" + CANARY
    assert Secret("ü").reveal_bytes() == "ü".encode()
    assert Secret(b"\xff\x00").reveal_bytes() == b"\xff\x00"
    with pytest.raises(StateError):
        Secret(b"bytes").reveal()


def test_rendering_is_kind_and_size():
    """A rendering says what kind of secret and how many bytes."""
    assert repr(Secret("hunter2", kind="password")) == "<Secret password, 7 bytes>"
    assert f"{Secret(b'')}" == "<Secret secret, 0 bytes>"
    assert f"{Secret(b''):>99}" == "<Secret secret, 0 bytes>"


@pytest.mark.parametrize("value", [None, 5, 0, True, 1.5, [1, 2], (1,), object(), {"a": 1}])
def test_only_text_and_bytes_are_secrets(value):
    """A number is not taken for a length, nor a list for bytes: a secret that is not one is refused."""
    with pytest.raises(ConfigurationError):
        Secret(value)


@pytest.mark.parametrize("value", [CANARY + "\udc80", [CANARY], {CANARY: CANARY}], ids=["surrogate", "list", "dict"])
def test_a_refused_value_is_not_shown(value):
    """The refusal of a bad secret carries it neither in text, nor in a cause, nor in the variables of our frames."""
    with pytest.raises(ConfigurationError) as caught:
        Secret(value)
    error = caught.value
    assert (error.__cause__, error.__context__) == (None, None)
    frames = [
        frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == module.__file__
    ]
    assert frames
    shown = f"{error} {error!r} {vars(error)} {[frame.f_locals for frame in frames]}"
    assert CANARY not in shown


def test_destroyed_is_gone():
    """Destroying overwrites our buffer, is idempotent, and every read after it raises."""
    secret = Secret(CANARY, kind="password")
    buffer = secret._Secret__buffer
    assert not secret.is_destroyed
    secret.destroy()
    secret.destroy()
    assert bytes(buffer) == bytes(len(CANARY))
    assert secret.is_destroyed
    assert repr(secret) == "<Secret password, destroyed>"
    for read in (secret.reveal, secret.reveal_bytes, lambda: secret == Secret(CANARY)):
        with pytest.raises(StateError) as caught:
            read()
        assert caught.value.reasons == ("destroyed",)


def test_destroyed_in_the_middle_of_a_read():
    """A copy that may have been made while the buffer was being overwritten is not handed out."""
    secret = Secret(CANARY)

    class Slow(bytearray):
        def __bytes__(self) -> bytes:
            secret.destroy()
            return bytes(len(self))

    secret._Secret__buffer = Slow(CANARY.encode())
    with pytest.raises(StateError) as caught:
        secret.reveal()
    assert caught.value.reasons == ("destroyed",)


def test_destroyed_before_it_is_overwritten():
    """Whoever sees the first overwritten byte sees the secret destroyed as well."""
    secret, seen = Secret(CANARY), []

    class Watched(bytearray):
        def __setitem__(self, key, value) -> None:
            seen.append(secret.is_destroyed)
            super().__setitem__(key, value)

    secret._Secret__buffer = Watched(CANARY.encode())
    secret.destroy()
    assert seen == [True]


def test_dir_lists_what_is_public():
    """Tools that go by `dir()` do not come across the buffer."""
    assert [name for name in dir(Secret(CANARY)) if "buffer" in name or "is_text" in name] == []
    assert {"reveal", "reveal_bytes", "destroy", "is_destroyed", "kind"} <= set(dir(Secret(CANARY)))


def test_destroying_while_another_thread_reads():
    """A reader gets the secret or the error, never half of it and never zeros."""
    value, wrong = b"\x01" * 4096, []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(60):
            secret, ready = Secret(value), threading.Barrier(3)

            def read(secret=secret, ready=ready) -> None:
                ready.wait(60)
                try:
                    while True:
                        read = secret.reveal_bytes()
                        if read != value:
                            wrong.append(read)
                except StateError:
                    return

            readers = [threading.Thread(target=read) for _ in range(2)]
            for reader in readers:
                reader.start()
            ready.wait(60)
            secret.destroy()
            for reader in readers:
                reader.join(60)
                assert not reader.is_alive()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_equality():
    """Two secrets compare by their bytes; plain text is never equal, so that `==` is no way to show it."""
    assert Secret(CANARY) == Secret(CANARY.encode())
    assert Secret(CANARY) != Secret(CANARY + "x")
    assert Secret(CANARY) != CANARY
    assert Secret(CANARY) != CANARY.encode()


def test_unhashable():
    """A secret is no key of a dict: its hash would be a fingerprint."""
    with pytest.raises(TypeError):
        hash(Secret(CANARY))


# ------------------------------------------------------------------------------------------------------------- NoCopy


class _Slotted(NoCopy):
    __slots__ = ("value",)

    def __init__(self, value) -> None:
        self.value = value


class _Deeper(_Slotted):
    __slots__ = ("more",)


class _Open(NoCopy):
    def __init__(self, value) -> None:
        self.value = value


@attrs.define
class _Defined(NoCopy):
    value: str


@attrs.frozen
class _Frozen(NoCopy):
    value: str


@attrs.define(slots=False)
class _Unslotted(NoCopy):
    value: str


class _Rebel(NoCopy):
    def __init__(self, value) -> None:
        self.value = value

    def __copy__(self):
        return _Rebel(self.value)

    def __deepcopy__(self, memo):
        return _Rebel(self.value)

    def __reduce_ex__(self, protocol):
        return (_Rebel, (self.value,))

    def __getstate__(self):
        return {"value": self.value}


class _Helpful:
    def __reduce__(self):
        return (str, (self.value,))

    def __reduce_ex__(self, protocol):
        return (str, (self.value,))


class _Mixed(_Helpful, NoCopy):
    def __init__(self, value) -> None:
        self.value = value


KINDS = [_Slotted, _Deeper, _Open, _Defined, _Frozen, _Unslotted, _Rebel, _Mixed]
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy in a list": lambda held: copy.deepcopy([held]),
    **{f"pickle {number}": lambda held, number=number: pickle.dumps(held, number) for number in range(6)},
    "multiprocessing": multiprocessing.reduction.ForkingPickler.dumps,
    "reduce": lambda held: held.__reduce__(),
    "getstate": lambda held: held.__getstate__(),
    "setstate": lambda held: held.__setstate__({}),
    "replace": lambda held: held.__replace__(value="x"),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_authority_is_not_copied(kind, way):
    """No subclass of NoCopy can be copied or pickled, however it is made and whatever it inherits."""
    with pytest.raises(StateError) as caught:
        COPIES[way](kind(CANARY))
    assert caught.value.reasons == ("not-copyable",)
    assert CANARY not in str(caught.value)
