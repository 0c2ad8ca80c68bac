"""Ready-made actors for post-training language models. Importing it imports neither torch nor transformers."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from actors.datasets import Dataset as Dataset
    from actors.datasets import DatasetActor as DatasetActor
    from actors.decode import DecodeLoop as DecodeLoop
    from actors.generator import Generator as Generator
    from actors.metrics import MetricLogger as MetricLogger
    from actors.metrics import Reduce as Reduce
    from actors.metrics import collect_metrics as collect_metrics
    from actors.metrics import merge_metrics as merge_metrics
    from actors.metrics import plot as plot
    from actors.metrics import record_metric as record_metric
    from actors.models import Decoder as Decoder
    from actors.models import DecoderConfig as DecoderConfig
    from actors.models import LoadedModel as LoadedModel
    from actors.models import load_model as load_model
    from actors.models import save_model as save_model
    from actors.types import Completion as Completion
    from actors.types import Episode as Episode
    from actors.types import SamplingParams as SamplingParams
    from actors.types import StepResult as StepResult
    from actors.weights import Fetched as Fetched
    from actors.weights import WeightStore as WeightStore

_PUBLIC = {
    "Completion": "types",
    "Dataset": "datasets",
    "DatasetActor": "datasets",
    "DecodeLoop": "decode",
    "Decoder": "models",
    "DecoderConfig": "models",
    "Episode": "types",
    "Fetched": "weights",
    "Generator": "generator",
    "LoadedModel": "models",
    "MetricLogger": "metrics",
    "Reduce": "metrics",
    "SamplingParams": "types",
    "StepResult": "types",
    "WeightStore": "weights",
    "collect_metrics": "metrics",
    "load_model": "models",
    "merge_metrics": "metrics",
    "plot": "metrics",
    "record_metric": "metrics",
    "save_model": "models",
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
