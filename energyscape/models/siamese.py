"""An encoder for pairs: their energy is how far apart their embeddings are.

SiameseEncoder (Bromley et al., 1993; Chopra, Hadsell and LeCun, 2005)
    h_0 = (x - mean)/scale,   h_l = f(h_{l-1} W_l + c_l),   z(x) = h_{L-1} W_L + c_L
    F(x_1, x_2) = D(z(x_1), z(x_2))

with one set of weights for both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import check_is_fitted, column_or_1d

from energyscape.activations import Identity, activation
from energyscape.backend import Array, is_gpu_array, namespace, to_host
from energyscape.embeddings import DISTANCES
from energyscape.layers import LayerPass, backward_chain, uniform_weights
from energyscape.models.base import EnergyModel
from energyscape.models.from_pass import EnergyFromPass
from energyscape.models.inputs import as_clips, as_rows
from energyscape.registry import register
from energyscape.samplers import HMC
from energyscape.sources import Rows, joined
from energyscape.trainers import EmbeddingLoss
from energyscape.verbs import Param, Params, Pass, check_count


class PairPass(Pass):
    """Both sides' layers, and all that follows from them."""

    def __init__(self, model: SiameseEncoder, params: Params, x: Array) -> None:
        super().__init__(model, params, x)
        both = namespace(x).concatenate([x[:, 0], x[:, 1]])
        self.up = model.encoder(params, both)
        z = self.up[-1].h
        self.D, self.du, self.dv = DISTANCES[model.chosen_metric()](z[: len(x)], z[len(x) :])

    def energy(self) -> Array:
        return self.D

    def _slopes(self, weights: Any) -> Array:
        both = namespace(self.x).concatenate([weights * self.du, weights * self.dv])
        return both.astype(self.x.dtype)

    def grad(self, weights: Array) -> Params:
        return self.model.embedding_grad(self.up, self._slopes(weights[:, None]))

    def input_grad(self) -> Array:
        _, dx = backward_chain(self.up, self._slopes(1.0), need_dx=True)
        dx /= self.params["scale"]
        return namespace(dx).stack([dx[: len(self.x)], dx[len(self.x) :]], axis=1)


@register
class SiameseEncoder(EnergyFromPass, EnergyModel):
    """A network whose embeddings are near each other where rows belong together.

    It learns from pairs (n, 2, n_features), and transforms rows or pairs.

    Parameters
    ----------
    n_components : int, default 2
        Dimensions of the embedding.
    hidden_layer_sizes : tuple of int, default (256,)
        Units of the hidden layers, lowest first; () for a linear embedding.
    activation : str or activation, default "relu"
        Of the hidden layers, as for `AutoEncoder`; the embedding is linear in the last one.
    metric : {"manhattan", "euclidean", "cosine"}, optional
        The distance D that is the energy. Default: the one that the trainer's loss is about.
    trainer : EmbeddingLoss, optional
        Default: ``EmbeddingLoss()``, InfoNCE of pairs that are all alike. With ``Siamese()`` or
        ``DrLIM()`` the fit takes labels.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (units, n_features)
        Weights of the first layer.
    params_ : dict
        ``W1``, ``c1``, ``W2``, …, and the buffers ``mean``, (n_features,), and ``scale``, one
        number, by which rows are standardised.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`; the history has ``loss_train`` and ``energy_train``.

    Notes
    -----
    exp(-F) has no normaliser, and one pair of rows with the same embedding has energy 0: there are
    no samples. `score` and ``score_samples`` are -F, with a warning that says so.

    References
    ----------
    Bromley, J., Guyon, I., LeCun, Y., Säckinger, E., Shah, R. (1993). Signature verification using
    a "siamese" time delay neural network.
    Chopra, S., Hadsell, R., LeCun, Y. (2005). Learning a similarity metric discriminatively, with
    application to face verification.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.data import load_digits
    >>> from energyscape.embeddings import DrLIM
    >>> from energyscape.models import SiameseEncoder
    >>> from energyscape.trainers import EmbeddingLoss
    >>> X, y = load_digits()
    >>> i, j = np.random.default_rng(0).integers(0, len(X), (2, 5000))
    >>> trainer = EmbeddingLoss(DrLIM(), n_epochs=5)
    >>> model = SiameseEncoder(trainer=trainer, random_state=0)
    >>> model = model.fit(np.stack([X[i], X[j]], axis=1), y[i] == y[j])
    >>> model.transform(X).shape, model.energy([[X[0], X[10]]]).shape
    ((1797, 2), (1,))
    """

    domain = "real"
    codes = "real"
    _counted = ("c", 0)
    smooth = False  # distances have a kink at 0
    nonnegative = True
    takes_clips = True

    def __init__(
        self,
        n_components: int = 2,
        *,
        hidden_layer_sizes: Sequence[int] = (256,),
        activation: Any = "relu",
        metric: str | None = None,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.metric = metric
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        """InfoNCE."""
        return EmbeddingLoss()

    def default_sampler(self) -> Any:
        """HMC, which refuses: there is no density."""
        return HMC()

    @property
    def proper(self) -> bool:
        """Whether chains have a density to go to: rows far off may have the same embedding."""
        return False

    def check_settings(self) -> None:
        super().check_settings()
        sizes = self.hidden_layer_sizes
        if not isinstance(sizes, Sequence) or isinstance(sizes, str):
            raise ValueError(
                f"SiameseEncoder.hidden_layer_sizes must be a tuple of layer sizes, got {sizes!r}"
            )
        for size in sizes:
            check_count("SiameseEncoder.hidden_layer_sizes", size)
        activation(self.activation).check()
        if self.metric is not None and self.metric not in DISTANCES:
            raise ValueError(
                f"SiameseEncoder.metric must be one of {', '.join(DISTANCES)}, got {self.metric!r}"
            )

    def chosen_metric(self) -> str:
        """The distance that is the energy."""
        if self.metric is not None:
            return self.metric
        trainer = self.default_trainer() if self.trainer is None else self.trainer
        return trainer.chosen_loss().metric

    # ------------------------------------------------------------ parameters

    def _sizes(self) -> tuple[int, ...]:
        return (*self.hidden_layer_sizes, self.n_components)

    def init_params(self, x: Array, rng: Any) -> Params:
        """Uniform weights of Glorot and Bengio (2010), biases 0; ``x`` are pairs."""
        xp, rows, params = namespace(x), x.reshape(-1, x.shape[-1]), dict[str, Array]()
        below = rows.shape[1]
        for i, width in enumerate(self._sizes(), 1):
            params[f"W{i}"] = uniform_weights(rng, (below, width), x.dtype)
            params[f"c{i}"] = xp.zeros(width, x.dtype)
            below = width
        mean = rows.mean(axis=0, dtype=np.float64)
        spread = ((rows - mean) ** 2).mean(dtype=np.float64)
        scale = xp.sqrt(xp.where(spread > 0, spread, 1.0))
        return params | {"mean": mean.astype(x.dtype), "scale": scale.astype(x.dtype)}

    def param_specs(self) -> dict[str, Param]:
        specs: dict[str, Param] = {}
        for i in range(1, len(self._sizes()) + 1):
            specs |= {f"W{i}": Param(decay=True), f"c{i}": Param()}
        return specs | {name: Param(trainable=False) for name in ("mean", "scale")}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        below = n_features
        for i, width in enumerate(self._sizes(), 1):
            shapes |= {f"W{i}": (below, width), f"c{i}": (width,)}
            below = width
        return shapes | {"mean": (n_features,), "scale": ()}

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one pair."""
        return 2, len(params["mean"])

    # ------------------------------------------------------------ verbs

    def encoder(self, params: Params, x: Array) -> list[LayerPass]:
        """Passes from rows (n, n_features) to their embeddings, bottom first."""
        h = x - params["mean"]
        h /= params["scale"]
        hidden = [activation(self.activation)] * len(self.hidden_layer_sizes)
        passes: list[LayerPass] = []
        for i, f in enumerate([*hidden, Identity()], 1):
            passes.append(LayerPass(h, params[f"W{i}"], params[f"c{i}"], f))
            h = passes[-1].h
        return passes

    def embedding_grad(self, passes: list[LayerPass], dz: Array) -> Params:
        """Gradient by name of a loss with derivative ``dz``, which is used up, in embeddings."""
        grads: Params = {}
        for i, (dW, dc) in enumerate(backward_chain(passes, dz)[0], 1):
            grads |= {f"W{i}": dW, f"c{i}": dc}
        return grads

    def forward(self, params: Params, x: Array, beta: Any = 1.0, base: Any = None) -> PairPass:
        """Both embeddings of pairs (n, 2, n_features), and all that follows from them."""
        super().forward(params, x, beta, base)  # refuses other temperatures
        return PairPass(self, params, x)

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x, shape (n, 2, n_features)."""
        return self.forward(params, x).input_grad()

    def encode(self, params: Params, x: Array) -> Array:
        """Embeddings of rows (n, n_features), or of pairs, side by side."""
        z = self.encoder(params, x.reshape(-1, x.shape[-1]))[-1].h
        return z.reshape(*x.shape[:-1], -1)

    # ------------------------------------------------------------ the face

    def fit(self, X: Any, y: Any = None) -> Any:
        """Train from scratch.

        Parameters
        ----------
        X : array, shape (n, 2, n_features)
            Pairs: NumPy or CuPy array, memory map or open HDF5 dataset.
        y : array, shape (n,), optional
            1 or True for pairs that are alike, 0 or False for others (the papers' Y is 1 - y).
            Needed by `Siamese` and `DrLIM`, ignored by losses of pairs that are all alike.
            ``partial_fit`` and ``resume`` take it likewise.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For bad pairs, labels or settings.
        CapabilityError
            If the trainer cannot train this model.
        DivergenceError
            If numbers stop being finite; the model then holds its last good epoch.
        """
        return super().fit(X, y)

    def labelled(self, rows: Rows, y: Any, trainer: Any) -> Rows:
        """``rows`` with which pairs are alike, where the trainer's loss asks for it."""
        loss, n = trainer.chosen_loss(), len(rows)
        if n < loss.least_rows:
            raise ValueError(
                f"{type(loss).__name__} compares pairs with each other: at least "
                f"{loss.least_rows} are needed, X has {n}"
            )
        if loss.labelled:
            rows.y = self._labels(y, n, type(loss).__name__)
        return rows

    def _labels(self, y: Any, n: int, loss: str) -> np.ndarray:
        if y is None:
            raise ValueError(
                f"requires y to be passed, but the target y is None: {loss} learns from labels, 1 "
                "for pairs that are alike and 0 for others"
            )
        y = column_or_1d(to_host(y) if is_gpu_array(y) else y, warn=True)
        assert_all_finite(y, input_name="y")
        if len(y) != n:
            raise ValueError(
                f"Found input variables with inconsistent numbers of samples: [{n}, {len(y)}]"
            )
        values = set(np.unique(y).tolist())
        if not values <= {0, 1}:
            raise ValueError(
                f"y must be 1 for pairs that are alike and 0 for others, got {sorted(values)[:5]}"
            )
        return y.astype(np.int8)

    def read(self, X: Any, reset: bool) -> Rows:
        """Checked pairs (n, 2, n_features)."""
        rows = as_clips(self, X, reset)
        if rows.event_shape[0] != 2:
            raise ValueError(
                f"SiameseEncoder needs pairs (n, 2, n_features), X has shape {tuple(rows.X.shape)}"
            )
        return rows

    def transform(self, X: Any) -> Any:
        """Embeddings.

        Parameters
        ----------
        X : array, shape (n, n_features), or pairs, shape (n, 2, n_features)

        Returns
        -------
        array, shape (n, n_components) or (n, 2, n_components), container of X, dtype of the fit
        """
        X = joined(X)
        if np.ndim(X) == 3:
            return super().transform(X)
        check_is_fitted(self)
        return self._in_blocks(as_rows(self, X, reset=False), self.encode)

    @property
    def components_(self) -> Any:
        """Weights of the first layer, shape (units, n_features)."""
        self._need_fit("components_")
        return self._fitted(self._params["W1"].T)

    def _block_width(self, event_shape: tuple[int, ...]) -> int:
        return 2 * math.prod(event_shape) + 4 * sum(self._sizes())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags
