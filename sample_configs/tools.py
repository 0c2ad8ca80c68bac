"""The driver of tools.yaml: a model solves sums with a Python interpreter as its tool, and its episodes are printed."""

import argparse
import asyncio
import re
from typing import Any

from transformers import AutoTokenizer

import forgectl
from actors import SamplingParams, TemplateChat, rollout
from actors.environments import ToolCall
from actors.rewards import last_number

QUESTIONS = {
    "What is 123 * 456?": 56088,
    "What is the sum of the first 50 squares?": 42925,
    "What is 2 to the 31st?": 2**31,
}


def programs(text: str) -> list[ToolCall]:
    """The Python programs in a response: so small a model does not write <tool_call>, which `rollout` expects."""
    return [ToolCall("python", {"code": code}) for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


class PythonProblems:
    """A question with one right number, and a Python interpreter to find it with."""

    def __init__(self, sandbox: Any) -> None:
        self._sandbox = sandbox

    def reset(self, prompt: str, answer: int) -> None:
        """Begin with another question."""
        self._answer, self._output = answer, ""

    async def python(self, code: str) -> str:
        """Run a Python program; returns what it prints.

        Args:
            code: The whole program. It prints its result.
        """
        result = await self._sandbox.execute.route(code)
        self._output = result.stdout + result.stderr
        return self._output or "(no output)"

    def get_reward(self) -> float:
        """1 if the last program printed the answer."""
        return float(last_number(self._output) == self._answer)


async def main(model: str, samples: int) -> None:
    """Let the model answer each question a few times, all at once."""
    generator, sandbox = forgectl.get("generator"), forgectl.get("sandbox")
    chat = TemplateChat(AutoTokenizer.from_pretrained(model))
    episodes = await asyncio.gather(
        *(
            rollout(
                generator.generate.route,
                PythonProblems(sandbox),
                {"prompt": f"{question} Write a short Python program that prints it.", "answer": answer},
                chat,
                parse=programs,
                sampling_params=SamplingParams(max_tokens=256, temperature=0.7),
                max_turns=3,
                max_tokens=768,
                group_id=question,
                episode_id=f"{question}-{i}",
            )
            for question, answer in QUESTIONS.items()
            for i in range(samples)
        )
    )
    for episode in episodes:
        told = {name: episode.metadata[name] for name in ("turns", "tool_calls", "tool_errors")}
        print(f"reward {episode.reward:g}, {len(episode.token_ids)} tokens, {told}")
        for message in episode.metadata["messages"]:
            print(f"  {message['role']}: {message['content']}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a Hugging Face folder, the same as in tools.yaml")
    parser.add_argument("--samples", type=int, default=2, help="episodes per question")
    asyncio.run(main(**vars(parser.parse_args())))
