"""The scikit-learn face that every model wears over its verbs.

A method whose first argument is ``params`` is a verb: it reads hyper-parameters only, never an
attribute that ends in ``_``. Everything else here is the face: it checks, moves arrays to the
device of the fit, runs the loop, and hands results back in the container that came in.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted

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
)
from energyscape.errors import CapabilityError, DivergenceError
from energyscape.memory import told_of_memory
from energyscape.models.inputs import as_rows, warn_range
from energyscape.models.likelihood import LikelihoodMixin
from energyscape.models.parameters import ParametersMixin
from energyscape.models.persistence import PersistenceMixin
from energyscape.models.sampling import SamplingMixin
from energyscape.samplers import Target
from energyscape.sources import Rows, rows_per_block
from energyscape.training import Plan, TrainState
from energyscape.verbs import Params, Pass, check_count, check_nested, need, require
from energyscape.workers import ALONE, Workers

_log = logging.getLogger("energyscape")


class EnergyModel(
    ParametersMixin,
    LikelihoodMixin,
    SamplingMixin,
    PersistenceMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Base of all models: subclasses write verbs, ``default_trainer`` and ``default_sampler``.

    Parameters every model has: ``n_components``, ``trainer`` (None: ``default_trainer()``),
    ``random_state``, ``device`` ("auto" follows the data, "cpu", "cuda", "cuda:1") and
    ``verbose`` (progress on stderr).
    """

    domain: ClassVar[str]
    # Where codes lie ("real", "unit" for [0, 1], "nonneg"), as the next layer of a stack asks.
    codes: ClassVar[str] = "real"
    # Whether low energy has a bounded volume whatever the parameters are, so that pushing F down on
    # data alone is learning.
    limited: ClassVar[bool] = False
    # Whether F has a curvature everywhere, and whether it is never below 0, whatever they are.
    smooth: bool = True
    nonnegative: bool = False
    # Rows that the history's reconstruction is taken at, up to the trainer's monitor_rows.
    decoded_rows: ClassVar[int] = 1000
    # The parameter, and its axis, as long as codes are; of layers the last whose name begins so.
    _counted: ClassVar[tuple[str, int]] = ("W", 1)

    n_components: int
    trainer: Any
    random_state: Any
    device: str
    verbose: int

    _shown: dict[int, Params]

    # ------------------------------------------------------------ verbs with a default

    def forward(self, params: Params, x: Array, beta: Any = 1.0, base: Any = None) -> Pass:
        """What one evaluation at ``x`` gives; models that can share a product override this."""
        if base is not None or np.ndim(beta) or beta != 1.0:
            raise CapabilityError(f"{type(self).__name__} has no tempered pass: β = 1 alone")
        return Pass(self, params, x)

    @property
    def proper(self) -> bool:
        """Whether exp(-F) can be normalised, so that chains have a distribution to go to."""
        return True

    def passes(self, params: Params) -> int:
        """Passes over the rows that `ClosedForm` takes."""
        return 1

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        """Raise ValueError if ``n`` training rows of that shape are not enough for the settings."""

    def enumerable_units(self, params: Params) -> int:
        """Units that `log_partition` sums over (2^units states); by default log Z is a formula."""
        return 0

    def target(self, params: Params, base: Params | None = None, beta: Any = 1.0) -> Target:
        """What a sampler sees of this model at ``params``."""
        return Target(self, params, base, beta)

    # ------------------------------------------------------------ fitting

    def fit(self, X: Any, y: Any = None) -> Any:
        """Train from scratch.

        Parameters
        ----------
        X : array, shape (n, n_features)
            NumPy or CuPy array, data frame, CSR matrix; memory map or open HDF5 dataset, a list of
            these as one, or `energyscape.data.Blocks`.
            float32 and float64 are kept; bool, 8-bit integers and float16 are computed in
            float32, other integers in float64, cast batch by batch. Never copied as a whole.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For bad data or settings.
        CapabilityError
            If the trainer cannot train this model.
        DivergenceError
            If numbers stop being finite, or the chains of the training come to rest; the model then
            holds its last good epoch.

        Warns
        -----
        DataRangeWarning
            If values lie outside what the visible units can take.
        """
        trainer, rows = self._prepare(X, y, reset=True)
        warn_range(self, rows.X)
        self.seed_ = draw_seed(self.random_state)
        self._device = resolve_device(self.device, rows.X)
        self.learn(trainer, rows)
        self._warn(trainer)
        return self

    def learn(self, trainer: Any, rows: Rows, workers: Workers = ALONE) -> None:
        """`fit` by a validated trainer on checked rows, where seed and device are known.

        With several workers, who all call this, ``rows`` are this one's.
        """
        rows, held_out, total = training.split(trainer, rows, self.seed_, workers)
        self.check_rows(total, rows.event_shape)
        best: Any = None
        for start in range(trainer.n_init):
            self._begin(trainer, rows, start, workers)
            try:
                self._run(trainer, rows, held_out, trainer.n_epochs, trainer.n_epochs, workers)
            except BaseException:
                self._keep(best, trainer)
                raise
            if best is None or self._state.history["bound"][-1] > best.history["bound"][-1]:
                best = self._state
        self._keep(best, trainer)

    def _keep(self, best: Any, trainer: Any) -> None:
        """Show the best of several starts, and let files that callbacks wrote hold it."""
        if best is None or best is self._state:
            return
        self._state = best
        self._forget()
        for callback in trainer.callbacks:
            if hasattr(callback, "interrupted"):
                callback.interrupted(self, best)

    def sharing_obstacle(self) -> str | None:
        """Why workers cannot share a fit of this model, in words; None where they can."""
        return None

    def complaint(self) -> str | None:
        """What a fit came to that its user should know, in words; None by default."""
        return None

    def partial_fit(self, X: Any, y: Any = None) -> Any:
        """One more epoch over ``X`` in batches, at a constant learning rate.

        Parameters
        ----------
        X : array, shape (n, n_features)
        y : ignored

        Returns
        -------
        self
        """
        first = not self.__sklearn_is_fitted__()
        trainer, rows = self._prepare(X, y, reset=first)
        if first:
            warn_range(self, rows.X)
            self.seed_ = draw_seed(self.random_state)
            self._device = resolve_device(self.device, rows.X)
            self.check_rows(len(rows), rows.event_shape)
            self._begin(trainer, rows)
        else:
            self._continue(trainer, rows)
        self._run(trainer, rows, None, self._state.epoch + 1, None)
        return self

    def resume(self, X: Any, y: Any = None) -> Any:
        """Finish an interrupted ``fit`` on the same ``X``, from the last finished epoch.

        On the same device type, thread count and library versions the result equals that of the
        uninterrupted run bit for bit; differences are logged.

        Parameters
        ----------
        X : array, shape (n, n_features)
            The data that the run began with.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the number of rows, or what the trainer keeps, is not that of the interrupted run.
        """
        check_is_fitted(self)
        trainer, rows = self._prepare(X, y, reset=False)
        self.go_on(trainer, rows)
        self._warn(trainer)
        return self

    def go_on(self, trainer: Any, rows: Rows, workers: Workers = ALONE) -> None:
        """`resume` by a validated trainer on checked rows; see `learn`."""
        rows, held_out, total = training.split(trainer, rows, self.seed_, workers)
        if total != self._state.n_rows:
            raise ValueError(
                f"the interrupted run had {self._state.n_rows} training rows, X gives {total}; "
                "resume needs the same X (partial_fit takes any)"
            )
        for key, now in io.environment(self._device).items():
            if self._environment.get(key) != now:
                _log.warning("resume: %s was %s, is %s", key, self._environment.get(key), now)
        self._continue(trainer, rows)
        self._run(trainer, rows, held_out, trainer.n_epochs, trainer.n_epochs, workers)

    def _warn(self, trainer: Any) -> None:
        """Say what the run and the fit came to, where ``fit`` was called."""
        for complaint in (trainer.complaint(self._state.history), self.complaint()):
            if complaint is not None:
                warnings.warn(complaint, ConvergenceWarning, stacklevel=3)

    def read(self, X: Any, reset: bool) -> Rows:
        """Checked rows of users' data; notes their shape when ``reset``, else compares with it."""
        return as_rows(self, X, reset)

    def labelled(self, rows: Rows, y: Any, trainer: Any) -> Rows:
        """``rows`` with the labels that ``trainer`` learns from; by default there are none."""
        return rows

    def _prepare(self, X: Any, y: Any, reset: bool) -> tuple[Any, Rows]:
        trainer = self.chosen_trainer()
        return trainer, self.labelled(self.read(X, reset), y, trainer)

    def chosen_trainer(self) -> Any:
        """A copy of the trainer, or the default one, that can train this model as it is set."""
        self.check_settings()
        trainer = self.default_trainer()
        if self.trainer is not None:
            # Callbacks are the user's own objects, which may hold what they have seen.
            trainer = clone(self.trainer).set_params(callbacks=self.trainer.callbacks)
        require(self, trainer)
        trainer.validate(self)
        return trainer

    def check_settings(self) -> None:
        """Raise ValueError for constructor arguments that cannot be."""
        check_count("n_components", self.n_components)

    def _begin(self, trainer: Any, rows: Rows, start: int = 0, workers: Workers = ALONE) -> None:
        plan = Plan(self.seed_, self._device, 0, None, workers=workers)
        quiet, told = (
            np.errstate(over="ignore", invalid="ignore"),
            told_of_memory(self, trainer, rows),
        )
        with on_device(self._device), told, quiet:
            x, total = training.start_rows(trainer, rows, plan)
            rng = stream(self.seed_, Purpose.INIT, 2 + start, self._device)
            try:
                params = self.first_params(rows, x, rng)
            except np.linalg.LinAlgError as error:
                raise DivergenceError(
                    f"{type(self).__name__} cannot start from these rows: {error}. The likely "
                    "cause is the scale of the data: standardise them, or use float64"
                ) from error
            rng = stream(self.seed_, Purpose.START, 0, self._device)
            carry = trainer.start(self, params, x, rng)
        self._home = device_of(rows.X)  # where fitted attributes and samples are handed out
        self._environment = io.environment(self._device)
        self._state = TrainState(params, carry, n_rows=total)

    def first_params(self, rows: Rows, x: Array, rng: Any) -> Params:
        """Where training on ``rows``, of which ``x`` are some, begins."""
        return self.init_params(x, rng)

    def _continue(self, trainer: Any, rows: Rows) -> None:
        """Check that the carried state is what ``trainer`` keeps."""
        self._check_settings_fit()
        self._settle(rows.X)
        plan = Plan(self.seed_, self._device, 0, None)
        with on_device(self._device):
            x = training.first_rows(trainer, rows, 1, plan, Purpose.INIT, self._state)
            rng = stream(self.seed_, Purpose.START, 0, self._device)
            wanted = trainer.start_again(self, self._state.params, x, rng, self._state.carry)
        shapes = {k: v.shape for k, v in self._state.carry.items()}
        if shapes != {k: v.shape for k, v in wanted.items()}:
            raise ValueError(
                f"{type(trainer).__name__} keeps {sorted(wanted)} between updates, but the fitted "
                f"state holds {sorted(shapes)} (or other shapes): the trainer was changed since; "
                "fit anew, or restore its settings"
            )
        self._state.carry |= {key: wanted[key] for key in trainer.settings(self)}

    def _run(
        self,
        trainer: Any,
        rows: Rows,
        held_out: Rows | None,
        until: int,
        span: int | None,
        workers: Workers = ALONE,
    ) -> None:
        self.trainer_ = trainer
        self._forget()
        plan = Plan(self.seed_, self._device, until, span, bool(self.verbose), workers)
        try:
            with on_device(self._device), told_of_memory(self, trainer, rows, self._state):
                training.run(self, trainer, self._state, rows, held_out, plan)
        finally:
            self._forget()

    def _settle(self, X: Any = None) -> None:
        """Move a model that was loaded (onto the CPU) to the device that it is used on."""
        like = X if is_gpu_array(X) and self._device == "cpu" else next(iter(self._params.values()))
        device = resolve_device(self.device, like)
        if device != self._device:
            self._device, self._shown = device, {}
            self._state.move(device)

    def _forget(self) -> None:
        """Drop what was derived from parameters that are about to change."""
        self._partition: Any = None
        self._shown = {}  # by the step: averages as parameters

    # ------------------------------------------------------------ using the model

    def transform(self, X: Any) -> Any:
        """Features of each row.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n, n_components), container of X, dtype of the fit
        """
        return self._map(X, self.encode)

    def energy(self, X: Any) -> Any:
        """F(x) of each row at the fitted parameters, in nats, shape (n,), float64."""
        return self._map(X, self.free_energy)

    def reconstruct(self, X: Any) -> Any:
        """Mean of x given the code of each row, shape (n, n_features)."""
        need(self, ("decode",), "a reconstruction")
        return self._map(X, lambda params, x: self.decode(params, self.encode(params, x)))

    def inverse_transform(self, H: Any) -> Any:
        """Mean of x given codes ``H`` of shape (n, n_components); shape (n, n_features)."""
        check_is_fitted(self)
        need(self, ("decode",), "inverse_transform")
        if not is_gpu_array(H):
            H = check_array(H, dtype=[np.float64, np.float32])
        if len(H.shape) != 2 or H.shape[1] != self._n_features_out:
            raise ValueError(
                f"H has shape {H.shape}; {type(self).__name__} decodes codes of shape "
                f"(n, {self._n_features_out})"
            )
        return self._in_blocks(Rows(H), self.decode)

    def fitted_layers(self) -> list[Any]:
        """The fitted encoder as a list of `Affine`, bottom first: what stacks and classifiers take.

        Raises
        ------
        CapabilityError
            If the encoder is no chain of affine layers and activations.
        """
        check_is_fitted(self)
        need(self, ("affine_layers",), "an encoder of layers")
        return list(self.affine_layers(self._params))

    def _map(self, X: Any, function: Callable[[Params, Array], Array]) -> Any:
        check_is_fitted(self)
        return self._in_blocks(self.read(X, reset=False), function)

    def _in_blocks(self, rows: Rows, function: Callable[[Params, Array], Array]) -> Any:
        """``function`` over blocks of rows that fit scikit-learn's ``working_memory``."""
        self._settle(rows.X)
        home = device_of(rows.X)
        size = rows_per_block(self._block_width(rows.event_shape) * self._dtype.itemsize)
        parts = []
        with on_device(self._device):
            for block in rows.blocks(size):
                x = to_device(block, self._device).astype(self._dtype, copy=False)
                parts.append(to_device(function(self._params, x), home))
        return parts[0] if len(parts) == 1 else namespace(parts[0]).concatenate(parts)

    def _block_width(self, event_shape: tuple[int, ...]) -> int:
        """Numbers that a row of that shape takes while it is worked on."""
        return self.n_features_in_ + 3 * self._n_features_out

    # ------------------------------------------------------------ fitted attributes

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    @property
    def _params(self) -> Params:
        """The fitted parameters on the device that computes."""
        state = self._state
        if self.trainer_.averaging is None:
            return state.params
        if state.step not in self._shown:
            self._shown.clear()
            self._shown[state.step] = self.trainer_.final(self, state.params, state.carry)
        return self._shown[state.step]

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(next(iter(self._state.params.values())).dtype)

    @property
    def _n_features_out(self) -> int:
        name, axis = self._counted
        params = self._state.params
        last = max((len(key), key) for key in params if key.startswith(name))[1]
        return int(params[last].shape[axis])

    def _fitted(self, array: Array) -> Any:
        return to_device(array, self._home)

    @property
    def params_(self) -> dict[str, Any]:
        """Parameters and buffers by their letters in the papers; container of ``fit``'s X."""
        self._need_fit("params_")
        return {k: self._fitted(v) for k, v in self._params.items()}

    @property
    def history_(self) -> dict[str, list[float]]:
        """What was recorded after each epoch, by name (see the trainers' documentation)."""
        self._need_fit("history_")
        return self._state.history

    @property
    def n_iter_(self) -> int:
        """Finished epochs."""
        self._need_fit("n_iter_")
        return self._state.epoch

    def _need_fit(self, name: str) -> None:
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"{type(self).__name__} has no {name} before fit")

    # ------------------------------------------------------------ scikit-learn

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name, nested ones as ``trainer__learning_rate``."""
        default = f"{type(self.default_trainer()).__name__}()"
        check_nested(self, params, {"trainer": default, "pretraining": default})
        return super().set_params(**params)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
