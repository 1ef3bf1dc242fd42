"""What every set of parameters answers to when it is trained, with the answers of a plain one."""

from __future__ import annotations

from typing import Any, ClassVar

from energyscape.verbs import Params


class ParametersMixin:
    """Verbs about steps and constraints, for models that have nothing to say on them."""

    # Rows that the history's values are taken at, up to the trainer's monitor_rows.
    monitored_rows: ClassVar[int] = 1_000_000

    def prepared(self, params: Params) -> Params:
        """``params`` with what several evaluations of an update share; as they are by default."""
        return params

    def precondition(self, params: Params, grads: Params) -> None:
        """Gradients to step directions in `coordinates`, in place; nothing to do by default."""

    def coordinates(self, params: Params) -> Params:
        """What an optimiser moves and averages; arrays that are the same there are shared.

        By default the parameters themselves. Steps, decay, fast weights and averages are all taken
        there, so that none of them depends on where the origin of the data lies.
        """
        return dict(params)

    def set_coordinates(self, params: Params, coordinates: Params) -> None:
        """``params`` from coordinates that were moved, in place and within the constraints."""
        for key, value in coordinates.items():
            if value is not params[key]:
                params[key][...] = value
        for key, value in self.feasible(params).items():
            if value is not params[key]:
                params[key][...] = value

    def project(self, params: Params, sums: Params, rng: Any) -> None:
        """Buffers after an update, in place; none by default."""

    def feasible(self, params: Params) -> Params:
        """``params`` within the constraints; as they are by default."""
        return params
