"""A script with actors on a GPU, in a process that has used CUDA itself. Prints what came of it as JSON."""

from __future__ import annotations

import asyncio
import json

import torch

from forgectl import ForgeActor, endpoint


class OnGpu(ForgeActor):
    def __init__(self) -> None:
        self.weights = torch.arange(1 << 20, dtype=torch.float32, device="cuda")

    @endpoint
    async def give(self) -> torch.Tensor:
        return self.weights

    @endpoint
    def add(self, other: torch.Tensor) -> tuple[str, torch.Tensor]:
        """In the thread of plain endpoints: where the argument is, and the sum."""
        return str(other.device), self.weights + other


async def main() -> None:
    own = torch.ones(1 << 20, device="cuda")
    torch.cuda.synchronize()
    actor = await OnGpu.options(with_gpus=True).as_actor()
    given = await actor.give.call_one()
    there, added = await actor.add.call_one(own)
    expected = torch.arange(1 << 20, dtype=torch.float32)
    found = {
        "given": str(given.device),
        "argument": there,
        "equal": torch.equal(given.cpu(), expected) and torch.equal(added.cpu(), expected + 1),
    }
    print(json.dumps(found), flush=True)
    await actor.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
