"""Random filters: what learned ones are to be held against.

An encoder begins with atoms of random directions, and so it stays. Between pooling and contrast
normalisation such filters are no weak opponents (Jarrett et al., 2009).

References
----------
Jarrett, K., Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2009). What is the best multi-stage
architecture for object recognition? ICCV.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import (
    Array,
    Purpose,
    device_of,
    draw_seed,
    stream,
    to_device,
    to_host,
)
from energyscape.data.transformer import RowTransformer
from energyscape.models.inputs import as_rows
from energyscape.models.psd import PSD
from energyscape.registry import register
from energyscape.verbs import Params, check_count

__all__ = ["RandomFilters"]

# What encoders compute with that is not theirs to learn.
GIVEN = ("D", "lam")


def as_like(x: Array, value: Any) -> Array:
    """``value`` on the device and in the dtype of ``x``."""
    return to_device(value, device_of(x)).astype(x.dtype, copy=False)


@register
class RandomFilters(ClassNamePrefixFeaturesOutMixin, RowTransformer):
    """An encoder that nobody teaches, on random atoms: what learned filters are to be held against.

    Random filters are no weak opponents: 62.9 % against 63.7 % in two stages on Caltech-101
    (Jarrett et al., 2009).

    Parameters
    ----------
    n_components : int, default 32
    encoder : encoder, optional
        As for `PSD`: it begins with the atoms, and so it stays.
    random_state : int, None, RandomState or Generator

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Atoms of norm 1, of any direction alike.
    params_ : dict
        The encoder's arrays, ``D`` and ``lam``.
    n_features_in_, seed_ : int
    """

    params_: Params
    n_features_in_: int
    seed_: int
    positive = False

    def __init__(
        self, n_components: int = 32, encoder: Any = None, random_state: Any = None
    ) -> None:
        self.n_components = n_components
        self.encoder = encoder
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:
        """Draw the atoms; rows say on which scale encoders begin.

        Parameters
        ----------
        X : array, shape (n, n_features)
        y : ignored

        Returns
        -------
        self
        """
        check_count("n_components", self.n_components)
        rows = as_rows(self, X, reset=True)
        self.seed_ = draw_seed(self.random_state)
        rng = stream(self.seed_, Purpose.INIT)
        atoms = rng.normal((self.n_components, rows.event_shape[0]), np.float64)
        model = PSD(self.n_components, encoder=self.encoder, dictionary=atoms)
        model.check_settings()
        x = rows.sample(10_000, stream(self.seed_, Purpose.START))
        params = model.init_params(x, rng)
        names = (*model.chosen_encoder().names, *GIVEN)
        self.params_ = {name: params[name] for name in names}
        return self

    def chosen_encoder(self) -> Any:
        """The encoder, or the one that None stands for."""
        return PSD(encoder=self.encoder).chosen_encoder()

    @property
    def components_(self) -> Any:
        """Atoms, shape (n_components, n_features)."""
        if not hasattr(self, "params_"):
            raise AttributeError("RandomFilters has no components_ before fit")
        return self.params_["D"].T

    def _apply(self, x: Array) -> Array:
        own = {key: as_like(x, value) for key, value in self.params_.items()}
        return self.chosen_encoder().forward(own, x)[0]

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "params_" in state:
            state["params_"] = {key: to_host(value) for key, value in self.params_.items()}
        return state

    def file_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a file holds besides the constructor's arguments: numbers, and named arrays."""
        check_is_fitted(self)
        own = {"seed": self.seed_, "n_features_in": self.n_features_in_}
        return own, {key: to_host(value) for key, value in self.params_.items()}

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `file_state` gave."""
        self.seed_, self.n_features_in_ = int(meta["seed"]), int(meta["n_features_in"])
        self.params_ = dict(arrays)
