"""Convolutional sparse coding: images are sums of a few filters at a few places.

    E(x, z) = ½ Σ m ⊙ (x - Σ_k z_k * f_k)² + λ|z|₁,    F(x) = min_z E(x, z),    |f_k| = 1

A dictionary of patches learns every feature at every place in the patch; filters that lie wherever
they are needed leave that to the maps z, and become different from each other (Kavukcuoglu et al.,
2010). By the envelope theorem ∂F/∂x = m ⊙ (x - D z) and ∂F/∂f_k = -z_k ⋆ ∂F/∂x, its correlation
with the map, at the best codes.

References
----------
Kavukcuoglu, K., Sermanet, P., Boureau, Y., Gregor, K., Mathieu, M., LeCun, Y. (2010). Learning
convolutional feature hierarchies for visual recognition. NIPS.
Zeiler, M. D., Krishnan, D., Taylor, G. W., Fergus, R. (2010). Deconvolutional networks. CVPR.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.models.conv_base import ConvSparseModel
from energyscape.models.conv_filters import best_filters, correlated, correlations
from energyscape.registry import register
from energyscape.solvers.encode import Codes
from energyscape.trainers import EnergyLoss
from energyscape.verbs import Params

_SWEEPS = 5  # of the filters, in an M step


@register
class ConvSparseCoding(ConvSparseModel):
    """Maps of codes on a dictionary of filters, each the best answer to its image.

    Trained on crops, it codes images of any size. Images are taken as they come: centre or whiten
    them first (`FrequencyWhitening`, `LocalContrastNormalize`).

    Parameters
    ----------
    n_components : int, default 16
        Filters k.
    filter_size : int or (int, int), default 8
        Sides of a filter, in pixels.
    boundary : {"full", "valid", "circular"}, default "full"
        Filters lie inside the image, so that maps are smaller than it; wherever they meet it, so
        that maps are larger; or the image is a torus.
    mask : bool, default True
        Whether a pixel of a "full" image weighs as the share of places whose filters cover it. Few
        codes reach the border; where it weighs like the rest they grow to explain it.
    sparsity : float, optional
        λ as a fraction of the median over places of max_k |f_k'x|, from which on the codes there
        are 0, at the first dictionary. Default: 0.2. The larger, the fewer codes are on.
    penalty : L1, optional
        In place of ``sparsity``: ``L1(λ)`` with λ in the units of the data.
    positive : bool, default False
        Codes >= 0.
    dictionary : array, shape (n_components, height, width) or with a last axis of channels, \
optional
        Where training begins; normalised. Default: random windows.
    algorithm : {"auto", "fista", "admm", "greedy"}, default "auto"
        Of inference; "auto" is FISTA for small images and ADMM for others. "greedy" is coordinate
        descent, for maps without a border ("circular", or "full" without a mask).
    tol : float, default 1e-3
        Largest duality gap of an image, relative to ½ Σ m x².
    max_iter : int, default 1000
        Iterations of inference after which an image is left as it is, with a warning.
    replace : bool, default True
        Whether filters that are dead, or doubles of others (shifted ones too), become what is
        explained worst.
    trainer : Trainer, optional
        Default: ``EnergyLoss(n_epochs=20, batch_size=8, learning_rate=0.3)``, gradient descent.
        `EM` with a batch size is online dictionary learning from correlations of maps, and without
        one alternates between codes of all images and the dictionary.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    filters_ : array, shape (n_components, height, width), with channels if there are several
        Of norm 1.
    components_ : array, shape (n_components, height * width * channels)
        The same as rows.
    strength_ : float
        λ.
    n_replaced_ : int
        Filters that were replaced in training.
    image_shape_ : tuple
        Of the training images.
    params_ : dict
        ``D``, shape (n_components, height, width, channels); buffers ``lam``, ``usage`` (mean
        squared codes), ``spare`` (images whose windows may become filters), ``replaced``, ``late``
        (share of the last images not solved to ``tol``).
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Kavukcuoglu, K., Sermanet, P., Boureau, Y., Gregor, K., Mathieu, M., LeCun, Y. (2010). Learning
    convolutional feature hierarchies for visual recognition. Equation 2.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import ConvSparseCoding
    >>> X = np.random.default_rng(0).laplace(size=(10, 16, 16))
    >>> model = ConvSparseCoding(4, filter_size=5, random_state=0).fit(X)
    >>> Z = model.transform(X)
    >>> Z.shape, model.inverse_transform(Z).shape, bool(model.dual_gap(X).max() <= 1e-3)
    ((10, 12, 12, 4), (10, 16, 16), True)
    """

    def __init__(
        self,
        n_components: int = 16,
        *,
        filter_size: int | tuple[int, int] = 8,
        boundary: str = "full",
        mask: bool = True,
        sparsity: float | None = None,
        penalty: Any = None,
        positive: bool = False,
        dictionary: Any = None,
        algorithm: str = "auto",
        tol: float = 1e-3,
        max_iter: int = 1000,
        replace: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.filter_size = filter_size
        self.boundary = boundary
        self.mask = mask
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
        """Gradient descent: filters that are shifted, or two in one, come apart sooner than by
        running sums."""
        return EnergyLoss(n_epochs=20, batch_size=8, learning_rate=0.3)

    def infer(self, params: Params, x: Array, start: Array = None) -> Codes:
        """The best maps of each image, their gap, and the iterations that took."""
        return self.solve_codes(params, x, start)

    # ------------------------------------------------------------ training

    def statistics(self, params: Params, x: Array) -> Params:
        """Correlations of maps with each other and with images (see `conv_filters`), ΣF, the places
        and the images, and how many of these were not solved to ``tol``."""
        sums: Params = {}
        for rows in self._parts(x, x.shape[1:3]):
            part = self._statistics(params, x[rows])
            sums = part if not sums else {key: sums[key] + part[key] for key in sums}
        return sums | {"rows": namespace(x).asarray(float(len(x)))}

    def _statistics(self, params: Params, x: Array) -> Params:
        wide, codes = np.float64, self.infer(params, x)
        A = correlations(codes.h, self._size, self.boundary == "circular")
        A = A.astype(wide)
        dictionary = self.dictionary_at(params, x.shape[1:3])
        rest = x - dictionary.synthesize(codes.h)
        weighted = dictionary.weighted(rest)
        pull = dictionary.slopes(weighted, codes.h).astype(wide)
        return {
            "energy": self.energy_of(params, rest, weighted, codes.h).sum(),
            "A": A,
            "B": correlated(A, params["D"].astype(wide)) + pull,
            "places": namespace(x).asarray(float(len(x) * math.prod(codes.h.shape[1:3]))),
            "late": (codes.gap > self.tol).sum().astype(wide),
        }

    def maximize(self, params: Params, stats: Params) -> Params:
        """Filters that explain the images better with the codes seen, one after the other; those
        that are wasted begin anew, and what ``stats`` held of their codes is cleared."""
        A, B = stats["A"], stats["B"]
        xp, (k, fh, fw, _) = namespace(A), params["D"].shape
        D = best_filters(params["D"], A, B, _SWEEPS)
        usage = A[xp.arange(k), fh - 1, fw - 1, xp.arange(k)] / stats["places"]
        moved = {"usage": usage, "late": stats["late"] / stats["rows"]}
        if self.replace:
            D, new = self.renewed(params | {"D": D}, usage)
            if len(new):
                A[new] = 0
                A[..., new] = 0
                B[new] = 0
                moved["replaced"] = params["replaced"] + len(new)
        return moved | {"D": D}
