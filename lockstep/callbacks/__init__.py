"""Callbacks of `fit`: see `lockstep.callbacks.callback`."""

from lockstep.callbacks.callback import Callback
from lockstep.callbacks.early_stopping import EarlyStopping
from lockstep.callbacks.lambda_callback import LambdaCallback
from lockstep.callbacks.model_checkpoint import ModelCheckpoint
from lockstep.callbacks.training import Training

__all__ = ["Callback", "EarlyStopping", "LambdaCallback", "ModelCheckpoint", "Training"]
