"""A network of a user's own, outside of the tests' file: its class, and a function that builds one for given sizes."""

from lockstep import Tensor, nn


class OwnNetwork(nn.Module):
    """Six features to three classes, with a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.first(x))
        return self.last(nn.functional.relu(self.again(self.again(hidden))))


def with_dropout(inputs: int, outputs: int) -> nn.Module:
    """Return a network of the library's layers."""
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, outputs))


def fixed() -> nn.Module:
    """Return the same for six features and three classes."""
    return with_dropout(6, 3)


def unusual(inputs: int) -> nn.Module:
    """Need something that no estimator gives."""
    return nn.Linear(inputs, 3)
