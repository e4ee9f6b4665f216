# SPDX-License-Identifier: Apache-2.0
"""Bar 9: cancelled at every await of enter, body, use and exit, the grant ends, and the cancellation goes on.

Each scenario is first driven to its end to count its awaits. Then it is run once more for each of them and for each way
of cancelling, on the loop's own `Task.cancel`. Warnings are errors, and the loop's exception handler must stay silent.
"""

import asyncio
import gc
import logging
import os
import threading
import types
import warnings
from datetime import timedelta

import pytest

import jitwi
from jitwi.audit.events import GrantEnded, GrantLeaked, TaskOpened
from jitwi.grants import EndCause, off_loop
from jitwi.issuers import TaskTokens
from jitwi.policy import PolicyStore
from jitwi.testing import BackendIssuer, RecordingSink, TestingBackend
from jitwi.testing import jit as make_jit

REPEATS = int(os.environ.get("JITWI_CANCEL_REPEATS", "1"))
SCHEMA = """namespace S { entity O;
action a, t appliesTo { principal: [Jitwi::Workload], resource: [O], context: { task: Jitwi::Task } }; }"""
ORDER = jitwi.Entity("S::O", "1")
URL = "https://orders.example.org/1"
PATIENCE = 10.0


class Busy:
    """Counts the jobs that run off the loop: one that nobody waits for any more is still to come."""

    def __init__(self, pool):
        self._pool = pool
        self._lock = threading.Lock()
        self.count = 0

    def get(self):
        """Stand in for the pool's executor."""
        return self

    def submit(self, job):
        """Pass a job on."""
        with self._lock:
            self.count += 1
        self._pool.get().submit(job).add_done_callback(self._done)

    def _done(self, _):
        with self._lock:
            self.count -= 1


class Lab:
    """A caller, what it recorded, and a backend."""

    def __init__(self, backend):
        self.backend = backend
        self.busy = Busy(off_loop._pool)
        self.sink = RecordingSink()
        self.issuer = BackendIssuer(backend.address, backend.admin_token, serves=["a"])
        self.jit = make_jit(
            "spiffe://example.org/a",
            PolicyStore.from_text(policies="permit (principal, action, resource);", schema=SCHEMA),
            issuers={"backend": self.issuer, "api": TaskTokens(URL, origin="https://orders.example.org", serves=["t"])},
            audit=self.sink,
        ).start()

    def task(self, **more):
        """Return a block."""
        return self.jit.task("x", permissions={"a": ORDER, "t": ORDER}, ttl=timedelta(minutes=5), **more)

    def unfinished(self):
        """What is not over: work off the loop, grants, records without an end, credentials, sessions."""
        if self.busy.count:
            return ["work off the loop"]
        opened = {event.subject.grant_id for event in self.sink.of(TaskOpened)}
        ended = {event.subject.grant_id for event in self.sink.of(GrantEnded)}
        return [*self.jit.live_grants, *(opened - ended), *self.issuer.outstanding()]

    def wait_until_over(self):
        """Wait until nothing is left; returns what still is."""
        pause = threading.Event()
        for _ in range(int(PATIENCE * 50)):
            left = self.unfinished()
            if not left:
                break
            pause.wait(0.02)
        return left


@pytest.fixture(scope="module")
def lab():
    """Return one lab for all runs: what one run leaves behind, the next one sees."""
    with TestingBackend() as backend:
        lab = Lab(backend)
        with pytest.MonkeyPatch.context() as patch, lab.jit:
            patch.setattr(off_loop, "_pool", lab.busy)
            yield lab


async def bare(lab):
    """Enter, use what the process guards itself, wait, leave."""
    async with lab.task() as grant:
        await grant.check("a", ORDER)
        await asyncio.sleep(0)


async def with_token(lab):
    """The same with a task token."""
    async with lab.task() as grant:
        token = await grant.credential("api")
        token.headers("GET", URL, "t", ORDER)
        await asyncio.sleep(0)


async def with_backend(lab):
    """The same with a credential at a backend: every step waits for another process."""
    async with lab.task() as grant:
        handle = await grant.credential("backend")
        await asyncio.to_thread(handle.use, "a", ORDER)


async def with_child(lab):
    """A child inside it, with the parent's token made first."""
    async with lab.task() as grant:
        await grant.credential("api")
        async with grant.task("y", permissions={"a": ORDER}) as child:
            await child.credential("backend")
            await child.check("a", ORDER)
        await grant.check("a", ORDER)


async def with_revoke(lab):
    """Revoked in the middle of it."""
    async with lab.task() as grant:
        await grant.credential("backend")
        await grant.revoke("enough")


async def with_cleanup(lab):
    """A body that does something more when it is cancelled."""
    async with lab.task() as grant:
        try:
            await grant.credential("api")
            await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)


async def decorated(lab):
    """The decorator."""

    @lab.task()
    async def work(grant):
        await grant.credential("api")
        await asyncio.sleep(0)

    await work()


SCENARIOS = [bare, with_token, with_backend, with_child, with_revoke, with_cleanup, decorated]


@types.coroutine
def watched(coroutine, on_await):
    """Drive a coroutine as `await` would, and tell of each await."""
    step, given = coroutine.send, None
    while True:
        try:
            waits_for = step(given)
        except StopIteration as stop:
            return stop.value
        on_await(waits_for)
        try:
            given, step = (yield waits_for), coroutine.send
        except BaseException as error:  # noqa: BLE001 - whatever comes goes in
            given, step = error, coroutine.throw


class Script:
    """Cancels a task at its n-th await, in one of several ways.

    `at-once`: while what it waits for is under way. `when-done`: in the moment when that is done, the race that loses
    cancellations. `twice`, `thrice`: again at the next awaits, which are those of the exit.
    """

    def __init__(self, number, way):
        self.number = number
        self.way = way
        self.seen = 0
        self.sent = 0
        self.task = None

    def __call__(self, waits_for):
        """Take note of an await, and cancel if it is the one."""
        self.seen += 1
        wanted = {"twice": 2, "thrice": 3}.get(self.way, 1)
        if self.way is None or self.seen < self.number or self.sent >= wanted:
            return
        self.sent += 1
        if self.way == "when-done" and waits_for is not None:
            waits_for.add_done_callback(lambda _: self.task.cancel())
        else:
            asyncio.get_running_loop().call_soon(self.task.cancel)


def drive(coroutine, script):
    """Run a coroutine on a loop of its own under a script; returns what it raised and what the loop complained of."""
    complaints = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))

        async def run():
            await watched(coroutine, script)

        script.task = asyncio.create_task(run())
        try:
            await script.task
        except BaseException as error:  # noqa: BLE001 - it is looked at
            return error
        return None

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        error = asyncio.run(main())
        gc.collect()
    return error, complaints + [str(one.message) for one in warned]


def all_scripts(lab, scenario):
    """Yield a script for every await of a scenario and every way, and those that never fire."""
    count = Script(0, None)
    error, complaints = drive(scenario(lab), count)
    assert (error, complaints) == (None, [])
    assert count.seen >= 2
    for _ in range(REPEATS):
        for way in ("at-once", "when-done", "twice", "thrice"):
            for number in range(1, count.seen + 1):
                yield Script(number, way)


@pytest.mark.slow
@pytest.mark.timeout(600 if REPEATS > 1 else 120)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_cancelled_at_every_await_the_grant_ends_and_the_cancellation_goes_on(lab, scenario, caplog):
    """CancelledError comes out, nothing stays live or open at the backend, nobody complains, nothing is leaked."""
    caplog.set_level(logging.ERROR)
    wrong = []
    for script in all_scripts(lab, scenario):
        lab.sink.clear()
        error, complaints = drive(scenario(lab), script)
        late = script.way == "when-done" and error is None  # the last await was over: there was nothing left to cancel
        if not isinstance(error, asyncio.CancelledError) and not late:
            wrong.append((script.number, script.way, f"{error!r} came out"))
        if left := lab.wait_until_over():
            wrong.append((script.number, script.way, f"left: {left}"))
        if complaints or lab.sink.of(GrantLeaked):
            wrong.append((script.number, script.way, complaints, lab.sink.of(GrantLeaked)))
    assert wrong == []
    assert [record.getMessage() for record in caplog.records if record.name != "jitwi"] == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_a_timeout_at_any_moment_ends_the_grant(lab, scenario):
    """`asyncio.timeout` with deadlines all over the scenario: TimeoutError or success, and nothing left."""

    async def limited(seconds):
        async with asyncio.timeout(seconds):
            await scenario(lab)

    for milliseconds in (0, 1, 2, 4, 8, 16, 32, 64):
        error, complaints = drive(limited(milliseconds / 1000), Script(0, None))
        assert error is None or type(error) is TimeoutError
        assert complaints == []
    assert lab.wait_until_over() == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_a_failing_sibling_in_a_task_group_ends_the_grant(lab, scenario):
    """The group cancels the scenario wherever it is; only the sibling's own error comes out."""

    async def group(steps):
        async def fail():
            for _ in range(steps):
                await asyncio.sleep(0.001)
            raise OSError

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(scenario(lab))
            tasks.create_task(fail())

    for steps in (0, 1, 2, 5, 10, 20):
        error, complaints = drive(group(steps), Script(0, None))
        assert isinstance(error, ExceptionGroup)
        assert [type(one) for one in error.exceptions] == [OSError]
        assert complaints == []
    assert lab.wait_until_over() == []


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s is not with_cleanup], ids=lambda s: s.__name__)
def test_a_loop_that_is_closed_at_any_await_leaves_nothing_live(lab, scenario, caplog):
    """Stopped and closed without cancelling anybody: the frame is closed too, and that ends the grant."""
    caplog.set_level(logging.ERROR)
    unraisable = []
    count = Script(0, None)
    drive(scenario(lab), count)
    lab.sink.clear()
    for number in range(1, count.seen + 1):
        loop = asyncio.new_event_loop()
        seen = 0

        def stop(_, loop=loop, number=number):
            nonlocal seen
            seen += 1
            if seen == number:
                loop.stop()

        async def run(stop=stop):
            await watched(scenario(lab), stop)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.unraisablehook", lambda hook: unraisable.append(repr(hook.exc_value)))
            loop.set_exception_handler(lambda *_: None)  # "destroyed but pending": that is what is done here
            frame = run()
            task = loop.create_task(frame)
            loop.run_forever()
            loop.close()
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                frame.close()  # what the collector does once nobody knows it any more
                del task, run, stop, loop, frame
                left = lab.wait_until_over()
        assert (number, left) == (number, [])
        assert [str(one.message) for one in warned] == []
    assert unraisable == []
    assert [record.getMessage() for record in caplog.records if record.name not in {"jitwi", "asyncio"}] == []
    assert lab.sink.of(GrantLeaked) == []


def test_an_async_generator_that_is_closed_or_dropped_ends_its_grant(lab):
    """`aclose()`, garbage collection on a running loop, and the loop's end."""

    async def hold():
        async with lab.task() as grant:
            await grant.credential("backend")
            yield grant
            await asyncio.sleep(60)

    async def close():
        suspended = hold()
        grant = await anext(suspended)
        await suspended.aclose()
        assert not grant.is_live

    async def drop():
        suspended = hold()
        await anext(suspended)
        del suspended
        gc.collect()
        await asyncio.sleep(0.01)

    async def forget():
        kept.append(hold())
        await anext(kept[-1])

    kept = []
    for way in (close, drop, forget):
        error, complaints = drive(way(), Script(0, None))
        assert (way.__name__, error, complaints) == (way.__name__, None, [])
        assert (way.__name__, lab.wait_until_over()) == (way.__name__, [])


def test_an_opening_that_is_denied_after_its_caller_was_cancelled_is_nobodys_unretrieved_exception(lab):
    """The refusal comes when nobody waits any more: it is on record, and the loop has nothing to report."""

    async def enter():
        async with lab.jit.task("x", permissions={"unknown": ORDER}, ttl=timedelta(minutes=1)):
            pass

    error, complaints = drive(enter(), Script(1, "at-once"))
    assert isinstance(error, asyncio.CancelledError)
    assert complaints == []
    assert lab.wait_until_over() == []


def test_the_cause_of_a_cancelled_task_is_on_record(lab):
    """A cancelled block is `cancelled`, whether it was cancelled while entering, inside, or in its exit."""
    lab.sink.clear()
    seen = Script(0, None)
    drive(with_token(lab), seen)
    causes = []
    for number in range(1, seen.seen + 1):
        lab.sink.clear()
        drive(with_token(lab), Script(number, "at-once"))
        assert lab.wait_until_over() == []
        causes += [event.cause for event in lab.sink.of(GrantEnded)]
    assert set(causes) <= {EndCause.CANCELLED.value, EndCause.BLOCK_ENDED.value}
    assert causes[0] == EndCause.CANCELLED.value
