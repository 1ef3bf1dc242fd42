"""An RBM from real digits to samples, features and a likelihood: what `scripts/demo.sh` runs.

MNIST where `$ENERGYSCAPE_DATA/mnist` (default `data/mnist`) has its four files, else the 8×8
digits that come with scikit-learn.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

import energyscape
from energyscape.data import Binarize, binarize, load_digits, load_mnist
from energyscape.models import RBM
from energyscape.plotting import image_grid, save_curves, save_grid, save_png
from energyscape.samplers import AIS
from energyscape.trainers import PCD

LABELLED = 10_000  # rows that the classifier learns from


def load(bundled: bool) -> tuple[str, tuple, tuple, PCD, int]:
    """Name, (X, y) of training and test, and what to train: trainer and hidden units."""
    bits = Binarize()
    if not bundled:
        try:
            train, test = load_mnist("train"), load_mnist("test")
        except FileNotFoundError as error:
            print(f"{error}\nTaking scikit-learn's bundled digits instead.\n")
        else:
            trainer = PCD(
                n_epochs=15, learning_rate=0.2, n_chains=200, averaging=0.1, batch_transform=bits
            )
            return "MNIST, 28×28", train, test, trainer, 500
    X, y = load_digits()
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order], y[order]
    trainer = PCD(n_epochs=600, learning_rate=0.1, averaging=0.1, batch_transform=bits)
    return "bundled digits, 8×8", (X[:1400], y[:1400]), (X[1400:], y[1400:]), trainer, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the results")
    parser.add_argument("--bundled", action="store_true", help="scikit-learn's digits, not MNIST")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    name, (X, y), (X_test, y_test), trainer, n_components = load(options.bundled)
    print(f"{name}: {len(X):,} training rows, {len(X_test):,} test rows; RBM({n_components})")
    trainer.set_params(validation_fraction=0.1)
    rbm = RBM(n_components, trainer=trainer, random_state=0, verbose=1).fit(X)

    rbm.save(options.out / "rbm.h5")
    rbm = energyscape.load(options.out / "rbm.h5")
    zoom = max(2, 60 // int(X.shape[1] ** 0.5))
    save_grid(options.out / "filters.png", rbm.components_[:100], zoom, symmetric=True)
    save_curves(options.out / "curves.png", rbm.history_)
    bits = binarize(X_test, 0)
    pair = [image_grid(rows, n_columns=10) for rows in (bits[:100], rbm.sample(100, n_steps=1000))]
    gap = np.full((len(pair[0]), 8), 255, np.uint8)
    both = np.concatenate([pair[0], gap, pair[1]], axis=1)
    save_png(options.out / "real_and_samples.png", both.repeat(zoom, axis=0).repeat(zoom, axis=1))

    print("\nMean log-likelihood of the test rows (bits drawn once with seed 0), by annealed")
    print("importance sampling from both ends of the path:")
    bounds = rbm.log_likelihood_bounds(bits, AIS(n_chains=200, n_temperatures=4000))
    estimate, ais = bounds.high, bounds.partition
    print(f"  forward  {estimate:8.2f} nats  (effective sample size {ais.ess:.0f} of 200 chains)")
    print(f"  reverse  {bounds.low:8.2f} nats  (a lower bound for the {bounds.low_holds_for})")

    print(f"\nLogistic regression on {min(LABELLED, len(X)):,} labelled rows, test error:")
    for what, A, B in (("raw pixels", X, X_test), ("RBM features", rbm, rbm)):
        if A is rbm:
            A, B = rbm.transform(X[:LABELLED]), rbm.transform(X_test)
        classifier = LogisticRegression(max_iter=1000).fit(A[:LABELLED], y[:LABELLED])
        print(f"  {what:12s} {100 * (1 - classifier.score(B, y_test)):5.2f} %")
    print(f"\nIn {options.out}: rbm.h5, filters.png, real_and_samples.png, curves.png")


if __name__ == "__main__":
    main()
