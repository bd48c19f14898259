"""Callbacks of `fit`: see `lockstep.api.callbacks.callback`."""

from lockstep.api.callbacks.callback import Callback
from lockstep.api.callbacks.early_stopping import EarlyStopping
from lockstep.api.callbacks.lambda_callback import LambdaCallback
from lockstep.api.callbacks.model_checkpoint import ModelCheckpoint
from lockstep.api.callbacks.training import Training

__all__ = ["Callback", "EarlyStopping", "LambdaCallback", "ModelCheckpoint", "Training"]
