"""A classifier whose hidden layers come from an unsupervised model.

FineTunedClassifier (Hinton and Salakhutdinov, 2006; Bengio et al., 2007)
    h_0 = x,   h_l = f_l(h_{l-1} W_l + c_l),   p(y | x) = softmax(h_L W_out + c_out)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.activations import Identity
from energyscape.backend import Array, namespace, to_device
from energyscape.errors import CapabilityError
from energyscape.layers import Affine, LayerPass, backward_chain
from energyscape.models.labelled import LabelledModel, check_early, label_slopes
from energyscape.models.stacks import StackedAutoEncoder
from energyscape.registry import register
from energyscape.sources import Rows
from energyscape.verbs import Param, Params


@register
class FineTunedClassifier(LabelledModel):
    """Softmax classifier on the layers of an unsupervised model, all trained on labels.

    Parameters
    ----------
    model : model or stack, optional
        Fitted on X first, without labels: anything that gives its encoder as layers
        (auto-encoders, RBMs, PCA, stacks of these, `DeepBoltzmannMachine`). What is fitted already
        comes in ``sklearn.frozen.FrozenEstimator(model)``. Default: ``StackedAutoEncoder()``. It
        sees all rows, also those that the trainer sets apart for validation.
    trainer : Backpropagation, optional
        Dropout, weight decay, jitter, momentum, schedule and the validation curve are its
        settings. Default: ``Backpropagation()``. Steps are in units of the rows' and codes' own
        scales, so that one learning rate fits data on any scale from 1 upwards.
    random_state : int, RandomState, Generator or None
    device : {"auto", "cpu", "cuda", "cuda:i"}, default "auto"
    verbose : int, default 0

    Attributes
    ----------
    model_ : fitted model
        As it was before labels were seen.
    classes_ : array
    coefs_, intercepts_ : lists of arrays
        Weights and biases of all layers, the softmax last.
    history_ : dict of lists
        ``loss_train``, ``error_train`` and, with ``validation_fraction``, ``loss_valid``,
        ``error_valid`` after each epoch.
    n_iter_, n_features_in_, seed_ : int

    References
    ----------
    Bengio, Y., Lamblin, P., Popovici, D., Larochelle, H. (2007). Greedy layer-wise training of deep
    networks.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import RBM, FineTunedClassifier
    >>> from energyscape.trainers import PCD, Backpropagation
    >>> X, y = load_digits()
    >>> model = RBM(64, trainer=PCD(n_epochs=5))
    >>> trainer = Backpropagation(batch_size=20)
    >>> classifier = FineTunedClassifier(model, trainer=trainer, random_state=0)
    >>> bool(classifier.fit(X[:1500], y[:1500]).score(X[1500:], y[1500:]) > 0.9)
    True
    """

    _depth: int
    _rates: dict[str, float]  # of steps, by name

    def default_model(self) -> Any:
        """What None stands for."""
        return StackedAutoEncoder()

    def check_pair(self, model: Any, trainer: Any) -> None:
        """Raise unless the model's encoder is a chain of layers, for settings that cannot be, and
        for transforms of rows that the model adds units to."""
        bare = type(self)()
        bare._depth = 0
        check_early(trainer, bare)
        if not any(hasattr(model, part) for part in ("affine_layers", "unroll", "network_inputs")):
            raise CapabilityError(
                "FineTunedClassifier needs a model whose encoder is a chain of layers (it offers "
                "affine_layers), such as an auto-encoder, an RBM, a DeepBoltzmannMachine of two "
                "hidden layers, PCA, or a stack of these; "
                f"{type(model).__name__} has none. Its features go into a classifier by a pipeline"
            )
        if trainer.batch_transform is not None and hasattr(model, "network_inputs"):
            raise CapabilityError(
                "Backpropagation.batch_transform would change the units that "
                f"{type(model).__name__} adds to each row; leave it out"
            )

    def inputs(self, X: Any, rows: Rows) -> Rows:
        """What the first layer takes: X, or what the model makes of it (a `DeepBoltzmannMachine`
        adds its own guess of the layer above)."""
        inputs = getattr(self.model_, "network_inputs", None)
        return rows if inputs is None else Rows(inputs(X))

    def first_params(self, x: Array, dtype: Any) -> Params:
        """The model's layers, and an output layer that knows nothing yet."""
        layers = self.model_.fitted_layers()
        self._set_layers(layers)
        params: Params = {}
        for i, layer in enumerate(layers):
            for key, value in (("W", layer.W), ("c", layer.c)):
                moved = to_device(value, self._device).astype(dtype)
                params[f"{key}{i + 1}"] = namespace(moved).ascontiguousarray(moved)
        like, classes = params[f"c{len(layers)}"], len(self.classes_)
        xp = namespace(like)
        params[f"W{self._depth}"] = xp.zeros((len(like), classes), dtype)
        params[f"c{self._depth}"] = xp.zeros(classes, dtype)
        self._set_rates(params, x)
        return params

    def _set_rates(self, params: Params, x: Array) -> None:
        """Steps of weights and biases as if rows and codes whose squares are larger than 1 on the
        mean (data on a scale of their own, linear codes) had been scaled down to it."""

        def power(h: Array) -> float:
            return max(1.0, float((h * h).mean(dtype=np.float64)))

        below = power(x)
        for i, layer in enumerate(self.network(params, x), 1):
            own = power(layer.h)
            self._rates |= {f"W{i}": own / below, f"c{i}": own}
            below = own

    def _set_layers(self, layers: list[Affine]) -> None:
        self._activations = [layer.activation for layer in layers]
        self._depth, self._rates = len(layers) + 1, {}

    # ------------------------------------------------------------ verbs

    def param_specs(self) -> dict[str, Param]:
        specs: dict[str, Param] = {}
        for i in range(1, self._depth + 1):
            W, c = f"W{i}", f"c{i}"
            specs[W] = Param(self._rates.get(W, 1.0), decay=True)
            specs[c] = Param(self._rates.get(c, 1.0))
        return specs

    def network(self, params: Params, x: Array, drop: Any = None) -> list[LayerPass]:
        """Passes of all layers, the logits last; ``drop`` is shown each hidden one."""
        passes: list[LayerPass] = []
        for i, f in enumerate([*self._activations, Identity()], 1):
            layer = LayerPass(x, params[f"W{i}"], params[f"c{i}"], f)
            if drop is not None and i < self._depth:
                drop(layer)
            passes.append(layer)
            x = layer.h
        return passes

    def network_grad(self, passes: list[LayerPass], y: Array, scale: float) -> Params:
        """``scale`` times Σ_i ∂/∂θ [-log p(y_i|x_i)] by name."""
        dh = label_slopes(passes[-1].h, y, scale)
        grads: Params = {}
        for i, (dW, dc) in enumerate(backward_chain(passes, dh)[0], 1):
            grads |= {f"W{i}": dW, f"c{i}": dc}
        return grads

    @property
    def coefs_(self) -> list[Any]:
        """Weights of all layers, the softmax last; container of ``fit``'s X."""
        check_is_fitted(self)
        return [to_device(self._params[f"W{i}"], self._home) for i in range(1, self._depth + 1)]

    @property
    def intercepts_(self) -> list[Any]:
        """Biases likewise."""
        check_is_fitted(self)
        return [to_device(self._params[f"c{i}"], self._home) for i in range(1, self._depth + 1)]

    def row_numbers(self) -> int:
        """Numbers that a row takes while it is worked on."""
        return 4 * max(v.shape[-1] for v in self._state.params.values())

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `file_state` gave."""
        super().set_file_state(meta, arrays)
        self._set_layers(self.model_.fitted_layers())

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        widths = [len(layer.c) for layer in self.model_.fitted_layers()] + [len(self.classes_)]
        below = len(self.model_.fitted_layers()[0].W)
        for i, width in enumerate(widths, 1):
            shapes |= {f"W{i}": (below, width), f"c{i}": (width,)}
            below = width
        return shapes
