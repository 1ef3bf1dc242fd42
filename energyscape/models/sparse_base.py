"""What models of codes on a dictionary share: the pass, the M step, and who is told what.

    F(x) = min_h ½|x - Dh|² + p(h) + what a subclass adds

The best code is found once for a pass, and energy and gradients follow from it.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from energyscape.backend import Array, namespace
from energyscape.models.base import EnergyModel
from energyscape.models.dictionary import first_atoms, given_atoms, unit_columns, wasted, worst_rows
from energyscape.models.from_pass import EnergyFromPass
from energyscape.penalties import L1
from energyscape.samplers import HMC
from energyscape.solvers.encode import ALGORITHMS, Codes, sparse_codes
from energyscape.verbs import Param, Params, Pass, check_count

_SPARSITY = 0.2
# Codes that say, before training, how large codes are.
_SOME = 500
_ROUGHLY: dict[str, Any] = {"tol": 1e-2, "max_iter": 100}
_SPARE = 256  # rows kept for atoms that nobody uses
_FORGET = 0.05  # weight of an update in the running mean of squared codes


class CodePass(Pass):
    """The best codes at x, and what follows from them."""

    def __init__(self, model: SparseModel, params: Params, x: Array, codes: Codes | None = None):
        super().__init__(model, params, x)
        self.codes = model.infer(params, x) if codes is None else codes

    def __getitem__(self, rows: Any) -> CodePass:
        c = self.codes
        part = Codes(c.h[rows], c.gap[rows], c.n_iter[rows])
        return type(self)(self.model, self.params, self.x[rows], part)

    def join(self, other: Pass) -> CodePass:
        put, c = namespace(self.x).concatenate, self.codes
        d = other.codes  # type: ignore[attr-defined]
        codes = Codes(put([c.h, d.h]), put([c.gap, d.gap]), put([c.n_iter, d.n_iter]))
        return type(self)(self.model, self.params, put([self.x, other.x]), codes)

    def energy(self) -> Array:
        return self.model.joint_energy(self.params, self.x, self.codes.h)

    def grad(self, weights: Array) -> Params:
        return self.model.joint_grad(self.params, self.x, self.codes.h, weights)

    def input_grad(self) -> Array:
        return self.model.joint_input_grad(self.params, self.x, self.codes.h)

    def stats(self) -> Params:
        late = (self.codes.gap > self.model.tol).sum()
        return {
            "mean/usage": squared_codes(self.codes.h),
            "mean/late": namespace(late).asarray(late, dtype=self.x.dtype),
        }


def squared_codes(h: Array) -> Array:
    """Squares of the code of each atom, (m,): summed over rows, averaged over places of maps."""
    return (h * h).sum(axis=tuple(range(h.ndim - 1))) / math.prod(h.shape[1:-1])


class SparseModel(EnergyFromPass, EnergyModel):
    """Base of them: subclasses write `infer`, and what they add to the energy."""

    domain = "real"
    latents = "minimized"
    # Whether training moves the dictionary.
    moves_dictionary = True
    decoded_rows = 100  # each takes a code
    # Atoms have norm 1 and codes pay, so that pushing down on data alone cannot flatten F.
    limited = True
    nonnegative = True
    smooth = False  # where a unit begins to be on
    algorithms: ClassVar[tuple[str, ...]] = tuple(ALGORITHMS)

    n_components: int | None  # type: ignore[assignment]
    sparsity: float | None
    penalty: Any
    positive: bool
    dictionary: Any
    algorithm: str
    tol: float
    max_iter: int
    replace: bool

    def default_sampler(self) -> Any:
        """HMC, with a code for every gradient; no direction is steeper than |x|²/2."""
        return HMC(10, step_size=0.7)

    @property
    def codes(self) -> str:  # type: ignore[override]
        """Where codes lie."""
        return "nonneg" if self.positive else "real"

    # ------------------------------------------------------------ settings

    def check_settings(self) -> None:
        name = type(self).__name__
        if self.n_components is not None:
            check_count("n_components", self.n_components)
        if self.penalty is not None and self.sparsity is not None:
            raise ValueError(
                f"{name} got both sparsity={self.sparsity!r} and a penalty; sparsity sets the λ of "
                "L1 from the data, so give one"
            )
        if self.sparsity is not None and not 0 < self.sparsity < math.inf:
            raise ValueError(f"{name}.sparsity must be > 0, got {self.sparsity!r}")
        self._check_penalty(name)
        if self.algorithm not in self.algorithms:
            known = ", ".join(map(repr, self.algorithms))
            raise ValueError(f"{name}.algorithm must be one of {known}, got {self.algorithm!r}")
        if not self.tol > 0:
            raise ValueError(f"{name}.tol must be > 0, got {self.tol!r}")
        check_count(f"{name}.max_iter", self.max_iter)

    def _check_penalty(self, name: str) -> None:
        penalty = L1() if self.penalty is None else self.penalty
        if not hasattr(penalty, "code_value") or isinstance(penalty, type):
            raise ValueError(
                f"{name}.penalty must be a penalty of codes such as L1(0.5) or Student(0.5), got "
                f"{penalty!r}"
            )
        penalty.check_numbers()
        if not penalty.strength > 0:
            raise ValueError(
                f"{name}: λ must be > 0, got {penalty!r}; without a penalty a code is least squares"
            )
        needs = {
            "cyclic": "separable",
            "greedy": "separable",
            "active_set": "linear_given_signs",
        }
        wanted = needs.get(self.algorithm)
        if wanted is not None and not hasattr(penalty, wanted):
            raise ValueError(
                f"{name}: algorithm={self.algorithm!r} does not solve {type(penalty).__name__}; "
                "use 'auto'"
            )

    def code_penalty(self, params: Params) -> Any:
        """What codes pay, with its λ."""
        return L1(float(params["lam"])) if self.penalty is None else self.penalty

    # ------------------------------------------------------------ parameters

    def _atoms(self, n_features: int) -> int:
        return n_features if self.n_components is None else int(self.n_components)

    @property
    def _n_features_out(self) -> int:
        return int(self._state.params["D"].shape[1])

    def init_params(self, x: Array, rng: Any) -> Params:
        """Atoms from random rows (or those given), and λ from the rows' λ_max."""
        xp, m = namespace(x), self._atoms(x.shape[1])
        D = first_atoms(x, m, rng) if self.dictionary is None else self._given(x)
        if self.penalty is None:
            most = xp.median(xp.abs(x @ D).max(axis=1).astype(np.float64))
            lam = (_SPARSITY if self.sparsity is None else self.sparsity) * most
            lam = xp.where(lam > 0, lam, 1.0)
        else:
            lam = xp.asarray(float(self.penalty.strength))
        params = {"D": xp.ascontiguousarray(D), "lam": lam.astype(x.dtype)}
        penalty, settings = self.code_penalty(params), {"positive": self.positive, **_ROUGHLY}
        usage = (sparse_codes(params["D"], x[:_SOME], penalty, **settings).h ** 2).mean(axis=0)
        return params | {
            "usage": xp.where((usage > 0).any(), usage, 1).astype(x.dtype),
            "spare": x[xp.arange(_SPARE) % len(x)],
            "replaced": xp.zeros((), np.int64),
            "late": xp.zeros((), x.dtype),
        }

    def _given(self, x: Array) -> Array:
        """The user's dictionary, its atoms as columns of norm 1."""
        shape = self._atoms(x.shape[1]), x.shape[1]
        name = f"{type(self).__name__}.dictionary"
        given = given_atoms(self.dictionary, shape, "n_components, n_features", name)
        return unit_columns(namespace(x).asarray(given.T, dtype=x.dtype))

    def param_specs(self) -> dict[str, Param]:
        buffers = ("lam", "usage", "spare", "replaced", "late")
        return {"D": Param()} | {name: Param(trainable=False) for name in buffers}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        m = self._atoms(n_features)
        shapes = {"D": (n_features, m), "usage": (m,), "spare": (_SPARE, n_features)}
        return shapes | dict.fromkeys(("lam", "replaced", "late"), ())

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return (params["D"].shape[0],)

    def feasible(self, params: Params) -> Params:
        """A copy with atoms of norm 1."""
        return params | {"D": unit_columns(params["D"])}

    # ------------------------------------------------------------ verbs

    def solve_codes(
        self,
        params: Params,
        x: Array,
        start: Array = None,
        alpha: float = 0.0,
        prediction: Array = None,
    ) -> Codes:
        """Codes of least ½|x - Dh|² + p(h) + (α/2)|h - prediction|², by the model's settings."""
        return sparse_codes(
            params["D"],
            x,
            self.code_penalty(params),
            alpha=alpha,
            prediction=prediction,
            start=start,
            positive=self.positive,
            algorithm=self.algorithm,
            tol=self.tol,
            max_iter=self.max_iter,
        )

    def infer(self, params: Params, x: Array, start: Array = None) -> Codes:
        """The best code of each row, its gap, and the iterations that took."""
        raise NotImplementedError

    def forward(self, params: Params, x: Array, beta: Any = 1.0, base: Any = None) -> Pass:
        """The best codes at ``x``, and all that follows from them."""
        super().forward(params, x, beta, base)  # refuses other temperatures
        return CodePass(self, params, x)

    def joint_energy(self, params: Params, x: Array, h: Array) -> Array:
        """E(x, h), shape (n,), float64."""
        rest = x - self.decode(params, h)
        squares = (rest * rest).sum(axis=1, dtype=np.float64)
        return 0.5 * squares + self.code_penalty(params).code_value(h)

    def joint_grad(self, params: Params, x: Array, h: Array, weights: Array) -> Params:
        """Σ_i w_i ∂E(x_i, h_i)/∂θ at fixed codes."""
        if not self.moves_dictionary:
            return {}
        rest = h @ params["D"].T - x
        rest *= weights.astype(x.dtype)[:, None]
        return {"D": rest.T @ h}

    def joint_input_grad(self, params: Params, x: Array, h: Array) -> Array:
        """∂E/∂x at fixed codes, the shape of x."""
        return x - h @ params["D"].T

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x = x - Dh at the best code, the shape of x."""
        return self.forward(params, x).input_grad()

    def encode(self, params: Params, x: Array) -> Array:
        """The best code of each row, shape (n, n_components)."""
        return self.infer(params, x).h

    def decode(self, params: Params, h: Array) -> Array:
        """Dh, shape (n, n_features)."""
        return h @ params["D"].T

    def start_points(self, params: Params, n: int, rng: Any) -> Array:
        """Where chains begin: sparse mixtures of atoms, and noise."""
        xp, D, dtype = namespace(params["D"]), params["D"], params["D"].dtype
        shape = (n, D.shape[1])
        signs = xp.sign(rng.uniform(shape, np.float64) - 0.5)
        spread = xp.sqrt(0.5 * params["usage"])
        h = (signs * rng.exponential(shape) * spread).astype(dtype)
        return self.decode(params, h) + rng.normal((n, len(D)), dtype)

    # ------------------------------------------------------------ training

    def renewed(self, params: Params, usage: Array) -> tuple[Array, Array]:
        """The dictionary with the worst explained spare rows in place of atoms that are wasted,
        and which these were."""
        D, spare = params["D"], params["spare"]
        which = wasted(D, usage, self.positive)
        if not len(which):
            return D, which
        atoms = worst_rows(self.unexplained(params, spare), len(which))
        which = which[: atoms.shape[1]]
        D = D.copy()
        D[:, which] = atoms
        return D, which

    def unexplained(self, params: Params, x: Array) -> Array:
        """What the best codes leave of rows, the shape of x."""
        return x - self.decode(params, self.infer(params, x).h)

    def precondition(self, params: Params, grads: Params) -> None:
        """Steps of an atom in units of its mean squared code, in place: one rate fits data of any
        scale, and atoms that are seldom used learn as fast as others."""
        if "D" not in grads:
            return
        usage = params["usage"]
        grads["D"] /= namespace(usage).maximum(usage, usage.dtype.type(0.1) * usage.mean())

    def project(self, params: Params, sums: Params, rng: Any) -> None:
        """The running mean of squared codes, and atoms that are wasted, in place; nothing after an
        update that leaves the dictionary as it is."""
        if "mean/usage" not in sums:
            return
        usage = params["usage"]
        if "mean/late" in sums:
            params["late"][...] = sums["mean/late"]
        usage += usage.dtype.type(_FORGET) * (sums["mean/usage"].astype(usage.dtype) - usage)
        if not (self.replace and self.moves_dictionary):
            return
        D, which = self.renewed(params, usage)
        if len(which):
            params["D"][...] = D
            params["replaced"] += len(which)
            usage[which] = usage.mean()

    # ------------------------------------------------------------ the face

    def complaint(self) -> str | None:
        share = float(self._params["late"])
        if share == 0:
            return None
        return (
            f"{100 * share:.3g} % of the codes of the last update did not reach tol={self.tol:g} "
            f"in max_iter={self.max_iter} iterations; raise max_iter or tol"
        )

    def transform(self, X: Any) -> Any:
        """The best code of each row.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n, n_components), container of X, dtype of the fit

        Warns
        -----
        ConvergenceWarning
            If rows did not reach ``tol``; `dual_gap` says which.
        """
        both = self._map(X, self._codes_and_gaps)
        h, gap = both[:, :-1], both[:, -1]
        late = int((gap > self.tol).sum())
        if late:
            warnings.warn(
                f"{late} of {len(gap)} rows did not reach tol={self.tol:g} in max_iter="
                f"{self.max_iter} iterations (largest relative gap: {float(gap.max()):.2g}); "
                "dual_gap(X) gives that of each row. Raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        return namespace(h).ascontiguousarray(h)

    def dual_gap(self, X: Any) -> Any:
        """How far each code of `transform` is from the best one: its duality gap relative to ½|x|²
        (of penalties that are not norms, the change that a step would make, relative to its largest
        code).

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n,), dtype of the fit
        """
        return self._map(X, lambda params, x: self._codes_and_gaps(params, x)[:, -1])

    def _codes_and_gaps(self, params: Params, x: Array) -> Array:
        codes = self.infer(params, x)
        return namespace(x).concatenate([codes.h, codes.gap[:, None].astype(x.dtype)], axis=1)

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["D"].T)

    @property
    def strength_(self) -> float:
        self._need_fit("strength_")
        return float(self._params["lam"])

    @property
    def n_replaced_(self) -> int:
        self._need_fit("n_replaced_")
        return int(self._params["replaced"])
