"""GRPO by the actors: `grpo_by_forgectl.py WHAT` with a Job as JSON as its input; prints JSON.

warm-up: shows a new model right answers, and writes it to `job.model`; both sides begin with it. complete: completions
of the first step's prompts, and the Record of steps on them. train: the Record of the loop of
docs/reinforcement-learning.md.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import sys
import time
import uuid
from typing import Any

import torch
from grpo_by_trl import Job, Record, correct

from actors import (
    CharacterTokenizer,
    DatasetActor,
    Episode,
    Generator,
    ReplayBuffer,
    RewardActor,
    SamplingParams,
    StepResult,
    Trainer,
    demonstration,
    group_episodes,
)
from actors.models import Model

SMALL: dict[str, Any] = {
    "characters": "0123456789+=",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "seed": 0,
}
RANKS = REPLICAS = 2


class Loop:
    """The actors, and the version of the weights that the generators have."""

    trainer: Trainer
    generator: Generator
    rewards: RewardActor
    data: DatasetActor
    buffer: ReplayBuffer
    version = 0

    def __init__(self, job: Job) -> None:
        self.job, self.record = job, Record()
        self.sampled = SamplingParams(n=job.group, max_tokens=job.max_tokens)

    async def start_trainer(self, model: Model) -> None:
        loss = {"kind": self.job.loss, "epsilon_high": 0.28, "dual_clip": 3.0}
        loss["mask_truncated"] = self.job.mask_truncated
        if self.job.loss == "dr_grpo":
            loss["max_tokens"] = self.job.max_tokens
        self.trainer = await Trainer.options(procs=RANKS).as_actor(
            model, loss=loss, optimizer={"lr": self.job.learning_rate}, parallel="ddp", weights="policy"
        )

    async def start_others(self) -> None:
        job, count = self.job, self.job.prompts * self.job.group
        self.generator = await Generator.options(num_replicas=REPLICAS, router="least_loaded").as_service(
            job.model, weights="policy", max_batch=count, seed=job.seed
        )
        self.rewards = await RewardActor.as_actor([correct])
        self.data = await DatasetActor.as_actor(job.data, shuffle=False)
        self.buffer = await ReplayBuffer.as_actor(
            batch_size=count // RANKS, dp_size=RANKS, group_size=job.group, max_policy_age=job.max_policy_age
        )

    async def publish(self) -> None:
        self.version = (await self.trainer.push_weights.call(wait=True)).get(0)
        await self.generator.update_weights.fanout(self.version, source=self.trainer.slice(procs=0))

    async def groups(self, count: int) -> list[list[Episode]]:
        """Answers to the next prompts, with their rewards."""
        rows = await self.data.batch.call_one(count)
        names = [uuid.uuid4().hex for _ in rows]
        requests = [
            self.generator.generate.route(row["prompt"], self.sampled, request_id=name)
            for row, name in zip(rows, names, strict=True)
        ]
        groups = await asyncio.gather(*requests)
        every = [(row, answer.text) for row, answers in zip(rows, groups, strict=True) for answer in answers]
        columns = {"answer": [row["answer"] for row, _ in every]}
        scored = await self.rewards.reward.call_one(
            [row["prompt"] for row, _ in every], [t for _, t in every], **columns
        )
        totals, size = scored.total, self.job.group
        return [
            group_episodes(answers, totals[i * size : (i + 1) * size], name)
            for i, (answers, name) in enumerate(zip(groups, names, strict=True))
        ]

    async def roll_out(self) -> None:
        while True:
            ticket = await self.buffer.admit.call_one(self.version)
            assert ticket is not None
            try:
                [group] = await self.groups(1)
                await self.buffer.add.call_one(group, ticket)
            except BaseException:
                await self.buffer.release.call_one(ticket)
                raise

    async def batch(self) -> Any:
        """What the next step trains on: answers of the present weights, or those that have come to the buffer."""
        if self.job.max_policy_age == 0:
            return [episode for group in await self.groups(self.job.prompts) for episode in group]
        batch = await self.buffer.sample.call_one(self.version, timeout=None)
        assert batch is not None
        return batch

    async def learn(self) -> None:
        ends = list[float]()
        for _ in range(self.job.steps):
            await self.step(await self.batch())
            await self.publish()
            ends.append(time.perf_counter())
        self.record.seconds.extend(after - before for before, after in itertools.pairwise(ends))

    async def step(self, episodes: Any) -> None:
        result: StepResult = (await self.trainer.train_step.call(episodes)).get(0)
        self.record.rewards.append(result.metrics["reward"])
        self.record.losses.append(result.loss)
        self.record.norms.append(result.metrics["grad_norm"])


async def warm_up(job: Job) -> dict[str, int]:
    tokenizer, loop = CharacterTokenizer(SMALL["characters"]), Loop(job)
    await loop.start_trainer(SMALL)
    data = await DatasetActor.as_actor(job.data)
    for _ in range(job.steps):
        examples = [
            demonstration(
                torch.tensor(tokenizer.encode(row["prompt"])),
                torch.tensor([*tokenizer.encode(row["answer"]), *tokenizer.end_ids]),
            )
            for row in await data.batch.call_one(128)
        ]
        await loop.trainer.train_step.call(examples, loss="sft", learning_rate=1e-3)
    await loop.trainer.export.call(job.model)
    return {"steps": job.steps}


async def complete(job: Job) -> dict[str, Any]:
    loop = Loop(job)
    await loop.start_trainer(job.model)
    await loop.start_others()
    episodes = await loop.batch()
    for _ in range(job.steps):
        await loop.step(episodes)
    completions = {
        "prompt_ids": [e.prompt_ids.tolist() for e in episodes],
        "completion_ids": [e.token_ids.tolist() for e in episodes],
        "logprobs": [e.logprobs.tolist() for e in episodes],
    }
    return {"completions": completions, **dataclasses.asdict(loop.record)}


async def train(job: Job) -> dict[str, Any]:
    loop = Loop(job)
    await loop.start_trainer(job.model)
    await loop.start_others()
    await loop.publish()
    count = 2 * job.prompts if job.max_policy_age else 0
    rollouts = [asyncio.ensure_future(loop.roll_out()) for _ in range(count)]
    learning = asyncio.ensure_future(loop.learn())
    ended, going_on = await asyncio.wait([learning, *rollouts], return_when=asyncio.FIRST_COMPLETED)
    for task in going_on:
        task.cancel()
    await asyncio.gather(*going_on, return_exceptions=True)
    for task in ended:
        task.result()
    return dataclasses.asdict(loop.record)


if __name__ == "__main__":
    what = {"warm-up": warm_up, "complete": complete, "train": train}[sys.argv[1]]
    print(json.dumps(asyncio.run(what(Job(**json.load(sys.stdin))))))
