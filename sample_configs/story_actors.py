"""The actors of story.yaml: one mesh that trains the character transformer of text.py, and replicas that write."""

from typing import Any

from text_model import Training, Transformer, join

from forgectl import ForgeActor, endpoint


class Trainer(ForgeActor):
    """A mesh whose ranks train one model together (DDP)."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options  # of Training

    @endpoint
    def setup(self) -> None:
        """Meet the other ranks; awaited on all before anybody has the handle."""
        self.training = Training(join(), **self.options)
        self.logger.info("%d weights", sum(p.numel() for p in self.training.model.parameters()))

    @endpoint
    def train(self, steps: int, of: int) -> tuple[float, float]:
        """`steps` more, of so many in all: nats a character on what was seen, and on what was held out."""
        return self.training.advance(steps, of=of)

    @endpoint
    def checkpoint(self) -> dict[str, Any]:
        """Shape and weights as they are now, the same in every rank."""
        return self.training.model.checkpoint()


class Writer(ForgeActor):
    """One replica of a service: writes text from the weights that it was last handed."""

    @endpoint
    def load(self, checkpoint: dict[str, Any]) -> None:
        """Write with these weights from now on."""
        self.model = Transformer.restored(checkpoint)

    @endpoint
    def write(self, prompt: str, length: int) -> str:
        """`prompt` and `length` more characters."""
        return self.model.write(prompt, length)
