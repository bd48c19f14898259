"""The public names of `optim`: optimizers for a notebook, and schedules. `rules` has the pure rules."""

from lockstep.common.optim.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from lockstep.common.optim.schedules import Constant, Cosine, LinearWarmup, OneCycle, Schedule, Step

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "LinearWarmup",
    "OneCycle",
    "Optimizer",
    "RMSprop",
    "Schedule",
    "Step",
]
