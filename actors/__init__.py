"""Ready-made actors for post-training language models. Importing it imports neither torch nor transformers."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from actors.advantages import ComputeAdvantages as ComputeAdvantages
    from actors.advantages import group_episodes as group_episodes
    from actors.advantages import zero_variance as zero_variance
    from actors.batches import demonstration as demonstration
    from actors.buffer import Buffer as Buffer
    from actors.buffer import ReplayBuffer as ReplayBuffer
    from actors.checkpoint import CheckpointError as CheckpointError
    from actors.checkpoint import Checkpoints as Checkpoints
    from actors.datasets import Dataset as Dataset
    from actors.datasets import DatasetActor as DatasetActor
    from actors.decode import DecodeLoop as DecodeLoop
    from actors.environments import EnvironmentFailure as EnvironmentFailure
    from actors.environments import OpenEnv as OpenEnv
    from actors.environments import PlainChat as PlainChat
    from actors.environments import TemplateChat as TemplateChat
    from actors.environments import ToolError as ToolError
    from actors.environments import parse_hermes as parse_hermes
    from actors.environments import parse_text as parse_text
    from actors.environments import rollout as rollout
    from actors.generator import Generator as Generator
    from actors.losses import Batch as Batch
    from actors.losses import Loss as Loss
    from actors.losses import LossOutput as LossOutput
    from actors.losses import Metric as Metric
    from actors.losses import Totals as Totals
    from actors.losses import make_loss as make_loss
    from actors.metrics import MetricLogger as MetricLogger
    from actors.metrics import Reduce as Reduce
    from actors.metrics import collect_metrics as collect_metrics
    from actors.metrics import merge_metrics as merge_metrics
    from actors.metrics import plot as plot
    from actors.metrics import record_metric as record_metric
    from actors.models import CharacterTokenizer as CharacterTokenizer
    from actors.models import Decoder as Decoder
    from actors.models import DecoderConfig as DecoderConfig
    from actors.models import LoadedModel as LoadedModel
    from actors.models import load_model as load_model
    from actors.models import save_model as save_model
    from actors.reference import ReferenceModel as ReferenceModel
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
    from actors.trainer import Trainer as Trainer
    from actors.trainer import TrainerStatus as TrainerStatus
    from actors.training import Training as Training
    from actors.training import TrainingOptions as TrainingOptions
    from actors.types import Completion as Completion
    from actors.types import Episode as Episode
    from actors.types import SamplingParams as SamplingParams
    from actors.types import StaleBatch as StaleBatch
    from actors.types import StepResult as StepResult
    from actors.weights import Fetched as Fetched
    from actors.weights import WeightStore as WeightStore

_PUBLIC = {
    "Batch": "losses",
    "Buffer": "buffer",
    "CharacterTokenizer": "models",
    "CheckpointError": "checkpoint",
    "Checkpoints": "checkpoint",
    "Completion": "types",
    "ComputeAdvantages": "advantages",
    "Dataset": "datasets",
    "DatasetActor": "datasets",
    "DecodeLoop": "decode",
    "Decoder": "models",
    "DecoderConfig": "models",
    "EnvironmentFailure": "environments",
    "Episode": "types",
    "Fetched": "weights",
    "Format": "rewards",
    "Generator": "generator",
    "LoadedModel": "models",
    "Loss": "losses",
    "LossOutput": "losses",
    "Metric": "losses",
    "MetricLogger": "metrics",
    "OpenEnv": "environments",
    "Overlong": "rewards",
    "PlainChat": "environments",
    "PythonSandbox": "sandbox",
    "Reduce": "metrics",
    "ReferenceModel": "reference",
    "ReplayBuffer": "buffer",
    "RewardActor": "rewards",
    "RewardError": "rewards",
    "Rewards": "rewards",
    "SamplingParams": "types",
    "Sandbox": "sandbox",
    "SandboxUnavailable": "sandbox",
    "StaleBatch": "types",
    "StepResult": "types",
    "TemplateChat": "environments",
    "ToolError": "environments",
    "Totals": "losses",
    "Trainer": "trainer",
    "TrainerStatus": "trainer",
    "Training": "training",
    "TrainingOptions": "training",
    "WeightStore": "weights",
    "collect_metrics": "metrics",
    "demonstration": "batches",
    "exact_match": "rewards",
    "group_episodes": "advantages",
    "load_model": "models",
    "make_loss": "losses",
    "merge_metrics": "metrics",
    "number_match": "rewards",
    "parse_hermes": "environments",
    "parse_text": "environments",
    "plot": "metrics",
    "record_metric": "metrics",
    "rollout": "environments",
    "save_model": "models",
    "zero_variance": "advantages",
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
