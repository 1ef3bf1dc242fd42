"""Predictive sparse decomposition of whole images by filters of each place: maps of features.

    E(x, z) = ½ Σ m ⊙ (x - Σ_p Σ_u z(p, u) f(p mod P, u))² + (α/2)|z - f(x)|²
              + λ Σ_p (√(δ² + s(p)) - δ),              F(x) = min_z E(x, z),    |f| = 1

Simple cells see a window of the image around their own place and share filters with nobody but
those a period P down and across, so that the P²u filters of a period cover images of any size.
s(p) is the mean square of the codes near p (`penalties.MapPools`), the energy of a complex cell: it
costs less to be on where neighbours are, and filters that lie near become alike in all but phase,
in maps of orientation with pinwheels. (The idea is Gregor and LeCun's, whose complex cells pool
overlapping neighbourhoods of the map, too; the equations are this library's.)

References
----------
Gregor, K., LeCun, Y. (2010). Emergence of complex-like cells in a temporal product network with
local receptive fields. arXiv:1006.0448.
Kavukcuoglu, K., Ranzato, M., Fergus, R., LeCun, Y. (2009). Learning invariant features through
topographic filter maps.
"""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array, namespace
from energyscape.models.conv_psd import ConvPSD
from energyscape.models.dictionary import alike_or_dead
from energyscape.penalties import L1, MapPools
from energyscape.registry import register
from energyscape.verbs import Params, check_count


@register
class LocalPSD(ConvPSD):
    """Locally connected filters, tied with a period, on a map whose neighbours go on together.

    Trained on crops, it codes images of any size that tiles of the period fit into.

    Parameters
    ----------
    n_components : int, default 1
        Units u at a place.
    period : int, default 4
        P: units P places apart, down or across, have the same filter. With 1 filters are
        convolutional.
    filter_size : int or (int, int), default 8
        Sides of a filter, in pixels.
    boundary : {"full", "valid", "circular"}, default "full"
        As for `ConvSparseCoding`. The period must divide the places of an image: h - fh + 1,
        h + fh - 1 or h down, and likewise across.
    mask, encoder, alpha, joint, exact, train_dictionary
        As for `ConvPSD`; every unit of a period has its own filter, threshold and bias in the
        encoder, too.
    sparsity : float, optional
        λ as a fraction of the median over tiles of the largest |f'x|. Default: 0.2.
    penalty : MapPools or L1, optional
        In place of ``sparsity``, with λ in the units of the data. Default: ``MapPools(3)`` with the
        λ that ``sparsity`` says; with `L1` neighbours have nothing in common.
    positive, tol, max_iter
        As for `ConvSparseCoding`; with `MapPools` ``tol`` is the largest slope that is left,
        relative to the largest |f'x + αf|. All is inferred by FISTA.
    dictionary : array, shape (period * period * n_components, height, width) or with a last axis \
of channels, optional
        Where training begins; normalised. Default: random windows.
    replace : bool, default True
        Whether filters that nobody uses become what is explained worst.
    trainer : Trainer, optional
        Default: ``EnergyLoss(n_epochs=20, batch_size=8, learning_rate=0.3)``.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    filters_ : array, shape (period, period, n_components, height, width), with channels if there \
are several
        Where they lie in a period.
    components_ : array, shape (period * period * n_components, height * width * channels)
        The same as rows.
    strength_, n_replaced_, image_shape_
        As for `ConvSparseCoding`.
    params_ : dict
        As that of `ConvPSD`, of the period's filters.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Gregor, K., LeCun, Y. (2010). Emergence of complex-like cells in a temporal product network with
    local receptive fields. arXiv:1006.0448.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import LocalPSD
    >>> from energyscape.trainers import EnergyLoss
    >>> X = np.random.default_rng(0).laplace(size=(10, 16, 16))
    >>> trainer = EnergyLoss(n_epochs=2, batch_size=5)
    >>> model = LocalPSD(period=3, filter_size=5, trainer=trainer, tol=0.1, random_state=0).fit(X)
    >>> model.filters_.shape, model.transform(X).shape
    ((3, 3, 1, 5, 5), (10, 12, 12, 1))
    """

    algorithm = "fista"

    def __init__(
        self,
        n_components: int = 1,
        *,
        period: int = 4,
        filter_size: int | tuple[int, int] = 8,
        boundary: str = "full",
        mask: bool = True,
        encoder: Any = None,
        alpha: float = 1.0,
        joint: bool = True,
        exact: bool = False,
        train_dictionary: bool = True,
        sparsity: float | None = None,
        penalty: Any = None,
        positive: bool = False,
        dictionary: Any = None,
        tol: float = 1e-2,
        max_iter: int = 1000,
        replace: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.period = period
        self.filter_size = filter_size
        self.boundary = boundary
        self.mask = mask
        self.encoder = encoder
        self.alpha = alpha
        self.joint = joint
        self.exact = exact
        self.train_dictionary = train_dictionary
        self.sparsity = sparsity
        self.penalty = penalty
        self.positive = positive
        self.dictionary = dictionary
        self.tol = tol
        self.max_iter = max_iter
        self.replace = replace
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # ------------------------------------------------------------ settings

    def check_settings(self) -> None:
        check_count(f"{type(self).__name__}.period", self.period)
        super().check_settings()

    def _check_penalty(self, name: str) -> None:
        if self.penalty is None:
            return
        if not isinstance(self.penalty, MapPools | L1):
            raise ValueError(
                f"{name}: codes of whole images are solved for MapPools or L1(λ) alone, got "
                f"{self.penalty!r}"
            )
        self.penalty.check_numbers()
        if not self.penalty.strength > 0:
            raise ValueError(f"{name}: λ must be > 0, got {self.penalty!r}")

    def pools(self, params: Params) -> Any:
        """The penalty of maps, unless codes pay λ|z|₁."""
        if isinstance(self.penalty, L1):
            return None
        penalty = MapPools(strength=float(params["lam"])) if self.penalty is None else self.penalty
        return penalty.at(self.boundary == "circular", self.period)

    def wasted_filters(self, D: Array, usage: Array) -> Array:
        """Numbers of filters that are dead; those of other places are no doubles."""
        return alike_or_dead(namespace(D).zeros((len(D), len(D)), D.dtype), usage)

    # ------------------------------------------------------------ the face

    def _check_places(self, sides: tuple[int, ...]) -> None:
        places = [s - self._more(f) for s, f in zip(sides, self._size, strict=True)]
        P, more = self.period, [p % self.period for p in places]
        if not any(more):
            return
        way = (
            f"crop {more[0]} rows and {more[1]} columns" if min(places) > P else "take larger ones"
        )
        raise ValueError(
            f"{type(self).__name__} has a period of {P}, which does not divide the "
            f"{places[0]}×{places[1]} places of images of {sides[0]}×{sides[1]}; {way}, or another "
            "period or filter_size"
        )

    @property
    def filters_(self) -> Any:
        self._need_fit("filters_")
        P = self.period
        return self._fitted(self._params["D"].reshape(P, P, -1, *self.filter_shape))
