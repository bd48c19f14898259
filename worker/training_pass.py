"""Forward and backward of one model over a micro-batch: by the engine the first time, then again as watched."""

from dataclasses import dataclass, field

from common.autograd import functional as F
from common.autograd.graph import observing
from common.autograd.primitives.primitive import Array
from common.autograd.replay import Replay, replay_of
from common.autograd.tensor import Tensor
from common.nn.module import Module
from common.nn.parameter import Parameter
from common.nn.repeatable import is_repeatable


@dataclass
class TrainingPass:
    """The sum of a micro-batch's losses and its gradients; whichever way they are had, the bits are the same."""

    model: Module
    parameters: list[Parameter]
    label_smoothing: float
    #: Whether the model is known to do the same with every batch of one shape.
    _is_repeatable: bool = field(init=False)
    #: By the shape of the images: what follows from it is the same for all batches of a job.
    _replays: dict[tuple[int, ...], Replay] = field(default_factory=dict)
    #: What the last forward is to be walked back by.
    _ahead: Tensor | Replay | None = None

    def __post_init__(self) -> None:
        self._is_repeatable = is_repeatable(self.model)

    def forward(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """Return the sum of the losses, a number, and the logits (n, classes)."""
        # Who observes the engine wants to see it at work.
        replay = self._replays.get(images.shape) if observing.get() is None else None
        if replay is not None:
            loss, logits = replay.forward(images, labels)
            self._ahead = replay
            return loss, logits
        return self._forward_by_engine(images, labels)

    def _forward_by_engine(self, images: Array, labels: Array) -> tuple[Array, Array]:
        if self._is_repeatable:
            results, replay = replay_of(self._compute, (images, labels), self.parameters)
            if replay is not None:
                self._replays[images.shape] = replay
        else:
            results = self._compute(images, labels)
        loss, logits = results
        self._ahead = loss
        return loss.data, logits.data

    def _compute(self, images: Array, labels: Array) -> tuple[Tensor, Tensor]:
        logits = self.model(Tensor(images))
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum"), logits

    def backward(self) -> None:
        """Add to the parameters' gradients those of the last forward; once after each."""
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Replay):
            ahead.backward()
        else:
            assert ahead is not None
            ahead.backward(retain_graph=False)
