"""Learned ISTA: a few unrolled steps give nearly the code that hundreds of them would.

    F(x) = ½|x - Df(x)|² + p(f(x))

is the lasso's energy at the network's code f(x), which is learned from the best codes
(`Prediction`; Gregor and LeCun, 2010) or from that energy itself (`EnergyLoss`). The dictionary is
learned first, by `SparseCoding`.

References
----------
Gregor, K., LeCun, Y. (2010). Learning fast approximations of sparse coding. ICML.
"""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array, namespace
from energyscape.models.base import EnergyModel
from energyscape.models.encoded import EncodedModel
from energyscape.models.sparse_coding import SparseCoding
from energyscape.models.unrolled import LISTAEncoder
from energyscape.registry import register
from energyscape.sources import Rows
from energyscape.trainers import Prediction
from energyscape.verbs import Params, Pass


class GuessPass(Pass):
    """The encoder's codes at x, and what follows from them."""

    def __init__(self, model: LISTA, params: Params, x: Array) -> None:
        super().__init__(model, params, x)
        self.encoder = model.chosen_encoder()
        self.h, self.cache = self.encoder.forward(params, x, model.positive)

    def energy(self) -> Array:
        return self.model.joint_energy(self.params, self.x, self.h)

    def _slope(self) -> Array:
        """∂E/∂h."""
        slope = (self.h @ self.params["D"].T - self.x) @ self.params["D"]
        slope += self.model.code_penalty(self.params).code_grad(self.h)
        return slope

    def grad(self, weights: Array, dh: Array = None) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ, and what a further loss with the derivative ``dh`` in the codes adds
        to it through the encoder."""
        slope = self._slope()
        slope *= weights.astype(slope.dtype)[:, None]
        if dh is not None:
            slope += dh
        grads, _ = self.encoder.backward(self.params, self.cache, slope)
        own = self.model.joint_grad(self.params, self.x, self.h, weights)
        return self.model.both(own, grads)

    def input_grad(self) -> Array:
        _, dx = self.encoder.backward(self.params, self.cache, self._slope(), need_dx=True)
        return self.model.joint_input_grad(self.params, self.x, self.h) + dx

    def stats(self) -> Params:
        return {"mean/usage": (self.h**2).sum(axis=0)}


@register
class LISTA(EncodedModel):
    """A network of unrolled inference, for a dictionary that is learned before it.

    Parameters
    ----------
    n_components : int, optional
        Atoms m. Default: as many as features.
    encoder : encoder, optional
        Default: ``LISTAEncoder(3)``; any other one of `PSD`'s will do.
    exact : bool, default False
        Whether ``transform`` gives inferred codes; by default it gives the network's.
    train_dictionary : bool, default False
        Whether `EnergyLoss` moves the dictionary, too.
    dictionary : array, shape (n_components, n_features), optional
        Default: that of a `SparseCoding` with the same settings.
    sparsity, penalty, positive, algorithm, tol, max_iter, replace
        As for `SparseCoding`.
    trainer : Trainer, optional
        Default: ``Prediction(n_epochs=20)``; ``EnergyLoss()`` needs no codes.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Atoms, of norm 1.
    strength_, n_replaced_
        As for `SparseCoding`.
    params_ : dict
        Those of `SparseCoding`, the encoder's arrays, and the buffer ``power``.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`; ``history_["prediction_train"]`` is the squared error of a code.

    References
    ----------
    Gregor, K., LeCun, Y. (2010). Learning fast approximations of sparse coding. Algorithms 3, 4.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import LISTA
    >>> X = np.random.default_rng(0).laplace(size=(300, 10))
    >>> model = LISTA(16, random_state=0).fit(X)
    >>> model.history_["prediction_train"][-1] < model.history_["prediction_train"][0]
    True
    """

    latents = "guessed"

    def __init__(
        self,
        n_components: int | None = None,
        *,
        encoder: Any = None,
        exact: bool = False,
        train_dictionary: bool = False,
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
        self.encoder = encoder
        self.exact = exact
        self.train_dictionary = train_dictionary
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
        """Exact codes."""
        return Prediction(n_epochs=20)

    def chosen_encoder(self) -> Any:
        """The encoder, or the one that None stands for."""
        return LISTAEncoder() if self.encoder is None else self.encoder

    def check_settings(self) -> None:
        super().check_settings()
        if self.penalty is not None and not hasattr(self.penalty, "code_grad"):
            raise ValueError(
                f"LISTA needs a penalty with a gradient such as L1 or Student, got {self.penalty!r}"
            )

    def first_params(self, rows: Rows, x: Array, rng: Any) -> Params:
        """The dictionary of a `SparseCoding` of the same rows, if none was given, and the encoder
        that it makes."""
        params = self.init_params(x, rng)
        if self.dictionary is not None:
            return params
        shared = ("n_components", "sparsity", "penalty", "positive", "algorithm", "tol", "max_iter")
        settings = {key: getattr(self, key) for key in (*shared, "replace", "verbose")}
        coder = SparseCoding(**settings, random_state=self.seed_, device=self._device)
        found = coder.fit(rows.X)._params
        like = namespace(x)
        for key in ("D", "lam", "usage", "spare", "replaced"):
            params[key] = like.asarray(found[key]).astype(params[key].dtype)
        lam = float(params["lam"])
        return params | self.chosen_encoder().init(params["D"], lam, x)

    def sharing_obstacle(self) -> str | None:
        if self.dictionary is not None:
            return None
        return "it learns its dictionary first, by a fit of its own; give it one (dictionary=...)"

    # ------------------------------------------------------------ verbs

    def forward(self, params: Params, x: Array, beta: Any = 1.0, base: Any = None) -> GuessPass:
        """The encoder's codes at ``x``, and all that follows from them."""
        EnergyModel.forward(self, params, x, beta, base)  # refuses other temperatures
        return GuessPass(self, params, x)
