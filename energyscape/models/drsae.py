"""Discriminative recurrent sparse auto-encoders: unrolled inference that learns labels as well.

    z_0 = 0,   z_{t+1} = max(0, E x + S z_t - b),   t < T
    L = ⟨-log softmax(C z/|z| + c)_y⟩ + w ⟨½|x - D z|² + λ Σ z⟩ / ⟨|x|²⟩,      z = z_T

A `LISTA` with positive codes, E, S, b and D learned by its energy alone, is where this begins;
then labels teach all of it, back through all T steps, and the energy, at weight w, keeps codes what
rows are made of. Few units take part in a digit: parts, which add up to it, and prototypes that
suppress the parts of other digits. (The paper's images have |x| = 1; b >= 0, as thresholds are.)

References
----------
Rolfe, J. T., LeCun, Y. (2013). Discriminative recurrent sparse auto-encoders. ICLR,
arXiv:1301.3775.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from energyscape.activations import Identity
from energyscape.backend import Array, namespace, to_device
from energyscape.errors import CapabilityError
from energyscape.layers import LayerPass
from energyscape.models.labelled import LabelledModel, label_slopes
from energyscape.models.lista import LISTA
from energyscape.models.unrolled import LISTAEncoder
from energyscape.registry import register
from energyscape.solvers.quadratic import Gram
from energyscape.trainers import EnergyLoss
from energyscape.verbs import Param, Params

_STEPS = 11  # T of the paper
# Codes are divided by |z|, or by this share of the rows' root mean square where they are shorter:
# the direction of a code that is all but off says nothing.
_SHORT = 0.01
# The loss has at most a quarter of the curvature in C that it has in c: |u| = 1, and codes >= 0
# point no two ways at once.
_RATE = 4.0
_BUFFERS = ("squares", "bound")


class DirectionPass:
    """u = z/|z| of the codes of a pass, times what `keep` was given."""

    def __init__(self, codes: Any, least: Array) -> None:
        xp = namespace(codes.h)
        self.codes, self.mask = codes, None
        length = xp.sqrt((codes.h * codes.h).sum(axis=1))
        self._free = length > least
        self._length = xp.maximum(length, least)[:, None]
        self._u = codes.h / self._length
        self.h = self._u

    def keep(self, mask: Array) -> None:
        """Multiply u by ``mask``, which derivatives see as a constant."""
        self.h = self.h * mask
        self.mask = mask if self.mask is None else self.mask * mask

    def backward(self, dh: Array) -> Array:
        """The derivative in z of a loss with the derivative ``dh`` in u."""
        if self.mask is not None:
            dh = dh * self.mask
        along = (dh * self._u).sum(axis=1) * self._free
        return (dh - along[:, None] * self._u) / self._length


@register
class DrSAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, LabelledModel):
    """Classifier whose hidden units are the codes of a recurrent sparse auto-encoder.

    ``transform`` gives the codes z, ``predict`` the classes.

    Parameters
    ----------
    model : LISTA, optional
        Fitted on X first, without labels: a `LISTA` with any encoder. What is fitted already comes
        in ``sklearn.frozen.FrozenEstimator(model)``. Default: 400 units, T = 11:
        ``LISTA(400, encoder=LISTAEncoder(10), positive=True, train_dictionary=True,
        trainer=EnergyLoss(n_epochs=20))``.
    energy_weight : float, default 1
        w >= 0: how much the energy, in units of the mean |x|², counts beside the labels.
    trainer : Backpropagation, optional
        Default: ``Backpropagation()``. Dropout leaves out codes that the softmax sees.
    random_state : int, RandomState, Generator or None
    device : {"auto", "cpu", "cuda", "cuda:i"}, default "auto"
    verbose : int, default 0

    Attributes
    ----------
    model_ : fitted LISTA
        As it was before labels were seen.
    classes_ : array
    components_ : array, shape (n_components, n_features)
        Atoms, the columns of D, of norm 1.
    coef_ : array, shape (n_classes, n_components)
        C.
    intercept_ : array, shape (n_classes,)
        c.
    params_ : dict
        Those of the `LISTA` (``We`` is E', ``S``, ``theta`` is b, ``D``), ``C``, ``c``, and the
        buffers ``squares``, ⟨|x|²⟩, and ``bound``, λ_max(D'D) at first.
    history_ : dict of lists
        ``loss_train``, ``error_train`` and, with ``validation_fraction``, ``loss_valid``,
        ``error_valid`` after each epoch.
    n_iter_, n_features_in_, seed_ : int

    References
    ----------
    Rolfe, J. T., LeCun, Y. (2013). Discriminative recurrent sparse auto-encoders. ICLR.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import LISTA, DrSAE
    >>> from energyscape.models.unrolled import LISTAEncoder
    >>> from energyscape.trainers import EnergyLoss
    >>> X, y = load_digits()
    >>> X = X - X.mean(axis=1, keepdims=True)
    >>> shared = {"positive": True, "train_dictionary": True, "trainer": EnergyLoss(5)}
    >>> model = LISTA(64, encoder=LISTAEncoder(4), **shared)
    >>> classifier = DrSAE(model, random_state=0).fit(X[:1500], y[:1500])
    >>> bool(classifier.score(X[1500:], y[1500:]) > 0.9)
    True
    """

    def __init__(
        self,
        model: Any = None,
        *,
        energy_weight: float = 1.0,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.energy_weight = energy_weight
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_model(self) -> Any:
        """400 units and 11 steps, as in the paper."""
        return LISTA(
            400,
            encoder=LISTAEncoder(_STEPS - 1),
            positive=True,
            train_dictionary=True,
            trainer=EnergyLoss(n_epochs=20),
        )

    def check_pair(self, model: Any, trainer: Any) -> None:
        """Raise unless the model's codes are an encoder's, and for settings that cannot be."""
        if not 0 <= self.energy_weight < math.inf:
            raise ValueError(f"DrSAE.energy_weight must be >= 0, got {self.energy_weight!r}")
        model = model.estimator if isinstance(model, FrozenEstimator) else model
        if getattr(model, "latents", None) != "guessed" or isinstance(model, type):
            raise CapabilityError(
                "DrSAE needs a model whose energy is taken at an encoder's codes, as LISTA's is, "
                f"got {model!r}"
            )
        bare = type(self)()
        bare.model_ = model
        trainer.validate(bare)

    # ------------------------------------------------------------ verbs

    def first_params(self, x: Array, dtype: Any) -> Params:
        """The model's parameters, and a softmax that knows nothing yet."""
        params = {k: to_device(v, self._device) for k, v in self.model_._params.items()}
        params = {k: v.astype(dtype if v.dtype.kind == "f" else v.dtype) for k, v in params.items()}
        xp, (m, classes) = namespace(x), (params["D"].shape[1], len(self.classes_))
        squares = (x * x).sum(axis=1, dtype=np.float64).mean()
        squares = xp.where(squares > 0, squares, 1.0).astype(dtype)
        return params | {
            "C": xp.zeros((m, classes), dtype),
            "c": xp.zeros(classes, dtype),
            "squares": squares,
            "bound": xp.asarray(Gram.of(params["D"]).bound, dtype=dtype),
        }

    def param_specs(self) -> dict[str, Param]:
        own = {"C": Param(_RATE, decay=True), "c": Param()} | dict.fromkeys(
            _BUFFERS, Param(trainable=False)
        )
        return self.model_.param_specs() | own

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        classes, shapes = len(self.classes_), self.model_.param_shapes(n_features)
        return (
            shapes | {"C": (shapes["D"][1], classes), "c": (classes,)} | dict.fromkeys(_BUFFERS, ())
        )

    def network(self, params: Params, x: Array, drop: Any = None) -> list[Any]:
        """Directions of the codes, and logits; ``drop`` is shown the directions."""
        xp = namespace(x)
        least = xp.sqrt(params["squares"]) * x.dtype.type(_SHORT)
        units = DirectionPass(self.model_.forward(params, x), least)
        if drop is not None:
            drop(units)
        return [units, LayerPass(units.h, params["C"], params["c"], Identity())]

    def network_grad(self, passes: list[Any], y: Array, scale: float) -> Params:
        """``scale`` times Σ_i ∂/∂θ of the labels' loss and of the energy's, by name."""
        units, logits = passes
        da = label_slopes(logits.h, y, scale)
        codes = units.codes
        dz = units.backward(da @ codes.params["C"].T)
        each = namespace(dz).full(len(dz), scale * self.energy_weight, dz.dtype)
        grads = codes.grad(each / codes.params["squares"], dz)
        return grads | {"C": units.h.T @ da, "c": da.sum(axis=0)}

    def precondition(self, params: Params, grads: Params) -> None:
        """Steps of the network in units of the curvature that the energy has in each array, in
        place: the model's for a curvature of 1 in the codes, where it is w λ_max(D'D)/⟨|x|²⟩."""
        own = {key: grads[key] for key in grads if key not in ("C", "c")}
        unit = params["squares"] / params["bound"]
        unit = unit * unit.dtype.type(1.0 / max(1.0, self.energy_weight))
        for grad in own.values():
            grad *= unit
        self.model_.precondition(params, own)
        grads |= own

    def feasible(self, params: Params) -> Params:
        """A copy with atoms of norm 1, and the encoder within its constraints."""
        return self.model_.feasible(params)

    def row_numbers(self) -> int:
        """Numbers that a row takes while it is worked on: two for a unit at each step."""
        D = self._state.params["D"]
        return D.shape[0] + 2 * (_STEPS + 1) * D.shape[1]

    # ------------------------------------------------------------ using it

    def transform(self, X: Any) -> Any:
        """Codes z of each row, >= 0 where the model's are.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n, n_components), container of X, dtype of the fit
        """
        return self._in_blocks(X, lambda params, x: self.model_.guess(params, x))

    def reconstruct(self, X: Any) -> Any:
        """Dz of each row, shape (n, n_features)."""
        model = self.model_
        return self._in_blocks(X, lambda p, x: model.decode(p, model.guess(p, x)))

    @property
    def _n_features_out(self) -> int:
        return int(self._state.params["D"].shape[1])

    def _fitted(self, array: Array) -> Any:
        return to_device(array, self._home)

    @property
    def params_(self) -> dict[str, Any]:
        """Parameters by their letters; container of ``fit``'s X."""
        check_is_fitted(self)
        return {k: self._fitted(v) for k, v in self._params.items()}

    @property
    def components_(self) -> Any:
        """Atoms in rows."""
        check_is_fitted(self)
        return self._fitted(self._params["D"].T)

    @property
    def coef_(self) -> Any:
        """C, classes in rows."""
        check_is_fitted(self)
        return self._fitted(self._params["C"].T)

    @property
    def intercept_(self) -> Any:
        """c."""
        check_is_fitted(self)
        return self._fitted(self._params["c"])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
