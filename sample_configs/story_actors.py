"""The actors of story.yaml: one mesh that trains the character transformer of text.py, and replicas that write."""

from typing import Any

from text_model import Training, Transformer, join

from forgectl import ForgeActor, endpoint


class Trainer(ForgeActor):
    """A mesh whose ranks train one model together (DDP)."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.arguments = options  # of Training

    @endpoint
    def setup(self) -> None:
        """Join the other ranks. It runs on all ranks before the driver gets the handle."""
        self.training = Training(join(), **self.arguments)
        self.logger.info("%d weights", sum(p.numel() for p in self.training.model.parameters()))

    @endpoint
    def train(self, steps: int, of: int) -> tuple[float, float]:
        """Train `steps` more of `of` steps in total; returns nats per character on training and held-out text."""
        return self.training.advance(steps, of=of)

    @endpoint
    def checkpoint(self) -> dict[str, Any]:
        """The shape and the present weights, which are equal on all ranks."""
        return self.training.model.checkpoint()


class Writer(ForgeActor):
    """One replica of a service: writes text with the weights that it received last."""

    @endpoint
    def load(self, checkpoint: dict[str, Any]) -> None:
        """Write with these weights from now on."""
        self.model = Transformer.restored(checkpoint)

    @endpoint
    def write(self, prompt: str, length: int) -> str:
        """`prompt`, followed by `length` more characters."""
        return self.model.write(prompt, length)
