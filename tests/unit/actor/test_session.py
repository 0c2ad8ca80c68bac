"""Sessions: which one a context is in, and that their calls stick."""

import asyncio
import gc

import pytest

from forgectl.actor.service.session import Session, current_session
from forgectl.errors import NotFoundError, ServiceStopped
from tests.unit.actor.fakes_service import Rig, outcome, settle


class Owner:
    """A service, as far as sessions go."""

    def __init__(self) -> None:
        self.ids = iter("abcdef")
        self.open: set[str] = set()

    def start_session(self) -> str:
        session = next(self.ids)
        self.open.add(session)
        return session

    def terminate_session(self, session: str) -> None:
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
            owner.terminate_session(session)
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
        async with Rig(num_replicas=2) as rig, rig.service.session() as session:
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
