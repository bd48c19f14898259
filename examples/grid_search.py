"""A pipeline of scikit-learn and a search over its settings, with Lockstep's network at the end.

python examples/grid_search.py                 # at most one worker per core
python examples/grid_search.py --workers 0     # this process alone: the same ranking, the same weights
python examples/grid_search.py --beside-mlp    # and the same search with MLPClassifier, for its time
"""

import argparse
import hashlib
import time
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from lockstep.common.data.source import load
from lockstep.sklearn import LockstepClassifier

#: Samples of MNIST.
SAMPLES = 10_000

#: Twelve settings.
SIZES, RATES, BATCHES = [(32,), (64,), (128,)], [0.001, 0.003], [100, 200]


def main(samples: int = SAMPLES, epochs: int = 10, workers: int | None = None, beside_mlp: bool = False) -> str:
    """Search, and show the ranking; return a digest of the ranking and of all weights."""
    mnist = load("mnist").train
    x = mnist.images[:samples].reshape(samples, -1).astype(np.float32)
    y = mnist.labels[:samples]
    network = LockstepClassifier(epochs=epochs, patience=None, workers=workers)
    grid = {"net__model": SIZES, "net__lr": RATES, "net__global_batch": BATCHES}
    weights: list[str] = []

    def score(pipeline: Pipeline, x: Any, y: Any) -> float:
        weights.append(pipeline["net"].weights_sha256_)
        return float(pipeline.score(x, y))

    began = time.perf_counter()
    search = GridSearchCV(Pipeline([("scale", StandardScaler()), ("net", network)]), grid, scoring=score, cv=3)
    search.fit(x, y)
    print(f"Lockstep       {time.perf_counter() - began:6.1f} s for {len(weights) + 1} fits")
    found = search.cv_results_
    for place in np.argsort(found["rank_test_score"], kind="stable")[:3]:
        print(f"  {found['mean_test_score'][place]:.4f}  {found['params'][place]}")
    weights.append(search.best_estimator_["net"].weights_sha256_)
    digest = hashlib.sha256(f"{found['rank_test_score'].tolist()} {weights}".encode()).hexdigest()
    print(f"  ranking and all weights {digest[:12]}…, best {weights[-1][:12]}…")
    if beside_mlp:
        search_by_mlp(x, y, epochs)
    return digest


def search_by_mlp(x: Any, y: Any, epochs: int) -> None:
    """Search the same settings with scikit-learn's own network; Adam and ReLU are its defaults as well."""
    network = MLPClassifier(max_iter=epochs, n_iter_no_change=epochs, alpha=0.0, random_state=0)
    grid = {"net__hidden_layer_sizes": SIZES, "net__learning_rate_init": RATES, "net__batch_size": BATCHES}
    began = time.perf_counter()
    search = GridSearchCV(Pipeline([("scale", StandardScaler()), ("net", network)]), grid, cv=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(x, y)
    print(f"MLPClassifier  {time.perf_counter() - began:6.1f} s; best {search.best_score_:.4f}  {search.best_params_}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Search the settings of a network on MNIST.")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--beside-mlp", action="store_true")
    main(**vars(parser.parse_args()))
