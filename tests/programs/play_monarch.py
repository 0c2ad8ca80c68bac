"""What test_monarch.py has scripts do with Monarch's names and meshes."""

from __future__ import annotations

import asyncio
import functools

from late import Late
from playing import play, refused
from theirs import Both, Plain, Theirs


async def monarchs_decorators_and_ranks() -> None:
    actor = await Theirs.options(procs=2, preload=[]).as_actor()
    assert list((await actor.where.call(10)).values()) == [(10 + r, r, {"procs": 2}) for r in range(2)]
    assert list((await actor.plain.call("x")).values()) == ["", "x"]
    waiting = asyncio.ensure_future(actor.wait.call())
    await actor.see.call()  # it has its turn although the one before it waits
    assert list((await waiting).values()) == ["seen", "seen"]


async def names_that_are_imported_during_a_call() -> None:
    late = await Late.options(procs=2, preload=[]).as_actor()
    assert list((await late.where.call()).values()) == [(0, {"procs": 2}), (1, {"procs": 2})]
    assert list((await late.there.call()).values()) == [[0, 1], [0, 1]]
    assert list((await late.where.call()).values()) == [(0, {"procs": 2}), (1, {"procs": 2})]


async def monarch_is_refused_what_is_ours() -> None:
    from monarch.actor import this_host

    procs = this_host().spawn_procs(per_host={"gpus": 2})
    for cls in (Theirs, Both, Late.options(procs=2)):
        error = refused(TypeError, functools.partial(procs.spawn, "ours", cls))
        assert f"launch it with `await {cls.__qualname__}.options(procs=N).as_actor(…)`" in str(error), error
    plain = procs.spawn("plain", Plain)
    assert list((await plain.where.call()).values()) == [0, 1]
    await procs.stop()


async def monarchs_own_meshes_beside_ours() -> None:
    from monarch.actor import this_host

    ours = await Theirs.options(procs=2, preload=[]).as_actor()
    procs = this_host().spawn_procs(per_host={"gpus": 3})
    plain = procs.spawn("plain", Plain)
    for _ in range(2):
        assert list((await plain.where.call()).values()) == [0, 1, 2]
        assert [v[1] for v in (await ours.where.call(0)).values()] == [0, 1]
    await ours.shutdown()
    assert list((await plain.where.call()).values()) == [0, 1, 2]
    await procs.stop()


if __name__ == "__main__":
    play(globals())
