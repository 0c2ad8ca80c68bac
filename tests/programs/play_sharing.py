"""What test_shared_gpus.py has scripts do."""

from __future__ import annotations

import os
from typing import Any

from forgectl import ForgeActor, endpoint
from forgectl.actor.foreign_mesh import ForeignMesh
from forgectl.actor.handle import ActorHandle
from forgectl.actor.origin import Origin
from forgectl.errors import UsageError
from players import Counter
from playing import own_run, play, raised

Plain = Counter.options(preload=[])
NAME = "CUDA_VISIBLE_DEVICES"


class Sees(ForgeActor):
    @endpoint
    async def gpus(self) -> str:
        return os.environ.get(NAME, "none")


Seer = Sees.options(preload=[])


class Boss(ForgeActor):
    @endpoint
    async def seen(self, owner: Any) -> list[str]:
        """What a mesh sees that this actor launches on the GPUs of `owner`, and a service."""
        mesh = await Seer.options(share_gpus_with=owner, mesh_name="of-boss").as_actor()
        service = await Seer.options(share_gpus_with=owner, mesh_name="serves-boss").as_service()
        return [await mesh.gpus.call_one(), await service.gpus.route()]

    @endpoint
    async def shares_with_a_stranger(self, owner: Any) -> None:
        await Seer.options(share_gpus_with=owner).as_actor()


async def shares_by_name_and_by_handle() -> None:
    owner = await Seer.options(procs=3, with_gpus=True, mesh_name="owner").as_actor()
    named = await Seer.options(procs=3, share_gpus_with="owner").as_actor()
    handed = await Seer.options(procs=2, share_gpus_with=owner.slice(procs=1)).as_actor()
    chained = await Seer.options(share_gpus_with=handed).as_actor()
    alone = await Seer.options(with_gpus=True).as_actor()
    for handle, seen in ((owner, "0,1,2"), (named, "0,1,2"), (handed, "0,1"), (chained, "0"), (alone, "3")):
        assert set((await handle.gpus.call()).values()) == {seen}
    service = await Seer.options(share_gpus_with=owner, num_replicas=2, mesh_name="both").as_service()
    assert sorted(await service.gpus.fanout()) == ["0", "1"]
    assert await (await Boss.options(preload=[]).as_actor()).seen.call_one(owner) == ["0", "0"]
    await owner.shutdown()
    error = await raised(UsageError, Seer.options(share_gpus_with="owner").as_actor())
    assert "owner, which has ended" in error.message
    again = await Seer.options(share_gpus_with=named).as_actor()  # its GPUs are leased as long as it lives
    assert await again.gpus.call_one() == "0"
    error = await raised(UsageError, Seer.options(procs=2, share_gpus_with="nobody").as_actor())
    assert "nobody, which does not run in this run" in error.message


async def is_refused_without_gpus() -> None:
    plain: Any = await Plain.as_actor()
    error = await raised(UsageError, Plain.options(share_gpus_with=plain).as_actor())
    assert "counter, which has none" in error.message
    mesh = plain._mesh.foreign()
    there = Origin("other-1234", *(getattr(own_run().origin, name) for name in ("machine", "folder", "agent")))
    other = ActorHandle(ForeignMesh("theirs", mesh.interface, 1, there, 0, ("",)))
    error = await raised(UsageError, Plain.options(share_gpus_with=other).as_actor())
    assert "theirs, a mesh of run other-1234" in error.message
    assert own_run().run.run in error.message
    boss = await Boss.options(preload=[]).as_actor()
    error = await raised(UsageError, boss.shares_with_a_stranger.call_one(other))
    assert "theirs, a mesh of run other-1234" in error.message
    await raised(ValueError, Plain.options(share_gpus_with=plain, with_gpus=True).as_actor())


if __name__ == "__main__":
    play(globals())
