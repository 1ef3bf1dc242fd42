"""The rows of `roofline.py`: each model at a size of real use, and the floor of its update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import floors as f
import numpy as np


@dataclass
class Case:
    """One row.

    Attributes
    ----------
    what : str
        Shapes and trainer, for the table.
    make : function(epochs, callbacks) → model
    rows : function() → arguments of ``fit``
    updates : int
        Of an epoch.
    floor : function(iterations, model) → Floor
    closed : bool
        Whether a fit is one update, to be repeated.
    """

    what: str
    make: Callable[..., Any]
    rows: Callable[[], tuple[Any, ...]]
    updates: int
    floor: Callable[..., Any]
    closed: bool = False


# ---------------------------------------------------------------- made-up rows


def made_up() -> Any:
    class Rows:
        rng = np.random.default_rng(0)

        def bits(self, n: int, d: int = 784) -> tuple[Any]:
            return ((self.rng.random((n, d)) < 0.15).astype(np.float32),)

        def unit(self, n: int, d: int = 784, labels: bool = False) -> tuple[Any, ...]:
            X = self.rng.random((n, d), np.float32)
            return (X, self.rng.integers(0, 10, n)) if labels else (X,)

        def pairs(self, n: int, d: int = 784) -> tuple[Any]:
            return (self.rng.random((n, 2, d), np.float32),)

        def reals(self, n: int, d: int, tails: float | None = None) -> tuple[Any]:
            X = self.rng.standard_normal((n, d), np.float32)
            if tails is not None:
                X /= np.sqrt(self.rng.chisquare(tails, (n, d)) / tails).astype(np.float32)
            return (X,)

        def factors(self, n: int, d: int, k: int) -> tuple[Any]:
            z, A = self.rng.standard_normal((n, k)), self.rng.standard_normal((k, d))
            return ((z @ A + 3 * self.rng.standard_normal((n, d))).astype(np.float32),)

        def sparse(self, n: int, d: int, m: int) -> tuple[Any]:
            D = self.rng.standard_normal((m, d))
            D /= np.sqrt((D * D).sum(axis=1, keepdims=True))
            z = self.rng.laplace(size=(n, m)) * (self.rng.random((n, m)) < 0.1)
            return ((z @ D + 0.05 * self.rng.standard_normal((n, d))).astype(np.float32),)

        def clips(self, n: int, frames: int, d: int, m: int) -> tuple[Any]:
            return (self.sparse(n * frames, d, m)[0].reshape(n, frames, d),)

        def images(self, n: int, side: int = 64, labels: bool = False) -> tuple[Any, ...]:
            x = self.rng.standard_normal((n, side + 2, side + 2), np.float32)
            x = x[:, 1:] + x[:, :-1]
            x = np.ascontiguousarray((x[:, :, 1:] + x[:, :, :-1])[:, :side, :side])
            return (x, self.rng.integers(0, 10, n)) if labels else (x,)

        def maps(self, n: int, side: int, channels: int) -> tuple[Any]:
            return ((self.rng.random((n, side, side, channels)) < 0.3).astype(np.float32),)

    return Rows()


# ---------------------------------------------------------------- the table of models


def cases() -> dict[str, Case]:
    """By name, in the order of the README."""
    return machines() | gates() | networks() | sums() | sparse_family()


def machines() -> dict[str, Case]:

    from energyscape import models as M
    from energyscape.trainers import PCD

    X = made_up()

    def pcd(epochs: int, callbacks: Any, **settings: Any) -> Any:
        return PCD(n_epochs=epochs, callbacks=callbacks, **settings)

    def belief(epochs: int, callbacks: Any) -> Any:
        return M.DeepBeliefNet([M.RBM(k, trainer=pcd(epochs, callbacks)) for k in (500, 250)])

    return {
        "RBM": Case(
            "784×500, PCD-1, 100 rows and chains",
            lambda e, c: M.RBM(500, trainer=pcd(e, c)),
            lambda: X.bits(5000),
            50,
            lambda i, m: f.rbm(784, 500, 100, 100),
        ),
        "GaussianRBM": Case(
            "784×500, PCD-1, 100 rows, 500 chains, averages",
            lambda e, c: M.GaussianRBM(
                500, trainer=pcd(e, c, n_chains=500, learning_rate=0.01, averaging=0.1)
            ),
            lambda: X.reals(1500, 784),
            15,
            lambda i, m: f.rbm(784, 500, 100, 500, 2),
        ),
        "DeepBoltzmannMachine": Case(
            "784-500-1000, PCD-1, 100 rows and chains, 5 rounds of mean field",
            lambda e, c: M.DeepBoltzmannMachine((500, 1000), trainer=pcd(e, c)),
            lambda: X.bits(1000),
            10,
            lambda i, m: f.deep_boltzmann(784, 500, 1000, 100, 5),
        ),
        "DeepBeliefNet": Case(
            "RBMs 784-500-250: one update of each",
            belief,
            lambda: X.bits(2000),
            20,
            lambda i, m: f.rbm({500: 784, 250: 500}[m.n_components], m.n_components, 100, 100),
        ),
        "TiledRBM": Case(
            "15×15×64 maps, 2 sets of 2×2, 128 units, PCD-1, 32 images and chains",
            lambda e, c: M.TiledRBM(128, trainer=pcd(e, c, batch_size=32, n_chains=32)),
            lambda: X.maps(160, 15, 64),
            5,
            lambda i, m: f.tiled_rbm(15, 64, 2, 1, 128, 32),
        ),
    }


def gates() -> dict[str, Case]:

    from energyscape import models as M
    from energyscape.trainers import PCD

    X = made_up()

    def pcd(epochs: int, callbacks: Any, n: int = 100) -> Any:
        return PCD(
            n_epochs=epochs,
            callbacks=callbacks,
            batch_size=n,
            n_chains=n,
            learning_rate=0.1,
            averaging=0.1,
        )

    def patches(name: str, pools: bool, means: bool, what: str = "", **settings: Any) -> Case:
        kind = getattr(M, name)
        settings |= {"n_mean_components": 100} if means else {}
        return Case(
            f"190×256{'+100' * means}, PCD, HMC of 20 steps, 100 rows and chains{what}",
            lambda e, c: kind(256, trainer=pcd(e, c), **settings),
            lambda: X.reals(1000, 190, 5),
            10,
            lambda i, m: f.gated(190, 256, 100 * means, 100, pools),
        )

    def deep(epochs: int, callbacks: Any) -> Any:
        rbm = M.RBM(256, trainer=PCD(n_epochs=epochs, callbacks=callbacks))
        gated = M.MPoT(256, n_mean_components=128, trainer=pcd(epochs, callbacks))
        return M.DeepGatedMRF([gated, rbm])

    def of_layer(i: float, m: Any) -> Any:
        return f.rbm(384, 256, 100, 100) if type(m) is M.RBM else f.gated(190, 256, 128, 100, True)

    return {
        "PoT": patches("PoT", False, False),
        "CovarianceRBM": patches("CovarianceRBM", True, False, ", P"),
        "McRBM": patches("McRBM", True, True, ", P"),
        "MPoT": patches("MPoT", True, True, ", P"),
        "MPoT without P": patches("MPoT", False, True, learn_pools=False),
        "DeepGatedMRF": Case(
            "MPoT 190×256+128, RBM 384×256: one update of each",
            deep,
            lambda: X.reals(1000, 190, 5),
            10,
            of_layer,
        ),
        "TiledMPoT": Case(
            "62×62, 4 sets of 8×8 tiles, 64+16 units, 32 images and tori, HMC of 20 steps",
            lambda e, c: M.TiledMPoT(64, n_mean_components=16, trainer=pcd(e, c, 32)),
            lambda: X.images(32, 62),
            1,
            lambda i, m: f.field_of(32, 62, 56, 4, 49, 64, 80, False),
        ),
        "FieldsOfExperts": Case(
            "64×64, 24 filters of 5×5, 32 images and tori, HMC of 20 steps",
            lambda e, c: M.FieldsOfExperts(24, size=5, trainer=pcd(e, c, 32)),
            lambda: X.images(32, 64),
            1,
            lambda i, m: f.field_of(32, 64, 60, 1, 3600, 25, 24, True),
        ),
    }


def networks() -> dict[str, Case]:
    from sklearn.pipeline import make_pipeline

    from energyscape import models as M
    from energyscape.data import FilterBank, Pool, Rectify
    from energyscape.optim import Adam
    from energyscape.trainers import Backpropagation, EmbeddingLoss, EnergyLoss, Reconstruction

    X = made_up()

    def learn(kind: Any, epochs: int, callbacks: Any, **settings: Any) -> Any:
        return kind(n_epochs=epochs, callbacks=callbacks, **settings)

    def stack(epochs: int, callbacks: Any) -> Any:
        trainer = learn(Reconstruction, epochs, callbacks)
        return M.StackedAutoEncoder([M.AutoEncoder(k, trainer=trainer) for k in (500, 250)])

    def classifier(epochs: int, callbacks: Any) -> Any:
        below = M.AutoEncoder(500, trainer=Reconstruction(n_epochs=1))
        return M.FineTunedClassifier(below, trainer=learn(Backpropagation, epochs, callbacks))

    def pipeline(epochs: int, callbacks: Any) -> Any:
        bank = FilterBank(M.PSD(32, trainer=EnergyLoss(n_epochs=1)), 7, n_patches=2000)
        trainer = learn(Backpropagation, epochs, callbacks, optimizer=Adam(0.003))
        return M.FineTunedPipeline(make_pipeline(bank, Rectify(), Pool("mean", 2)), trainer=trainer)

    def of_pipeline(i: float, m: Any) -> Any:
        rows, size, k, top = 100 * 22 * 22, 49, 32, 11 * 11 * 32
        return f.layers(100, (top, 10)) + f.Floor(
            products=[(1, (rows, size, k)), (1, (size, rows, k)), (1, (100, 10, top))],
            writes=[(1, (100, 28, 28)), (4, (rows, k))],
        )

    return {
        "AutoEncoder": Case(
            "784-500-784, tied, squared error, Adam, 100 rows",
            lambda e, c: M.AutoEncoder(500, trainer=learn(Reconstruction, e, c)),
            lambda: X.unit(5000),
            50,
            lambda i, m: f.autoencoder(100, (784, 500)),
        ),
        "DeepAutoEncoder": Case(
            "784-500-250 and back, tied, Adam, 100 rows",
            lambda e, c: M.DeepAutoEncoder((500, 250), trainer=learn(Reconstruction, e, c)),
            lambda: X.unit(2000),
            20,
            lambda i, m: f.autoencoder(100, (784, 500, 250)),
        ),
        "StackedAutoEncoder": Case(
            "784-500-250: one update of each layer, tied, Adam, 100 rows",
            stack,
            lambda: X.unit(2000),
            20,
            lambda i, m: f.autoencoder(100, ({500: 784, 250: 500}[m.n_components], m.n_components)),
        ),
        "FineTunedClassifier": Case(
            "784-500-10, SGD with momentum, 100 rows",
            classifier,
            lambda: X.unit(5000, labels=True),
            50,
            lambda i, m: f.layers(100, (784, 500, 10), kept=2),
        ),
        "FineTunedPipeline": Case(
            "28×28, 32 filters of 7×7, rectified, pooled by 2×2, 10 classes, Adam, 100 images",
            pipeline,
            lambda: X.images(500, 28, labels=True),
            5,
            of_pipeline,
        ),
        "SiameseEncoder": Case(
            "784-256-2, InfoNCE, Adam, 100 pairs",
            lambda e, c: M.SiameseEncoder(
                2, hidden_layer_sizes=(256,), trainer=learn(EmbeddingLoss, e, c)
            ),
            lambda: X.pairs(2500),
            25,
            lambda i, m: f.layers(200, (784, 256, 2)),
        ),
    }


def sums() -> dict[str, Case]:

    from energyscape import models as M
    from energyscape.trainers import EM, PCD, EnergyLoss, MaximumLikelihood

    X = made_up()

    def em(epochs: int, callbacks: Any) -> Any:
        return EM(n_epochs=epochs, tol=0, callbacks=callbacks)

    return {
        "PCA": Case(
            "20,000×144, 64 axes, closed form",
            lambda e, c: M.PCA(64),
            lambda: X.reals(20_000, 144),
            1,
            lambda i, m: f.Floor(grams=[(1, (20_000, 144))], others=[(1, f.eigen(144))]),
            closed=True,
        ),
        "FactorAnalysis": Case(
            "20,000×144, 16 factors, closed form by EM on the scatter",
            lambda e, c: M.FactorAnalysis(16),
            lambda: X.factors(20_000, 144, 16),
            1,
            lambda i, m: f.Floor(grams=[(1, (20_000, 144))], others=[(i, f.eigen(144))]),
            closed=True,
        ),
        "KMeans": Case(
            "20,000×144, 256 centres, Lloyd",
            lambda e, c: M.KMeans(256, trainer=em(e, c)),
            lambda: X.reals(20_000, 144),
            1,
            lambda i, m: f.Floor(products=[(1, (20_000, 144, 256))], writes=[(1, (20_000, 144))]),
        ),
        "GaussianMixture": Case(
            "20,000×64, 8 components, full covariances, EM",
            lambda e, c: M.GaussianMixture(8, trainer=em(e, c)),
            lambda: X.reals(20_000, 64),
            1,
            lambda i, m: f.Floor(
                products=[(8, (20_000, 64, 64))],
                grams=[(8, (20_000, 64))],
                writes=[(8, (20_000, 64)), (1, (20_000, 8))],
            ),
        ),
        "ICA": Case(
            "144, maximum likelihood, 500 rows",
            lambda e, c: M.ICA(
                trainer=MaximumLikelihood(
                    n_epochs=e, batch_size=500, learning_rate=0.2, callbacks=c
                )
            ),
            lambda: X.reals(10_000, 144, 5),
            20,
            lambda i, m: f.Floor(
                products=[(1, (500, 144, 144)), (1, (144, 500, 144)), (1, (144, 144, 144))],
                writes=[(2, (500, 144)), (1, (144, 144))],
                others=[(1, f.solve(144))],
            ),
        ),
        "OvercompleteICA": Case(
            "144×256, PCD, HMC of 20 steps, 100 rows and chains",
            lambda e, c: M.OvercompleteICA(
                256, trainer=PCD(n_epochs=e, learning_rate=0.02, callbacks=c)
            ),
            lambda: X.reals(1000, 144, 5),
            10,
            lambda i, m: (
                f.trajectory(100, 144, 256, 20)
                + f.Floor(
                    products=[
                        (1, (100, 144, 256)),
                        (1, (256, 200, 144)),
                        (1, (256, 144, 256)),
                        (1, (256, 256, 144)),
                    ],
                    writes=[(1, (100, 144)), (1, (100, 256)), (1, (256, 144))],
                    others=[(1, f.solve(144))],
                )
            ),
        ),
        "RICA": Case(
            "144×256, energy loss, 100 rows",
            lambda e, c: M.RICA(
                256, trainer=EnergyLoss(n_epochs=e, learning_rate=0.2, callbacks=c)
            ),
            lambda: X.reals(10_000, 144),
            100,
            lambda i, m: f.Floor(
                products=[(2, (100, 144, 256)), (1, (100, 256, 144)), (2, (256, 100, 144))],
                writes=[(2, (100, 144)), (1, (100, 256)), (1, (256, 144))],
            ),
        ),
    }


def sparse_family() -> dict[str, Case]:

    from energyscape import models as M
    from energyscape.models.unrolled import LISTAEncoder
    from energyscape.trainers import EM, Backpropagation, EnergyLoss, Prediction

    X = made_up()

    def energy(epochs: int, callbacks: Any, n: int = 100) -> Any:
        return EnergyLoss(n_epochs=epochs, batch_size=n, learning_rate=0.3, callbacks=callbacks)

    def discriminative(epochs: int, callbacks: Any) -> Any:
        below = M.LISTA(
            400,
            encoder=LISTAEncoder(10),
            positive=True,
            train_dictionary=True,
            dictionary=X.reals(400, 784)[0],
            trainer=EnergyLoss(n_epochs=1),
        )
        return M.DrSAE(
            below,
            trainer=Backpropagation(n_epochs=epochs, callbacks=callbacks, learning_rate=0.01),
        )

    def of_labels(i: float, m: Any) -> Any:
        return (
            f.unrolled(100, 784, 400, 10, True)
            + f.layers(100, (400, 10), kept=1)
            + f.Floor(products=[(1, (100, 10, 400))])
        )

    def of_clips(i: float, m: Any) -> Any:
        what = f.Floor(products=[(2, (100, 64, 256))], writes=[(2, (100, 256)), (1, (100, 64))])
        return f.sparse(100, 144, 256, i, True, frames=3) + i * what

    return {
        "SparseCoding": Case(
            "144×256, online dictionary, FISTA to a gap of 1e-4, 256 rows",
            lambda e, c: M.SparseCoding(256, trainer=EM(n_epochs=e, batch_size=256, callbacks=c)),
            lambda: X.sparse(1280, 144, 256),
            5,
            lambda i, m: f.sparse(256, 144, 256, i) + f.Floor(grams=[(1, (256, 256))]),
        ),
        "PSD": Case(
            "144×256, FISTA from the encoder's codes to a gap of 1e-4, 100 rows",
            lambda e, c: M.PSD(256, trainer=energy(e, c)),
            lambda: X.sparse(2000, 144, 256),
            20,
            lambda i, m: f.sparse(100, 144, 256, i, True),
        ),
        "LISTA": Case(
            "144×256, 3 steps, on codes that are there, 100 rows",
            lambda e, c: M.LISTA(
                256,
                dictionary=X.reals(256, 144)[0],
                trainer=Prediction(n_epochs=e, callbacks=c),
            ),
            lambda: X.sparse(5000, 144, 256),
            50,
            lambda i, m: f.unrolled(100, 144, 256, 3),
        ),
        "DrSAE": Case(
            "784-400, 10 steps, 10 classes, SGD, 100 rows",
            discriminative,
            lambda: X.unit(1000, labels=True),
            10,
            of_labels,
        ),
        "WhatWhere": Case(
            "clips of 3×144, 256 simple and 64 complex units, to changes of 1e-4, 100 clips",
            lambda e, c: M.WhatWhere(256, trainer=energy(e, c)),
            lambda: X.clips(300, 3, 144, 256),
            3,
            of_clips,
        ),
        "ConvSparseCoding": Case(
            "64×64, 16 filters of 8×8, ADMM to a gap of 1e-3, 8 images",
            lambda e, c: M.ConvSparseCoding(16, trainer=energy(e, c, 8)),
            lambda: X.images(8),
            1,
            lambda i, m: f.conv_sparse(8, 64, 8, 16, i, admm=True),
        ),
        "ConvPSD": Case(
            "64×64, 16 filters of 8×8, FISTA to a gap of 1e-3, 8 images",
            lambda e, c: M.ConvPSD(16, trainer=energy(e, c, 8)),
            lambda: X.images(8),
            1,
            lambda i, m: f.conv_sparse(8, 64, 8, 16, i),
        ),
        "LocalPSD": Case(
            "64×64, filters of 9×9, one a place, period 4, FISTA to 1e-2, 8 images",
            lambda e, c: M.LocalPSD(1, filter_size=9, trainer=energy(e, c, 8)),
            lambda: X.images(32),
            4,
            lambda i, m: f.local_sparse(8, 64, 9, 4, i),
        ),
    }
