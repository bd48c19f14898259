"""Which models do the same with every batch, so that what was watched once may be repeated."""

from common.nn.layers.activations import GELU, Identity, LeakyReLU, LogSoftmax, ReLU, Sigmoid, Softmax, Softplus, Tanh
from common.nn.layers.attention import MultiheadAttention, TransformerEncoderLayer
from common.nn.layers.containers import Sequential
from common.nn.layers.convolution import Conv1d, Conv2d
from common.nn.layers.embedding import Embedding, PositionalEmbedding
from common.nn.layers.flatten import Flatten
from common.nn.layers.linear import Linear
from common.nn.layers.normalization import LayerNorm
from common.nn.layers.pooling import AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d
from common.nn.module import Module

#: Their forward applies the same primitives with the same options to any batch of one shape, and has no side effect.
#: BatchNorm observes its batch and Dropout draws; a class of one's own may do anything, one derived from these too.
REPEATABLE: frozenset[type[Module]] = frozenset(
    (
        *(Sequential, Flatten, Linear, Conv1d, Conv2d, LayerNorm),
        *(Embedding, PositionalEmbedding, MultiheadAttention, TransformerEncoderLayer),
        *(MaxPool1d, MaxPool2d, AvgPool1d, AvgPool2d, AdaptiveAvgPool1d, AdaptiveAvgPool2d),
        *(ReLU, LeakyReLU, GELU, Softplus, Tanh, Sigmoid, Softmax, LogSoftmax, Identity),
    )
)


def is_repeatable(model: Module) -> bool:
    """Tell whether every module of a model is known to do the same with every batch of one shape."""
    return all(type(module) in REPEATABLE for module in model.modules())
