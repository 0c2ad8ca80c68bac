"""Questions to be answered in one short sentence, for grpo_smollm.yaml: to train on, held out, and the reward."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from actors import SamplingParams

THINGS = (
    """
a volcano, an island, a piano, a dentist, a glacier, a compass, a violin, a desert, a bridge, a lighthouse, a
telescope, a hammer, a castle, a river, a forest, a battery, a bakery, a candle, a mirror, a camera, a library, a
museum, a farmer, a pilot, a surgeon, a lawyer, a judge, a chef, a painter, a poet, an orchestra, a drum, a guitar,
a flute, a trumpet, a planet, a comet, a star, a galaxy, a rainbow, a tornado, an earthquake, a waterfall, a canyon,
a cave, a swamp, a lake, a whale, a dolphin, a penguin, an eagle, an owl, a spider, a butterfly, a snake, a turtle,
a frog, a horse, a camel, a bicycle, a train, a ship, a rocket, a tractor, a canal, a tunnel, a harbor, an airport,
a hospital, a school, a prison, a factory, a windmill, a magnet, a prism, a lens, a clock, a calendar, a map, a
letter, a novel, a dictionary, a diamond, a pearl, a coin, a crown, a flag, a potato, a lemon, a tomato, a mushroom,
a sandwich, a vaccine, a fossil, a satellite
""".replace("\n", " ")
    .strip()
    .split(", ")
)
HELD_OUT = 16
SAMPLED, BEST = SamplingParams(max_tokens=32), SamplingParams(max_tokens=32, temperature=0)
FEWEST, SHORT, LONG = 6, 10, 24
"""Words: fewer are no sentence, so many are short, and from so many on an answer is too long."""


def question(thing: str) -> dict[str, Any]:
    """A question as a conversation, and the word that its answer must have."""
    system = {"role": "system", "content": "Answer in one short sentence."}
    return {"prompt": [system, {"role": "user", "content": f"What is {thing}?"}], "subject": thing.split()[1]}


def all_things() -> list[str]:
    """All things, in an order that is always the same; the first HELD_OUT are for evaluation alone."""
    return random.Random(0).sample(THINGS, len(THINGS))


def held_out() -> list[dict[str, Any]]:
    """Questions that are never trained on."""
    return [question(thing) for thing in all_things()[:HELD_OUT]]


def training(epoch: int = 0, seed: int = 0) -> Iterator[dict[str, Any]]:
    """All other questions, in another order in each epoch and for each seed."""
    things = all_things()[HELD_OUT:]
    random.Random(f"{seed} {epoch}").shuffle(things)
    return map(question, things)


def brevity(completions: Sequence[str], subject: Sequence[str]) -> list[float]:
    """1 for a short sentence that names the subject once, less for each further word; 0 without an end or a meaning.

    "A penguin is a penguin." says nothing. Without that rule it is what a policy learns.
    """
    return [score(answer, word) for answer, word in zip(completions, subject, strict=True)]


def score(answer: str, subject: str) -> float:
    """The reward of one answer."""
    words = len(answer.split())
    if not answer.rstrip().endswith(".") or answer.lower().count(subject) != 1 or words < FEWEST:
        return 0.0
    return min(1.0, max(0, LONG - words) / (LONG - SHORT))
