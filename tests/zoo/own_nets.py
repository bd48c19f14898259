"""Modules as users of PyTorch write them, with losses of their own: each with its data, and values of a job."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

#: Samples of each: all of them are one batch, so that a plain loop needs no order.
SAMPLES = 12

# A variational autoencoder, whose noise is an input


class Vae(nn.Module):  # type: ignore[misc]  # as a user writes it
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 8), nn.Linear(4, 16)

    def forward(self, image: Any, noise: Any) -> Any:
        mean, log_variance = self.encoder(image).chunk(2, dim=1)
        return self.decoder(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


def evidence_bound(outputs: Any, targets: Any) -> Any:
    image, mean, log_variance = outputs
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
    return functional.mse_loss(image, targets, reduction="sum") + divergence, len(targets)


# A Siamese net: two inputs, one tower


class Siamese(nn.Module):  # type: ignore[misc]  # as a user writes it
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, left: Any, right: Any) -> Any:
        return functional.pairwise_distance(self.tower(left), self.tower(right))


def contrastive(outputs: Any, targets: Any) -> Any:
    same = targets.to(outputs.dtype).flatten()
    losses = same * outputs**2 + (1 - same) * functional.relu(1.0 - outputs) ** 2
    return losses.sum(), len(targets)


# A sequence to sequence model with attention, whose target goes in, too


class Seq2Seq(nn.Module):  # type: ignore[misc]  # as a user writes it
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder, self.decoder = nn.Embedding(9, 6), nn.GRU(6, 7, batch_first=True), nn.GRUCell(6, 7)
        self.attention, self.head = nn.Linear(7, 7, bias=False), nn.Linear(14, 9)

    def forward(self, source: Any, given: Any) -> Any:
        states, last = self.encoder(self.embed(source))
        hidden, outputs = last[0], []
        for place in range(given.shape[1]):
            hidden = self.decoder(self.embed(given[:, place]), hidden)
            weights = (states @ self.attention(hidden)[:, :, None]).softmax(dim=1)
            outputs.append(self.head(torch.cat([hidden, (weights * states).sum(dim=1)], dim=1)))
        return torch.stack(outputs, dim=1)


# A residual net whose backbone is frozen, and stays in evaluation mode


class Residual(nn.Module):  # type: ignore[misc]  # as a user writes it
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.block, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "Residual":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Any) -> Any:
        x = self.backbone(x)
        return self.head((x + self.block(x)).relu().mean(dim=(2, 3)))


# Low-rank adapters around frozen layers


class Adapter(nn.Module):  # type: ignore[misc]  # as a user writes it
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, base.in_features) * 0.1)
        self.up = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x: Any) -> Any:
        return self.base(x) + x @ self.down.T @ self.up.T


def lora() -> nn.Module:
    net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    net[0], net[2] = Adapter(net[0]), Adapter(net[2])
    return net


# Two heads, with a weight that is learned (Kendall et al., CVPR 2018)


class TwoHeads(nn.Module):  # type: ignore[misc]  # as a user writes it
    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(10, 8), nn.Linear(8, 3), nn.Linear(8, 1)
        self.log_variances = nn.Parameter(torch.zeros(2))

    def forward(self, x: Any) -> Any:
        hidden = self.body(x).relu()
        return {"kind": self.kind(hidden), "size": self.size(hidden)[:, 0], "log_variances": self.log_variances}


def of_both(outputs: Any, targets: Any) -> Any:
    kinds = functional.cross_entropy(outputs["kind"], targets["kind"].flatten(), reduction="sum")
    sizes = functional.mse_loss(outputs["size"], targets["size"].flatten(), reduction="sum")
    first, second = outputs["log_variances"]
    count = len(targets["kind"])
    return kinds * (-first).exp() + sizes * (-second).exp() + count * (first + second), count


# A part that is compiled, by a backend that needs no compiler of C


class Compiled(nn.Module):  # type: ignore[misc]  # as a user writes it
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(10, 8), nn.Tanh()), nn.Linear(8, 3)
        self.fast = torch.compile(self.body, backend="eager")

    def forward(self, x: Any) -> Any:
        return self.head(self.fast(x))


# A teacher whose weights stay what they are, which is as far as a moving average of another net can go


class Taught(nn.Module):  # type: ignore[misc]  # as a user writes it
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            expected = self.teacher(x)
        return self.student(x), expected


def distilled(outputs: Any, targets: Any) -> Any:
    logits, expected = outputs
    own = functional.cross_entropy(logits, targets, reduction="sum")
    return own + functional.mse_loss(logits, expected, reduction="sum"), len(targets)


@dataclass(frozen=True)
class OwnNet:
    """A module with its data, and how it is trained."""

    build: Callable[[], nn.Module]
    #: What the inputs, and the targets, are drawn as.
    inputs: Callable[[np.random.Generator], Any]
    targets: Callable[[np.random.Generator], Any]
    loss: Any = "cross-entropy"
    values: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def normal(*shape: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: rng.normal(size=(SAMPLES, *shape)).astype(np.float32)


def below(limit: int, *shape: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: rng.integers(0, limit, (SAMPLES, *shape))


def named(**parts: Callable[[np.random.Generator], Any]) -> Callable[[np.random.Generator], Any]:
    return lambda rng: {name: part(rng) for name, part in parts.items()}


OWN_NETS: Mapping[str, OwnNet] = {
    "vae": OwnNet(Vae, named(image=normal(16), noise=normal(4)), normal(16), evidence_bound),
    "siamese": OwnNet(Siamese, named(left=normal(10), right=normal(10)), below(2), contrastive),
    "seq2seq": OwnNet(Seq2Seq, named(source=below(9, 5), given=below(9, 4)), below(9, 4)),
    "frozen backbone": OwnNet(Residual, normal(1, 6, 6), below(3)),
    "lora": OwnNet(lora, normal(10), below(3)),
    "two heads": OwnNet(TwoHeads, normal(10), named(kind=below(3), size=normal()), of_both),
    "compiled": OwnNet(Compiled, normal(10), below(3)),
    "teacher": OwnNet(Taught, normal(10), below(3), distilled),
}
