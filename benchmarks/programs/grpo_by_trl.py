"""GRPO by TRL's GRPOTrainer: `grpo_by_trl.py` with a Job as JSON as its input; prints a Record as JSON.

It runs in an environment that has TRL. The other side, grpo_by_forgectl.py, imports Job, Record and the reward function
from here.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What both sides train: the same model, prompts in the same order, reward, loss and hyperparameters."""

    model: str
    """A folder of Hugging Face."""
    data: str
    """A file of rows with `prompt` and `answer`, which both take in order."""
    steps: int
    seed: int = 0
    prompts: int = 32
    """Prompts of a step."""
    group: int = 8
    """Completions of a prompt."""
    max_tokens: int = 5
    learning_rate: float = 3e-4
    loss: str = "dapo"
    mask_truncated: bool = True
    completions: dict[str, list[Any]] | None = None
    """Lists of prompt_ids, completion_ids and logprobs, of the first prompts in order: all steps train on these."""
    max_policy_age: int = 0
    """0: generate, then train. Above: both at once. TRL has the former alone."""
    threads: int = 2
    """Of TRL's process."""


@dataclass(frozen=True)
class Record:
    """What one training run measured, step by step."""

    rewards: list[float] = field(default_factory=list)
    """Mean over the completions of a step."""
    seconds: list[float] = field(default_factory=list)
    """From the end of one step to the end of the next; the first is left out."""
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Of the gradients, before they are clipped."""


def correct(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 for the right answer, else 0."""
    return [float(given == right) for given, right in zip(completions, answer, strict=True)]


def main(job: Job) -> Record:
    """Train."""
    import datasets
    import torch
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(job.threads)
    record, ends = Record(), []

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "grad_norm" in logs:
                record.norms.append(logs["grad_norm"])

    class Recorded(GRPOTrainer):  # type: ignore[misc]
        def _compute_loss(self, *arguments: Any) -> Any:
            loss = super()._compute_loss(*arguments)
            record.losses.append(loss.item())
            return loss

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        values = correct(completions, answer)
        record.rewards.append(sum(values) / len(values))
        return values

    with tempfile.TemporaryDirectory() as folder:
        rows = [json.loads(line) for line in Path(job.data).read_text().splitlines()]
        config = GRPOConfig(
            output_dir=folder,
            seed=job.seed,
            max_steps=job.steps,
            per_device_train_batch_size=job.prompts * job.group,
            gradient_accumulation_steps=1,
            num_generations=job.group,
            num_iterations=1 if job.completions is None else job.steps,
            max_completion_length=job.max_tokens,
            temperature=1.0,
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            shuffle_dataset=False,
            # as the losses of `actors.losses`, with the options that "dapo" has there
            loss_type=job.loss,
            epsilon=0.2,
            epsilon_high=0.28,
            delta=3.0,
            mask_truncated_completions=job.mask_truncated,
            beta=0.0,
            # what serves a large model on a GPU, and only costs here
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1 if job.completions is not None else 10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Recorded(
            model=job.model,
            reward_funcs=reward,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            callbacks=[Recorder()],
            rollout_func=None if job.completions is None else lambda prompts, trainer: dict(job.completions or {}),
        )
        trainer.train()
    record.seconds.extend(after - before for before, after in itertools.pairwise(ends))
    return record


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(main(Job(**json.load(sys.stdin))))))
