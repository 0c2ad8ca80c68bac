"""Ready-made actors for post-training language models. Importing it imports neither torch nor transformers."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from actors.environments import EnvironmentFailure as EnvironmentFailure
    from actors.environments import OpenEnv as OpenEnv
    from actors.environments import PlainChat as PlainChat
    from actors.environments import TemplateChat as TemplateChat
    from actors.environments import ToolError as ToolError
    from actors.environments import parse_hermes as parse_hermes
    from actors.environments import parse_text as parse_text
    from actors.environments import rollout as rollout
    from actors.rewards import Format as Format
    from actors.rewards import Overlong as Overlong
    from actors.rewards import RewardActor as RewardActor
    from actors.rewards import RewardError as RewardError
    from actors.rewards import Rewards as Rewards
    from actors.rewards import exact_match as exact_match
    from actors.rewards import number_match as number_match
    from actors.sandbox import PythonSandbox as PythonSandbox
    from actors.sandbox import Sandbox as Sandbox
    from actors.sandbox import SandboxUnavailable as SandboxUnavailable
    from actors.types import Completion as Completion
    from actors.types import Episode as Episode
    from actors.types import SamplingParams as SamplingParams
    from actors.types import StepResult as StepResult

_PUBLIC = {
    "Completion": "types",
    "EnvironmentFailure": "environments",
    "Episode": "types",
    "Format": "rewards",
    "OpenEnv": "environments",
    "Overlong": "rewards",
    "PlainChat": "environments",
    "PythonSandbox": "sandbox",
    "RewardActor": "rewards",
    "RewardError": "rewards",
    "Rewards": "rewards",
    "SamplingParams": "types",
    "Sandbox": "sandbox",
    "SandboxUnavailable": "sandbox",
    "StepResult": "types",
    "TemplateChat": "environments",
    "ToolError": "environments",
    "exact_match": "rewards",
    "number_match": "rewards",
    "parse_hermes": "environments",
    "parse_text": "environments",
    "rollout": "environments",
}
__all__ = [*_PUBLIC]  # noqa: PLE0604  # the keys are strings


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # a checker knows the names from above

    def __getattr__(name: str) -> object:
        """Import a name on first use."""
        import importlib

        if name not in _PUBLIC:
            raise AttributeError(f"module 'actors' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"actors.{_PUBLIC[name]}"), name)
        return value
