# SPDX-License-Identifier: Apache-2.0
"""Endings: published once, seen at the next look by every process of the host."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing

import pytest

from jitwi.errors import SharedStateError
from jitwi.state import Endings, SqliteEndings
from jitwi.state.sqlite import SKEW_SECONDS


@pytest.fixture
def endings(folder, clock):
    """Endings in an empty folder."""
    endings = SqliteEndings(folder, clock=clock)
    yield endings
    endings.close()


@pytest.fixture
def reader(folder, clock):
    """A second object on the same folder, as another process has it."""
    reader = SqliteEndings(folder, clock=clock)
    yield reader
    reader.close()


def test_it_is_the_port(endings) -> None:
    """The store has every method of the port."""
    assert all(hasattr(endings, name) for name in vars(Endings) if not name.startswith("_"))


def test_no_io_before_first_use(folder, clock) -> None:
    """The constructor touches no file (rule 13)."""
    SqliteEndings(folder, clock=clock).close()
    assert not folder.exists()


def test_seen_at_the_next_look(endings, reader, clock) -> None:
    """A key that was looked up a moment ago is seen as ended at the look after `publish` returned."""
    for number in range(20):
        assert not reader.is_ended(f"{number}")
        endings.publish(f"{number}", expires_at=clock.wall + 60)
        assert reader.is_ended(f"{number}")
    assert not reader.is_ended("another")


def test_epoch_moves_with_each_ending_and_only_then(endings, reader, clock) -> None:
    """The epoch is the same for all, and never comes back to a value it had."""
    seen = {reader.epoch()}
    for number in range(50):
        assert reader.epoch() in seen
        endings.publish(f"{number}", expires_at=clock.wall + 60)
        assert reader.epoch() == endings.epoch()
        seen.add(reader.epoch())
    assert len(seen) == 51


def test_committed_before_the_epoch_moves(endings, reader, clock, monkeypatch) -> None:
    """Whoever sees the new epoch finds the ending (facts/performance 8)."""
    found = []
    bump = endings._bump

    def look_then_bump() -> None:
        with sqlite3.connect(endings.path) as other:
            found.append(other.execute("SELECT count(*) FROM ended").fetchone()[0])
        other.close()
        bump()

    monkeypatch.setattr(endings, "_bump", look_then_bump)
    endings.publish("a", expires_at=clock.wall + 60)
    assert found == [1]


def test_writer_that_died_before_the_epoch_moved(endings, reader, clock, monkeypatch) -> None:
    """An ending without its epoch is seen within a second."""
    assert not reader.is_ended("a")
    monkeypatch.setattr(endings, "_bump", lambda: None)
    endings.publish("a", expires_at=clock.wall + 60)
    clock.forward(1)
    assert reader.is_ended("a")


def test_kept_until_end_and_skew(endings, reader, clock) -> None:
    """An ending is pruned only when nobody could accept its key any more; a later end prolongs, an earlier does not."""
    end = clock.wall + 60
    endings.publish("a", expires_at=end)
    endings.publish("a", expires_at=end - 30)
    clock.forward(60 + SKEW_SECONDS - 1)
    endings.publish("b", expires_at=end + 600)
    assert reader.is_ended("a")
    clock.forward(11)
    endings.publish("c", expires_at=end + 600)
    clock.forward(2)
    assert not reader.is_ended("a")
    assert reader.is_ended("b")


def test_memory_is_bounded(endings) -> None:
    """Looking for ever new keys keeps no more than a few thousand of them."""
    for number in range(5000):
        assert not endings.is_ended(f"{number}")
    assert len(endings._memo) <= 4096


def test_store_taken_away_is_made_anew(folder, endings, reader, clock) -> None:
    """Removed files are noticed by writer and reader, and they meet again in the new ones."""
    endings.publish("a", expires_at=clock.wall + 60)
    assert reader.is_ended("a")
    for file in folder.iterdir():
        file.unlink()
    clock.forward(1)
    endings.publish("b", expires_at=clock.wall + 60)
    assert reader.is_ended("b")
    assert not reader.is_ended("c")
    endings.publish("c", expires_at=clock.wall + 60)
    assert reader.is_ended("c")


def _world_writes(folder):
    folder.mkdir()
    folder.chmod(0o707)


def _link_folder(folder):
    (folder.parent / "real").mkdir()
    folder.symlink_to(folder.parent / "real")


def _link_epoch(folder):
    folder.mkdir(mode=0o700)
    (folder / "endings.epoch").symlink_to("/etc/hostname")


def _garbage(folder):
    folder.mkdir(mode=0o700)
    (folder / "endings.sqlite3").write_bytes(b"no database at all, whatever one may hope" * 50)


@pytest.mark.parametrize("prepare", [_world_writes, _link_folder, _link_epoch, _garbage])
def test_unfit_places_are_refused(folder, clock, prepare) -> None:
    """A folder that everybody may write to, a link or a broken file is an error: deny."""
    prepare(folder)
    with closing(SqliteEndings(folder, clock=clock)) as endings, pytest.raises(SharedStateError):
        endings.is_ended("a")
    with closing(SqliteEndings(folder, clock=clock)) as endings, pytest.raises(SharedStateError):
        endings.publish("a", expires_at=clock.wall + 60)


def test_epoch_file_that_cannot_be_opened(endings, clock, monkeypatch) -> None:
    """An error of the system is ours, and a deny; once it is over the store serves again."""
    assert not endings.is_ended("a")
    endings._word = None

    def fail(*_: object) -> int:
        raise PermissionError(13, "denied")

    with monkeypatch.context() as broken:
        broken.setattr("jitwi.state.endings.os.open", fail)
        for call in (endings.epoch, lambda: endings.publish("a", expires_at=clock.wall + 60)):
            with pytest.raises(SharedStateError) as refused:
                call()
            assert refused.value.remedy
    clock.forward(1)
    assert endings.is_ended("a")


def test_short_epoch_file_is_made_whole(folder, clock) -> None:
    """A file that was cut before its first use is no crash."""
    folder.mkdir(mode=0o700)
    (folder / "endings.epoch").write_bytes(b"abc")
    assert isinstance(SqliteEndings(folder, clock=clock).epoch(), int)


def test_closed_is_an_error(endings, clock) -> None:
    """Closed endings answer nothing, not even a key that was looked up before."""
    assert not endings.is_ended("a")
    endings.close()
    endings.close()
    for call in (lambda: endings.is_ended("a"), endings.epoch, lambda: endings.publish("a", expires_at=1.0)):
        with pytest.raises(SharedStateError):
            call()


OTHER_USER = """
import os, sys, urllib.parse
from jitwi.clock import SystemClock
from jitwi.state import SqliteEndings
os.setgroups([]); os.setgid(65534); os.setuid(65534)  # after all imports: others may not read what is imported
endings = SqliteEndings(sys.argv[1], clock=SystemClock())
for line in sys.stdin:
    try:
        if line.startswith("publish"):
            endings.publish("mine", expires_at=9e9)
        print(endings.is_ended(line.strip()), flush=True)
    except Exception as exc:
        print(type(exc).__name__, getattr(exc, "name", ""), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_guard_reads(folder, clock) -> None:
    """A Guard of another user sees endings in a folder it may only read, with the writer there and gone."""
    folder.parent.chmod(0o755)
    folder.mkdir(mode=0o755)
    writer = SqliteEndings(folder, clock=clock)
    writer.publish("a", expires_at=9e9)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OTHER_USER), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as guard:

        def ask(key: str) -> str:
            assert guard.stdin is not None
            assert guard.stdout is not None
            print(key, file=guard.stdin, flush=True)
            return guard.stdout.readline().strip()

        try:
            assert [ask("a"), ask("b")] == ["True", "False"]
            writer.publish("b", expires_at=9e9)
            assert [ask("a"), ask("b"), ask("c")] == ["True", "True", "False"]
            writer.close()
            assert [ask("a"), ask("b"), ask("c")] == ["True", "True", "False"]
            again = SqliteEndings(folder, clock=clock)
            again.publish("c", expires_at=9e9)
            assert [ask("c"), ask("d")] == ["True", "False"]
            again.close()
            assert ask("publish") == "SharedStateError"
        finally:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait(30)
