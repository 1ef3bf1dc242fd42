"""What every contender is trained on and measured at, and what the rows themselves come to.

Rows are split once, and all that is random (shuffled columns, uniform rows, directions) is drawn
once, so that two models differ by nothing but themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import get_tags
from sklearn.utils.validation import check_array

from energyscape.backend import Purpose, is_gpu_array, stream, to_host
from energyscape.evaluation import metrics
from energyscape.evaluation.metrics import Measure
from energyscape.models.inputs import range_complaint
from energyscape.samplers import Gaussian
from energyscape.sources import Rows, is_stored, open_rows

MAX_TEST_ROWS = 2000
_LABELLED = 10_000  # rows that logistic regression is trained on
_TEST_SHARE, _FEWEST_ROWS = 0.25, 10
_SLICES = 4  # directions of each row


@dataclass
class HeldOut:
    """Rows to train on, and what a model is measured at.

    Attributes
    ----------
    train : array, shape (n, *event_shape), container and device of what came in
    test, shuffled, foreign : arrays, shape (m, *event_shape), on the host
    some : array
        Up to 10,000 of the training rows, on the host.
    labels : (array, array) or None
        Of ``some`` and of ``test``.
    image_shape : tuple of int, or None
    bits : bool
        Whether all rows are.
    kind : {"foreign", "uniform"}
        What ``foreign`` are.
    seed : int
    """

    train: Any
    test: np.ndarray
    shuffled: np.ndarray
    foreign: np.ndarray
    some: np.ndarray
    labels: tuple[np.ndarray, np.ndarray] | None
    image_shape: tuple[int, ...] | None
    bits: bool
    kind: str
    seed: int

    @property
    def scale(self) -> float:
        """Root mean square deviation of the features."""
        return math.sqrt(float(self.some.var(axis=0, dtype=np.float64).mean())) or 1.0

    def directions(self) -> np.ndarray:
        """Random signs, some for each number of the test rows, shape (k, m, *event_shape)."""
        u = stream(self.seed, Purpose.TRANSFORM).uniform((_SLICES, *self.test.shape))
        return np.where(u < 0.5, -1.0, 1.0)

    def shaped(self, model: Any, X: Any) -> Any:
        """Rows as the model takes them: flat, or as images."""
        if not get_tags(model).input_tags.three_d_array:
            return X.reshape(len(X), -1)
        return X.reshape(len(X), *self.image_shape) if self.image_shape else X

    def misfit(self, model: Any) -> str | None:
        """Why the model cannot take these rows, in words; None if it can."""
        name = type(model).__name__
        if get_tags(model).input_tags.three_d_array and self.image_shape is None:
            return f"{name} takes images: image_shape says how high and wide rows are"
        return range_complaint(model, self.shaped(model, self.train))


def flat(X: np.ndarray) -> np.ndarray:
    """One row of numbers each."""
    return X.reshape(len(X), -1)


def hold_out(
    X: Any, y: Any, X_test: Any, y_test: Any, foreign: Any, image_shape: Any, seed: int
) -> HeldOut:
    """Split and check what `compare` was given; see there.

    Raises
    ------
    ValueError
        For rows that are too few or of another shape, and labels of another length.
    """
    X = _checked(X, "X")
    rows, y, rng = open_rows(X), _labels(y, X.shape[0], "y"), stream(seed, Purpose.SPLIT)
    train, test, y, y_test = _split(rows, y, X_test, y_test, rng)
    if min(len(train), len(test)) < _FEWEST_ROWS:
        raise ValueError(
            f"{len(train)} rows to train on and {len(test)} to test on are too few: at least "
            f"{_FEWEST_ROWS} of each are wanted"
        )
    size = test[0].size
    if image_shape is not None and math.prod(image_shape) != size:
        raise ValueError(f"image_shape={image_shape} does not hold {size} features")
    if image_shape is None and test.ndim > 2:
        image_shape = test.shape[1:]
    picked = open_rows(train).pick(_LABELLED, rng)
    some = to_host(open_rows(train).take(picked))
    bits = bool(((some == 0) | (some == 1)).all() and ((test == 0) | (test == 1)).all())
    away, kind = _others(foreign, some, test, bits, rng)
    shuffled = np.random.default_rng(seed).permuted(flat(test), axis=0).reshape(test.shape)
    labels = None if y is None or y_test is None else (y[picked], y_test)
    shape = None if image_shape is None else tuple(image_shape)
    return HeldOut(train, test, shuffled, away, some, labels, shape, bits, kind, seed)


def _checked(X: Any, name: str) -> Any:
    """Rows or images of finite numbers."""
    if not (is_gpu_array(X) or is_stored(X)):
        X = check_array(X, accept_sparse="csr", allow_nd=True, dtype=None, input_name=name)
    if len(X.shape) not in (2, 3, 4) or X.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} must be rows (n, n_features) or images (n, h, w) or (n, h, w, channels) of "
            f"numbers, got shape {tuple(X.shape)} of dtype {X.dtype}"
        )
    return X


def _labels(y: Any, n: int, name: str) -> np.ndarray | None:
    if y is None:
        return None
    y = np.asarray(to_host(y))
    if y.shape != (n,):
        raise ValueError(f"{name} has shape {y.shape}, wanted one label for each of {n} rows")
    return y


def _split(
    rows: Rows, y: np.ndarray | None, X_test: Any, y_test: Any, rng: Any
) -> tuple[Any, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(training rows, test rows, and the labels of both)."""
    if X_test is None:
        if y_test is not None:
            raise ValueError("y_test goes with X_test")
        order = rng.permutation(len(rows))
        n_test = min(MAX_TEST_ROWS, round(_TEST_SHARE * len(rows)))
        kept, apart = np.sort(order[n_test:]), np.sort(order[:n_test])
        labels = (None, None) if y is None else (y[kept], y[apart])
        return rows.take(kept), to_host(rows.take(apart)), *labels
    test = open_rows(_checked(X_test, "X_test"))
    if test.event_shape != rows.event_shape:
        raise ValueError(
            f"X_test has rows of shape {test.event_shape}, X has rows of {rows.event_shape}"
        )
    y_test = _labels(y_test, len(test), "y_test")
    if (y is None) != (y_test is None):
        raise ValueError("with X_test, y and y_test go together")
    used = test.pick(MAX_TEST_ROWS, rng)
    y_test = None if y_test is None else y_test[used]
    return rows.take(slice(0, len(rows))), to_host(test.take(used)), y, y_test


def _others(
    foreign: Any, train: np.ndarray, test: np.ndarray, bits: bool, rng: Any
) -> tuple[np.ndarray, str]:
    """Rows of another kind, shaped as the test rows, and what they are called."""
    if foreign is not None:
        rows = open_rows(_checked(foreign, "foreign"))
        if math.prod(rows.event_shape) != test[0].size:
            raise ValueError(
                f"foreign has {math.prod(rows.event_shape)} features, X has {test[0].size}"
            )
        away = to_host(rows.sample(MAX_TEST_ROWS, rng))
        return away.reshape(-1, *test.shape[1:]).astype(test.dtype, copy=False), "foreign"
    u = rng.uniform(test.shape)
    if bits:
        return (u < 0.5).astype(test.dtype), "uniform"
    low, high = train.min(axis=0), train.max(axis=0)
    return (low + (high - low) * u).astype(test.dtype), "uniform"


# ---------------------------------------------------------------- what to compare with


def references(data: HeldOut, domains: set[str]) -> Iterator[tuple[str, dict[str, Measure]]]:
    """Measures by name of the training rows themselves, and of the simplest density there is.

    Parameters
    ----------
    data : HeldOut
    domains : set of str
        Of the models that are compared.
    """
    train, test = flat(data.some).astype(np.float64), flat(data.test).astype(np.float64)
    some = open_rows(train).sample(MAX_TEST_ROWS, stream(data.seed, Purpose.SPLIT, 1))
    found = {"energy_distance": metrics.energy_distance(some, test)}
    if data.labels is not None:
        found["accuracy"] = metrics.accuracy(train, test, *data.labels)
    yield "training rows", found
    if "binary" in domains and data.bits:
        yield "independent bits", _independent(data, train, test)
    if "real" in domains:
        yield "Gaussian", _gaussian(data, train, test)


def _independent(data: HeldOut, train: np.ndarray, test: np.ndarray) -> dict[str, Measure]:
    """Bits at the rates of the training rows."""
    rate = (train.sum(axis=0) + 0.5) / (len(train) + 1)
    logit = np.log(rate) - np.log1p(-rate)
    values = test @ logit + np.log1p(-rate).sum()
    u = stream(data.seed, Purpose.SAMPLE).uniform(test.shape, np.float64)
    found = {
        "log_probability": metrics.mean_of(values, "exact"),
        "pseudo_likelihood": metrics.mean_of(values / test.shape[1]),
        "energy_distance": metrics.energy_distance((u < rate).astype(np.float64), test),
    }
    return found | _separations(data, *(-flat(x) @ logit for x in _measured_at(data)))


def _gaussian(data: HeldOut, train: np.ndarray, test: np.ndarray) -> dict[str, Measure]:
    """The Gaussian with the moments of the training rows."""
    density = Gaussian.fit(train)
    values = -density.energy(test) - density.log_partition()
    v = data.directions().reshape(-1, *test.shape)
    samples = density.sample(len(test), stream(data.seed, Purpose.SAMPLE))
    found = {
        "log_density": metrics.mean_of(values, "exact"),
        "score_matching": metrics.sliced(density.input_grad, test, v, data.scale),
        "energy_distance": metrics.energy_distance(samples, test),
    }
    return found | _separations(data, *(density.energy(flat(x)) for x in _measured_at(data)))


def _measured_at(data: HeldOut) -> tuple[np.ndarray, ...]:
    return data.test, data.shuffled, data.foreign


def separations(model: Any, data: HeldOut) -> dict[str, Measure]:
    """AUC of the test rows against shuffled and foreign ones, by the model's energy."""
    energies = (to_host(model.energy(data.shaped(model, x))) for x in _measured_at(data))
    return _separations(data, *energies)


def _separations(
    data: HeldOut, own: np.ndarray, shuffled: np.ndarray, away: np.ndarray
) -> dict[str, Measure]:
    return {
        "auc_shuffled": metrics.separation(own, shuffled),
        f"auc_{data.kind}": metrics.separation(own, away),
    }
