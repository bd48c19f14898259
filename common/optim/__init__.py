"""The public names of `optim`: optimizers for a notebook, and schedules. The pure rules are in `common.optim.rules`."""

from common.optim.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from common.optim.schedules import Constant, Cosine, LinearWarmup, OneCycle, Schedule, Step

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
