"""A micro-batch as a replica: it takes several steps of its own optimizer, and what it sends is how far it came.

Local SGD (Stich, "Local SGD converges fast and communicates little", ICLR 2019) with an outer optimizer (Douillard et
al., "DiLoCo", arXiv 2311.08105): the sums of a micro-batch are the weights that it began with minus those that it ended
with, times what its gradients would be divided by. So their mean over all micro-batches is where a gradient is
otherwise. Running statistics follow the batches of all local steps; their sum is the last value times the same.

The optimizer begins each time without a state: so a micro-batch stays a pure function of the weights, the step and its
number, in any process. Nothing else of a run knows of local steps.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.quantization import EXACT
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.aggregation.update import Pair, UpdatePass, UpdateStep, UpdateVectors
from lockstep.common.job.optimizer import UpdatePolicy, replica_of, replica_schedule, rules_of, spans_of
from lockstep.common.job.tally import Tally
from lockstep.common.model.port import Engine, OnFinal
from lockstep.common.optim.clipping import add_blocks, scale_for
from lockstep.worker.batches import Batches
from lockstep.worker.gradient_sink import GradientSink, NotFiniteError
from lockstep.worker.node_sums import Attempt, NodeSums, StoppedError, Vectors, gradient_sums


@dataclass
class LocalStepSums:
    """The difference of weights that the local steps of a micro-batch make, times its divisor."""

    engine: Engine
    batches: Batches
    layout: ParameterLayout
    #: Momentum of each running statistic of the model.
    momenta: Vector
    #: By which the engine knows the first of the weights here, and the gradient.
    reads: int
    writes: int
    #: The progress of the current node. Before each local step but the first it is asked if the rest is wanted.
    attempt: Attempt
    #: The weights before an update and after it, in turn; made once, as all memory here.
    weights: Pair = field(init=False)
    gradient: Vector = field(init=False)
    #: The progress of the current micro-batch, whose local batches it counts.
    _local_attempt: Attempt = field(init=False)
    _gradients: NodeSums = field(init=False)
    _policy: UpdatePolicy = field(init=False)
    #: The optimizer's slots by name.
    _state: dict[str, Vector] = field(init=False)
    _updating: UpdatePass = field(init=False)

    def __post_init__(self) -> None:
        layout = self.layout
        self.weights, self.gradient = (layout.new_vector(), layout.new_vector()), layout.new_vector()
        self._local_attempt = Attempt(self.attempt.is_wanted)
        sink = GradientSink(layout, [Slice(0, layout.size)], EXACT)
        self._gradients = gradient_sums(self.engine, layout, self.batches, sink, self._local_attempt)
        self._policy = self._replica_policy()
        self._state = self._policy.init(layout.parameter_size)
        sets = self._state, self._state
        self._updating = UpdatePass(self._policy, UpdateVectors(weights=self.weights, served=self.weights, slots=sets))

    def _replica_policy(self) -> UpdatePolicy:
        """Return how the gradient of a local batch becomes weights."""
        job, samples = self.batches.job, len(self.batches.data.train)
        own = replica_of(job)
        return UpdatePolicy(
            rules=rules_of(own, spans_of(own, self.layout)),
            schedule=replica_schedule(job, job.total_steps(samples), -(-samples // job.global_batch)),
            clip_norm=own.clip_norm,
            parameter_size=self.layout.parameter_size,
            momenta=self.momenta,
        )

    def compute(self, step: int, micro_batch: int, at: Vectors, on_final: OnFinal | None) -> Tally:
        try:
            end, tally = self.advance(step, micro_batch, at.weights, self.batches.job.local_steps)
        finally:
            self.engine.read_from(at.reads)
            self.engine.write_to(at.writes)
        size, count = self.layout.parameter_size, np.float32(tally.divisor)
        with np.errstate(all="ignore"):  # numbers that are not finite are found when the sums are sent
            np.subtract(at.weights[:size], end[:size], out=at.sums[:size])
            np.multiply(at.sums[:size], count, out=at.sums[:size])
            np.multiply(end[size:], count, out=at.sums[size:])
        return tally

    def advance(self, step: int, micro_batch: int, weights: Vector, steps: int) -> tuple[Vector, Tally]:
        """Take so many local steps from these weights on; return where they lead to, and the tally of their samples.

        The engine reads the weights that are returned, which are valid until the next call. A local step without
        samples, as in a short batch at the end of an epoch, updates nothing. Raises as `NodeSums.train`.
        """
        np.copyto(self.weights[0], weights)
        for slot in self._state.values():
            slot.fill(0.0)
        self._local_attempt.begin()
        self.engine.read_from(self.reads)
        self.engine.write_to(self.writes)
        first, updates, tally = micro_batch * self.batches.job.local_steps, 0, Tally()
        for local_step in range(steps):
            found = self._gradient(step, Node(first + local_step, first + local_step + 1), updates)
            tally += found
            if found.divisor:
                self._update(step * self.batches.job.local_steps + local_step, updates, found.divisor)
                updates += 1
                self.engine.read_from(self.reads + updates % 2)
        # As the loss of a micro-batch is, for the ledger.
        loss = float(np.float32(tally.loss_sum))
        if not math.isfinite(loss):
            raise NotFiniteError(micro_batch, "the sum over its local steps")
        return self.weights[updates % 2], replace(tally, loss_sum=loss)

    def _gradient(self, step: int, local_batch: Node, updates: int) -> Tally:
        """Compute the sum of gradients of a local batch."""
        reads = updates % 2
        at = Vectors(self.weights[reads], self.gradient, self.reads + reads, self.writes)
        micro_batch, local_step = divmod(local_batch.lo, self.batches.job.local_steps)
        try:
            return self._gradients.train(step, local_batch, at, None)
        except NotFiniteError as error:
            raise NotFiniteError(micro_batch, f"{error.layer}, in local step {local_step}", error.quantity) from error
        except StoppedError:
            raise StoppedError(self.attempt.computed - 1) from None

    def _update(self, number: int, updates: int, divisor: float) -> None:
        """Make the update after so many others, in the local step of that number since the run began."""
        updating, whole, terms = self._updating, Slice(0, self.layout.size), [self.gradient]
        scale = None
        if self._policy.clip_norm is not None:
            scale = scale_for(add_blocks(updating.squares(whole, terms, divisor)), self._policy.clip_norm)
        # Numbers that are not finite show in the next loss, or in the sums.
        rate = self._policy.schedule.rate(number)
        at = UpdateStep(step=updates, divisor=divisor, rate=rate, scale=scale)
        updating.run(at, whole, terms)
