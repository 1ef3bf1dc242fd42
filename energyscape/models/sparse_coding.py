"""Sparse coding: rows are sums of a few atoms of a dictionary.

    E(x, h) = ½|x - Dh|² + p(h),    F(x) = min_h E(x, h),    |d_j| = 1

with p(h) = λ|h|₁ (a Laplacian prior's energy) or another penalty of codes, as λ Σ log(1 + h²)
(Olshausen and Field, 1996). Few codes are on, so that little is explained and energy cannot be low
everywhere. By the envelope theorem ∂F/∂D = -(x - Dh)h' and ∂F/∂x = x - Dh at the best code h.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.models.dictionary import best_atoms
from energyscape.models.sparse_base import SparseModel
from energyscape.registry import register
from energyscape.solvers.encode import Codes
from energyscape.trainers import EM
from energyscape.verbs import Params


@register
class SparseCoding(SparseModel):
    """Codes of a learned dictionary, each the best answer to its row.

    Rows are taken as they come: centre or whiten them first (`ZCA`, `ContrastNormalize`).

    Parameters
    ----------
    n_components : int, optional
        Atoms m; more than features makes the code overcomplete. Default: as many as features.
    sparsity : float, optional
        λ of an L1 penalty as a fraction of the median over rows of λ_max = max_j |d_j'x|, from
        which on codes are 0, at the first dictionary. Default: 0.2. The larger, the fewer codes
        are on.
    penalty : penalty of codes, optional
        In place of ``sparsity``: ``L1(λ)``, ``Student(λ)``, with λ in the units of the data.
    positive : bool, default False
        Codes >= 0.
    dictionary : array, shape (n_components, n_features), optional
        Where training begins; normalised. Default: random rows.
    algorithm : {"auto", "fista", "ista", "cyclic", "greedy", "active_set"}, default "auto"
        Of inference: FISTA with linear systems on the supports where that takes long, or one alone.
        "cyclic" and "greedy" are coordinate descent.
    tol : float, default 1e-4
        Largest duality gap of a row, relative to ½|x|².
    max_iter : int, default 1000
        Iterations of inference after which a row is left as it is, with a warning.
    replace : bool, default True
        Whether atoms that are dead, or doubles of others, become what is explained worst.
    trainer : Trainer, optional
        Default: ``EM(n_epochs=20, batch_size=256)``, online dictionary learning from sufficient
        statistics; `EnergyLoss` is gradient descent, ``EM(batch_size=None)`` alternates between
        codes of all rows and the dictionary.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Atoms, of norm 1.
    strength_ : float
        λ.
    n_replaced_ : int
        Atoms that were replaced in training.
    params_ : dict
        ``D``; buffers ``lam``, ``usage`` (mean squared codes), ``spare`` (rows that may become
        atoms), ``replaced``, ``late`` (share of the last rows not solved to ``tol``).
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Olshausen, B. A., Field, D. J. (1997). Sparse coding with an overcomplete basis set: a strategy
    employed by V1?
    Mairal, J., Bach, F., Ponce, J., Sapiro, G. (2010). Online learning for matrix factorization and
    sparse coding.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import SparseCoding
    >>> X = np.random.default_rng(0).laplace(size=(300, 10))
    >>> model = SparseCoding(16, random_state=0).fit(X)
    >>> H = model.transform(X)
    >>> H.shape, bool((H == 0).mean() > 0.3), bool(model.dual_gap(X).max() <= 1e-4)
    ((300, 16), True, True)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        sparsity: float | None = None,
        penalty: Any = None,
        positive: bool = False,
        dictionary: Any = None,
        algorithm: str = "auto",
        tol: float = 1e-4,
        max_iter: int = 1000,
        replace: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.sparsity = sparsity
        self.penalty = penalty
        self.positive = positive
        self.dictionary = dictionary
        self.algorithm = algorithm
        self.tol = tol
        self.max_iter = max_iter
        self.replace = replace
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        """Online dictionary learning from sufficient statistics."""
        return EM(n_epochs=20, batch_size=256)

    def infer(self, params: Params, x: Array, start: Array = None) -> Codes:
        """The best code of each row, its gap, and the iterations that took."""
        return self.solve_codes(params, x, start)

    # ------------------------------------------------------------ training

    def statistics(self, params: Params, x: Array) -> Params:
        """Σhh', Σxh', Σh² and ΣF over the rows, and how many were not solved to ``tol``."""
        xp, codes = namespace(x), self.infer(params, x)
        h, wide = codes.h, np.float64
        return {
            "rows": xp.asarray(float(len(x))),
            "energy": self.joint_energy(params, x, h).sum(),
            "A": (h.T @ h).astype(wide),
            "B": (x.T @ h).astype(wide),
            "late": (codes.gap > self.tol).sum().astype(wide),
        }

    def maximize(self, params: Params, stats: Params) -> Params:
        """The best dictionary for the codes seen, one atom after the other; atoms that are wasted
        begin anew, and what ``stats`` held of their codes is cleared."""
        xp, A, B = namespace(params["D"]), stats["A"], stats["B"]
        D = best_atoms(params["D"], A, B)
        usage = xp.diagonal(A) / stats["rows"]
        moved = {"usage": usage, "late": stats["late"] / stats["rows"]}
        if self.replace:
            D, new = self.renewed(params | {"D": D}, usage)
            if len(new):
                A[new] = 0
                A[:, new] = 0
                B[:, new] = 0
                moved["replaced"] = params["replaced"] + len(new)
        return moved | {"D": D}
