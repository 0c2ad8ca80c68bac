"""Trains a policy by GRPO: generation and training go on at the same time. See grpo.yaml."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import uuid
from dataclasses import replace

import torch
from sums import TOKENIZER, held_out

import forgectl
from actors import (
    DatasetActor,
    Episode,
    Generator,
    MetricLogger,
    ReplayBuffer,
    RewardActor,
    SamplingParams,
    Trainer,
    demonstration,
)
from actors.advantages import advantages

trainer = forgectl.get("trainer", Trainer)
generator = forgectl.get("generator", Generator)
buffer = forgectl.get("buffer", ReplayBuffer)
rewards = forgectl.get("rewards", RewardActor)
data = forgectl.get("data", DatasetActor)
metrics = forgectl.get("metrics", MetricLogger)

parser = argparse.ArgumentParser()
parser.add_argument("--warm-up", type=float, default=0.1, help="begin GRPO when so many sampled answers are right")
parser.add_argument("--steps", type=int, default=400, help="steps of GRPO, at most")
parser.add_argument("--until", type=float, default=0.95, help="end at this accuracy on problems that are held out")
parser.add_argument("--rollouts", type=int, default=64, help="prompts that are answered at a time")
options = parser.parse_args()
GROUP = 8
SAMPLED = SamplingParams(max_tokens=5)
BEST = SamplingParams(max_tokens=5, temperature=0)


class Policy:
    """The version of the weights that generators have."""

    version = 0

    def __init__(self) -> None:
        self.rewards: list[float] = []  # of all answers since the last step, also of those that teach nothing

    async def publish(self) -> None:
        """Give the trainer's weights to the generators, which go on with their requests."""
        self.version = (await trainer.push_weights.call(wait=True)).get(0)
        await generator.update_weights.fanout(self.version, source=trainer.slice(procs=0))


async def resume() -> None:
    """Go on after the checkpoint that the trainer has loaded, if there was one."""
    first = trainer.slice(procs=0)
    await metrics.resume.call_one((await first.get_status.call_one()).step)
    position = await first.get_extra.call_one()
    if position is not None:
        await data.load_state_dict.call_one(position)


async def warm_up(policy: Policy) -> None:
    """Show the trainer right answers until it finds some by itself."""
    while await accuracy(SAMPLED) < options.warm_up:
        for _ in range(10):
            rows = await data.batch.call_one(128)
            examples = [demonstration(tokens(row["prompt"]), tokens(row["answer"], ends=True)) for row in rows]
            await trainer.train_step.call(examples, loss="sft", learning_rate=1e-3)
        await policy.publish()


def tokens(text: str, *, ends: bool = False) -> torch.Tensor:
    return torch.tensor([*TOKENIZER.encode(text, start=not ends), *(TOKENIZER.end_ids if ends else ())])


async def roll_out(policy: Policy) -> None:
    """Answer prompts for ever, and give the answers with their rewards to the buffer."""
    while True:
        ticket = await buffer.admit.call_one(policy.version)
        try:
            row = await data.sample.call_one()
            group = uuid.uuid4().hex
            answers = await generator.generate.route(row["prompt"], replace(SAMPLED, n=GROUP), request_id=group)
            prompts, columns = [row["prompt"]] * GROUP, {"answer": [row["answer"]] * GROUP}
            scored = await rewards.reward.call_one(prompts, [a.text for a in answers], **columns)
            policy.rewards += scored.total
            better = advantages([scored.total])[0].tolist()
            each = zip(answers, scored.total, better, strict=True)
            episodes = [
                Episode.of(a, episode_id=f"{group}-{i}", group_id=group, reward=reward, advantage=advantage)
                for i, (a, reward, advantage) in enumerate(each)
            ]
            await buffer.add.call_one(episodes, ticket)
        finally:
            await buffer.release.call_one(ticket)


async def accuracy(how: SamplingParams = BEST) -> float:
    """The share of right answers to the problems that are held out."""
    rows = held_out()
    answers = await asyncio.gather(*(generator.generate.route(row["prompt"], how) for row in rows))
    return sum(a.text == row["answer"] for [a], row in zip(answers, rows, strict=True)) / len(rows)


async def train(policy: Policy) -> None:
    """Learn from the buffer until the policy is good enough."""
    status = await trainer.slice(procs=0).get_status.call_one()
    print(f"{await accuracy():.2f} of the problems held out are right before GRPO", flush=True)
    began, sampled = time.monotonic(), 0
    for step in range(status.step + 1, status.step + options.steps + 1):
        batch = await buffer.sample.call_one(policy.version, timeout=None)
        result = (await trainer.train_step.call(batch)).get(0)
        await policy.publish()
        episodes = [episode for share in batch for episode in share]
        sampled += sum(len(episode.token_ids) for episode in episodes)
        shown = {**result.metrics, "tokens_per_second": sampled / (time.monotonic() - began)}
        if policy.rewards:
            shown["reward"] = statistics.fmean(policy.rewards)
            policy.rewards.clear()
        if step % 10 == 0:
            shown["held_out"] = await accuracy()
            await metrics.log_samples.call_one(step, episodes[:8])
        if step % 50 == 0:
            await trainer.save.call(await data.state_dict.call_one())
        await metrics.log.call_one(step, shown)
        if shown.get("held_out", 0) >= options.until:
            break


async def main() -> None:
    policy = Policy()
    await resume()
    await policy.publish()
    await warm_up(policy)
    tasks = [
        asyncio.ensure_future(task) for task in (train(policy), *(roll_out(policy) for _ in range(options.rollouts)))
    ]
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()  # raises what it raised
    await trainer.export.call("grpo-run/model")
    panels = [["reward", "held_out"], ["policy_age_mean", "policy_age_max"], "mismatch_kl", "tokens_per_second"]
    print(f"see {await metrics.plot.call_one(panels)}", flush=True)


asyncio.run(main())
