"""Trains a policy by GRPO: generation and training go on at the same time. See grpo.yaml."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import uuid
from dataclasses import replace

from sums import example, held_out

import forgectl
from actors import SamplingParams, group_episodes

names = ("trainer", "generator", "buffer", "rewards", "data", "metrics")
trainer, generator, buffer, rewards, data, metrics = map(forgectl.get, names)

parser = argparse.ArgumentParser()
parser.add_argument("--warm-up", type=float, default=0.2, help="begin GRPO when so many sampled answers are right")
parser.add_argument("--steps", type=int, default=400, help="steps of GRPO, at most")
parser.add_argument("--until", type=float, default=0.95, help="end at this accuracy on problems that are held out")
parser.add_argument("--rollouts", type=int, default=64, help="prompts that are answered at a time")
options = parser.parse_args()
GROUP = 8
SAMPLED = SamplingParams(max_tokens=5)
BEST = SamplingParams(max_tokens=5, temperature=0)


class Policy:
    """The version of the weights that generators have, and the rewards of their answers since the last step."""

    version, rewards = 0, list[float]()

    async def publish(self) -> None:
        """Give the trainer's weights to the generators, which go on with their requests."""
        self.version = (await trainer.push_weights.call(wait=True)).get(0)
        await generator.update_weights.fanout(self.version, source=trainer.slice(procs=0))


async def warm_up(policy: Policy) -> None:
    """Show the trainer right answers until it finds some by itself."""
    while await accuracy(SAMPLED) < options.warm_up:
        for _ in range(10):
            examples = [example(row) for row in await data.batch.call_one(128)]
            await trainer.train_step.call(examples, loss="sft", learning_rate=1e-3)
        await policy.publish()


async def roll_out(policy: Policy) -> None:
    """Answer prompts for ever, and give the answers with their rewards to the buffer."""
    while True:
        ticket = await buffer.admit.call_one(policy.version)
        try:
            row, group = await data.sample.call_one(), uuid.uuid4().hex
            answers = await generator.generate.route(row["prompt"], replace(SAMPLED, n=GROUP), request_id=group)
            prompts, columns = [row["prompt"]] * GROUP, {"answer": [row["answer"]] * GROUP}
            scored = await rewards.reward.call_one(prompts, [a.text for a in answers], **columns)
            policy.rewards.extend(scored.total)
            await buffer.add.call_one(group_episodes(answers, scored.total, group), ticket)
        finally:
            await buffer.release.call_one(ticket)


async def accuracy(how: SamplingParams = BEST) -> float:
    """The share of right answers to the problems that are held out."""
    rows = held_out()
    answers = await asyncio.gather(*(generator.generate.route(row["prompt"], how) for row in rows))
    return sum(a.text == row["answer"] for [a], row in zip(answers, rows, strict=True)) / len(rows)


async def train(policy: Policy) -> None:
    """Learn until the policy is good enough; where a rank of the trainer dies, go on from the last checkpoint."""
    while True:
        try:
            return await learn(policy)
        except forgectl.ActorDied as e:
            if e.mesh != "trainer":
                raise
            print(e, flush=True)
            await resume(policy)  # once the ranks are up again; it raises where they may not restart any more


async def learn(policy: Policy) -> None:
    """Take batches from the buffer, train, and publish."""
    done = (await trainer.slice(procs=0).get_status.call_one()).step
    print(f"{await accuracy():.2f} of the problems held out are right before step {done + 1}", flush=True)
    for step in range(done + 1, done + options.steps + 1):
        began = time.monotonic()
        batch = await buffer.sample.call_one(policy.version, timeout=None)
        result = (await trainer.train_step.call(batch)).get(0)
        await policy.publish()
        shown = {**result.metrics, "tokens_per_second": result.metrics["tokens"] / (time.monotonic() - began)}
        shown["reward"] = statistics.fmean(policy.rewards or [result.metrics["reward"]])
        policy.rewards.clear()
        if step % 10 == 0:
            shown["held_out"] = await accuracy()
            await metrics.log_samples.call_one(step, batch[0][:8])
        await metrics.log.call_one(step, shown)
        if step % 50 == 0:
            await save()
        if shown.get("held_out", 0) >= options.until:
            return


async def save() -> None:
    """Begin to write a checkpoint: the trainer's state, and where the data is."""
    await trainer.save.call({"data": await data.state_dict.call_one()})


async def resume(policy: Policy) -> bool:
    """Go on from the trainer's checkpoint; False if there is none."""
    leader = trainer.slice(procs=0)
    if (extra := await leader.get_extra.call_one()) is None:
        return False
    await data.load_state_dict.call_one(extra["data"])
    await metrics.resume.call_one((await leader.get_status.call_one()).step)
    await policy.publish()
    return True


async def main() -> None:
    policy = Policy()
    if not await resume(policy):
        await warm_up(policy)
        await save()
    rollouts = asyncio.gather(*(roll_out(policy) for _ in range(options.rollouts)))
    training = asyncio.ensure_future(train(policy))
    await asyncio.wait([rollouts, training], return_when=asyncio.FIRST_COMPLETED)
    await (training if training.done() else rollouts)
    rollouts.cancel()
    await asyncio.gather(rollouts, return_exceptions=True)
    await trainer.export.call("grpo-run/model")
    print(f"see {await metrics.plot.call_one()}", flush=True)


asyncio.run(main())
