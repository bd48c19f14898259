"""Your own model: a small convolutional net with BatchNorm and dropout, for images of 28 by 28 pixels.

    lockstep train --model examples/my_model.py:build --epochs 3 --schedule one-cycle

The server and every worker run this file for themselves, and compare its digest: all of them need the same copy.
"""

from lockstep import Tensor, nn


class ConvNet(nn.Module):
    """Two convolutions, each with BatchNorm, ReLU and max-pooling, then a classifier with dropout."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        # The comments show the shape of the data after each layer, for a micro-batch of n images.
        self.features = nn.Sequential(  # (n, 1, 28, 28)
            nn.Conv2d(1, 8, 3, padding=1),  # (n, 8, 28, 28)
            nn.BatchNorm2d(8),  # normalises each of the 8 maps over the micro-batch
            nn.ReLU(),
            nn.MaxPool2d(2),  # (n, 8, 14, 14)
            nn.Conv2d(8, 16, 3, padding=1),  # (n, 16, 14, 14)
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (n, 16, 7, 7)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),  # (n, 784)
            nn.Dropout(0.2),  # drops a fifth of the features in training; which ones follows from the job's seed
            nn.Linear(16 * 7 * 7, classes),  # (n, classes): one score per class, without softmax
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (n, classes), of images (n, 1, 28, 28)."""
        return self.classifier(self.features(images))


def build() -> nn.Module:
    """Return a new model. Its weights do not matter: the server draws them from the seed."""
    return ConvNet()
