# SPDX-License-Identifier: Apache-2.0
"""The one tree of errors: complete, drawn in its docstring, picklable, strict about its fields."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from jitwi import errors
from jitwi.errors import AccessDeniedError, InvalidPolicyError, JitwiError

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BaseException) and kind.__module__ == errors.__name__
]
_LINE = re.compile(r"^    (?P<indent>(?:│   |    )*)(?:[├└]── )?(?P<name>\w+Error)(?: \((?P<also>\w+)\))?(?: |$)")
_NO_FIELDS = {"code", "retryable"}


def _drawn() -> dict[str, tuple[str, str]]:
    """Return class name -> (parent, second base or nothing), as the docstring draws it."""
    drawn, path = {}, []
    for line in inspect.getdoc(errors).split("Tree::", 1)[1].splitlines():
        found = _LINE.match(line)
        if found:
            depth = len(found["indent"]) // 4 + ("── " in line)
            path[depth:] = [found["name"]]
            assert found["name"] not in drawn, f"{found['name']} is drawn twice"
            drawn[found["name"]] = (path[depth - 1] if depth else "Exception", found["also"] or "")
    return drawn


def _fields(kind) -> dict[str, object]:
    """Return a value that is not the default for each field that the class declares or inherits."""
    samples = {str: "some text", int: 7, tuple: ("one", "two"), type(None): {"any": "thing"}}
    return {
        name: samples[type(default)]
        for ancestor in kind.__mro__
        if issubclass(ancestor, JitwiError) and ancestor is not JitwiError
        for name, default in vars(ancestor).items()
        if not name.startswith("_")
        and name not in _NO_FIELDS
        and "ClassVar" not in inspect.get_annotations(ancestor)[name]
    }


def _full(kind) -> JitwiError:
    error = kind("the `thing` is wrong", reasons=("first", "second"), remedy="do it better", **_fields(kind))
    error.add_note("a note")
    return error


def test_every_class_is_exported():
    """`__all__` names every error of the module, sorted, and nothing else."""
    assert errors.__all__ == sorted(kind.__name__ for kind in CLASSES)


def test_the_docstring_draws_the_tree():
    """The tree in the docstring has every class once, under its parent and with its second base."""
    actual = {}
    for kind in CLASSES:
        also = [base.__name__ for base in kind.__bases__[1:]]
        actual[kind.__name__] = (kind.__bases__[0].__name__, ", ".join(also))
    assert _drawn() == actual


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_is_documented(kind):
    """Each error has a docstring of its own, derives from the base, and ends in `Error`."""
    assert kind.__doc__
    assert issubclass(kind, JitwiError)
    assert kind.__name__.endswith("Error")


@pytest.mark.parametrize("kind", CLASSES)
def test_fields_are_documented(kind):
    """Each field that a class declares is described in its docstring."""
    own = [name for name in inspect.get_annotations(kind) if name not in _NO_FIELDS]
    assert [name for name in own if f"{name}: " not in inspect.getdoc(kind)] == []


def test_codes_are_unique_and_stable():
    """Each class has a code of its own in kebab-case: fit for a metric label."""
    codes = [vars(kind)["code"] for kind in CLASSES]
    assert len(set(codes)) == len(codes)
    assert [code for code in codes if re.fullmatch(r"[a-z]+(-[a-z]+)*", code) is None] == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", CLASSES)
def test_pickling_keeps_everything(kind, protocol):
    """An error crosses a process boundary with its class, fields and notes."""
    error = _full(kind)
    back = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - ours
    assert type(back) is kind
    assert vars(back) == vars(error)
    assert (str(back), back.args, back.code) == (str(error), error.args, error.code)


@pytest.mark.parametrize("kind", CLASSES)
def test_copying_keeps_everything(kind):
    """A copied error is the same error."""
    error = _full(kind)
    for back in (copy.copy(error), copy.deepcopy(error)):
        assert type(back) is kind
        assert vars(back) == vars(error)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "name", ["no_such_field", "code", "retryable", "args", "add_note", "with_traceback", "__class__", "__dict__"]
)
def test_unknown_fields_are_refused(kind, name):
    """A field that the class does not declare is refused, and what every exception has is no field."""
    with pytest.raises(TypeError, match=re.escape(repr(name))):
        kind("message", **{name: "value"})


def test_fields_have_defaults():
    """A field that was not given has the default of its class, and setting one does not touch the class."""
    given = InvalidPolicyError("bad", path="a.cedar", line=3)
    assert (given.path, given.line) == ("a.cedar", 3)
    assert (InvalidPolicyError("bad").path, InvalidPolicyError("bad").line) == ("", 0)


def test_message_and_remedy_are_one_line():
    """Text form: the message, and the way out in brackets if there is one."""
    assert str(JitwiError("it is wrong")) == "it is wrong"
    assert str(JitwiError("it is wrong", remedy="make it right")) == "it is wrong (make it right)"


def test_reasons_are_a_tuple():
    """Reasons come as any iterable; one code given as plain text is one reason, not its letters."""
    assert JitwiError("x", reasons=iter(["a", "b"])).reasons == ("a", "b")
    assert JitwiError("x", reasons="not-declared").reasons == ("not-declared",)
    assert JitwiError("x").reasons == ()


def test_a_denial_can_be_caught_by_its_base():
    """Whoever handles the denial handles its three precise forms."""
    assert {kind.__name__ for kind in AccessDeniedError.__subclasses__() if kind in CLASSES} == {
        "ApprovalRequiredError",
        "LimitExceededError",
        "OutOfScopeError",
    }
