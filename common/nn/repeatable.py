"""Which models do the same with every batch, so that what was watched once may be repeated."""

from common.nn.activations import GELU, Identity, LeakyReLU, LogSoftmax, ReLU, Sigmoid, Softmax, Softplus, Tanh
from common.nn.attention import MultiheadAttention, TransformerEncoderLayer
from common.nn.containers import Sequential
from common.nn.convolution import Conv1d, Conv2d
from common.nn.embedding import Embedding, PositionalEmbedding
from common.nn.flatten import Flatten
from common.nn.linear import Linear
from common.nn.module import Module
from common.nn.normalization import LayerNorm
from common.nn.pooling import AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d

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
