"""Classifiers that begin as an unsupervised model and go on from it with labels.

    ⟨-log softmax(a(x))_y⟩

where the logits a are a network's, whose lower part an unsupervised model gave: the face, the door
and the files that such classifiers share. Subclasses write `first_params`, `param_specs`,
`network`, `network_grad` and `param_shapes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from energyscape import io, training
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
from energyscape.memory import told_of_memory
from energyscape.models.inputs import as_rows
from energyscape.models.parameters import ParametersMixin
from energyscape.models.persistence import PersistenceMixin
from energyscape.models.stacks import fitted_model
from energyscape.registry import from_tree, to_tree
from energyscape.sources import Rows, joined, rows_per_block
from energyscape.trainers import Backpropagation
from energyscape.training import Plan, TrainState
from energyscape.verbs import Params, check_nested, require

_FIRST = 1000  # rows that say how large rows and codes are


class LabelledModel(ParametersMixin, PersistenceMixin, ClassifierMixin, BaseEstimator):
    """Base of classifiers on a ``model``, trained by ``trainer``."""

    model: Any
    trainer: Any
    random_state: Any
    device: str
    verbose: int

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

    # ------------------------------------------------------------ what subclasses say

    def default_model(self) -> Any:
        """What None stands for."""
        raise NotImplementedError

    def example_model(self) -> str:
        """A model to give where settings of one were asked for and there is none."""
        return f"{type(self.default_model()).__name__}()"

    def default_trainer(self) -> Any:
        """What None stands for."""
        return Backpropagation()

    def check_pair(self, model: Any, trainer: Any) -> None:
        """Raise unless ``model`` can be gone on from, and this by ``trainer``; its settings are
        known then, but it is not fitted."""
        raise NotImplementedError

    def first_params(self, x: Array, dtype: Any) -> Params:
        """Where training with labels begins: at ``model_``, in ``dtype``; ``x`` are some rows."""
        raise NotImplementedError

    def network(self, params: Params, x: Array, drop: Any = None) -> list[Any]:
        """Passes of all layers, the logits last; ``drop`` is shown each hidden one."""
        raise NotImplementedError

    def read(self, X: Any, reset: bool) -> Rows:
        """Checked rows of X."""
        return as_rows(self, X, reset)

    def fit_model(self, model: Any, X: Any) -> Any:
        """``model`` fitted without labels."""
        return fitted_model(model, X, self.seed_)

    def inputs(self, X: Any, rows: Rows) -> Rows:
        """What the network takes: ``rows``, those of ``X``, or what the model makes of them."""
        return rows

    def row_numbers(self) -> int:
        """Numbers that a row takes while it is worked on."""
        raise NotImplementedError

    # ------------------------------------------------------------ fitting

    def fit(self, X: Any, y: Any) -> Any:
        """Fit the model on X, then the whole network on X and y.

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
            If the model is none that a classifier of this kind can go on from.
        DivergenceError
            If numbers stop being finite; the classifier then holds its last good epoch.
        """
        trainer = self.default_trainer()
        if self.trainer is not None:
            trainer = clone(self.trainer).set_params(callbacks=self.trainer.callbacks)
        require(self, trainer)
        model = self.default_model() if self.model is None else self.model
        self.check_pair(model, trainer)
        X = joined(X)
        codes = self._labels(X, y)
        rows = self.read(X, reset=True)
        self.seed_ = draw_seed(self.random_state)
        self.model_ = self.fit_model(model, X)
        rows = self.inputs(X, rows)
        rows.y = codes
        self._device, self._home = resolve_device(self.device, rows.X), device_of(rows.X)
        self._environment = io.environment(self._device)
        self._forget()
        rows, held_out, _ = training.split(trainer, rows, self.seed_)
        epochs = trainer.n_epochs
        plan = Plan(self.seed_, self._device, epochs, epochs, bool(self.verbose))
        with on_device(self._device), told_of_memory(self, trainer, rows):
            x = training.first_rows(trainer, rows, _FIRST, plan, Purpose.INIT)
            params = self.first_params(x, rows.dtype)
            trainer.validate(self)
            rng = stream(self.seed_, Purpose.START, 0, self._device)
            carry = trainer.start(self, params, x[:1], rng)
        self._state, self.trainer_ = TrainState(params, carry, n_rows=len(rows)), trainer
        with on_device(self._device), told_of_memory(self, trainer, rows, self._state):
            training.run(self, trainer, self._state, rows, held_out, plan)
        return self

    def _labels(self, X: Any, y: Any) -> np.ndarray:
        name = type(self).__name__
        if y is None:
            raise ValueError(
                f"requires y to be passed, but the target y is None: {name} learns from labels"
            )
        y = column_or_1d(to_host(y) if is_gpu_array(y) else y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        check_consistent_length(X, y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{name} needs samples of at least 2 classes in y, got 1 class")
        return codes.astype(np.int64)

    # ------------------------------------------------------------ verbs

    def label_loss(self, logits: Array, y: Array) -> Array:
        """-log p(y|x) of each row, shape (n,), float64."""
        log_p = log_softmax(logits.astype(np.float64))
        return -log_p[namespace(y).arange(len(y)), y]

    # ------------------------------------------------------------ using it

    def predict(self, X: Any) -> np.ndarray:
        """Most probable class of each row, shape (n,)."""
        best = to_host(self._logits(X)).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Any:
        """p(y|x), shape (n, n_classes), columns as in ``classes_``."""
        logits = self._logits(X)
        return namespace(logits).exp(log_softmax(logits))

    def predict_log_proba(self, X: Any) -> Any:
        """log p(y|x), shape (n, n_classes)."""
        return log_softmax(self._logits(X))

    def decision_function(self, X: Any) -> Any:
        """Logits, shape (n, n_classes); for two classes their difference, shape (n,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def _logits(self, X: Any) -> Any:
        return self._in_blocks(X, lambda params, x: self.network(params, x)[-1].h)

    def _in_blocks(self, X: Any, function: Any) -> Any:
        """``function`` of the parameters and of rows, by blocks of these."""
        check_is_fitted(self)
        rows = self.inputs(X, self.read(X, reset=False))
        self._settle(rows.X)
        params, parts = self._params, []
        dtype = next(iter(params.values())).dtype
        with on_device(self._device):
            for block in rows.blocks(rows_per_block(self.row_numbers() * dtype.itemsize)):
                x = to_device(block, self._device).astype(dtype, copy=False)
                parts.append(function(params, x))
        return to_device(namespace(parts[0]).concatenate(parts), device_of(rows.X))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    @property
    def _params(self) -> Params:
        return self.trainer_.final(self, self._state.params, self._state.carry)

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
        parts = {
            "trainer": f"{type(self.default_trainer()).__name__}()",
            "model": self.example_model(),
        }
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
        labels = {"classes": to_tree(self.classes_.tolist()), "labels": self.classes_.dtype.str}
        return meta | {"model": model} | labels, arrays

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `file_state` gave."""
        self.model_ = io.restore(meta["model"], io.under(arrays, "model/"))
        self.classes_ = np.array(from_tree(meta["classes"]), meta.get("labels"))
        super().set_file_state(meta, arrays)

    def _forget(self) -> None:
        """Nothing is kept that was derived from the parameters."""

    def _settle(self, X: Any) -> None:
        """Move a classifier that was loaded (onto the CPU) to the device that it is used on."""
        first = next(iter(self._state.params.values()))
        like = X if is_gpu_array(X) and self._device == "cpu" else first
        device = resolve_device(self.device, like)
        if device != self._device:
            self._device = device
            self._state.move(device)


def check_early(trainer: Any, bare: Any) -> None:
    """Raise for settings that cannot be before anything is fitted; ``bare`` has no arrays, and
    rates by name must wait for those that they name."""
    early = clone(trainer)
    if getattr(early.optimizer, "rates", None):
        early.set_params(optimizer__rates=None)
    early.validate(bare)


def label_slopes(logits: Array, y: Array, scale: float) -> Array:
    """``scale`` times Σ_i ∂/∂a [-log p(y_i|x_i)], the shape of ``logits``."""
    xp = namespace(y)
    slopes = xp.exp(log_softmax(logits))
    slopes[xp.arange(len(y)), y] -= 1
    slopes *= slopes.dtype.type(scale)
    return slopes


def log_softmax(logits: Array) -> Array:
    """log p of logits, in rows."""
    xp = namespace(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
