"""Stacks: models trained one on the codes of the other.

Greedy training (Hinton, Osindero, Teh, 2006; Bengio et al., 2007): each layer learns from the codes
that the layers below give for the data. A stack unrolls to a `DeepAutoEncoder`, and
`FineTunedClassifier` adds an output layer to it.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from energyscape import io
from energyscape.backend import Purpose, draw_seed, namespace, stream
from energyscape.errors import CapabilityError
from energyscape.layers import Affine
from energyscape.models.autoencoder import AutoEncoder
from energyscape.models.deep import DeepAutoEncoder
from energyscape.models.inputs import as_rows
from energyscape.models.rbm import RBM
from energyscape.registry import register
from energyscape.sources import Rows
from energyscape.trainers import Denoising, Reconstruction
from energyscape.verbs import check_count, need

_PASS_DOWN = 1 << 30  # step of the streams that `DeepBeliefNet.sample` draws the lower layers from


class Stack(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Models trained bottom up, each on the codes of the one below."""

    def __init__(
        self,
        layers: Sequence[Any] | None = None,
        *,
        features: str | int = "last",
        random_state: Any = None,
    ) -> None:
        self.layers = layers
        self.features = features
        self.random_state = random_state

    def default_layers(self) -> list[Any]:
        """What None stands for."""
        raise NotImplementedError

    def needed(self) -> tuple[str, ...]:
        """Verbs that every layer must offer."""
        return ("encode", "decode")

    def fit(self, X: Any, y: Any = None) -> Any:
        """Train the layers one after the other.

        Parameters
        ----------
        X : array, shape (n, n_features)
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a layer cannot take the codes of the one below.
        CapabilityError
            If a layer is not a model, or lacks a way back.
        """
        layers = self._chosen_layers()
        self._check(layers)
        self._n_rows = len(self.read(X, reset=True))
        self.seed_ = draw_seed(self.random_state)
        fitted, codes = [], X
        for i, layer in enumerate(layers):
            fitted.append(fitted_model(layer, codes, (self.seed_ + i) % 2**31))
            if i + 1 < len(layers):
                codes = self.codes_of(fitted[-1], codes)
        self.layers_ = fitted
        return self

    def read(self, X: Any, reset: bool) -> Rows:
        """Checked rows of users' data; notes their shape when ``reset``, else compares with it."""
        return as_rows(self, X, reset)

    def codes_of(self, layer: Any, X: Any) -> Any:
        """What the layer above ``layer`` takes: arrays, whatever containers users have asked
        scikit-learn for."""
        with config_context(transform_output="default"):
            return layer.transform(X)

    def _chosen_layers(self) -> list[Any]:
        if self.layers is None:
            return self.default_layers()
        if not isinstance(self.layers, Sequence):
            name, got = type(self).__name__, type(self.layers).__name__
            raise ValueError(f"{name}.layers must be a sequence of models, got {got}")
        return list(self.layers)

    def _check(self, layers: list[Any]) -> None:
        name = type(self).__name__
        if not layers:
            raise ValueError(f"{name}.layers is empty: give it models, e.g. [RBM(500), RBM(500)]")
        for i, layer in enumerate(layers):
            need(layer, self.needed(), f"layer {i + 1} of {name}")
        for i, (lower, upper) in enumerate(pairwise(layers)):
            if upper.domain in ("binary", "unit") and lower.codes != "unit":
                raise ValueError(
                    f"{name}: layer {i + 2} ({type(upper).__name__}) takes values in [0, 1]; the "
                    f"codes of layer {i + 1} ({type(lower).__name__}) are {lower.codes}. Use a "
                    "sigmoid below, or a model of real values above"
                )
        self._check_features(len(layers))

    def _check_features(self, count: int) -> None:
        name = type(self).__name__
        number = isinstance(self.features, numbers.Integral)
        if not number and self.features not in ("last", "all"):
            raise ValueError(
                f"{name}.features must be 'last', 'all' or a layer's number, got {self.features!r}"
            )
        if number and not -count <= int(self.features) < count:
            raise ValueError(
                f"{name}.features={self.features}, but there are {count} layers (0 is the lowest)"
            )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "layers_")

    def transform(self, X: Any) -> Any:
        """Codes of each row: those of the layer (or of all) that ``features`` names.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n, n_features_out)
        """
        check_is_fitted(self)
        self._check_features(len(self.layers_))  # it may have been set since
        self.read(X, reset=False)
        codes, h = [], X
        last = len(self.layers_) - 1 if isinstance(self.features, str) else self.features
        for layer in self.layers_[: last % len(self.layers_) + 1]:
            h = self.codes_of(layer, h)
            codes.append(h)
        if self.features != "all":
            return h.reshape(len(h), -1)
        return namespace(h).concatenate([code.reshape(len(code), -1) for code in codes], axis=1)

    @property
    def _n_features_out(self) -> int:
        widths = self._widths()
        if self.features == "all":
            return sum(widths)
        return widths[-1 if self.features == "last" else int(self.features)]

    def _widths(self) -> list[int]:
        """Codes of each layer."""
        return [int(layer._n_features_out) for layer in self.layers_]

    def inverse_transform(self, H: Any) -> Any:
        """Rows from codes of the last layer, by each layer's way back.

        Parameters
        ----------
        H : array, shape (n, units of the last layer)

        Returns
        -------
        array, shape (n, n_features)
        """
        check_is_fitted(self)
        for layer in reversed(self.layers_):
            H = layer.inverse_transform(H)
        return H

    def reconstruct(self, X: Any) -> Any:
        """Rows from their own codes at the top, shape (n, n_features)."""
        check_is_fitted(self)
        self.read(X, reset=False)
        for layer in self.layers_:
            X = self.codes_of(layer, X)
        return self.inverse_transform(X)

    # ------------------------------------------------------------ unrolled

    def fitted_layers(self) -> list[Affine]:
        """All layers as plain numbers, bottom first."""
        check_is_fitted(self)
        layers: list[Affine] = []
        for i, model in enumerate(self.layers_):
            name = f"layer {i + 1} of {type(self).__name__}"
            need(model, ("affine_layers",), f"unrolling {name}")
            if hasattr(model, "network_inputs"):
                raise CapabilityError(
                    f"{name} ({type(model).__name__}) guesses a part of its input, so that the "
                    "stack is no chain of layers; FineTunedClassifier takes it by itself"
                )
            layers += model.fitted_layers()
        return layers

    def unroll(self, trainer: Any = None) -> DeepAutoEncoder:
        """The stack as one deep auto-encoder with its own weights down.

        Parameters
        ----------
        trainer : Trainer, optional
            Of the auto-encoder; default ``Reconstruction()``. ``resume(X)`` of the result trains
            it for that trainer's epochs, ``partial_fit(X)`` for one.

        Returns
        -------
        DeepAutoEncoder
            Fitted: its codes and reconstructions are those of the stack. It learns by the
            cross-entropy where the lowest layer gives rows through a sigmoid.
        """
        layers = self.fitted_layers()
        bottom = layers[0].output
        model = DeepAutoEncoder(
            tuple(int(layer.W.shape[1]) for layer in layers),
            activation=[layer.activation for layer in layers],
            decoder_activation=[layer.output for layer in layers[1:]],
            loss="cross_entropy" if bottom.probabilities else "squared",
            output=bottom,
            tied=False,
            trainer=Reconstruction() if trainer is None else trainer,
            random_state=self.seed_,
        )
        return model.from_layers(layers, self.layers_[0], self._n_rows)

    # ------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted stack to an HDF5 file; see `energyscape.save`."""
        io.save(self, path)

    def file_state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a file holds besides the constructor's arguments: the layers."""
        check_is_fitted(self)
        metas: list[Any] = []
        arrays: dict[str, Any] = {}
        for i, layer in enumerate(self.layers_):
            meta, part = io.describe(layer)
            metas.append(meta)
            arrays |= {f"layers/{i}/{key}": value for key, value in part.items()}
        names = getattr(self, "feature_names_in_", None)
        meta = {
            "layers": metas,
            "seed": self.seed_,
            "n_rows": self._n_rows,
            "n_features_in": self.n_features_in_,
            "feature_names_in": None if names is None else [str(name) for name in names],
        }
        return meta, arrays

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Take up what `file_state` gave."""
        self.layers_ = []
        for i, layer in enumerate(meta["layers"]):
            self.layers_.append(io.restore(layer, io.under(arrays, f"layers/{i}/")))
        self.seed_, self._n_rows = int(meta["seed"]), int(meta["n_rows"])
        self.n_features_in_ = int(meta["n_features_in"])
        if not self.layers_:
            raise ValueError("a stack has layers, and the file holds none")
        if meta["feature_names_in"] is not None:
            self.feature_names_in_ = np.asarray(meta["feature_names_in"], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def fitted_model(model: Any, X: Any, seed: int) -> Any:
    """A clone of ``model`` fitted on ``X``, or what a `FrozenEstimator` holds, as it is."""
    if isinstance(model, FrozenEstimator):
        check_is_fitted(model)
        model.estimator.read(X, reset=False)
        return model.estimator
    settings = model.get_params(deep=False)  # a clone would copy the users' callbacks, too
    state = settings["random_state"]
    settings["random_state"] = seed if state is None else clone(state, safe=False)
    return type(model)(**settings).fit(X)


@register
class StackedAutoEncoder(Stack):
    """Auto-encoders (or any models with a code and a way back), one on the codes of the other.

    Parameters
    ----------
    layers : sequence of models, optional
        Bottom first. Default: two denoising auto-encoders of 256 units.
    features : "last", "all" or int, default "last"
        The layer whose codes `transform` gives; "all" puts those of all layers side by side.
    random_state : int, RandomState, Generator or None
        Seeds the layers that have none of their own.

    Attributes
    ----------
    layers_ : list of fitted models
    seed_, n_features_in_ : int

    References
    ----------
    Vincent, P., Larochelle, H., Lajoie, I., Bengio, Y., Manzagol, P. (2010). Stacked denoising
    autoencoders.
    """

    def default_layers(self) -> list[Any]:
        return [AutoEncoder(256, trainer=Denoising()), AutoEncoder(256, trainer=Denoising())]


@register
class DeepBeliefNet(Stack):
    """Restricted Boltzmann machines, one on the codes of the other: a generative model.

    p(x) = Σ p(x|h1) p(h1|h2) … p(h_{L-1}, h_L), whose top two layers are an RBM.

    Parameters
    ----------
    layers : sequence of RBMs, optional
        Bottom first; the lowest may be a `GaussianRBM`. Default: two RBMs of 256 units.
    features, random_state
        As for `StackedAutoEncoder`.

    Attributes
    ----------
    layers_ : list of fitted models
    seed_, n_features_in_ : int

    References
    ----------
    Hinton, G. E., Osindero, S., Teh, Y. (2006). A fast learning algorithm for deep belief nets.
    """

    def default_layers(self) -> list[Any]:
        return [RBM(), RBM()]

    def needed(self) -> tuple[str, ...]:
        return (*super().needed(), "sample_hidden", "sample_visible", "hidden_free_energy")

    def _check(self, layers: list[Any]) -> None:
        super()._check(layers)
        for i, layer in enumerate(layers[:-1], 1):
            if hasattr(layer, "complete"):
                raise CapabilityError(
                    f"DeepBeliefNet: layer {i} ({type(layer).__name__}) has several hidden layers, "
                    "which no one pass draws from; it may only be the top layer"
                )
        for i, layer in enumerate(layers[1:], 2):
            if layer.domain != "binary":
                raise ValueError(
                    f"DeepBeliefNet: layer {i} generates the binary states below it, but "
                    f"{type(layer).__name__} is a model of {layer.domain} values; use RBM there"
                )

    def sample(self, n_samples: int = 1, *, n_steps: int = 1000, random_state: Any = None) -> Any:
        """Draw rows: chains of the top machine, then one pass down.

        Parameters
        ----------
        n_samples : int, default 1
        n_steps : int, default 1000
            Of the top machine's chains.
        random_state : int, RandomState, Generator or None
            None uses the stack's own: the same call gives the same samples.

        Returns
        -------
        array, shape (n_samples, n_features)
        """
        check_is_fitted(self)
        seed = self.seed_ if random_state is None else draw_seed(random_state)
        x = self.layers_[-1].sample(n_samples, n_steps=n_steps, random_state=seed)
        for i, layer in enumerate(reversed(self.layers_[:-1])):
            # The top machine's chains have used the first steps of this purpose.
            rng = stream(seed, Purpose.SAMPLE, _PASS_DOWN + i, layer._device)
            x = layer._in_blocks(
                Rows(x), lambda p, h, of=layer, by=rng: of.sample_visible(p, h, by)
            )
        return x

    def score_samples(self, X: Any, n_draws: int = 10, random_state: Any = None) -> Any:
        """Lower bound of the log-likelihood of each row.

        E_q[log p(x|h1) - log q(h1|x)] + the same for the layers above + log p of the top machine,
        with q(h|x) the machines' own conditionals (Hinton, Osindero, Teh, 2006, eq. 8). It is
        estimated without bias from draws of q; log Z of the top machine is exact or by AIS.

        Parameters
        ----------
        X : array, shape (n, n_features)
        n_draws : int, default 10
            Draws of the hidden layers for each row.
        random_state : int, RandomState, Generator or None
            None uses the stack's own.

        Returns
        -------
        array, shape (n,), float64, in nats
        """
        check_is_fitted(self)
        check_count("n_draws", n_draws)
        seed = self.seed_ if random_state is None else draw_seed(random_state)
        lowest = self.layers_[0]
        at_rows = 0.0 if lowest is self.layers_[-1] else lowest.energy(X)  # the same in all draws
        total = 0.0
        for draw in range(n_draws):
            x = X
            for i, layer in enumerate(self.layers_[:-1]):
                rng = stream(seed, Purpose.REPORT, draw * len(self.layers_) + i, layer._device)
                h = layer._map(x, lambda p, v, of=layer, by=rng: of.sample_hidden(p, v, by))
                # log p(x|h) - log q(h|x): the energies of x and of h at the same machine.
                total = total - (layer.energy(x) if i else at_rows)
                total = total + layer._in_blocks(Rows(h), layer.hidden_free_energy)
                x = h
            total = total + self.layers_[-1].score_samples(x)
        return total / n_draws

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`, in nats."""
        return float(self.score_samples(X).mean())
