"""Trains a language model on right answers, and measures it on problems that are held out. See sft.yaml."""

from __future__ import annotations

import argparse
import asyncio

from sums import example, held_out

import forgectl
from actors import DatasetActor, Generator, MetricLogger, Trainer

trainer = forgectl.get("trainer", Trainer)
generator = forgectl.get("generator", Generator)
data = forgectl.get("data", DatasetActor)
metrics = forgectl.get("metrics", MetricLogger)


async def accuracy() -> float:
    """The share of right answers to the problems that are held out, by the trainer's weights of now."""
    version = (await trainer.push_weights.call(wait=True)).get(0)
    await generator.update_weights.call_one(version, source=trainer.slice(procs=0))
    rows = held_out()
    answers = await asyncio.gather(*(generator.generate.call_one(row["prompt"]) for row in rows))
    return sum(a.text == row["answer"] for [a], row in zip(answers, rows, strict=True)) / len(rows)


async def main(steps: int, every: int, batch: int, until: float) -> None:
    """Train; measure and save every few steps."""
    first = trainer.slice(procs=0)
    step, best = (await first.get_status.call_one()).step, 0.0
    await metrics.resume.call_one(step)
    position = await first.get_extra.call_one()
    if position is not None:  # it goes on from a checkpoint
        await data.load_state_dict.call_one(position)
    while step < steps and best < until:
        rows = await data.batch.call_one(batch)
        result = (await trainer.train_step.call([example(row) for row in rows])).get(0)
        step, shown = result.step, {name: result.metrics[name] for name in ("grad_norm", "learning_rate", "tokens")}
        shown["loss"] = result.loss
        if step % every == 0 or step == steps:
            best = shown["held_out"] = await accuracy()
            await trainer.save.call(await data.state_dict.call_one())
        await metrics.log.call_one(step, shown)
    await trainer.export.call("sft-run/model")
    print(f"see sft-run/model and {await metrics.plot.call_one(['loss', 'held_out'])}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="steps, at most")
    parser.add_argument("--every", type=int, default=50, help="steps from one measurement and checkpoint to the next")
    parser.add_argument("--batch", type=int, default=256, help="examples per step, of all ranks together")
    parser.add_argument("--until", type=float, default=0.98, help="end at this accuracy on problems that are held out")
    asyncio.run(main(**vars(parser.parse_args())))
