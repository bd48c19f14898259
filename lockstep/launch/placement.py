"""Chooses the processes that train a job if the user has not: this one alone, or workers if they are much quicker.

The first steps are measured here. The bits are the same in any case, so that only time decides.
"""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.ps.setup import RunSetup, open_run
from lockstep.runs.cost_model import team_step_s
from lockstep.runs.job_file import GROUPS
from lockstep.runs.single_process import SingleProcessTrainer

#: Values that only a run with processes of its own has: a user who gives one of them wants these.
OF_PROCESSES = GROUPS["Processes"]

#: Seconds that a run with a server takes more than one in this process, besides its steps; and for each worker. Runs of
#: 40 steps with two workers took 0.4 to 0.5 s more, on a machine with two cores.
START_S, START_PER_WORKER_S = 0.4, 0.15

#: Seconds more if another library computes the model: each process imports it, and compares what it computes.
START_ENGINE_S = 2.0

#: Steps after which the process that computes is chosen. The first are slower: memory is new.
DECIDING_STEPS = 8

#: Seconds after which two steps are enough.
DECIDING_S = 0.5

#: Workers train if they need less than this share of the time: the model assumes that two compute twice as much as one,
#: and they compute a little less. LeNet on MNIST has 0.85 on two cores, and is sooner done by workers.
WORTHWHILE = 0.9


@computing()
@kept_numerics()
def chosen_processes(job: Job, options: RunOptions, given: Mapping[str, Any], clock: Clock) -> tuple[RunOptions, str]:
    """Return the options with the number of workers that trains a job soonest, and the reason if this process does.

    They are returned as they are, without a reason, if workers train, or `given`, the values that the user gave, has
    an option of processes.
    """
    if not options.workers or any(name in given for name in OF_PROCESSES):
        return options, ""
    try:
        take_numerics(job.numerics)
        setup = open_run("placement", job, load(job.data), RunOptions())
        step_s = step_seconds(setup, clock)
    except Exception:  # noqa: BLE001  # a fault of the job, or of the user's model: the run itself reports it
        return options, ""
    steps = setup.info.plan.total_steps
    if quickest(step_s, setup, options.workers, options.workers):
        return options, ""
    counted = "1 step takes" if steps == 1 else f"{steps:,} steps take"
    why = f"{counted} about {max(0.1, steps * step_s):.1f} s, and workers would not be done sooner"
    return replace(options, workers=0), why


def step_seconds(setup: RunSetup, clock: Clock) -> float:
    """Make the first steps, and return the seconds of the shortest: the first is slower, as is a disturbed one.

    The setup has other weights then. Raises what a step raises.
    """
    trainer, moments = SingleProcessTrainer(setup), [clock.now()]
    for step in range(min(DECIDING_STEPS, setup.info.plan.total_steps)):
        trainer.step(step)
        moments.append(clock.now())
        if step and moments[-1] - moments[0] > DECIDING_S:
            break
    return min(ended - began for began, ended in pairwise(moments))


def quickest(step_s: float, setup: RunSetup, most: int, cores: int) -> int:
    """Return the number of workers that train a job soonest; 0 if this process does.

    `step_s` are the seconds of a step in this process.
    """
    job, steps = setup.info.job, setup.info.plan.total_steps
    numbers = range(2, min(most, cores, job.micro_batches) + 1)
    start_s = START_S + (START_ENGINE_S if setup.info.fingerprint.engine else 0.0)
    step_of = partial(team_step_s, job, setup.layout.size, step_s, cores)
    there_s = {n: start_s + START_PER_WORKER_S * n + steps * step_of(n) for n in numbers}
    best = min(there_s, key=lambda n: there_s[n], default=0)
    return best if best and there_s[best] < WORTHWHILE * steps * step_s else 0
