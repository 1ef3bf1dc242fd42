"""A classifier whose hidden layers come from an unsupervised model.

FineTunedClassifier (Hinton and Salakhutdinov, 2006; Bengio et al., 2007)
    h_0 = x,   h_l = f_l(h_{l-1} W_l + c_l),   p(y | x) = softmax(h_L W_out + c_out)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from energyscape import io, training
from energyscape.activations import Identity
from energyscape.backend import (
    Array,
    Purpose,
    device_of,
    draw_seed,
    is_gpu_array,
    namespace,
    on_device,
    resolve_device,
    stream,
    to_device,
    to_host,
)
from energyscape.errors import CapabilityError
from energyscape.layers import Affine, LayerPass, backward_chain
from energyscape.models.inputs import as_rows
from energyscape.models.parameters import ParametersMixin
from energyscape.models.persistence import PersistenceMixin
from energyscape.models.stacks import StackedAutoEncoder, fitted_model
from energyscape.registry import from_tree, register, to_tree
from energyscape.sources import Rows, rows_per_block
from energyscape.trainers import Backpropagation
from energyscape.training import Plan, TrainState
from energyscape.verbs import Param, Params, check_nested, require


@register
class FineTunedClassifier(ParametersMixin, PersistenceMixin, ClassifierMixin, BaseEstimator):
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

    def __init__(
        self,
        model: Any = None,
        *,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_model(self) -> Any:
        """What None stands for."""
        return StackedAutoEncoder()

    # ------------------------------------------------------------ fitting

    def fit(self, X: Any, y: Any) -> FineTunedClassifier:
        """Fit the model on X, then all layers on X and y.

        Parameters
        ----------
        X : array, shape (n, n_features)
        y : array, shape (n,)
            Labels of any kind that scikit-learn takes.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For bad data, labels or settings.
        CapabilityError
            If the model's encoder is no chain of layers.
        DivergenceError
            If numbers stop being finite; the classifier then holds its last good epoch.
        """
        trainer, model = self._fresh_trainer(), self._checked_model()
        if trainer.batch_transform is not None and hasattr(model, "network_inputs"):
            raise CapabilityError(
                "Backpropagation.batch_transform would change the units that "
                f"{type(model).__name__} adds to each row; leave it out"
            )
        codes = self._labels(X, y)
        rows = as_rows(self, X, reset=True)
        self.seed_ = draw_seed(self.random_state)
        self.model_ = fitted_model(model, X, self.seed_)
        rows = self._inputs(X, rows)
        rows.y = codes
        self._device, self._home = resolve_device(self.device, rows.X), device_of(rows.X)
        self._environment = io.environment(self._device)
        rows, held_out = training.split(trainer, rows, self.seed_)
        epochs = trainer.n_epochs
        plan = Plan(self.seed_, self._device, epochs, epochs, bool(self.verbose))
        with on_device(self._device):
            params = self._start(rows.dtype)
            self._set_rates(params, training.first_rows(trainer, rows, 1000, plan, Purpose.INIT))
            trainer.validate(self)
            rng = stream(self.seed_, Purpose.START, 0, self._device)
            carry = trainer.start(self, params, params["W1"][:1], rng)
            self._state, self.trainer_ = TrainState(params, carry, n_rows=len(rows)), trainer
            training.run(self, trainer, self._state, rows, held_out, plan)
        return self

    def _fresh_trainer(self) -> Any:
        if self.trainer is None:
            trainer = Backpropagation()
        else:
            trainer = clone(self.trainer).set_params(callbacks=self.trainer.callbacks)
        require(self, trainer)
        # Settings that cannot be are told before the model is fitted; rates by name must wait for
        # the layers that they name.
        bare, early = type(self)(), clone(trainer)
        bare._depth = 0
        if getattr(early.optimizer, "rates", None):
            early.set_params(optimizer__rates=None)
        early.validate(bare)
        return trainer

    def _labels(self, X: Any, y: Any) -> np.ndarray:
        if y is None:
            raise ValueError(
                "requires y to be passed, but the target y is None: FineTunedClassifier learns "
                "from labels"
            )
        y = column_or_1d(to_host(y) if is_gpu_array(y) else y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        check_consistent_length(X, y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "FineTunedClassifier needs samples of at least 2 classes in y, got 1 class"
            )
        return codes.astype(np.int64)

    def _checked_model(self) -> Any:
        model = self.default_model() if self.model is None else self.model
        if not any(hasattr(model, part) for part in ("affine_layers", "unroll", "network_inputs")):
            raise CapabilityError(
                "FineTunedClassifier needs a model whose encoder is a chain of layers (it offers "
                "affine_layers), such as an auto-encoder, an RBM, a DeepBoltzmannMachine of two "
                "hidden layers, PCA, or a stack of these; "
                f"{type(model).__name__} has none. Its features go into a classifier by a pipeline"
            )
        return model

    def _inputs(self, X: Any, rows: Rows) -> Rows:
        """What the first layer takes: X, or what the model makes of it (a `DeepBoltzmannMachine`
        adds its own guess of the layer above)."""
        inputs = getattr(self.model_, "network_inputs", None)
        return rows if inputs is None else Rows(inputs(X))

    def _start(self, dtype: Any) -> Params:
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

    def label_loss(self, logits: Array, y: Array) -> Array:
        """-log p(y|x) of each row, shape (n,), float64."""
        log_p = _log_softmax(logits.astype(np.float64))
        return -log_p[namespace(y).arange(len(y)), y]

    def network_grad(self, passes: list[LayerPass], y: Array, scale: float) -> Params:
        """``scale`` times Σ_i ∂/∂θ [-log p(y_i|x_i)] by name."""
        xp, logits = namespace(y), passes[-1].h
        dh = xp.exp(_log_softmax(logits))
        dh[xp.arange(len(y)), y] -= 1
        dh *= dh.dtype.type(scale)
        grads: Params = {}
        for i, (dW, dc) in enumerate(backward_chain(passes, dh)[0], 1):
            grads |= {f"W{i}": dW, f"c{i}": dc}
        return grads

    # ------------------------------------------------------------ using it

    def predict(self, X: Any) -> np.ndarray:
        """Most probable class of each row, shape (n,)."""
        best = to_host(self._logits(X)).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Any:
        """p(y|x), shape (n, n_classes), columns as in ``classes_``."""
        logits = self._logits(X)
        return namespace(logits).exp(_log_softmax(logits))

    def predict_log_proba(self, X: Any) -> Any:
        """log p(y|x), shape (n, n_classes)."""
        return _log_softmax(self._logits(X))

    def decision_function(self, X: Any) -> Any:
        """Logits, shape (n, n_classes); for two classes their difference, shape (n,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def _logits(self, X: Any) -> Any:
        check_is_fitted(self)
        rows = self._inputs(X, as_rows(self, X, reset=False))
        self._settle(rows.X)
        params = self._params
        widest = max(v.shape[-1] for v in params.values())
        dtype, parts = params["W1"].dtype, []
        with on_device(self._device):
            for block in rows.blocks(rows_per_block(4 * widest * dtype.itemsize)):
                x = to_device(block, self._device).astype(dtype, copy=False)
                parts.append(self.network(params, x)[-1].h)
        return to_device(namespace(parts[0]).concatenate(parts), device_of(rows.X))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    @property
    def _params(self) -> Params:
        return self.trainer_.final(self, self._state.params, self._state.carry)

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

    @property
    def history_(self) -> dict[str, list[float]]:
        """What was recorded after each epoch, by name."""
        check_is_fitted(self)
        return self._state.history

    @property
    def n_iter_(self) -> int:
        """Finished epochs."""
        check_is_fitted(self)
        return self._state.epoch

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name, nested ones as ``trainer__dropout``."""
        parts = {"trainer": "Backpropagation()", "model": "StackedAutoEncoder()"}
        check_nested(self, params, parts)
        return super().set_params(**params)

    # ------------------------------------------------------------ scikit-learn, files

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def file_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a file holds besides the constructor's arguments."""
        meta, arrays = super().file_state()
        model, held = io.describe(self.model_)
        arrays |= {f"model/{key}": value for key, value in held.items()}
        return meta | {"model": model, "classes": to_tree(self.classes_.tolist())}, arrays

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `file_state` gave."""
        self.model_ = io.restore(meta["model"], io.under(arrays, "model/"))
        self.classes_ = np.array(from_tree(meta["classes"]))
        self._set_layers(self.model_.fitted_layers())
        super().set_file_state(meta, arrays)

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        widths = [len(layer.c) for layer in self.model_.fitted_layers()] + [len(self.classes_)]
        below = len(self.model_.fitted_layers()[0].W)
        for i, width in enumerate(widths, 1):
            shapes |= {f"W{i}": (below, width), f"c{i}": (width,)}
            below = width
        return shapes

    def _forget(self) -> None:
        """Nothing is kept that was derived from the parameters."""

    def _settle(self, X: Any) -> None:
        """Move a classifier that was loaded (onto the CPU) to the device that it is used on."""
        like = X if is_gpu_array(X) and self._device == "cpu" else self._state.params["W1"]
        device = resolve_device(self.device, like)
        if device != self._device:
            self._device = device
            self._state.move(device)


def _log_softmax(logits: Array) -> Array:
    xp = namespace(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
