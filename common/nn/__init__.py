"""Layers, containers, losses and their initial values, named as in `torch.nn`."""

from common.autograd import functional
from common.nn import description, inspection, models
from common.nn import initializers as init
from common.nn.layers.activations import (
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
from common.nn.layers.attention import MultiheadAttention, TransformerEncoderLayer
from common.nn.layers.containers import ModuleList, Sequential
from common.nn.layers.convolution import Conv1d, Conv2d
from common.nn.layers.embedding import Embedding, PositionalEmbedding
from common.nn.layers.linear import Flatten, Linear
from common.nn.layers.losses import BCEWithLogitsLoss, CrossEntropyLoss, MSELoss, NLLLoss
from common.nn.layers.normalization import BatchNorm1d, BatchNorm2d, LayerNorm
from common.nn.layers.pooling import AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d
from common.nn.module import Module, Parameter, Stochastic
from common.random import manual_seed

__all__ = [
    "GELU",
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
