"""Training steps by turns: `train_by_turns.py MODEL REPEAT RANKS…`, a model as JSON; prints seconds by side as JSON.

A plain loop in an actor of one rank, and a Trainer for each number of ranks, train the same model on the same episodes.
The plain loop's seconds are those of the step alone. A Trainer's are of the whole call, with the episodes on their way.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict
from typing import Any

import torch

from actors import Episode, Trainer
from actors.models import load_model
from forgectl import ForgeActor, endpoint

PLAIN, OURS = "a plain loop", "Trainer of {} rank(s)"
PROMPT, RESPONSE, COUNT = 32, 64, 16
LEARNING_RATE = 1e-5


class PlainLoop(ForgeActor):
    """What one would write by hand: a padded batch, logits of the responses, the clipped loss, AdamW."""

    preload = Trainer.preload

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @endpoint
    def setup(self) -> None:
        """Load the model."""
        self.module = load_model(self.model, dtype="float32", device="cpu").module
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    @endpoint
    def step(self, episodes: list[Episode]) -> tuple[float, float]:
        """Loss, and the seconds of one step."""
        began = time.perf_counter()
        rows = [torch.cat([e.prompt_ids, e.token_ids]) for e in episodes]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        old = torch.nn.utils.rnn.pad_sequence([e.logprobs for e in episodes], batch_first=True)
        lengths = torch.tensor([len(e.token_ids) for e in episodes])
        mask = torch.arange(old.shape[1]) < lengths[:, None]
        logits = self.module(input_ids=ids, logits_to_keep=old.shape[1] + 1).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None])[..., 0]
        ratio = (logprobs - old).exp()
        advantages = torch.tensor([e.advantage for e in episodes])[:, None]
        terms = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        loss = ((terms * mask).sum(1) / lengths).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item(), time.perf_counter() - began


def batch(vocabulary: int) -> list[Episode]:
    """Episodes of random tokens; prompts have equal lengths, so that the plain loop can cut them off."""
    random = torch.Generator().manual_seed(0)
    made = []
    for i in range(COUNT):
        length = RESPONSE // 4 + (i * RESPONSE * 3 // 4) // (COUNT - 1)
        made.append(
            Episode(
                episode_id=str(i),
                group_id=str(i // 4),
                prompt_ids=torch.randint(vocabulary, (PROMPT,), generator=random),
                token_ids=torch.randint(vocabulary, (length,), generator=random),
                loss_mask=torch.ones(length, dtype=torch.bool),
                logprobs=torch.full((length,), -float(torch.tensor(vocabulary).log())),
                reward=float(i % 2),
                advantage=1.0 if i % 2 else -1.0,
                policy_version=0,
            )
        )
    return made


async def main(model: Any, repeat: int, numbers: list[int]) -> None:
    """One step of each side to warm up, whose losses must be equal; then all by turns."""
    episodes = batch(load_model(model, device="cpu").config.vocab_size)
    optimizer = {"lr": LEARNING_RATE}
    plain = await PlainLoop.as_actor(model)
    trainers = {
        ranks: await Trainer.options(procs=ranks, mesh_name=f"trainer{ranks}").as_actor(
            model, optimizer=optimizer, dtype="float32", parallel="ddp"
        )
        for ranks in numbers
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeat + 1):
        loss, took = await plain.step.call_one(episodes)
        seconds[PLAIN].append(took)
        for ranks, trainer in trainers.items():
            began = time.perf_counter()
            result = (await trainer.train_step.call(episodes)).get(0)
            seconds[OURS.format(ranks)].append(time.perf_counter() - began)
            assert abs(result.loss - loss) < 1e-3, (turn, ranks, result.loss, loss)
    print(json.dumps({name: values[1:] for name, values in seconds.items()}))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1]), int(sys.argv[2]), [int(ranks) for ranks in sys.argv[3:]]))
