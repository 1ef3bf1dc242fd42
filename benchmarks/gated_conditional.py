"""What hidden units keep of a patch: p(x|h) for h ~ p(h|x), as Ranzato's lectures draw it.

    python benchmarks/gated_conditional.py

Models of 8×8 patches, trained as in `gated_samples.py`: probabilistic PCA, GaussianRBM, PoT, mPoT.
For held-out patches of BSD68: one draw of h given x, then the mean of p(x|h) and one draw from it,
as a picture; over 2,000 of them the mean of log p(x|h), and the squared error of the mean of
p(x|h). Neither is a likelihood: both reward what h says about x. Budget: 30 minutes.
"""

from __future__ import annotations

import math
from typing import Any

from common import HERE, options, table, write
from gated_patches import COMPONENTS, EPOCHS, OF_POT, SIDE, fitted, small_models, white_rows

TRAIN, TEST, SHOWN, AXES = 100_000, 2_000, 12, 32
_LOG_2PI = math.log(2 * math.pi)


def of_pca(model: Any, T: Any, scale: Any, rng: Any) -> tuple[Any, Any, Any]:
    """(means of p(x|h), draws, log p(x|h)) of probabilistic PCA, which sees rows times ``scale``;
    in whitened coordinates."""
    import numpy as np

    W, m = model.components_.astype(np.float64), model.mean_.astype(np.float64)
    variance, noise = model.explained_variance_.astype(np.float64), model.noise_variance_
    z = T * scale
    share = (variance - noise) / variance
    deviation = np.sqrt(noise * share)
    codes = ((z - m) @ W.T) * share + deviation * rng.standard_normal((len(z), len(W)))
    mean = m + codes @ W
    draw = mean + math.sqrt(noise) * rng.standard_normal(z.shape)
    far = ((z - mean) ** 2).sum(axis=1) / noise
    log_p = -0.5 * (far + z.shape[1] * (math.log(noise) + _LOG_2PI)) + np.log(scale).sum()
    return mean / scale, draw / scale, log_p


def of_rbm(model: Any, T: Any, rng: Any) -> tuple[Any, Any, Any]:
    import numpy as np

    params = model._params
    h = model.sample_hidden(params, T, rng)
    mean, log_var = model.decode(params, h), params["log_var"].astype(np.float64)
    far = (T.astype(np.float64) - mean) ** 2 * np.exp(-log_var) + log_var + _LOG_2PI
    return mean, model.sample_visible(params, h, rng), -0.5 * far.sum(axis=1)


def of_gated(model: Any, T: Any, rng: Any) -> tuple[Any, Any, Any]:
    import numpy as np

    params = model._params
    h = model.sample_hidden(params, T, rng)
    s = float(params["deviation"][0])
    precision, pull = model.conditional(params, h)
    mean = np.linalg.solve(precision, pull[..., None])[..., 0]
    u = (T.astype(np.float64) - params["mean_v"]) / s
    away = u - mean
    far = np.einsum("ni,nij,nj->n", away, precision, away)
    log_det = np.linalg.slogdet(precision)[1]
    log_p = 0.5 * (log_det - far) - COMPONENTS * (0.5 * _LOG_2PI + math.log(s))
    return mean * s + params["mean_v"], model.sample_visible(params, h, rng), log_p


def main() -> None:
    chosen = options(__doc__, threads=1)
    import numpy as np

    from energyscape.backend import Purpose, stream
    from energyscape.models import PCA
    from energyscape.plotting import image_grid, save_png

    X, T, white = white_rows(SIDE, COMPONENTS, TRAIN, TEST)
    scale = np.sqrt(np.linalg.eigvalsh(white.covariance_)[::-1][:COMPONENTS])
    found = {}
    pca = PCA(AXES).fit(X * scale)
    found[f"probabilistic PCA ({AXES})"] = of_pca(pca, T, scale, np.random.default_rng(0))
    made = {name: fitted(name, model, X)[0] for name, model in small_models().items()}
    for name in ("GaussianRBM", "PoT", "mPoT"):
        of = of_rbm if name == "GaussianRBM" else of_gated
        found[name] = of(made[name], T, stream(0, Purpose.SAMPLE))
    pixels = white.inverse_transform(T.astype(np.float64))
    power = float((pixels**2).sum(axis=1).mean())
    # Patches of little contrast are grey squares: the first of those above the median.
    contrast = (pixels**2).sum(axis=1)
    which = np.flatnonzero(contrast > np.median(contrast))[:SHOWN]
    bands, lines, record = [pixels[which]], [], {}
    for name, (mean, draw, log_p) in found.items():
        mean, draw = (white.inverse_transform(np.asarray(v, np.float64)) for v in (mean, draw))
        error = float(((mean - pixels) ** 2).sum(axis=1).mean()) / power
        apart = float(((draw - pixels) ** 2).sum(axis=1).mean()) / power
        bar = float(log_p.std() / math.sqrt(len(log_p)))
        lines.append(
            [name, f"**{log_p.mean():.2f}** ± {bar:.2f}", f"**{error:.3f}**", f"{apart:.3f}"]
        )
        record[name] = {"log_p": float(log_p.mean()), "standard_error": bar}
        record[name] |= {"error_of_mean": error, "error_of_draw": apart}
        bands += [draw[which], mean[which]]
    images = np.concatenate(bands).reshape(-1, SIDE, SIDE)
    top = abs(bands[0]).max()
    grid = image_grid(np.clip(images, -top, top), n_columns=SHOWN, symmetric=True, scale="all")
    save_png(
        HERE.parent / "docs" / "images" / "gated_conditional.png",
        grid.repeat(4, axis=0).repeat(4, axis=1),
    )
    text = [
        f"{TRAIN:,} training patches of {SIDE}×{SIDE}, {COMPONENTS} whitened components, models as "
        f"in `gated_samples` (PCD, {EPOCHS} epochs; PoT with 192 filters, {OF_POT} epochs). "
        f"{TEST:,} held-out patches, one draw of h for each: mean log p(x|h) in nats per patch, in "
        "whitened coordinates (± standard error), and squared error on pixels over that of a grey "
        "patch.",
        table(["", "log p(x\\|h)", "error of the mean of p(x\\|h)", "of a draw"], lines),
        f"`docs/images/gated_conditional.png`: {SHOWN} held-out patches, then, for each model in "
        "this order, a draw from p(x|h) and its mean, on one grey scale. A PoT's hidden units know "
        "the covariance and not the mean: its means are grey, its draws have edges where the patch "
        "has them, of either sign.",
    ]
    write(
        chosen,
        "gated_conditional",
        "Patches given hidden units",
        "\n\n".join(text),
        record,
    )


if __name__ == "__main__":
    main()
