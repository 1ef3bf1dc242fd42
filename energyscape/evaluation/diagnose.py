"""What is wrong with a trained model, measured and named, with the likely cause and the remedy.

Three questions: do the hidden units say anything (activation matrix: dead, saturated, duplicated
units), do the filters look like anything, and is anything pulled up (energies of data against
jittered, shuffled and uniform points, and against the model's own samples)?
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Purpose, stream, to_host
from energyscape.evaluation.metrics import auc
from energyscape.models.inputs import range_complaint
from energyscape.plotting import image_grid

MAX_ROWS = 2000
_SAMPLES, _SAMPLE_STEPS = 500, 200
_FLIPPED, _JITTER = 0.1, 0.5  # share of bits flipped; noise in standard deviations

# A unit is dead (saturated) if no row brings it above 5 % (below 95 %), and two are duplicates if
# their activities correlate to 0.98. A twentieth of such units is worth a word.
_OFF, _ON, _SAME, _SHARE = 0.05, 0.95, 0.98, 0.05
# More than half of the units stuck, some at each end, is what a step that is too long leaves.
_STUCK = 0.5
# Activities that move by less than this, and a reconstruction that gained less than that.
_STILL, _GAIN = 0.03, 0.05
# Half of each filter shared with every other one; a good model of 8×8 digits has 0.35.
_ALIKE = 0.5
# White noise has neighbour correlation 0 and kurtosis 3; strokes have 0.3 to 0.9, Gabors more
# kurtosis.
_SMOOTH, _PEAKED = 0.15, 4.0
# Uniform points above the data this often at least, and samples below it by no more than this
# many standard deviations.
_PULLED, _SUNK = 0.8, 2.0


@dataclass(frozen=True)
class Finding:
    """One fault: its name, what was measured, and what to do."""

    name: str
    measured: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.measured}. {self.remedy}"


@dataclass
class Diagnosis:
    """Result of `diagnose`; ``print`` it.

    Attributes
    ----------
    findings : list of Finding
        Empty for a healthy model.
    numbers : dict of str to float
        Everything measured.
    activations : array, shape (n_rows, n_components)
    energies : dict of str to array
        F of "data", "jittered", "shuffled", "uniform" points and of the model's "samples".
    filters : array, shape (n_components, n_features)
    image_shape : (h, w) or None
    """

    model: str
    findings: list[Finding]
    numbers: dict[str, float]
    activations: np.ndarray = field(repr=False)
    energies: dict[str, np.ndarray] = field(repr=False)
    filters: np.ndarray = field(repr=False)
    image_shape: tuple[int, ...] | None

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.findings) or 'no'} finding(s)"]
        lines += [f"  * {finding}" for finding in self.findings]
        lines += [f"  {name} = {value:.6g}" for name, value in self.numbers.items()]
        return "\n".join(lines)

    def save_png(self, path: str | os.PathLike[str]) -> None:
        """A picture: activations, mean activities, energies, filters (needs matplotlib)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        axes[0, 0].imshow(self.activations[:200], aspect="auto", cmap="gray", vmin=0, vmax=1)
        axes[0, 0].set(title="activations", xlabel="unit", ylabel="row")
        axes[0, 1].hist(self.activations.mean(axis=0), bins=40, range=(0, 1))
        axes[0, 1].set(title="mean activity of each unit", xlabel="mean", ylabel="units")
        low = min(float(np.quantile(e, 0.01)) for e in self.energies.values())
        high = max(float(np.quantile(e, 0.99)) for e in self.energies.values())
        for name, energy in self.energies.items():
            axes[1, 0].hist(energy, bins=60, range=(low, high), alpha=0.5, label=name)
        axes[1, 0].set(title="energies", xlabel="F", ylabel="points")
        axes[1, 0].legend(loc="upper right", frameon=False)
        if self.image_shape is not None:
            grid = image_grid(self.filters[:100], self.image_shape, symmetric=True)
            axes[1, 1].imshow(grid, cmap="gray")
        else:
            axes[1, 1].imshow(self.filters[:100], aspect="auto", cmap="gray")
        axes[1, 1].set(title="filters", xticks=[], yticks=[])
        figure.savefig(path, dpi=100, format="png")


def diagnose(
    model: Any, X: Any, *, image_shape: tuple[int, ...] | None = None, random_state: int = 0
) -> Diagnosis:
    """Measure a fitted model on data and name what is wrong with it.

    Parameters
    ----------
    model : fitted model with hidden units
    X : array, shape (n, n_features), or images where the model takes these
        Data like that of the training, held out if possible; up to 2,000 rows are used.
    image_shape : (h, w), optional
        Shape of a row as an image. Default: what the model's file says, else square where that
        fits; filters are not judged otherwise.
    random_state : int, default 0

    Returns
    -------
    Diagnosis
    """
    check_is_fitted(model)
    rng = np.random.default_rng(random_state)
    rows = model.read(X, reset=False)
    x = to_host(rows.sample(MAX_ROWS, stream(random_state, Purpose.DIAGNOSE)))
    filters, deviation = to_host(model.components_), x.std(axis=0)
    if hasattr(model, "filter_shape"):  # filters see windows of images
        shape = model.filter_shape
        deviation = np.broadcast_to(x.std(axis=(0, 1, 2)), (*shape, 1)[:3]).ravel()
        x = x.reshape(*x.shape[:3], *model.image_shape_[2:])  # grey images as they came
    else:
        shape = _image_shape(x.shape[1], image_shape or getattr(model, "image_shape_", None))
    activations = to_host(model.transform(x))
    energies = _energies(model, x, rng, random_state)
    numbers = _unit_numbers(activations, model.codes == "unit")
    numbers |= _filter_numbers(filters, deviation, shape)
    numbers |= _energy_numbers(energies) | _history_numbers(model.history_) | _size_numbers(model)
    findings = _findings(model, rows.X, numbers)
    name = type(model).__name__
    return Diagnosis(name, findings, numbers, activations, energies, filters, shape)


# ---------------------------------------------------------------- measures


def _image_shape(d: int, image_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if image_shape is not None:
        if math.prod(image_shape) != d:
            raise ValueError(f"image_shape={image_shape} does not hold {d} features")
        return tuple(image_shape)
    side = math.isqrt(d)
    return (side, side) if side * side == d and side > 2 else None


def _energies(model: Any, x: np.ndarray, rng: Any, seed: int) -> dict[str, np.ndarray]:
    binary = model.domain == "binary"
    if binary:
        flip = rng.random(x.shape) < _FLIPPED
        jittered = np.where(flip, 1 - x, x)
        uniform = rng.integers(0, 2, x.shape).astype(x.dtype)
    else:
        noise = rng.standard_normal(x.shape) * (_JITTER * x.std(axis=0))
        jittered = (x + noise).astype(x.dtype)
        uniform = rng.uniform(x.min(axis=0), x.max(axis=0), x.shape).astype(x.dtype)
    points = {
        "data": x,
        "jittered": jittered,
        "shuffled": rng.permuted(x, axis=0),
        "uniform": uniform,
        "samples": model.sample(_SAMPLES, n_steps=_SAMPLE_STEPS, random_state=seed),
    }
    return {name: to_host(model.energy(p)) for name, p in points.items()}


def _energy_numbers(energies: dict[str, np.ndarray]) -> dict[str, float]:
    data = energies["data"]
    numbers = {}
    for name in ("jittered", "shuffled", "uniform"):
        numbers[f"gap_{name}"] = float(energies[name].mean() - data.mean())
        numbers[f"auc_{name}"] = auc(energies[name], data)
    spread = max(float(data.std()), 1e-6 * (1.0 + abs(float(data.mean()))))
    numbers["samples_below_data"] = float(data.mean() - energies["samples"].mean()) / spread
    return numbers


def _unit_numbers(h: np.ndarray, unit: bool) -> dict[str, float]:
    dead = abs(h).max(axis=0) < _OFF
    saturated = (h.min(axis=0) > _ON) & unit
    alive = h[:, h.std(axis=0) > 1e-6]
    numbers = {
        "dead": float(dead.mean()),
        "saturated": float(saturated.mean()),
        "activity_spread": float(np.median(h.std(axis=0))),
        "duplicated": 0.0,
        "mean_correlation": 0.0,
    }
    if alive.shape[1] > 1:
        correlation = np.abs(np.corrcoef(alive.T.astype(np.float64)))
        np.fill_diagonal(correlation, 0)
        numbers["duplicated"] = float((correlation.max(axis=0) > _SAME).sum() / h.shape[1])
        pairs = len(correlation) * (len(correlation) - 1)
        numbers["mean_correlation"] = float(correlation.sum() / pairs)
    return numbers


def _filter_numbers(
    filters: np.ndarray, deviation: np.ndarray, shape: tuple[int, ...] | None
) -> dict[str, float]:
    """How alike filters are (mean |cosine|), and neighbour correlation and kurtosis of each.

    Weighted by the pixels' deviations; white noise gives 0 and 3 for the last two, whatever those.
    """
    tiny = 1e-100  # its square is a number still
    scale = deviation.astype(np.float64)
    flat = filters * scale
    flat /= np.maximum(np.sqrt((flat**2).sum(axis=1, keepdims=True)), tiny)
    pairs = max(1, len(flat) * (len(flat) - 1))
    alike = np.abs(flat @ flat.T)
    numbers = {"filter_correlation": float(alike.sum() - np.trace(alike)) / pairs}
    if shape is None:
        return numbers
    w = flat.reshape(len(filters), *shape)
    power = np.maximum((w**2).sum(axis=(1, 2)), tiny)
    vertical = (w[:, 1:] * w[:, :-1]).sum(axis=(1, 2))
    horizontal = (w[:, :, 1:] * w[:, :, :-1]).sum(axis=(1, 2))
    uneven = max(float((scale**4).sum() / max((scale**2).sum() ** 2, tiny)), tiny)
    kurtosis = (w**4).sum(axis=(1, 2)) / power**2 / uneven
    return numbers | {
        "filter_smoothness": float(np.median((vertical + horizontal) / (2 * power))),
        "filter_kurtosis": float(np.median(kurtosis)),
    }


def _history_numbers(history: dict[str, list[float]]) -> dict[str, float]:
    errors = history.get("reconstruction") or [math.nan]
    return {"reconstruction_gain": 1 - errors[-1] / errors[0] if errors[0] else 0.0}


def _size_numbers(model: Any) -> dict[str, float]:
    specs = model.param_specs()
    sizes = {k: v.size for k, v in model.params_.items() if specs[k].trainable}
    products = sum(v.size for v in model.params_.values() if v.ndim > 1)
    return {"parameters": float(sum(sizes.values())), "multiply_adds_per_row": float(products)}


# ---------------------------------------------------------------- verdicts


def _findings(model: Any, X: Any, n: dict[str, float]) -> list[Finding]:
    found = []
    complaint = range_complaint(model, X)
    if complaint is not None:
        found.append(Finding("unscaled data", complaint, "Then train anew"))
    stuck = n["dead"] + n["saturated"]
    raised = n["auc_uniform"] >= _PULLED and n["auc_jittered"] >= 0.5
    too_high = (stuck > _STUCK and min(n["dead"], n["saturated"]) > 0) or (
        raised and n["samples_below_data"] > _SUNK
    )
    still = n["activity_spread"] < _STILL and n["reconstruction_gain"] < _GAIN and stuck < _STUCK
    if not raised:
        found.append(
            Finding(
                "no pull-up",
                f"uniform points lie above the data in {n['auc_uniform']:.0%} of pairs, jittered "
                f"ones in {n['auc_jittered']:.0%}, samples lie {n['samples_below_data']:.1f} "
                "deviations below",
                "The energy is low everywhere: train with a strategy that pulls up (PCD, CD)",
            )
        )
    elif too_high:
        found.append(
            Finding(
                "learning rate too high",
                f"{n['dead']:.0%} of the units are dead and {n['saturated']:.0%} saturated; the "
                f"model's samples lie {n['samples_below_data']:.1f} deviations below the data",
                "Lower the learning rate (find_learning_rate), let it fall to 0, and train anew",
            )
        )
    if still:
        found.append(
            Finding(
                "learning rate too low",
                f"activities move by {n['activity_spread']:.3f} and the reconstruction gained "
                f"{n['reconstruction_gain']:.1%}",
                "The weights have hardly left their start: raise the learning rate or the epochs",
            )
        )
    found += _unit_findings(n, too_high)
    if n["filter_correlation"] > _ALIKE and not still and not too_high:
        found.append(
            Finding(
                "correlated filters",
                f"pairs of filters have a mean |cosine| of {n['filter_correlation']:.2f}",
                "They all follow one direction: centre and scale or whiten the data, or lower the "
                "learning rate",
            )
        )
    if "filter_smoothness" in n and not still and not too_high:
        noisy = n["filter_smoothness"] < _SMOOTH and n["filter_kurtosis"] < _PEAKED
        if noisy:
            found.append(
                Finding(
                    "noise filters",
                    f"neighbouring weights correlate to {n['filter_smoothness']:.2f}, kurtosis "
                    f"{n['filter_kurtosis']:.1f} (white noise: 0 and 3)",
                    "The filters have no structure: more data or epochs, some weight decay; check "
                    "that rows are images in the order that image_shape says",
                )
            )
    return found


def _unit_findings(n: dict[str, float], too_high: bool) -> list[Finding]:
    found = []
    if n["dead"] > _SHARE and not too_high:
        found.append(
            Finding(
                "dead units",
                f"{n['dead']:.0%} of the units are never on",
                "Fewer units, a lower rate at the beginning, or a higher hidden bias",
            )
        )
    if n["saturated"] > _SHARE and not too_high:
        found.append(
            Finding(
                "saturated units",
                f"{n['saturated']:.0%} of the units are always on",
                "They only shift the visible bias: lower rate at the beginning, centred training, "
                "or weight decay",
            )
        )
    if n["duplicated"] > _SHARE:
        found.append(
            Finding(
                "duplicated units",
                f"{n['duplicated']:.0%} of the units have a twin (mean |correlation| of all is "
                f"{n['mean_correlation']:.2f})",
                "Fewer units, or small random weights to begin with instead of equal ones",
            )
        )
    return found
