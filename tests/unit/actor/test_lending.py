"""Slots of replicas that are lent to other processes: counted, queued and repeated like the service's own calls."""

import asyncio
import functools

import pytest

from forgectl.actor.driver.errand_table import MOST_MISSED, ErrandTable
from forgectl.actor.service.lending import Loan
from forgectl.actor.service.replica import ATTEMPTS, NeverSent
from forgectl.errors import ActorDied, ServiceStopped
from tests.unit.actor.fakes_service import Rig, no_complaints, settle


def lend(rig: Rig, endpoint: str = "plain", session: str | None = None) -> Loan:
    return Loan(functools.partial(rig.service.lend, endpoint, session))


async def name_of(loan: Loan) -> str:
    return (await loan.turn()).name


def numbers(rig: Rig) -> tuple[int, int, int, int]:
    found = rig.service.metrics()
    return found.active, found.successes, found.failures, found.cancelled


def test_a_loan_has_a_slot_until_its_end_is_reported() -> None:
    async def main() -> None:
        async with Rig(num_replicas=1, max_concurrent_requests=1) as rig:
            one, other = lend(rig), lend(rig)
            assert await name_of(one) == "fake.0"
            waits = asyncio.ensure_future(other.turn())
            await settle()
            assert numbers(rig) == (1, 0, 0, 0) and not waits.done()
            own = rig.call("a")
            one.ended(None)
            assert (await waits).name == "fake.0"
            assert rig.meshes[0].values() == []
            other.ended(ValueError())
            await settle()
            assert rig.meshes[0].values() == ["a"]
            rig.meshes[0].running[0].finish()
            await own
            assert numbers(rig) == (0, 2, 1, 0)
            one.ended(ValueError())  # a second report changes nothing
            await settle()
            assert numbers(rig) == (0, 2, 1, 0)

    asyncio.run(main())


@pytest.mark.parametrize("waiting", [False, True])
def test_a_loan_that_is_given_up_frees_its_slot_or_its_place(waiting: bool) -> None:
    async def main() -> None:
        async with no_complaints(), Rig(num_replicas=1, max_concurrent_requests=1) as rig:
            first = lend(rig)
            await first.turn()
            loan = lend(rig) if waiting else first
            ended: list[bool] = []
            loan.on_end(lambda: ended.append(True))
            await settle()
            loan.cancel()
            await settle()
            assert ended == [True]
            if waiting:
                with pytest.raises(asyncio.CancelledError):
                    await loan.turn()
                first.ended(None)
            own = rig.call("a")
            await settle()
            rig.meshes[0].running[0].finish()
            await own
            assert numbers(rig)[3] == 1

    asyncio.run(main())


def test_a_loan_that_was_given_up_after_its_turn_has_no_other_one() -> None:
    async def main() -> None:
        async with no_complaints(), Rig(num_replicas=1) as rig:
            loan = lend(rig)
            await settle()
            loan.cancel()
            await settle()
            assert await name_of(loan) == "fake.0"  # it came before
            with pytest.raises(asyncio.CancelledError):
                await loan.turn()
            loan.ended(None)

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["plain", "safe"])
def test_after_a_death_an_idempotent_call_gets_another_replica(endpoint: str) -> None:
    async def main() -> None:
        async with no_complaints(), Rig(num_replicas=2) as rig:
            loan = lend(rig, endpoint)
            mesh = rig.meshes[0]
            assert await name_of(loan) == mesh.name
            mesh.die()
            error = mesh.death()
            loan.ended(error)
            if endpoint == "safe":
                assert await name_of(loan) == "fake.1"
                loan.ended(None)
                return
            with pytest.raises(ActorDied) as caught:
                await loan.turn()
            assert caught.value is error

    asyncio.run(main())


def test_a_call_that_was_never_sent_gets_another_replica_whatever_its_endpoint() -> None:
    async def main() -> None:
        async with Rig(num_replicas=ATTEMPTS + 1) as rig:
            loan = lend(rig)
            seen = []
            for _ in range(ATTEMPTS):
                seen.append(await name_of(loan))
                loan.ended(NeverSent("it was down"))
            assert seen == ["fake.0", "fake.1", "fake.2"]
            with pytest.raises(NeverSent):
                await loan.turn()

    asyncio.run(main())


def test_the_end_of_the_service_ends_loans() -> None:
    async def main() -> None:
        async with no_complaints(), Rig(num_replicas=1, max_concurrent_requests=1) as rig:
            running, waits = lend(rig), lend(rig)
            mesh = await running.turn()
            turn = asyncio.ensure_future(waits.turn())
            await settle()
            await rig.service.shutdown(0)
            with pytest.raises(ServiceStopped):
                await turn
            running.ended(ActorDied("gone", mesh=mesh.name))
            with pytest.raises(ServiceStopped, match=r"fake\.0 was shut down while it ran plain"):
                await running.turn()

    asyncio.run(main())


def test_loans_of_a_session_stick_and_parts_of_a_fanout_are_pinned() -> None:
    async def main() -> None:
        async with Rig(num_replicas=3) as rig:
            loans = [lend(rig, session="user-17") for _ in range(4)]
            assert len({await name_of(loan) for loan in loans}) == 1
            parts = [
                Loan(functools.partial(rig.service.lend_part, replica, "batched"))
                for replica in await rig.service.all_up("batched")
            ]
            assert [await name_of(part) for part in parts] == ["fake.0", "fake.1", "fake.2"]
            for loan in [*loans, *parts]:
                loan.ended(None)
            await settle()
            assert numbers(rig) == (0, 7, 0, 0)
            assert [rig.service.staying(n) is None for n in range(4)] == [False, False, False, True]
            await rig.service.scale(1)
            assert rig.service.staying(2) is None

    asyncio.run(main())


class Work:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def test_errands_of_a_process_without_a_sign_of_life_are_given_up() -> None:
    table, silent, alive, done = ErrandTable(), Work(), Work(), Work()
    table.add("silent", 1, silent)
    table.add("silent", 2, done)
    table.add("alive", 1, alive)
    table.remove("silent", 2, done)
    for _ in range(MOST_MISSED):
        table.tick()
        table.heard("alive")
        assert not silent.cancelled
    table.tick()
    assert (silent.cancelled, alive.cancelled, done.cancelled) == (True, False, False)
    table.remove("silent", 1, silent)
    table.tick()
    assert len(table) == 1
    table.heard("silent")  # late
    table.give_up("alive", 2)
    assert not alive.cancelled
    table.give_up("alive", 1)
    assert alive.cancelled


def test_errands_that_nobody_waits_for_any_more_are_given_up() -> None:
    table = ErrandTable()
    works = {number: Work() for number in (1, 2, 3, 7)}
    for number, work in works.items():
        table.add("one", number, work)
    other = Work()
    table.add("other", 2, other)
    table.reconcile("one", 5, [1, 3, 4])
    assert [number for number, work in works.items() if work.cancelled] == [2]  # 7 began later
    table.reconcile("one", 7, [])
    assert all(work.cancelled for work in works.values()) and not other.cancelled
    table.reconcile("unknown", 9, [1])
