"""Trains a policy by GRPO: generation and training go on at the same time. See grpo.yaml."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
import uuid
from collections import deque
from dataclasses import replace
from statistics import fmean

from sums import accuracy, example

import forgectl
from actors import SamplingParams, group_episodes

names = ("trainer", "generator", "buffer", "rewards", "reference", "data", "metrics")
trainer, generator, buffer, rewards, reference, data, metrics = map(forgectl.get, names)

parser = argparse.ArgumentParser()
parser.add_argument("--warm-up", type=float, default=0.15, help="begin GRPO when so many sampled answers are right")
parser.add_argument("--until", type=float, default=0.9, help="end when so many are, and also of problems held out")
parser.add_argument("--steps", type=int, default=2000, help="or end after so many steps, those of the warm-up included")
options = parser.parse_args()
GROUP = 8
SAMPLED, BEST = SamplingParams(max_tokens=5), SamplingParams(max_tokens=5, temperature=0)


class Policy:
    """The version of the weights that generators have, and how good their answers are."""

    version, step = 0, 0
    rewards = list[float]()  # since the last step
    recent, held_out = deque[float](maxlen=10), 0.0  # mean rewards of the last steps, and the latest evaluation

    async def publish(self) -> None:
        """Give the trainer's weights to the generators, which go on with their requests."""
        self.version = (await trainer.push_weights.call(wait=True)).get(0)
        with contextlib.suppress(forgectl.ActorDied):  # a replica that starts again loads the latest by itself
            await generator.update_weights.fanout(self.version, source=trainer.slice(procs=0))


async def warm_up(policy: Policy) -> None:
    """Show the trainer right answers until it finds some by itself; where it begins is the reference."""
    while await accuracy(generator, SAMPLED) < options.warm_up:
        for _ in range(10):
            examples = [example(row) for row in await data.batch.call_one(128)]
            await trainer.train_step.call(examples, loss="sft", learning_rate=1e-3)
        await policy.publish()
    await trainer.export.call("grpo-run/reference")
    await save()


async def roll_out(policy: Policy) -> None:
    """Answer prompts for ever, and give the answers with their rewards to the buffer."""
    while True:
        ticket = await buffer.admit.call_one(policy.version)
        try:
            row, group = await data.sample.call_one(), uuid.uuid4().hex
            answers = await generator.generate.route(row["prompt"], replace(SAMPLED, n=GROUP), request_id=group)
            columns = {"answer": [row["answer"]] * GROUP}
            scored = await rewards.reward.call_one([row["prompt"]] * GROUP, [a.text for a in answers], **columns)
            policy.rewards.extend(scored.total)
            await buffer.add.call_one(group_episodes(answers, scored.total, group), ticket)
        finally:
            await buffer.release.call_one(ticket)


async def train(policy: Policy) -> None:
    """Learn until the policy is good enough; where a rank of the trainer dies, go on from the last checkpoint."""
    policy.held_out = await accuracy(generator, BEST)
    print(f"{policy.held_out:.2f} of the problems held out are right before GRPO", flush=True)
    while policy.step < options.steps and min(policy.held_out, fmean(policy.recent or [0])) < options.until:
        try:
            await learn(policy)
        except forgectl.ActorDied as e:
            if e.mesh != "trainer":
                raise
            print(e, flush=True)
            await begin(policy)  # once the ranks are up again; it raises where they may not restart any more


async def learn(policy: Policy) -> None:
    """Take a batch from the buffer, train, and publish."""
    began = time.monotonic()
    batch = await buffer.sample.call_one(policy.version, timeout=None)
    known = await asyncio.gather(*(reference.logprobs.call_one(part) for part in batch))
    batch = [
        [e.replaced(ref_logprobs=k) for e, k in zip(*part, strict=True)] for part in zip(batch, known, strict=True)
    ]
    result = (await trainer.train_step.call(batch)).get(0)
    await policy.publish()
    shown = {**result.metrics, "loss": result.loss, "reward": fmean(policy.rewards or [result.metrics["reward"]])}
    shown["tokens_per_second"] = result.metrics["tokens"] / (time.monotonic() - began)
    policy.step, policy.rewards = result.step, []
    policy.recent.append(shown["reward"])
    if policy.step % 10 == 0:
        policy.held_out = shown["held_out"] = await accuracy(generator, BEST)
        await metrics.log_samples.call_one(policy.step, batch[0][:8])
    await metrics.log.call_one(policy.step, shown)
    if policy.step % 50 == 0:
        await save()


async def save() -> None:
    """Begin to write a checkpoint: the trainer's state, and where the data is."""
    await trainer.save.call({"data": await data.state_dict.call_one()})


async def begin(policy: Policy) -> None:
    """Go on from the last checkpoint, or begin where there is none yet."""
    if not await resume(policy):
        policy.step = 0
        await metrics.resume.call_one(0)
        await warm_up(policy)


async def resume(policy: Policy) -> bool:
    """Go on from the trainer's checkpoint; False if there is none."""
    leader = trainer.slice(procs=0)
    if (extra := await leader.get_extra.call_one()) is None:
        return False
    await data.load_state_dict.call_one(extra["data"])
    policy.step = (await leader.get_status.call_one()).step
    await metrics.resume.call_one(policy.step)
    await policy.publish()
    return True


async def main() -> None:
    policy = Policy()
    await begin(policy)
    await reference.load.call("grpo-run/reference")
    rollouts = asyncio.gather(*(roll_out(policy) for _ in range(64)))
    training = asyncio.ensure_future(train(policy))
    await asyncio.wait([rollouts, training], return_when=asyncio.FIRST_COMPLETED)
    await (training if training.done() else rollouts)
    rollouts.cancel()
    await asyncio.gather(rollouts, return_exceptions=True)
    await save()
    await trainer.export.call("grpo-run/model")
    print(f"see {await metrics.plot.call_one()}", flush=True)


asyncio.run(main())
