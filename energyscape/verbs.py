"""The verbs: what a model offers, what a trainer may ask for, and the one error between them.

A verb takes ``params`` (a dict: name → array) first, reads only hyper-parameters from ``self``,
writes to none of its arguments (but those that say "in place"), and returns arrays on the device
of ``x`` and in its dtype; energies are always float64.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.errors import CapabilityError
from energyscape.registry import registered
from energyscape.sources import rows_per_block

Params = dict[str, Array]

VERBS: dict[str, str] = {
    "init_params": "(x, rng) → dict of named arrays, with the dtype and device of x",
    "param_specs": "() → {name: Param}: relative rate, first epoch, decay, buffer or not",
    "forward": "(params, x, beta=1, base=None) → Pass: what one matrix product gives",
    "free_energy": "(params, x) → (n,) float64: F(x; θ), latents summed or minimised out",
    "free_energy_grad": "(params, x, weights) → dict: Σ_i w_i ∂F(x_i)/∂θ, signed, no 1/n inside",
    "input_grad": "(params, x) → ∂F/∂x, the shape of x (its negative is the score)",
    "input_grad_function": "(params) → a function x → ∂F/∂x, params worked into it once; "
    "its next call may write over what it gave, and threads do not share it",
    "torus_grad_function": "(params) → the same for states of chains on tori",
    "sample_hidden": "(params, x, rng, beta=1) → h ~ p(h | x)",
    "sample_visible": "(params, h, rng, beta=1, base=None) → x ~ p(x | h)",
    "sample_visible_free": "(params, h, rng, x, free, beta=1, base=None) → x ~ p(x_free | h, the "
    "rest of x), where visible units depend on each other given h",
    "encode": "(params, x) → mean code given x",
    "complete": "(params, x, rng=None) → rows with the units that chains move besides, inferred",
    "to_chains": "(params, x) → states of chains that begin at x, where these are no rows of data",
    "from_chains": "(params, states) → points like the rows of the data, in number of terms too",
    "decode": "(params, h) → mean of x given a code",
    "affine_layers": "(params) → the encoder as a list of Affine, bottom first",
    "network": "(params, x, drop=None) → passes of all layers, the logits last",
    "label_loss": "(logits, y) → (n,) float64: -log p(y|x)",
    "network_grad": "(passes, y, scale) → the labels' gradient by name",
    "encoder": "(params, x) → passes of the layers up, bottom first",
    "embedding_grad": "(passes, dz) → the gradient by name of a loss with slope dz in the top h",
    "decoder": "(params, h) → passes of the layers down to the reconstruction",
    "standardized": "(params, x) → rows as the first layer takes them",
    "backward": "(up, down, da, extras, need_dx) → gradients by name, and that in the rows",
    "row_loss": "(params, out, x) → (n,) float64: loss of standardized rows x at the last pass",
    "loss_slope": "(out, x) → ∂loss/∂a of the last pre-activations, in multiples of unit",
    "redraw": "(params, out, rng) → a draw of the reconstruction at the decoder's last pass",
    "regenerate": "(params, x, rng) → a draw of the reconstruction of x",
    "start_points": "(params, n, rng) → where chains begin, near the data",
    "joint_energy": "(params, x, h) → (n,) float64: E(x, h; θ), before h is summed or minimised "
    "out",
    "infer": "(params, x, start=None) → Codes: the best code of each row, and how far it is from "
    "that",
    "best_codes": "(params, x) → Codes of the energy without the encoder",
    "fixed_codes": "(params, x) → those codes where they do not depend on the encoder, else None",
    "guess": "(params, x) → f(x), the encoder's code",
    "prediction_grad": "(params, x, h, weights) → dict: the gradient of Σ w_i ½|h_i - f(x_i)|² in "
    "the encoder",
    "joint_grad": "(params, x, h, weights) → dict: Σ_i w_i ∂E(x_i, h_i)/∂θ at fixed codes",
    "joint_input_grad": "(params, x, h) → ∂E/∂x at fixed codes, the shape of x",
    "hidden_free_energy": "(params, h) → (n,) float64: F of hidden states, x summed out",
    "prepared": "(params) → params with what several evaluations of an update share",
    "event_shape": "(params) → shape of one x",
    "param_shapes": "(n_features) → {name: shape}, which files are checked against",
    "log_partition": "(params) → exact log Z as a float",
    "log_partition_grad": "(params) → dict: ∂ log Z/∂θ, empty where F is normalised",
    "statistics": "(params, x) → dict of sums over rows, with F's under energy and n under rows",
    "maximize": "(params, stats) → new parameters: the M step; may clear stats of what is dropped",
    "laplacian": "(params, x) → (n,) float64: Σ_i ∂²F/∂x_i²",
    "score_matching": "(params, passed, weights) → (values, dict): ½|∂F/∂x|² - ΔF of each row of "
    "a pass, (n,) float64, and the gradient of their weighted sum",
    "squared_curvature": "(params, passed, weights) → (values, dict): Σ_i (∂²F/∂x_i²)² of each "
    "row, and the gradient of their weighted sum",
    "solve": "(params, stats) → new parameters: the minimum of the mean energy",
    "enumerable_units": "(params) → units that log_partition sums over, 0 for a formula",
    "sample_exact": "(params, n, rng) → exact draws of x",
    "base_measure": "(params) → parameters of a tractable distribution near the data",
    "base_log_partition": "(params, base) → its exact log Z",
    "coordinates": "(params) → what steps, decay and averages are taken in; shares arrays",
    "set_coordinates": "(params, coordinates) → None: the way back, in place, constraints kept",
    "precondition": "(params, grads) → None: gradients to steps in coordinates, in place",
    "project": "(params, sums, rng) → None: buffers after an update, in place",
    "feasible": "(params) → a copy within the constraints",
}


@dataclass(frozen=True)
class Param:
    """How one named array is trained.

    Attributes
    ----------
    rate : float
        Learning rate relative to the optimiser's.
    start : float
        Fraction of the epochs before which the parameter stays as it is.
    decay : bool
        Whether weight decay touches it.
    trainable : bool
        False for a buffer (offsets, running means): saved, never optimised.
    """

    rate: float = 1.0
    start: float = 0.0
    decay: bool = False
    trainable: bool = True


class Pass:
    """Everything that one evaluation of a model at points ``x`` gives.

    This one is built from a model's plain verbs. A model whose energy, gradient and conditionals
    share a matrix product returns its own from ``forward``, with the product inside.

    Parameters
    ----------
    model : object with the verbs
    params : dict of arrays
    x : array, shape (n, *event_shape)
    """

    def __init__(self, model: Any, params: Params, x: Array) -> None:
        self.model, self.params, self.x = model, params, x

    def __getitem__(self, rows: slice) -> Pass:
        return type(self)(self.model, self.params, self.x[rows])

    def join(self, other: Pass) -> Pass:
        """Both passes' rows as one pass, so that their gradients are one product."""
        xp = namespace(self.x)
        return type(self)(self.model, self.params, xp.concatenate([self.x, other.x]))

    def energy(self) -> Array:
        """F at every row, shape (n,), float64."""
        return self.model.free_energy(self.params, self.x)

    def grad(self, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ for signed ``weights`` of shape (n,)."""
        return self.model.free_energy_grad(self.params, self.x, weights)

    def input_grad(self) -> Array:
        """∂F/∂x, the shape of x."""
        return self.model.input_grad(self.params, self.x)

    def sample_hidden(self, rng: Any) -> Array:
        """A draw of the hidden units given x."""
        return self.model.sample_hidden(self.params, self.x, rng)

    def stats(self) -> Params:
        """Sums over the rows that the model's buffers need; empty for most models."""
        return {}

    def flips(
        self, bits: Array, slope: Callable[[Array], Array] | None = None
    ) -> tuple[Array, Params]:
        """What the flip of single bits changes.

        Parameters
        ----------
        bits : array of int, shape (m,)
            Entries of a flat row, on the device of x.
        slope : function, optional
            Of Δ, whatever its shape, element by element.

        Returns
        -------
        differences : array, shape (n, m), float64
            Δ_id = F(x_i) - F(x_i with entry d flipped, 1 - x_id).
        grads : dict
            Σ_id slope(Δ_id) (∂F(x_i)/∂θ - ∂F(x_i with d flipped)/∂θ); empty without a slope.
        """
        xp, n, own = namespace(self.x), len(self.x), self.energy()
        flat = self.x.reshape(n, -1)
        size = rows_per_block(4 * self.x.nbytes)  # bits at a time
        differences, pulled, grads = [], xp.zeros(n, self.x.dtype), dict[str, Array]()
        for lo in range(0, len(bits), size):
            part = bits[lo : lo + size]
            rows = xp.repeat(flat[None], len(part), axis=0)
            index = xp.arange(len(part))
            rows[index, :, part] = 1 - flat[:, part].T
            passed = self.model.forward(self.params, rows.reshape(-1, *self.x.shape[1:]))
            change = own - passed.energy().reshape(len(part), n)
            differences.append(change.T)
            if slope is None:
                continue
            weights = slope(change).astype(self.x.dtype)
            pulled += weights.sum(axis=0)
            more = passed.grad(-weights.ravel())
            grads = {k: v + grads[k] for k, v in more.items()} if grads else more
        at_rows = self.grad(pulled) if grads else {}
        return xp.concatenate(differences, axis=1), {k: v + at_rows[k] for k, v in grads.items()}

    def pseudo_log_likelihood(self) -> Array:
        """Σ_d log p(x_d | the other entries) of every row of bits, shape (n,), float64."""
        xp = namespace(self.x)
        change, _ = self.flips(xp.arange(self.x[0].size))
        return -xp.logaddexp(0.0, change).sum(axis=1)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def check_nested(estimator: Any, given: dict[str, Any], examples: dict[str, str]) -> None:
    """Raise ValueError where ``set_params`` names a part of a part that is None.

    ``examples`` says, by part, what might be given instead.
    """
    own = estimator.get_params(deep=False)
    for part, example in examples.items():
        nested = [key for key in given if key.startswith(f"{part}__")]
        if nested and part in own and given.get(part, own[part]) is None:
            name = type(estimator).__name__
            raise ValueError(
                f"{nested[0]} has nothing to set: {name}.{part} is None. Pass one first, e.g. "
                f"{name}({part}={example})"
            )


def speaks(model: Any, verbs: tuple[str, ...]) -> list[str]:
    """The ``verbs`` that ``model`` lacks; "one|other" asks for either."""

    def offers(verb: str) -> bool:
        return any(callable(getattr(model, name, None)) for name in verb.split("|"))

    return [verb for verb in verbs if not offers(verb)]


def obstacle(model: Any, trainer: Any) -> str | None:
    """Why ``trainer`` cannot train ``model``, in words; None if it can."""
    missing = speaks(model, trainer.requires)
    if missing:
        needed = ", ".join(_described(verb) for verb in missing)
        return f"it needs {needed}, which {type(model).__name__} does not offer"
    if trainer.needs_proper and not model.proper:
        return f"the energy of {type(model).__name__} is that of no density"
    if trainer.needs_limited and not model.limited:
        return f"nothing keeps the energy of {type(model).__name__} from being low everywhere"
    if trainer.needs_smooth and not model.smooth:
        return f"the energy of {type(model).__name__} has kinks, whose curvature no point shows"
    if trainer.needs_visible and not speaks(model, ("complete",)):
        return f"{type(model).__name__} has an energy of units that no row of data shows"
    domains = trainer.domains
    if domains and model.domain not in domains:
        return f"it needs {' or '.join(domains)} units; {type(model).__name__}'s are {model.domain}"
    return None


def need(model: Any, verbs: tuple[str, ...], what: str) -> None:
    """Raise `CapabilityError` if ``model`` lacks one of the ``verbs`` that ``what`` is made of."""
    missing = speaks(model, verbs)
    if missing:
        needed = ", ".join(_described(verb) for verb in missing)
        raise CapabilityError(f"{what} needs {needed}, which {type(model).__name__} does not offer")


def _described(verb: str) -> str:
    return " or ".join(f"{name}{VERBS.get(name, '')}" for name in verb.split("|"))


def require(model: Any, trainer: Any) -> None:
    """Raise the one `CapabilityError` unless ``trainer`` can train ``model``."""
    why = obstacle(model, trainer)
    if why is not None:
        able = [name for name, cls in _trainers().items() if obstacle(model, cls) is None]
        raise CapabilityError(
            f"{type(trainer).__name__} cannot train {type(model).__name__}: {why}. "
            f"Trainers that can: {', '.join(able) or 'none'}."
        )


def _trainers() -> dict[str, Any]:
    return {n: c for n, c in registered().items() if hasattr(c, "collect") and hasattr(c, "apply")}


def is_one(beta: Any) -> bool:
    """Whether β tempers nothing: one number for all rows, and that is 1."""
    return np.ndim(beta) == 0 and beta == 1.0


def as_column(beta: Any, like: Array) -> Any:
    """β ready to multiply rows of ``like``: a Python float, or a column of its dtype."""
    if np.ndim(beta) == 0:
        return like.dtype.type(beta)
    return beta.astype(like.dtype).reshape(-1, *([1] * (like.ndim - 1)))
