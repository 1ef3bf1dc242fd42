"""A fitted model as a pickle and as a file: everything NumPy, nothing that runs."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape import io
from energyscape.backend import to_host
from energyscape.registry import from_tree, registered, to_tree
from energyscape.trainers.base import Trainer
from energyscape.training import TrainState


class PersistenceMixin:
    """``save``, and what pickles and files hold; loaded models begin on the CPU."""

    def __getstate__(self: Any) -> dict[str, Any]:
        state = dict[str, Any](super().__getstate__())  # type: ignore[call-overload]
        if "_state" in state:
            held = state["_state"]
            state["_state"] = TrainState(
                {k: np.array(to_host(v)) for k, v in held.params.items()},
                {k: np.array(to_host(v)) for k, v in held.carry.items()},
                held.epoch,
                held.step,
                {k: list(v) for k, v in held.history.items()},
                held.n_rows,
            )
            state |= {"_device": "cpu", "_home": "cpu", "_shown": {}}
        return state

    def save(self: Any, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to an HDF5 file; see `energyscape.save`."""
        io.save(self, path)

    def file_state(self: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a file holds besides the constructor's arguments: numbers, and named arrays."""
        check_is_fitted(self)
        state, trainer = self._state, type(self.trainer_)
        if trainer not in registered().values():
            raise TypeError(
                f"{trainer.__name__} is not registered, so a file cannot name it; decorate it with "
                "energyscape.register"
            )
        arrays = {f"params/{k}": to_host(v) for k, v in state.params.items()}
        arrays |= {f"carry/{k}": to_host(v) for k, v in state.carry.items()}
        meta = {
            "environment": self._environment,
            "trainer": to_tree(self.trainer_),
            "seed": self.seed_,
            "epoch": state.epoch,
            "step": state.step,
            "n_rows": state.n_rows,
            "history": to_tree(state.history),
            "n_features_in": self.n_features_in_,
            "image_shape": to_tree(getattr(self, "image_shape_", None)),
            "feature_names_in": to_tree(
                [str(name) for name in self.feature_names_in_]
                if hasattr(self, "feature_names_in_")
                else None
            ),
        }
        return meta, arrays

    def set_file_state(self: Any, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `file_state` gave."""

        self.trainer_ = from_tree(meta["trainer"])
        if not isinstance(self.trainer_, Trainer):
            raise ValueError(f"its trainer is a {type(self.trainer_).__name__}")
        self.seed_, self.n_features_in_ = int(meta["seed"]), int(meta["n_features_in"])
        if meta.get("image_shape") is not None:
            self.image_shape_ = from_tree(meta["image_shape"])
        if meta["feature_names_in"] is not None:
            self.feature_names_in_ = np.asarray(meta["feature_names_in"], dtype=object)
        self._environment, self._device, self._home = meta["environment"], "cpu", "cpu"
        self._state = TrainState(
            io.under(arrays, "params/"),
            io.under(arrays, "carry/"),
            int(meta["epoch"]),
            int(meta["step"]),
            from_tree(meta["history"]),
            int(meta["n_rows"]),
        )
        self._check_shapes()
        self._forget()

    def _check_settings_fit(self: Any) -> None:
        """Raise ValueError where settings are no longer those of the fitted parameters."""
        try:
            self._check_shapes()
        except ValueError as error:
            raise ValueError(
                f"settings of {type(self).__name__} were changed since it was fitted ({error}): "
                "fit anew, or restore them"
            ) from error

    def _check_shapes(self: Any) -> None:
        wanted = self.param_shapes(self.n_features_in_)
        found = {k: v.shape for k, v in self._state.params.items()}
        if found != wanted:
            raise ValueError(f"parameters have shapes {found}, wanted {wanted}")
