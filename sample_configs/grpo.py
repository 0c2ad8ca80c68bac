"""Trains a policy by GRPO: generation and training go on at the same time. See grpo.yaml and grpo_smollm.yaml.

The module of a task (sums.py, brevity.py) has `held_out()`, rows for evaluation alone; SAMPLED and BEST, how to sample
for training and for evaluation; and `example(row)` where there is a warm-up. The spec names its rows and its rewards.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import forgectl
from actors import Completion, SamplingParams, StaleBatch, group_episodes

names = ("trainer", "generator", "buffer", "rewards", "reference", "data", "metrics")
trainer, generator, buffer, rewards, reference, data, metrics = map(forgectl.get, names)

parser = argparse.ArgumentParser()
parser.add_argument("--task", default="sums", help="the module that has the task")
parser.add_argument("--folder", default="grpo-run", help="where the models go")
parser.add_argument("--warm-up", type=float, default=0.15, help="begin GRPO at this reward of sampled answers")
parser.add_argument("--until", type=float, default=0.9, help="end at this reward, also on prompts that are held out")
parser.add_argument("--steps", type=int, default=2000, help="or end after so many steps, those of the warm-up included")
parser.add_argument("--evaluate", type=int, default=10, help="steps from one evaluation to the next")
parser.add_argument("--save", type=int, default=50, help="steps from one checkpoint to the next")
parser.add_argument("--show", type=int, default=0, help="print so many answers before GRPO and at the end")
options = parser.parse_args()
task = importlib.import_module(options.task)
GROUP = 8


class Policy:
    """The version of the weights that generators have, and how good their answers are."""

    version, step = 0, 0
    rewards = list[float]()  # since the last step
    recent, held_out = deque[float](maxlen=10), 0.0  # mean rewards of the last steps, and of the latest evaluation

    async def publish(self) -> None:
        """Give the trainer's weights to the generators, which go on with their requests."""
        self.version = (await trainer.push_weights.call(wait=True)).get(0)
        with contextlib.suppress(forgectl.ActorDied):  # a replica that starts again loads the latest by itself
            await generator.update_weights.fanout(self.version, source=trainer.slice(procs=0))


async def scores(rows: Sequence[dict[str, Any]], answers: Sequence[Completion]) -> list[float]:
    """The reward of each answer to its row's prompt; the functions get the row's other columns by name."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    scored = await rewards.reward.call_one([row["prompt"] for row in rows], [a.text for a in answers], **columns)
    return list(scored.total)


async def evaluate(how: SamplingParams, show: int = 0) -> float:
    """The mean reward of answers to the prompts that are held out; the first few are printed."""
    rows = task.held_out()
    answers = [a for [a] in await asyncio.gather(*(generator.generate.route(row["prompt"], how) for row in rows))]
    found = await scores(rows, answers)
    for row, answer, score in list(zip(rows, answers, found, strict=True))[:show]:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        print(f"{score:.2f}  {prompt}  {answer.text!r}", flush=True)
    return fmean(found)


async def warm_up(policy: Policy) -> None:
    """Show the trainer right answers until it finds some by itself; where it begins is the reference."""
    await policy.publish()
    while options.warm_up and await evaluate(task.SAMPLED) < options.warm_up:
        for _ in range(5):
            examples = [task.example(row) for row in await data.batch.call_one(128)]
            await trainer.train_step.call(examples, loss="sft", learning_rate=1e-3)
        await policy.publish()
    await trainer.export.call(f"{options.folder}/reference")
    await save()


async def roll_out(policy: Policy) -> None:
    """Answer prompts for ever, and give the answers with their rewards to the buffer."""
    while True:
        ticket = await buffer.admit.call_one(policy.version)
        try:
            row, group = await data.sample.call_one(), uuid.uuid4().hex
            answers = await generator.generate.route(row["prompt"], replace(task.SAMPLED, n=GROUP), request_id=group)
            scored = await scores([row] * GROUP, answers)
            policy.rewards.extend(scored)
            await buffer.add.call_one(group_episodes(answers, scored, group), ticket)
        except BaseException:
            await buffer.release.call_one(ticket)
            raise


async def train(policy: Policy) -> None:
    """Learn until the policy is good enough; where a rank of the trainer dies, go on from the last checkpoint."""
    policy.held_out = await evaluate(task.BEST, options.show)
    print(f"reward {policy.held_out:.2f} on the prompts that are held out", flush=True)
    while True:
        try:
            while policy.step < options.steps and min(policy.held_out, fmean(policy.recent or [0])) < options.until:
                await learn(policy)
            await save()
            await trainer.export.call(f"{options.folder}/model")
            return
        except (forgectl.ActorDied, StaleBatch) as e:  # a rank of the trainer died, in a call or between two
            if isinstance(e, forgectl.ActorDied) and e.mesh != "trainer":
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
    result = (await trainer.train_step.call(batch, version=policy.version)).get(0)
    await policy.publish()
    shown = {**result.metrics, "loss": result.loss, "reward": fmean(policy.rewards or [result.metrics["reward"]])}
    shown["tokens_per_second"] = result.metrics["tokens"] / (time.monotonic() - began)
    if result.step <= policy.step:  # the trainer died before it published, and went on from its checkpoint
        await metrics.resume.call_one(result.step - 1)
    policy.step, policy.rewards = result.step, []
    policy.recent.append(shown["reward"])
    if policy.step % options.evaluate == 0:
        policy.held_out = shown["held_out"] = await evaluate(task.BEST)
        await metrics.log_samples.call_one(policy.step, batch[0][:8])
    await metrics.log.call_one(policy.step, shown)
    if policy.step % options.save == 0:
        await save()


async def save() -> None:
    """Begin to write a checkpoint: the trainer's state, and where the data is."""
    await trainer.save.call({"data": await data.state_dict.call_one()})


async def begin(policy: Policy) -> None:
    """Go on from the last checkpoint, or begin where there is none yet; how good the policy is must show again."""
    policy.recent.clear()
    policy.held_out = 0.0
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
    await reference.load.call(f"{options.folder}/reference")
    rollouts = asyncio.gather(*(roll_out(policy) for _ in range(64)))
    training = asyncio.ensure_future(train(policy))
    await asyncio.wait([rollouts, training], return_when=asyncio.FIRST_COMPLETED)
    await (training if training.done() else rollouts)
    rollouts.cancel()
    await asyncio.gather(rollouts, return_exceptions=True)
    print(f"reward {await evaluate(task.BEST, options.show):.2f} on the prompts that are held out", flush=True)
    print(f"see {await metrics.plot.call_one()}", flush=True)


asyncio.run(main())
