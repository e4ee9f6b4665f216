# SPDX-License-Identifier: Apache-2.0
"""Reading the trail back: is it whole, and what does it say.

Holds `verify` and `read`. Does not hold the writer, and needs nothing from it: a copy on another host can be checked.
Contents are never trusted: lines are bounded, JSON is strict, and nothing but `AuditError` leaves.

What is detected: any edited, inserted, deleted, repeated or reordered record before the last anchor; a chain that is
missing, renamed or not named by the index; the same for the index. An anchor is the index's entry for a chain (made
when it is opened, every 1,024 records and when it is closed) or one that you kept yourself (`AuditLog.anchor`). The
tail of a chain after its last anchor can be cut off without a trace, and a closing record put in its place; it is
counted as *unanchored*. The last entries of the index can be cut off together with the chains that only they name:
against that helps an anchor of these chains that you kept elsewhere. A chain whose process is alive or has crashed is
*open*; one whose last line is incomplete is *torn* (the process was killed, or the power went, in the middle of a
write): both are stated and neither is an error.
"""

from __future__ import annotations

import enum
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import attrs

from jitwi.audit.chain import CHAIN_NAME, FORMAT, GENESIS, INDEX_NAME, MAX_LINE, Line, parse_line
from jitwi.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jitwi.audit.log import Anchor

__all__ = ["ChainReport", "ChainStatus", "Verification", "read", "verify"]

_MAX_LOOK_AHEAD: Final = 10_000


class ChainStatus(enum.Enum):
    """What was found of one chain."""

    CLOSED = "closed"
    OPEN = "open"
    TORN = "torn"
    TAMPERED = "tampered"
    MISSING = "missing"


@attrs.frozen
class ChainReport:
    """One chain, or the index.

    Args:
        name: File name.
        status: What was found.
        records: Good records, counted from the start up to the first problem.
        first_at: Instant of the first record as it is written there; empty if there is none.
        last_at: Instant of the last good record.
        unanchored: Records after the last anchor: cutting them off would not be noticed.
        line: Line of the first problem, from 1; 0 if there is none or it has no line.
        problem: What is wrong there, or a remark where nothing is.
    """

    name: str
    status: ChainStatus
    records: int = 0
    first_at: str = ""
    last_at: str = ""
    unanchored: int = 0
    line: int = 0
    problem: str = ""

    @property
    def is_intact(self) -> bool:
        """False if it was tampered with or is missing."""
        return self.status not in {ChainStatus.TAMPERED, ChainStatus.MISSING}


@attrs.frozen
class Verification:
    """What `verify` found.

    Args:
        path: What was verified.
        chains: One report per chain, by name.
        index: The index's own report; None where a single file was verified.
    """

    path: Path
    chains: tuple[ChainReport, ...]
    index: ChainReport | None = None

    @property
    def is_intact(self) -> bool:
        """True if nothing was tampered with and nothing is missing. An empty answer is no."""
        reports = self.chains if self.index is None else (*self.chains, self.index)
        return bool(reports) and all(report.is_intact for report in reports)

    @property
    def records(self) -> int:
        """Good records in all chains."""
        return sum(chain.records for chain in self.chains)

    def require_intact(self) -> None:
        """Raise unless the trail is intact.

        Raises:
            AuditError: It is not; names the first chain and line.
        """
        if self.is_intact:
            return
        reports = [report for report in (self.index, *self.chains) if report is not None and not report.is_intact]
        where = "it is empty"
        if reports:
            where = f"`{reports[0].name}`, line {reports[0].line}: {reports[0].problem}"
        raise AuditError(f"the audit trail `{self.path}` is not intact: {where}", reasons=("tampered",))


class _Problem(Exception):  # noqa: N818 - it does not leave this module
    """The first problem of a chain."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


class _Walk:
    """Walks one chain, line by line, as long as it is good."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.count = 0
        self.torn = 0
        self.is_closed = False
        self.last: Line | None = None
        self.first: Line | None = None
        self._file = file

    def __iter__(self) -> Iterator[Line]:
        while raw := self._file.readline(MAX_LINE + 1):
            number = self.count + 1
            if not raw.endswith(b"\n"):
                if len(raw) > MAX_LINE or self.is_closed:
                    raise _Problem(number, "edited: too long, or something was added after the end")
                self.torn = len(raw)
                return
            line = self._check(number, raw)
            self.count = number
            self.first = self.first or line
            self.last = line
            yield line

    def _check(self, number: int, raw: bytes) -> Line:
        try:
            line = parse_line(raw)
        except AuditError as exc:
            raise _Problem(number, f"edited: {exc.message}") from exc
        if self.is_closed:
            raise _Problem(number, "inserted: a record after the closing one")
        expected_prev = self.last.digest if self.last else GENESIS.decode()
        if line.seq > self.count:
            raise _Problem(number, self._missing(line.seq, expected_prev))
        if line.seq < self.count:
            raise _Problem(number, f"inserted or moved: record {line.seq} stands where {self.count} belongs")
        if line.prev != expected_prev:
            raise _Problem(number, f"edited: record {self.count - 1} before it was replaced, or this one was")
        if self.name != INDEX_NAME:
            self._check_ends(number, line)
        return line

    def _missing(self, found: int, expected_prev: str) -> str:
        for _ in range(_MAX_LOOK_AHEAD):
            raw = self._file.readline(MAX_LINE + 1)
            if not raw:
                break
            try:
                line = parse_line(raw)
            except AuditError:
                continue
            if line.seq == self.count and line.prev == expected_prev:
                return f"reordered: record {found} stands before record {self.count}"
        gone = f"record {self.count}" if found == self.count + 1 else f"records {self.count} to {found - 1}"
        return f"deleted: {gone} before it"

    def _check_ends(self, number: int, line: Line) -> None:
        kind = line.record.get("kind")
        if number == 1:
            if kind != "chain.opened":
                raise _Problem(1, "deleted: the chain does not begin with its opening record")
            if line.record.get("format") != FORMAT:
                raise _Problem(1, "a format of another version")
            if line.record.get("chain") != self.name:
                raise _Problem(1, "renamed: the file has not the name that its first record says")
        elif kind == "chain.closed":
            if line.record.get("records") != number:
                raise _Problem(number, "edited: the closing record has another count")
            self.is_closed = True

    def report(self, *, anchored: int, problem: _Problem | None) -> ChainReport:
        status = ChainStatus.CLOSED if self.is_closed else ChainStatus.OPEN
        remark = "" if self.is_closed else "not closed: its process lives or has crashed"
        if self.torn:
            status, remark = ChainStatus.TORN, f"the last line is incomplete ({self.torn} bytes): stopped in mid-write"
        if self.name == INDEX_NAME and status is ChainStatus.OPEN:
            remark = ""
        unanchored = 0 if problem else max(0, self.count - anchored)
        if self.is_closed and unanchored:  # anybody can write a closing record after a cut
            remark = "no anchor confirms its closing record: it is no proof that nothing was cut off before it"
        if problem is not None:
            status, remark = ChainStatus.TAMPERED, problem.what
        return ChainReport(
            self.name,
            status,
            self.count,
            str(self.first.record.get("at")) if self.first else "",
            str(self.last.record.get("at")) if self.last else "",
            unanchored,
            problem.line if problem else self.count + 1 if self.torn else 0,
            remark,
        )


def _open(path: Path) -> BinaryIO:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as exc:
        raise AuditError(f"{ascii(os.fspath(path))[:200]} is no path", reasons=("unreadable",)) from exc
    except OSError as exc:
        raise AuditError(f"`{path}` cannot be read: {exc.strerror}", reasons=("unreadable",)) from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise AuditError(f"`{path}` is not a regular file", reasons=("unreadable",))
    return os.fdopen(fd, "rb", buffering=1 << 20)


def _verify_chain(path: Path, anchors: dict[int, str], *, may_be_empty: bool = False) -> ChainReport:
    """Walk one chain and hold it against `anchors` (number of a record -> its hash)."""
    problem: _Problem | None = None
    try:
        with _open(path) as file:
            walk = _Walk(file, path.name)
            try:
                for line in walk:
                    digest = anchors.get(line.seq)
                    if digest is not None and digest != line.digest:
                        raise _Problem(walk.count, "replaced: an anchor says that this record has another hash")  # noqa: TRY301
            except _Problem as exc:
                problem = exc
    except (OSError, AuditError) as exc:
        return ChainReport(path.name, ChainStatus.MISSING, problem=f"cannot be read: {exc}")
    anchored = max(anchors, default=-1) + 1
    if problem is None and walk.count < anchored:
        problem = _Problem(walk.count + 1, f"cut: an anchor says that there were at least {anchored} records")
    if problem is None and not walk.count and not walk.torn and not may_be_empty:
        problem = _Problem(1, "empty")
    return walk.report(anchored=anchored, problem=problem)


def _text_of(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""


def _read_index(folder: Path) -> tuple[ChainReport, dict[str, dict[int, str]]]:
    """Walk the index: its report, and per chain the numbers and hashes that it states."""
    named: dict[str, dict[int, str]] = {}
    problem: _Problem | None = None
    try:
        with _open(folder / INDEX_NAME) as file:
            walk = _Walk(file, INDEX_NAME)
            try:
                for line in walk:
                    kind, chain = line.record.get("kind"), _text_of(line.record, "chain")
                    seq = line.record.get("at_seq")
                    if CHAIN_NAME.fullmatch(chain) is None:
                        raise _Problem(walk.count, "an entry that names no chain")  # noqa: TRY301
                    if kind == "chain.opened":
                        named.setdefault(chain, {})[0] = _text_of(line.record, "head")
                    elif kind in {"chain.anchored", "chain.closed"} and type(seq) is int:
                        named.setdefault(chain, {})[seq] = _text_of(line.record, "at_hash")
                    else:
                        raise _Problem(walk.count, "an entry of an unknown kind")  # noqa: TRY301
            except _Problem as exc:
                problem = exc
    except (OSError, AuditError) as exc:
        return ChainReport(INDEX_NAME, ChainStatus.MISSING, problem=f"cannot be read: {exc}"), named
    if problem is None and not walk.count:
        problem = _Problem(1, "empty")
    return walk.report(anchored=walk.count, problem=problem), named


def _verify_folder(folder: Path, own: dict[str, dict[int, str]]) -> Verification:
    try:
        found = {name for name in os.listdir(folder) if name != INDEX_NAME}  # noqa: PTH208 - names only
    except OSError as exc:
        raise AuditError(f"`{folder}` cannot be read: {exc.strerror}", reasons=("unreadable",)) from exc
    index, named = _read_index(folder)
    reports: dict[str, ChainReport] = {}
    for name in sorted(found | named.keys() | own.keys()):
        if CHAIN_NAME.fullmatch(name) is None:
            reports[name] = ChainReport(name, ChainStatus.TAMPERED, problem="inserted: not a file of this log")
            continue
        anchors = {**own.get(name, {})}
        clash = False
        for seq, digest in named.get(name, {}).items():
            clash |= anchors.setdefault(seq, digest) != digest
        report = _verify_chain(folder / name, anchors, may_be_empty=not anchors)  # killed before its first line
        if clash:
            report = attrs.evolve(report, status=ChainStatus.TAMPERED, problem="replaced: two anchors disagree")
        reports[name] = report
    strangers = [name for name, report in reports.items() if name not in named and report.is_intact]
    if strangers and index.is_intact:
        again, named = _read_index(folder)  # it may have been opened while we looked
        for name in strangers:
            if name in named:
                continue
            if reports[name].records > 1:
                reports[name] = attrs.evolve(
                    reports[name], status=ChainStatus.TAMPERED, problem="inserted: the index does not name it"
                )
            else:
                reports[name] = attrs.evolve(reports[name], problem="never used: stopped while it was being opened")
        index = again
    return Verification(folder, tuple(reports.values()), index)


def verify(path: str | os.PathLike[str], *, anchors: Iterable[Anchor] = ()) -> Verification:
    """Check an audit folder, or one chain by itself.

    Args:
        path: The folder, or a file in it. A single file is not held against the index.
        anchors: Anchors that were kept elsewhere.

    Returns:
        What was found; look at `is_intact` or call `require_intact()`.

    Raises:
        AuditError: The path cannot be read at all.

    Note:
        Whether the *events* are true is not checked: only that they are what was written, in that order.
    """
    place = Path(path)
    own: dict[str, dict[int, str]] = {}
    for anchor in anchors:
        own.setdefault(anchor.chain, {})[anchor.seq] = anchor.digest
    if place.is_dir() and not place.is_symlink():
        return _verify_folder(place, own)
    with _open(place):
        pass
    if place.name == INDEX_NAME:
        return Verification(place, (), _read_index(place.parent)[0])
    return Verification(place, (_verify_chain(place, own.get(place.name, {})),))


def read(path: str | os.PathLike[str], *, txn: str | None = None) -> Iterator[dict[str, Any]]:
    """Iterate over the records, chain by chain, each chain in its order.

    Args:
        path: The audit folder, or one chain.
        txn: Only records about this transaction.

    Yields:
        The members of each record, plus none: what is in the line.

    Raises:
        AuditError: A file cannot be read; or a chain breaks, at the record where it does. An incomplete last line ends
            its chain silently: `verify` states it.
    """
    place = Path(path)
    paths = [place]
    if place.is_dir() and not place.is_symlink():
        paths = sorted(file for file in place.iterdir() if CHAIN_NAME.fullmatch(file.name))
    for file in paths:
        with _open(file) as stream:
            try:
                for line in _Walk(stream, file.name):
                    if txn is None or _txn_of(line.record) == txn:
                        yield line.record
            except _Problem as exc:
                raise AuditError(
                    f"`{file}`, line {exc.line}: {exc.what}",
                    reasons=("tampered",),
                    remedy="run `audit verify` on the folder",
                ) from exc


def _txn_of(record: dict[str, Any]) -> object:
    subject = record.get("subject")
    return subject.get("txn") if isinstance(subject, dict) else None
