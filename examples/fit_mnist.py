"""Training from Python: a small net on MNIST, with one worker per core.

python examples/fit_mnist.py
"""

from lockstep import Tensor, fit, nn, no_grad


def main() -> None:
    """Train, and look at what came out."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    # Any value of a job file may be given; `workers=0` would train in this process, and give the same bits.
    run = fit(model, "mnist", epochs=2, lr=0.1, schedule="one-cycle")
    print(f"test accuracy {run.test_accuracy:.2%}, weights {run.weights_sha256[:12]}…, all in {run.folder}")
    for epoch in run.history:
        print(f"  epoch {epoch.epoch}: loss {epoch.loss:.4f}, test accuracy {epoch.test_accuracy:.2%}")
    # `run.model` is an ordinary module with the trained weights; `model` is as it was.
    with no_grad():
        scores = run.model(Tensor([[0.0] * 784]))
    print(f"what it takes an empty image for: {int(scores.data.argmax())}")


if __name__ == "__main__":
    main()
