# SPDX-License-Identifier: Apache-2.0
"""A secret is a type.

Holds `Secret` and `NoCopy`. Neither says where secrets come from or who may read them. Python memory cannot be wiped
for certain: `destroy()` drops our reference and overwrites our own buffer, no more.

Example:
    >>> from jitwi.secret import Secret
    >>> password = Secret("hunter2", kind="password")
    >>> password
    <Secret password, 7 bytes>
    >>> password.reveal()
    'hunter2'
"""

from __future__ import annotations

import hmac
from typing import Any, NoReturn

from jitwi.errors import ConfigurationError, StateError

__all__ = ["NoCopy", "Secret"]

_COPYING = ("__copy__", "__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__", "__replace__", "__setstate__")


class NoCopy:
    """Base of objects that hold authority: no copy, no pickle, no state to be read out.

    A subclass does not undo that by accident: what it defines of these methods, inherits from another base, or has
    generated (attrs gives slotted classes a `__getstate__`) is replaced by the refusal.
    """

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _COPYING:
            refusal = getattr(NoCopy, name)
            if vars(cls).get(name) is not refusal:  # each class has its own: what it has is not generated
                setattr(cls, name, refusal)

    def _refuse(self) -> NoReturn:
        name = type(self).__name__
        msg = f"`{name}` cannot be copied or pickled"
        raise StateError(msg, reasons=("not-copyable",), remedy="pass the object itself, inside its process")

    def __copy__(self) -> NoReturn:
        """Refuse."""
        self._refuse()

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refuse."""
        self._refuse()

    def __replace__(self, /, **changes: Any) -> NoReturn:
        """Refuse."""
        self._refuse()

    def __reduce__(self) -> NoReturn:
        """Refuse."""
        self._refuse()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse."""
        self._refuse()

    def __getstate__(self) -> NoReturn:
        """Refuse."""
        self._refuse()

    def __setstate__(self, state: Any) -> NoReturn:
        """Refuse."""
        self._refuse()


class _Buffer(bytearray):
    """Bytes that do not show themselves to whoever walks over all the attributes of an object."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"

    __str__ = __repr__


class Secret(NoCopy):
    """Text or bytes that no rendering shows; `reveal()` is the only way to read it.

    Args:
        value: The secret, `str` or `bytes`.
        kind: A word for renderings, never secret itself.

    Raises:
        ConfigurationError: `value` is neither text nor bytes, or text that UTF-8 cannot hold.
        StateError: Read after `destroy()`, or an attempt to copy or pickle.
    """

    __slots__ = ("__buffer", "__is_text", "kind")

    def __init__(self, value: str | bytes, *, kind: str = "secret") -> None:
        self.__buffer: _Buffer | None = None
        self.__is_text = isinstance(value, str)
        self.kind = kind
        self.__buffer, problem = _buffer(value)
        if problem:
            del value  # tracebacks may show the variables of this frame
            msg = f"the {kind} is {problem}"
            raise ConfigurationError(msg, reasons=("secret",), remedy="give the secret as text or bytes")

    def reveal(self) -> str:
        """Return the secret as text.

        Raises:
            StateError: It was destroyed, or holds bytes (use `reveal_bytes`).
        """
        if not self.__is_text:
            msg = "this secret holds bytes"
            raise StateError(msg, reasons=("bytes",), remedy="call `reveal_bytes()`")
        return self.reveal_bytes().decode()

    def reveal_bytes(self) -> bytes:
        """Return the secret as bytes.

        Raises:
            StateError: It was destroyed.
        """
        buffer = self.__buffer
        if buffer is not None:
            value = bytes(buffer)
            if self.__buffer is not None:  # so the copy was made before another thread began to overwrite
                return value
        msg = f"the {self.kind} was destroyed"
        raise StateError(msg, reasons=("destroyed",), remedy="ask for a new credential inside a live task")

    @property
    def is_destroyed(self) -> bool:
        """True once `destroy()` was called."""
        return self.__buffer is None

    def destroy(self) -> None:
        """Overwrite the buffer and forget it. Idempotent."""
        buffer, self.__buffer = self.__buffer, None
        if buffer is not None:
            buffer[:] = bytes(len(buffer))

    def __dir__(self) -> list[str]:
        """What is public: tools that show every attribute of an object go by this list."""
        return [name for name in object.__dir__(self) if not name.startswith("_Secret__")]

    def __repr__(self) -> str:
        """Kind and size only."""
        buffer = self.__buffer
        size = "destroyed" if buffer is None else f"{len(buffer)} bytes"
        return f"<Secret {self.kind}, {size}>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        """Kind and size only, whatever the format."""
        return repr(self)

    def __eq__(self, other: object) -> bool:
        """Compare two secrets in constant time; never equal to plain text.

        Raises:
            StateError: One of them was destroyed.
        """
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.reveal_bytes(), other.reveal_bytes())

    __hash__ = None  # type: ignore[assignment]


def _buffer(value: object) -> tuple[_Buffer | None, str]:
    """Return `value` as a buffer and no problem, or the problem; no exception, as it would carry the value."""
    if isinstance(value, bytes | bytearray | memoryview):
        return _Buffer(value), ""
    if not isinstance(value, str):
        return None, f"`{type(value).__name__}`, neither text nor bytes"
    try:
        return _Buffer(value.encode()), ""
    except UnicodeEncodeError:
        return None, "text with a surrogate, which has no bytes"
