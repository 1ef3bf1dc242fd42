"""A hierarchy of stages and a softmax on top, all of them trained on labels.

    x_0 = x,   x_l = stage_l(x_{l-1}; θ_l),   p(y | x) = softmax(x_L W + c)

Unsupervised learning finds the filters of the stages, and this moves them on (Jarrett et al., 2009,
systems U⁺ and U⁺U⁺).

References
----------
Jarrett, K., Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2009). What is the best multi-stage
architecture for object recognition? ICCV.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from energyscape.activations import Identity
from energyscape.backend import Array, is_gpu_array, namespace, to_device
from energyscape.errors import CapabilityError
from energyscape.layers import LayerPass
from energyscape.models.inputs import as_images
from energyscape.models.labelled import LabelledModel, check_early, label_slopes
from energyscape.optim import Adam
from energyscape.registry import register
from energyscape.sources import Rows
from energyscape.trainers import Backpropagation
from energyscape.verbs import Param, Params

# Numbers of the maps of images that are worked on together: memory that is kept for the next
# images is written to quicker than new memory.
_AT_ONCE = 1 << 22
_SOME = 100  # images that say how large responses are
_STAGE = ("trainable", "feasible", "units", "forward", "backward")


@dataclass(slots=True)
class StagesPass:
    """All stages at a batch of maps, by parts that stay in the cache.

    Attributes
    ----------
    h : array, shape (n, ...)
        What the last one gives.
    parts : list of lists
        For each part what the `backward` of every stage needs.
    params : list of dict
        What each stage was given.
    mask : array of the shape of h, or None
        What `keep` was given.
    """

    h: Array
    parts: list[list[Any]]
    params: list[Params]
    mask: Array = None

    def keep(self, mask: Array) -> None:
        """Multiply h by ``mask``, which derivatives see as a constant."""
        self.h, self.mask = self.h * mask, mask


@register
class FineTunedPipeline(LabelledModel):
    """Softmax classifier on a pipeline of stages, all trained on labels.

    Parameters
    ----------
    model : Pipeline of stages
        `energyscape.data.FilterBank`, ``LocalContrastNormalize``, ``Rectify``, ``Pool``,
        ``Standardize`` and ``Flatten``, in any order; a clone is fitted on X first, without labels.
        What is fitted already comes in ``sklearn.frozen.FrozenEstimator(model)``.
    trainer : Backpropagation, optional
        Its ``dropout`` is that of the features which the softmax sees, its weight decay touches the
        softmax's weights alone. Steps are in units of the
        root mean square that each array begins with (of the responses, for biases), so that filters
        of any scale move alike. Default: ``Backpropagation(optimizer=Adam(0.003))``.
    random_state : int, RandomState, Generator or None
    device : {"auto", "cpu", "cuda", "cuda:i"}, default "auto"
    verbose : int, default 0

    Attributes
    ----------
    model_ : fitted Pipeline
        As it was before labels were seen.
    params_ : dict of arrays
        ``step/array`` by the names of steps, and W, c of the softmax.
    coefs_, intercepts_ : lists of one array
        W and c of the softmax.
    image_shape_ : tuple of int
    classes_, history_, n_iter_, n_features_in_, seed_
        As for `FineTunedClassifier`.

    References
    ----------
    Jarrett, K., Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2009). What is the best multi-stage
    architecture for object recognition? ICCV.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from energyscape.data import FilterBank, LocalContrastNormalize, Pool, Rectify, load_digits
    >>> from energyscape.models import PSD, FineTunedPipeline
    >>> from energyscape.trainers import Backpropagation, EnergyLoss
    >>> X, y = load_digits()
    >>> X = X[:600].reshape(-1, 8, 8)
    >>> bank = FilterBank(PSD(8, trainer=EnergyLoss(n_epochs=2)), 3, n_patches=1000)
    >>> stages = make_pipeline(LocalContrastNormalize(), bank, Rectify(), Pool("mean", 2))
    >>> model = FineTunedPipeline(stages, trainer=Backpropagation(n_epochs=5), random_state=0)
    >>> bool(model.fit(X[:500], y[:500]).score(X[500:], y[500:600]) > 0.8)
    True
    """

    image_shape_: tuple[int, ...]
    _names: list[str]  # of parameters
    _rates: dict[str, float]  # of steps, by name

    def default_model(self) -> Any:
        """None: stages depend on the size of images."""
        return None

    def example_model(self) -> str:
        """A model to give where settings of one were asked for and there is none."""
        return "make_pipeline(FilterBank(), Rectify(), Pool())"

    def default_trainer(self) -> Any:
        """What None stands for."""
        return Backpropagation(optimizer=Adam(0.003))

    # ------------------------------------------------------------ fitting

    def read(self, X: Any, reset: bool) -> Rows:
        """Checked images, (n, h, w) or (n, h, w, channels)."""
        rows = as_images(self, X, None if reset else self.image_shape_)
        if reset:
            self.image_shape_ = tuple(rows.event_shape)
            self.n_features_in_ = math.prod(self.image_shape_)
        return rows

    def check_pair(self, model: Any, trainer: Any) -> None:
        """Raise unless the model is a pipeline of stages, and for settings that cannot be."""
        bare = type(self)()
        bare._set_names([])
        check_early(trainer, bare)
        inner = model.estimator if isinstance(model, FrozenEstimator) else model
        if not isinstance(inner, Pipeline):
            raise CapabilityError(
                "FineTunedPipeline needs a Pipeline of stages, e.g. make_pipeline(FilterBank(), "
                f"Rectify(), Pool()), got {inner!r}"
            )
        for name, step in inner.steps:
            if not all(hasattr(step, verb) for verb in _STAGE):
                raise CapabilityError(
                    f"FineTunedPipeline goes back through every step of its pipeline, and {name!r} "
                    f"({type(step).__name__}) has no way: steps are FilterBank, "
                    "LocalContrastNormalize, Rectify, Pool, Standardize and Flatten. Leave "
                    "classifiers out, the softmax is its own"
                )

    def fit_model(self, model: Any, X: Any) -> Any:
        """A clone of the pipeline, fitted without labels; its steps draw seeds of their own."""
        if isinstance(model, FrozenEstimator):
            check_is_fitted(model.estimator.steps[-1][1])
            return model.estimator
        fresh = clone(model)
        for i, (_, step) in enumerate(fresh.steps):
            if step.get_params(deep=False).get("random_state", 0) is None:
                step.set_params(random_state=self.seed_ + i)
        fresh.fit(X)
        for _, step in fresh.steps:
            vars(step).pop("_kept", None)  # switches of all rows, by which nobody will go back
        return fresh

    def first_params(self, x: Array, dtype: Any) -> Params:
        """The stages' arrays, and a softmax that knows nothing yet."""
        params: Params = {}
        for name, step in self.model_.steps:
            for key, value in step.trainable().items():
                moved = to_device(value, self._device).astype(dtype)  # a copy
                params[f"{name}/{key}"] = namespace(moved).ascontiguousarray(moved)
        last = self.model_.steps[-1][1]
        width, classes = math.prod(last.shape_out(last.image_shape_)), len(self.classes_)
        xp = namespace(to_device(np.zeros(1), self._device))
        params |= {"W": xp.zeros((width, classes), dtype), "c": xp.zeros(classes, dtype)}
        self._set_names(list(params))
        self._set_rates(params, x[:_SOME])
        return params

    def _set_names(self, names: list[str]) -> None:
        self._names, self._rates = names, {}

    def _set_rates(self, params: Params, x: Array) -> None:
        """Units of all arrays; of the softmax one over the root mean square of its features."""
        x = self._maps(x)
        for name, step in self.model_.steps:
            own = _under(params, name)
            found = step.units(own, x)
            self._rates |= {f"{name}/{key}": value for key, value in found.items()}
            x = step.forward(own, x)[0]
        square = float((x**2).mean(dtype=np.float64))
        self._rates["W"] = 1 / math.sqrt(square) if square > 0 else 1.0

    @staticmethod
    def _maps(x: Array) -> Array:
        return x if x.ndim == 4 else x[:, :, :, None]

    # ------------------------------------------------------------ verbs

    def param_specs(self) -> dict[str, Param]:
        # Filters begin where labels alone would not lead, and are not drawn away from there to 0.
        return {name: Param(decay=name == "W") for name in self._names}

    def coordinates(self, params: Params) -> Params:
        """All arrays in their units."""
        return {key: v / v.dtype.type(self._rates.get(key, 1.0)) for key, v in params.items()}

    def set_coordinates(self, params: Params, coordinates: Params) -> None:
        """The way back, in place, constraints kept."""
        for key, value in coordinates.items():
            params[key][...] = value * value.dtype.type(self._rates.get(key, 1.0))
        for key, value in self.feasible(params).items():
            params[key][...] = value

    def precondition(self, params: Params, grads: Params) -> None:
        """Gradients in the coordinates, in place."""
        for key, value in grads.items():
            value *= value.dtype.type(self._rates.get(key, 1.0))

    def feasible(self, params: Params) -> Params:
        """What has constraints, within them."""
        found: Params = {}
        for name, step in self.model_.steps:
            own = step.feasible(_under(params, name))
            found |= {f"{name}/{key}": value for key, value in own.items()}
        return found

    def network(self, params: Params, x: Array, drop: Any = None) -> list[Any]:
        """Passes of all stages together, and of the softmax's layer; ``drop`` is shown the one of
        the stages."""
        x, steps = self._maps(x), self.model_.steps
        own, tops, parts = [_under(params, name) for name, _ in steps], [], []
        for rows in self._parts(x):
            h, caches = x[rows], []
            for (_, step), arrays in zip(steps, own, strict=True):
                h, cache = step.forward(arrays, h)
                caches.append(cache)
            tops.append(h)
            parts.append(caches)
        made = StagesPass(namespace(x).concatenate(tops), parts, own)
        if drop is not None:
            drop(made)
        rows = made.h.reshape(len(x), -1)
        return [made, LayerPass(rows, params["W"], params["c"], Identity())]

    def network_grad(self, passes: list[Any], y: Array, scale: float) -> Params:
        """``scale`` times Σ_i ∂/∂θ [-log p(y_i|x_i)] by name."""
        made, layer = passes
        top = layer.backward(label_slopes(layer.h, y, scale))
        grads: Params = {"W": top.W, "c": top.c}
        back = top.x.reshape(made.h.shape)
        if made.mask is not None:
            back = back * made.mask
        steps = self.model_.steps
        lowest = min((i for i, (_, s) in enumerate(steps) if s.trainable()), default=len(steps))
        for rows, caches in zip(self._parts(back), made.parts, strict=True):
            dy = back[rows]
            for i in reversed(range(lowest, len(steps))):
                name, step = steps[i]
                own, dy = step.backward(made.params[i], caches[i], dy, need_dx=i > lowest)
                for key, value in own.items():
                    key = f"{name}/{key}"
                    grads[key] = grads[key] + value if key in grads else value
        return grads

    def _parts(self, x: Array) -> Iterator[slice]:
        """Images whose maps stay in the cache; on a GPU all of them."""
        step = len(x) if is_gpu_array(x) else max(1, _AT_ONCE // self.row_numbers())
        return (slice(first, first + step) for first in range(0, max(1, len(x)), max(1, step)))

    # ------------------------------------------------------------ using it

    def row_numbers(self) -> int:
        """Numbers that a row takes while it is worked on."""
        return sum(step.row_numbers(step.image_shape_) for _, step in self.model_.steps)

    @property
    def params_(self) -> dict[str, Any]:
        """All arrays by name; container of ``fit``'s X."""
        check_is_fitted(self)
        return {key: to_device(value, self._home) for key, value in self._params.items()}

    @property
    def coefs_(self) -> list[Any]:
        """W of the softmax; container of ``fit``'s X."""
        return [self.params_["W"]]

    @property
    def intercepts_(self) -> list[Any]:
        """c of the softmax."""
        return [self.params_["c"]]

    # ------------------------------------------------------------ scikit-learn, files

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags

    def file_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a file holds besides the constructor's arguments."""
        meta, arrays = super().file_state()
        return meta | {"units": dict(self._rates)}, arrays

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `file_state` gave."""
        super().set_file_state(meta, arrays)
        self._set_names(list(self.param_shapes(0)))
        self._rates = {str(key): float(value) for key, value in meta["units"].items()}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        shapes = {
            f"{name}/{key}": tuple(value.shape)
            for name, step in self.model_.steps
            for key, value in step.trainable().items()
        }
        last = self.model_.steps[-1][1]
        width, classes = math.prod(last.shape_out(last.image_shape_)), len(self.classes_)
        return shapes | {"W": (width, classes), "c": (classes,)}


def _under(params: Params, name: str) -> Params:
    """The arrays of a step, by their own names."""
    prefix = f"{name}/"
    return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
