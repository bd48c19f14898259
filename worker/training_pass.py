"""Forward and backward of one model over a micro-batch: by the engine the first time, then again as watched."""

from dataclasses import dataclass, field

from common.autograd.capture import Capture, capture
from common.autograd.graph import observing
from common.autograd.primitives.primitive import Array
from common.autograd.tensor import Tensor
from common.job.objective import Objective
from common.nn.module import Module, Parameter, is_repeatable


@dataclass
class TrainingPass:
    """The sum of a micro-batch's losses and its gradients; whichever way they are had, the bits are the same."""

    model: Module
    parameters: list[Parameter]
    objective: Objective
    #: Whether the model is known to do the same with every batch of one shape.
    _is_repeatable: bool = field(init=False)
    #: By the shape of the images: what follows from it is the same for all batches of a job.
    _replays: dict[tuple[int, ...], Capture] = field(default_factory=dict)
    #: What the last forward is to be walked back by.
    _ahead: Tensor | Capture | None = None

    def __post_init__(self) -> None:
        self._is_repeatable = is_repeatable(self.model)

    def forward(self, images: Array, targets: Array) -> tuple[Array, Array]:
        """Return the sum of the losses, a number, and the model's outputs; `targets` are as the objective has them."""
        # Who observes the engine wants to see it at work.
        replay = self._replays.get(images.shape) if observing.get() is None else None
        if replay is not None:
            loss, outputs = replay.forward(images, targets)
            self._ahead = replay
            return loss, outputs
        return self._forward_by_engine(images, targets)

    def _forward_by_engine(self, images: Array, targets: Array) -> tuple[Array, Array]:
        if self._is_repeatable:
            results, replay = capture(self._compute, (images, targets), self.parameters)
            if replay is not None:
                self._replays[images.shape] = replay
        else:
            results = self._compute(images, targets)
        loss, outputs = results
        self._ahead = loss
        return loss.data, outputs.data

    def _compute(self, images: Array, targets: Array) -> tuple[Tensor, Tensor]:
        outputs = self.model(Tensor(images))
        return self.objective.training_loss(outputs, targets), outputs

    def backward(self) -> None:
        """Add to the parameters' gradients those of the last forward; once after each."""
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Capture):
            ahead.backward()
        else:
            assert ahead is not None
            ahead.backward(retain_graph=False)
