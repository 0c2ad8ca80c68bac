"""Wrong uses. Each marked line must be an error of mypy and of pyright with the codes that follow; others must not be.

test_types.py has both look at it; nothing runs it.
"""

from __future__ import annotations

from right_uses import Counter, Small

import forgectl
from forgectl import ForgeActor, endpoint, service_endpoint


async def calls() -> None:
    counter = await Counter.options(procs=4).as_actor(start=1)
    await counter.add.call("two")  # wrong: arg-type, reportArgumentType
    await counter.add.call(1, 2)  # wrong: call-arg, reportCallIssue
    await counter.add.call()  # wrong: call-arg, reportCallIssue
    await counter.add.call(j=1)  # wrong: call-arg, reportCallIssue
    await counter.ad.call(1)  # wrong: attr-defined, reportAttributeAccessIssue
    await counter.add.cal(1)  # wrong: attr-defined, reportAttributeAccessIssue
    await counter.add.call_one("two")  # wrong: arg-type, reportArgumentType
    await counter.add.choose("two")  # wrong: arg-type, reportArgumentType
    counter.add.broadcast("two")  # wrong: arg-type, reportArgumentType
    async for _ in counter.add.stream("two"):  # wrong: arg-type, reportArgumentType
        pass
    await counter.plain.call("a", 2)  # wrong: call-arg, reportCallIssue
    await counter.wait.call(3)  # wrong: arg-type, reportArgumentType
    (await counter.add.call_one(1)).upper()  # wrong: attr-defined, reportAttributeAccessIssue
    (await counter.plain.call("a")).get(0).keys()  # wrong: attr-defined, reportAttributeAccessIssue
    await counter.lengths.call("word")  # wrong: arg-type, reportArgumentType
    await counter.steps.call()  # wrong: attr-defined, reportAttributeAccessIssue
    counter.steps.stream(1)  # wrong: call-arg, reportCallIssue
    await counter.not_an_endpoint.call()  # wrong: attr-defined, reportAttributeAccessIssue


async def of_services() -> None:
    service = await Counter.options(num_replicas=2).as_service(start=1)
    await service.add.route("two")  # wrong: call-overload, reportArgumentType
    await service.add.route(1, 2)  # wrong: call-overload, reportCallIssue
    await service.add.fanout("two")  # wrong: arg-type, reportArgumentType
    (await service.add.fanout(1)).upper()  # wrong: attr-defined, reportAttributeAccessIssue
    await service.ad.route(1)  # wrong: attr-defined, reportAttributeAccessIssue


async def launches() -> None:
    await Counter.as_actor(strt=1)  # wrong: call-arg, reportCallIssue
    await Counter.as_actor("one")  # wrong: arg-type, reportArgumentType
    await Counter.options(procs=2).as_actor(strt=1)  # wrong: call-arg, reportCallIssue
    await Counter.options(procs=2).options(hosts=1).as_service(1, 2)  # wrong: call-arg, reportCallIssue
    await Small.as_actor()  # wrong: call-arg, reportCallIssue
    await Small.options(procs=2).as_service(1, 2)  # wrong: call-arg, reportCallIssue


def options() -> None:
    Counter.options(prcs=1)  # wrong: call-overload, reportCallIssue
    Counter.options(procs="4")  # wrong: call-overload, reportArgumentType
    Counter.options(hosts="gpu01")  # wrong: call-overload, reportArgumentType
    Counter.options(start_method="forkserver")  # wrong: call-overload, reportArgumentType
    Counter.options(env={"A": 1})  # wrong: dict-item, reportArgumentType
    Counter.options(4)  # wrong: call-overload, reportCallIssue


async def handles() -> None:
    counter = await Counter.as_actor()
    counter.options(timeot=1)  # wrong: call-overload, reportCallIssue
    counter.slice(hosts=1)  # wrong: call-arg, reportCallIssue
    counter.slice(procs="0")  # wrong: arg-type, reportArgumentType
    await counter.shutdown(grac=1)  # wrong: call-overload, reportCallIssue
    counter.add(1).get()  # wrong: attr-defined, reportAttributeAccessIssue


class Wrong(ForgeActor):
    @endpoint(concurrent=True)  # wrong: arg-type, reportArgumentType
    def plain(self) -> None: ...

    @service_endpoint(batch_size=2)  # wrong: arg-type, reportCallIssue
    def one_by_one(self, word: str) -> int:
        return len(word)

    @endpoint
    async def add(self, k: int) -> int:
        return k

    @endpoint
    async def use(self) -> None:
        await self.add("two")  # wrong: arg-type, reportArgumentType
        self.mesh.add.call("two")  # wrong: arg-type, reportArgumentType


def of_a_spec() -> None:
    forgectl.get("counter", Counter).ad.call(1)  # wrong: attr-defined, reportAttributeAccessIssue
    forgectl.gt("counter")  # wrong: attr-defined, reportAttributeAccessIssue
