"""What a call gives: awaited anywhere, waited for from plain code, ended once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forgectl.system.futures import Future
from forgectl.system.loops import plain_loop


@pytest.fixture
def other_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_it_is_awaited_twice_gathered_and_shielded() -> None:
    async def main() -> None:
        future = Future[int]("call")
        asyncio.get_running_loop().call_soon(future.succeed, 1)
        assert [*await asyncio.gather(future, asyncio.shield(future))] == [1, 1]
        assert await future == 1
        assert await asyncio.wait_for(future, 1) == 1

    asyncio.run(main())


def test_wherever_a_coroutine_is_taken_it_is(other_thread: asyncio.AbstractEventLoop) -> None:
    future = Future[int]("call")
    threading.Timer(0.01, future.succeed, [3]).start()
    assert asyncio.run(future) == 3

    async def main() -> list[int]:
        later = Future[int]("call")
        tasks = [asyncio.create_task(later) for _ in range(3)]
        await asyncio.sleep(0)
        later.succeed(4)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [4, 4, 4]
    assert asyncio.run_coroutine_threadsafe(future, other_thread).result() == 3


def test_a_cancelled_task_cancels_the_call_and_a_shield_does_not() -> None:
    async def main() -> None:
        future = Future[int]("call")
        task = asyncio.create_task(asyncio.wait_for(asyncio.shield(future), 0.01))
        with pytest.raises(asyncio.TimeoutError):
            await task
        assert not future.done()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0.01)
        assert future.cancelled()
        assert not future.succeed(1)
        with pytest.raises(asyncio.CancelledError):
            await future
        with pytest.raises(asyncio.CancelledError):
            future.exception()

    asyncio.run(main())


def test_a_task_that_is_cancelled_before_it_began_cancels_the_call() -> None:
    async def main() -> None:
        future = Future[int]("call")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0)
        assert future.cancelled()

    asyncio.run(main())


def test_a_cancelled_task_behind_it_is_waited_for_until_it_has_cleaned_up(
    other_thread: asyncio.AbstractEventLoop,
) -> None:
    cleaned, began = threading.Event(), threading.Event()

    async def work() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        future = Future.of(work(), loop, "work")
        task = asyncio.ensure_future(future)
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned.is_set() and future.cancelled()

    asyncio.run(main(other_thread))
    cleaned.clear()
    began.clear()

    async def in_the_same_loop() -> None:
        await main(asyncio.get_running_loop())

    asyncio.run(in_the_same_loop())


def test_get_waits_in_plain_code_and_refuses_to_block_a_loop() -> None:
    future = Future[int]("counter.add")
    with pytest.raises(TimeoutError, match=r"counter\.add has not answered within 0\.01 s"):
        future.get(timeout=0.01)
    threading.Timer(0.01, future.succeed, [1]).start()
    assert future.get() == future.get(timeout=0) == future.result() == 1

    async def main() -> None:
        pending = Future[int]("counter.add")
        with pytest.raises(RuntimeError, match="use `await`"):
            pending.get()
        with pytest.raises(asyncio.InvalidStateError):
            pending.result()
        getting = asyncio.create_task(asyncio.to_thread(pending.get))
        pending.succeed(2)
        assert await getting == pending.get() == 2

    asyncio.run(main())


def test_plain_code_starts_coroutines_too() -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    assert Future.of(double(2), plain_loop(), "double").get() == 4


@pytest.mark.parametrize("seen", [False, True])
def test_an_exception_that_nobody_retrieves_is_logged_once(seen: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        future = Future[int]("counter.add")
        future.fail(ValueError("no"))
        if seen:
            for _ in range(2):
                with pytest.raises(ValueError, match="no"):
                    await future

    with caplog.at_level(logging.ERROR, "forgectl"):
        asyncio.run(main())
        gc.collect()
    assert [record.getMessage() for record in caplog.records] == (
        [] if seen else ["counter.add raised an exception that nobody retrieved"]
    )


def test_a_call_under_way_is_no_data() -> None:
    with pytest.raises(TypeError, match=r"counter\.add is a call under way"):
        pickle.dumps(Future[int]("counter.add"))


def test_callbacks_run_in_the_loop_that_they_were_added_in(other_thread: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        future, called = Future[int]("call"), asyncio.Event()
        future.add_done_callback(lambda _: called.set())
        other_thread.call_soon_threadsafe(future.succeed, 1)
        await called.wait()
        later = asyncio.Event()
        future.add_done_callback(lambda _: later.set())
        await later.wait()

    asyncio.run(main())
    threads = list[threading.Thread]()
    done = Future[int]("call")
    done.succeed(1)
    done.add_done_callback(lambda _: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


@given(
    moments=st.lists(st.sampled_from(["succeed", "fail", "cancel", "await", "cancel a waiter", "get"]), max_size=12),
    threaded=st.booleans(),
)
@example(moments=["get"] * 12, threaded=True)
@example(moments=["get"] * 11 + ["fail"], threaded=True)
def test_it_ends_once_and_alike_for_all_whatever_comes_when(moments: list[str], threaded: bool) -> None:
    """Everybody who waits gets the first end, whatever comes at the same time."""

    async def main() -> None:
        # Each `get` holds a thread until somebody ends the call: in another thread, for which there must be one left.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(moments) + 1))
        future = Future[int]("call")
        waiters = list[asyncio.Future[int]]()
        cancelled = set[asyncio.Future[int]]()
        getters = list[asyncio.Future[int]]()
        for n, moment in enumerate([*moments, "succeed"]):
            if moment == "await":
                waiters.append(asyncio.ensure_future(future))
            elif moment == "get":
                getters.append(asyncio.ensure_future(asyncio.to_thread(future.get)))
            elif moment == "cancel a waiter" and waiters:
                cancelled.add(waiters[n % len(waiters)])
                waiters[n % len(waiters)].cancel()
            elif moment == "cancel":
                future.cancel()
            elif moment in ("succeed", "fail"):
                end = functools.partial(future.succeed, n)
                if moment == "fail":
                    end = functools.partial(future.fail, ValueError(n))
                await asyncio.to_thread(end) if threaded else end()
            await asyncio.sleep(0)
        ends = await asyncio.gather(*waiters, *getters, return_exceptions=True)
        first: object
        try:
            first = future.result()
        except (ValueError, asyncio.CancelledError) as e:
            first = e
        for waiter, found in zip([*waiters, *getters], ends, strict=True):
            assert found == first or type(found) is type(first) or (waiter in cancelled and waiter.cancelled())

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main())
