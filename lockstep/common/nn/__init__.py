"""Layers, containers, losses and their initial values, named as in `torch.nn`."""

from lockstep.common.autograd import functional
from lockstep.common.nn import description, inspection, models
from lockstep.common.nn import initializers as init
from lockstep.common.nn.layers.activations import (
    GELU,
    Dropout,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    Softmax,
    Softplus,
    Tanh,
)
from lockstep.common.nn.layers.attention import MultiheadAttention, TransformerEncoderLayer
from lockstep.common.nn.layers.containers import ModuleList, Sequential
from lockstep.common.nn.layers.convolution import Conv1d, Conv2d
from lockstep.common.nn.layers.embedding import Embedding, PositionalEmbedding
from lockstep.common.nn.layers.linear import Flatten, Linear
from lockstep.common.nn.layers.losses import BCEWithLogitsLoss, CrossEntropyLoss, L1Loss, MSELoss, NLLLoss, SmoothL1Loss
from lockstep.common.nn.layers.normalization import BatchNorm1d, BatchNorm2d, LayerNorm
from lockstep.common.nn.layers.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    MaxPool1d,
    MaxPool2d,
)
from lockstep.common.nn.layers.recurrent import GRU, LSTM, RNN
from lockstep.common.nn.module import Module, Parameter, Stochastic
from lockstep.common.numerics.random import manual_seed

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "Identity",
    "L1Loss",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool1d",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "MultiheadAttention",
    "NLLLoss",
    "Parameter",
    "PositionalEmbedding",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "Stochastic",
    "Tanh",
    "TransformerEncoderLayer",
    "description",
    "functional",
    "init",
    "inspection",
    "manual_seed",
    "models",
]
