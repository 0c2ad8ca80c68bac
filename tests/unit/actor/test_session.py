"""Sessions: which one a context is in, and that their calls stick."""

import asyncio
import gc
import random

import pytest

from forgectl.actor.service.session import STARTED, Session, SessionTable, current_session
from forgectl.errors import NotFoundError, ServiceStopped
from tests.unit.actor.fakes_service import Rig, outcome, settle


class Owner:
    """A service, as far as sessions go."""

    def __init__(self) -> None:
        self.ids = iter("abcdef")
        self.open: set[str] = set()

    async def start_session(self) -> str:
        session = next(self.ids)
        self.open.add(session)
        return session

    async def terminate_session(self, session: str) -> None:
        if session not in self.open:
            raise NotFoundError("unknown")
        self.open.remove(session)


def test_a_session_is_of_one_service_and_one_context() -> None:
    async def main() -> None:
        one, other = Owner(), Owner()
        entered, leave = asyncio.Event(), asyncio.Event()

        async def neighbour() -> None:
            async with Session(one):
                entered.set()
                await leave.wait()

        task = asyncio.ensure_future(neighbour())
        await entered.wait()
        assert current_session(one) is None
        async with Session(one) as session:
            assert (current_session(one), current_session(other)) == (session, None)
            assert await asyncio.ensure_future(inherited(one)) == session
            async with Session(other) as its, Session(one) as inner:
                assert (current_session(one), current_session(other)) == (inner, its)
            assert (current_session(one), current_session(other)) == (session, None)
        assert current_session(one) is None
        leave.set()
        await task
        assert one.open == other.open == set()

    async def inherited(service: Owner) -> str | None:
        return current_session(service)

    asyncio.run(main())


def test_a_session_ends_with_an_exception_too_and_may_be_terminated_by_hand() -> None:
    async def main() -> None:
        owner = Owner()
        with pytest.raises(KeyError):
            async with Session(owner):
                raise KeyError
        async with Session(owner) as session:
            await owner.terminate_session(session)
        assert owner.open == set()

    asyncio.run(main())


def test_left_in_another_context_than_entered() -> None:
    async def main() -> None:
        owner = Owner()
        session = Session(owner)
        await asyncio.ensure_future(session.__aenter__())
        await session.__aexit__(None, None, None)
        assert owner.open == set()

    asyncio.run(main())


def test_a_context_does_not_keep_a_service() -> None:
    async def main() -> None:
        owner, ready, go = Owner(), asyncio.Event(), asyncio.Event()

        async def outlives() -> list[str | None]:
            ready.set()
            await go.wait()
            gc.collect()
            return [current_session(Owner()) for _ in range(100)]

        async with Session(owner):
            task = asyncio.ensure_future(outlives())
            await ready.wait()
        del owner
        go.set()
        assert await task == [None] * 100

    asyncio.run(main())


@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "session"])
def test_calls_of_a_session_go_to_one_replica_whatever_the_router(router: str) -> None:
    async def main() -> None:
        async with Rig(num_replicas=3, router=router) as rig:
            sessions = [rig.service.start_session() for _ in range(6)]
            tasks = [rig.call((s, n), session=s) for n in range(4) for s in sessions]
            await settle()
            homes: dict[str, set[int]] = {}
            for index, mesh in rig.meshes.items():
                for session, _ in mesh.values():
                    homes.setdefault(session, set()).add(index)
                for run in list(mesh.running):
                    run.finish()
            assert all(len(home) == 1 for home in homes.values())
            assert sorted(index for home in homes.values() for index in home) == [0, 0, 1, 1, 2, 2]
            assert {r.sessions for r in rig.service.metrics().replicas} == {2}
            await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_session_moves_when_its_replica_dies_and_stays_there() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2) as rig:
            session = "user-17"
            first = rig.call("a", session=session)
            await settle()
            home = next(m for m in rig.meshes.values() if m.running)
            other = next(m for m in rig.meshes.values() if m is not home)
            home.die()
            assert "died" in str(await outcome(first))
            await settle()
            second = rig.call("b", session=session)
            await settle()
            home.recover()
            third = rig.call("c", session=session)
            await settle()
            assert other.values() == ["b", "c"]
            for run in list(other.running):
                run.finish()
            await asyncio.gather(second, third)

    asyncio.run(main())


def test_an_unknown_or_terminated_session_is_named() -> None:
    async def main() -> None:
        async with Rig(answer=lambda value: value) as rig:
            session = rig.service.start_session()
            assert await rig.call(1, session=session) == 1
            rig.service.terminate_session(session)
            for endpoint in ("plain", "batched"):
                with pytest.raises(NotFoundError, match=f"{session}.*terminated"):
                    await rig.service.route(endpoint, (1,), {}, session)
            with pytest.raises(NotFoundError, match=session):
                rig.service.terminate_session(session)
            assert rig.service.metrics().sessions == 0
        with pytest.raises(ServiceStopped):
            rig.service.start_session()

    asyncio.run(main())


def test_an_id_of_the_users_own_begins_with_its_first_call_and_may_begin_again() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, answer=lambda value: value) as rig:
            with pytest.raises(NotFoundError):
                rig.service.terminate_session("user-17")
            assert await rig.call(1, session="user-17") == 1
            assert rig.service.metrics().sessions == 1
            rig.service.terminate_session("user-17")
            assert rig.service.metrics().sessions == 0
            assert await rig.call(2, "batched", session="user-17") == 2
            assert rig.service.metrics().sessions == 1

    asyncio.run(main())


def test_a_context_with_an_id_of_the_users_own_does_not_end_it() -> None:
    async def main() -> None:
        owner = Owner()
        async with Session(owner, "user-17") as session:
            assert (session, current_session(owner)) == ("user-17", "user-17")
        assert current_session(owner) is None
        assert next(owner.ids) == "a"  # it began none

    asyncio.run(main())


def use(table: SessionTable, session: str, index: int) -> None:
    with table.use(session):
        table.move(session, index)


def test_of_the_users_own_ids_the_latest_are_remembered() -> None:
    table = SessionTable("svc", most_idle=3)
    for index, session in enumerate("abc"):
        use(table, session, index)
    use(table, "a", 0)
    started = table.start()
    table.move(started, 9)
    use(table, "d", 3)
    assert [table.replica_of(s) for s in "abcd"] == [0, None, 2, 3]
    assert table.replica_of(started) == 9
    with table.use("e"):  # not idle
        table.move("e", 4)
        for n in range(100):
            use(table, f"once-{n}", n)
        assert table.replica_of("e") == 4
        assert len(table) == 3 + 2
    assert [table.replica_of(s) for s in ("a", "e", "once-98", "once-99")] == [None, 4, 98, 99]


def test_a_session_terminated_during_a_call_is_forgotten() -> None:
    table = SessionTable("svc")
    with table.use("a"):
        table.move("a", 1)
        table.terminate("a")
        table.move("a", 2)
        with table.use("a"):
            assert table.replica_of("a") is None
            table.move("a", 3)
    assert table.replica_of("a") == 3
    table.terminate("a")
    assert len(table) == 0
    with pytest.raises(NotFoundError), table.use(f"{STARTED}unknown"):
        pass


def test_a_table_of_sessions_stays_within_its_bound_whatever_happens() -> None:
    chance, table, open_ = random.Random(5), SessionTable("svc", most_idle=5), []
    for _ in range(3000):
        session, what = f"s{chance.randrange(20)}", chance.random()
        if what < 0.4:
            calls = table.use(session)
            calls.__enter__()
            open_.append((session, calls))
        elif what < 0.8 and open_:
            open_.pop(chance.randrange(len(open_)))[1].__exit__(None, None, None)
        elif session in table:
            table.terminate(session)
        else:
            table.move(session, 1)
        assert len(table) <= 5 + len({session for session, _ in open_})
    for _, calls in open_:
        calls.__exit__(None, None, None)
    assert len(table) <= 5 and not table._calls
