"""The driver of story.yaml: trains in rounds, sends the weights to all writers after each, prints what they write."""

import argparse
import asyncio
import time

import forgectl

PROMPTS = ("The ", "A class ")


async def main(rounds: int, steps: int, length: int) -> None:
    """After each round, print the loss and two samples."""
    trainer, writer = forgectl.get("trainer"), forgectl.get("writer")
    began = time.monotonic()
    for number in range(1, rounds + 1):
        losses = await trainer.train.call(steps, of=rounds * steps)
        seen, unseen = losses.get(0)  # each rank has the mean of all
        await writer.load.fanout(await trainer.slice(procs=0).checkpoint.call_one())
        texts = await asyncio.gather(*(writer.write.route(prompt, length) for prompt in PROMPTS))
        seconds = time.monotonic() - began
        print(f"round {number}: train {seen:.3f}, held out {unseen:.3f}, {seconds:.1f} s")
        for text in texts:
            print(f"  {' '.join(text.split())}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40, help="training steps per round")
    parser.add_argument("--length", type=int, default=120, help="characters per sample")
    asyncio.run(main(**vars(parser.parse_args())))
