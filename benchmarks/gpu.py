"""The GPU at its limit: updates against a bare product and PyTorch, and what rounding costs.

    python benchmarks/gpu.py

Needs a CUDA device with CuPy, and PyTorch in the same interpreter for its lines (they stay "not
measured" without). Contenders take turns in one process, ten rounds; times are of CUDA events, so
that work which the host is too slow to ask for shows as time: the same updates queued behind a long
product run without such gaps, and the difference is what launching costs. Budget: 4 minutes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common import options, table, write

PRECISIONS = ("float32", "tf32", "float16")


@dataclass(frozen=True)
class Sizes:
    """What is measured; a test runs the same with small numbers."""

    product: int = 4096
    rbm: tuple[int, int, int] = (4096, 4096, 4096)  # features, units, rows (and chains)
    small: tuple[int, int, int] = (784, 500, 100)
    mpot: tuple[int, int, int] = (1024, 1024, 1024)  # features, filters, mean units
    batches: tuple[int, ...] = (4096, 1024)
    leaps: int = 20
    rounds: int = 10
    repeats: int = 3
    quick: int = 100  # repeats of the small machine
    seeds: int = 5
    epochs: int = 30
    conv: tuple[int, int, tuple[int, ...]] = (256, 64, (8, 12, 16))  # side, filters, their sides


@dataclass
class Bench:
    """A contender: what to call, its floating-point operations, and its milliseconds."""

    step: Callable[[], Any]
    flops: float
    repeats: int
    times: list[float] = field(default_factory=list)


# ---------------------------------------------------------------- operations of an update


def rbm_flops(d: int, k: int, n: int) -> float:
    """The five products of PCD-1 with as many chains as rows: h W', x W, v W, x'p, v'p."""
    return 5 * 2.0 * n * d * k


def mpot_flops(d: int, k: int, m: int, n: int, leaps: int, pools: bool) -> float:
    """Products of one update by PCD with as many chains as rows.

    A gradient goes to the k + m fields and back, with pools there and back as well. There are one
    at either end of a trajectory and leaps - 1 between. The gradient in the parameters, at rows and
    chains, goes to the fields and makes what C and W (and P) have as many products from, P twice:
    its slopes go back through it first. SC is made for the target and for the pass, S C' once.
    """
    fields, gates = 2.0 * n * d * (k + m), 2.0 * n * k * k if pools else 0.0
    inner = (leaps + 1) * 2 * (fields + gates)
    outer = 2 * 2 * fields + 2 * 3 * gates
    return inner + outer + 3 * 2.0 * d * d * k


# ---------------------------------------------------------------- ours


def update(model: Any, trainer: Any, x: Any) -> Callable[[], None]:
    """One update after another, as the loop of training makes them."""
    from energyscape.backend import Purpose, device_of, stream
    from energyscape.optim import Moment
    from energyscape.trainers.base import Batch

    device = device_of(x)
    params = model.init_params(x, stream(0, Purpose.INIT, 0, device))
    carry = trainer.start(model, params, x, stream(0, Purpose.START, 0, device))
    at = [0]

    def step() -> None:
        rng = stream(0, Purpose.COLLECT, at[0], device)
        sums = trainer.collect(model, params, carry, Batch(x, len(x)), rng)
        trainer.apply(model, params, carry, sums, Moment(0, at[0], 0.1, rng))
        at[0] += 1

    return step


def rows(xp: Any, n: int, d: int, bits: bool) -> Any:
    import numpy as np

    x = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    return xp.asarray((x > 1).astype(np.float32) if bits else x)


def ours(xp: Any, sizes: Sizes) -> dict[str, Bench]:
    """Our contenders by name, the bare product first."""
    from energyscape.models import RBM, MPoT
    from energyscape.samplers import HMC
    from energyscape.trainers import PCD

    n = sizes.product
    a, b = rows(xp, n, n, False), rows(xp, n, n, False)
    out = xp.empty((n, n), a.dtype)
    found = {"product": Bench(lambda: xp.matmul(a, b, out=out), 2.0 * n**3, sizes.repeats)}
    for name, shape, repeats in (
        ("RBM", sizes.rbm, sizes.repeats),
        ("small RBM", sizes.small, sizes.quick),
    ):
        d, k, batch = shape
        for kind, centred in (("", True), (", plain", False)):
            model = RBM(k, centered=centred)
            trainer = PCD(batch_size=batch, n_chains=batch, learning_rate=1e-3)
            step = update(model, trainer, rows(xp, batch, d, True))
            found[name + kind] = Bench(step, rbm_flops(*shape), repeats)
    d, k, m = sizes.mpot
    for batch in sizes.batches:
        for pools in (False, True):
            model = MPoT(k, n_mean_components=m, learn_pools=pools)
            sampler = HMC(sizes.leaps, 0.01)
            trainer = PCD(batch_size=batch, n_chains=batch, learning_rate=1e-3, sampler=sampler)
            step = update(model, trainer, rows(xp, batch, d, False))
            flops = mpot_flops(d, k, m, batch, sizes.leaps, pools)
            found[f"mPoT{', P' * pools}, {batch}"] = Bench(step, flops, 1)
    return found


# ---------------------------------------------------------------- PyTorch


def torch_rbm(torch: Any, shape: tuple[int, int, int], device: str) -> Callable[[], None]:
    """PCD-1 of a plain RBM, with its gradient in place."""
    d, k, n = shape
    W, b, c = (torch.zeros(s, device=device) for s in ((d, k), (d,), (k,)))
    W += 0.01 * torch.randn(d, k, device=device)
    x = (torch.randn(n, d, device=device) > 1).float()
    h = torch.bernoulli(torch.full((n, k), 0.5, device=device))
    rate = 1e-3 / n

    def step(h: Any) -> Any:
        p = torch.sigmoid(torch.addmm(c, x, W))
        v = torch.bernoulli(torch.sigmoid(torch.addmm(b, h, W.T)))
        q = torch.sigmoid(torch.addmm(c, v, W))
        h = torch.bernoulli(q)
        W.addmm_(x.T, p, alpha=rate).addmm_(v.T, q, alpha=-rate)
        b.add_(x.sum(0) - v.sum(0), alpha=rate)
        c.add_(p.sum(0) - q.sum(0), alpha=rate)
        return h

    return keeping(step, h)


def torch_mpot(
    torch: Any, shape: tuple[int, int, int], n: int, leaps: int, device: str
) -> Callable[[], None]:
    """PCD of an mPoT without pools, chains moved by HMC: F = |x|²/2σ² - b'x + Σ γ log(1 + (C'x)²/2)
    - Σ softplus(W'x + c); data are white, so that S is the identity and costs nothing."""
    d, k, m = shape

    def array(*size: int, scale: float = 1.0) -> Any:
        return scale * torch.randn(*size, device=device)

    C, W, b = array(d, k, scale=0.05), array(d, m, scale=0.01), torch.zeros(d, device=device)
    c, gamma = torch.full((m,), -2.0, device=device), torch.ones(k, device=device)
    x, precision, eps, rate = array(n, d), 0.25, 0.01, 1e-3 / n

    def parts(v: Any) -> tuple[Any, Any, Any]:
        r = v @ C
        return r, gamma * r / (1 + 0.5 * r * r), torch.sigmoid(torch.addmm(c, v, W))

    def slope(v: Any) -> Any:
        _, dr, p = parts(v)
        return dr @ C.T - p @ W.T + precision * v - b

    def energy(v: Any) -> Any:
        units = (gamma * torch.log1p(0.5 * (v @ C) ** 2)).sum(1, dtype=torch.float64)
        on = torch.nn.functional.softplus(torch.addmm(c, v, W)).sum(1, dtype=torch.float64)
        return (v * (0.5 * precision * v - b)).sum(1, dtype=torch.float64) + units - on

    def step(v: Any) -> Any:
        z = torch.randn_like(v)
        q, at = z - 0.5 * eps * slope(v), v
        for _ in range(leaps - 1):
            at = at + eps * q
            q = q - eps * slope(at)
        at = at + eps * q
        q = q - 0.5 * eps * slope(at)
        change = energy(at) - energy(v) + 0.5 * ((q * q).sum(1) - (z * z).sum(1))
        take = torch.empty_like(change).exponential_() > change
        v = torch.where(take[:, None], at, v)
        both = torch.cat([x, v])
        sign = torch.ones(len(both), 1, device=device)
        sign[len(x) :] = -1
        _, dr, p = parts(both)
        C.sub_(both.T @ (dr * sign), alpha=rate)
        W.add_(both.T @ (p * sign), alpha=rate)
        c.add_((p * sign).sum(0), alpha=rate)
        b.add_((both * sign).sum(0), alpha=rate)
        return v

    run = keeping(step, array(n, d))
    run.energy, run.slope = energy, slope  # type: ignore[attr-defined]
    return run


def keeping(step: Callable[[Any], Any], state: Any) -> Callable[[], None]:
    """A step that goes on from where it was; ``compiled`` replaces what it calls."""

    def run() -> None:
        run.state = run.call(run.state)  # type: ignore[attr-defined]

    run.state, run.call = state, step  # type: ignore[attr-defined]
    return run


def peers(torch: Any, sizes: Sizes, device: str) -> dict[str, Bench]:
    """PyTorch's contenders, eager and compiled."""
    d, k, m = sizes.mpot
    made: dict[str, tuple[Callable[[], Callable[[], None]], float, int]] = {
        "RBM, plain": (
            lambda: torch_rbm(torch, sizes.rbm, device), rbm_flops(*sizes.rbm), sizes.repeats,
        ),
        "small RBM, plain": (
            lambda: torch_rbm(torch, sizes.small, device), rbm_flops(*sizes.small), sizes.quick,
        ),
    }  # fmt: skip
    for batch in sizes.batches:
        flops = mpot_flops(d, k, m, batch, sizes.leaps, False)
        made[f"mPoT, {batch}"] = (
            lambda batch=batch: torch_mpot(torch, sizes.mpot, batch, sizes.leaps, device), flops, 1,
        )  # fmt: skip
    found = {}
    for name, (make, flops, repeats) in made.items():
        for kind in ("eager", "compiled"):
            step: Any = make()
            if kind == "compiled":
                step.call = torch.compile(step.call)
            found[f"{name}: PyTorch {kind}"] = Bench(step, flops, repeats)
    return found


# ---------------------------------------------------------------- time


def timed(xp: Any, bench: Bench, plug: Callable[[], Any] | None = None) -> float:
    """Milliseconds of a step by CUDA events; behind a ``plug`` without the host's gaps."""
    xp.cuda.Device().synchronize()
    if plug is not None:
        plug()
    start, end = xp.cuda.Event(), xp.cuda.Event()
    start.record()
    for _ in range(bench.repeats):
        bench.step()
    end.record()
    end.synchronize()
    return float(xp.cuda.get_elapsed_time(start, end)) / bench.repeats


def race(xp: Any, contenders: dict[str, Bench], rounds: int) -> None:
    """Rounds in turn, each after one that does not count."""
    names = list(contenders)
    for name in names:  # compilers, pools of memory
        for _ in range(2):
            contenders[name].step()
    for turn in range(rounds):
        k = turn % len(names)
        for name in names[k:] + names[:k]:
            contenders[name].times.append(timed(xp, contenders[name]))


def gaps(xp: Any, contenders: dict[str, Bench]) -> dict[str, float]:
    """Share of the time of each update in which the device waits for the host."""
    product, found = contenders["product"], {}
    for name, bench in contenders.items():
        if name == "product":
            continue
        once = Bench(bench.step, bench.flops, 1)
        free = statistics.median(timed(xp, once) for _ in range(5))
        # A queue holds about a thousand launches, more than an update makes.
        length = 1 + int(2 * free / statistics.median(product.times))

        def plug(length: int = length) -> None:
            for _ in range(length):
                product.step()

        busy = statistics.median(timed(xp, once, plug) for _ in range(5))
        found[name] = max(0.0, 1 - busy / free)
    return found


# ---------------------------------------------------------------- errors


def errors(xp: Any, sizes: Sizes) -> dict[str, dict[str, list[float]]]:
    """Relative error of energies and of gradients in each precision, against float64: by model and
    precision, [energy, gradient]."""
    import numpy as np

    import energyscape
    from energyscape.backend import Purpose, device_of, stream, to_host
    from energyscape.models import RBM, MPoT

    d, k, n = sizes.rbm
    e, f, m = sizes.mpot
    found: dict[str, dict[str, list[float]]] = {}
    for name, model, x in (
        (f"RBM {d}×{k}", RBM(k), rows(xp, n, d, True)),
        (f"mPoT {f}/{m}", MPoT(f, n_mean_components=m), rows(xp, sizes.batches[-1], e, False)),
    ):
        params = model.init_params(x, stream(0, Purpose.INIT, 0, device_of(x)))
        # Half of the rows are pulled up: others than the mean of the whole.
        signs = np.where(np.arange(len(x)) % 2, -1, 1) / len(x)

        def results(params: Any, x: Any, model: Any = model, signs: Any = signs) -> list[Any]:
            passed = model.forward(params, x)
            grad = passed.grad(xp.asarray(signs.astype(x.dtype)))
            return [to_host(passed.energy()), to_host(grad["W"]).astype(np.float64)]

        wide = {key: value.astype(np.float64) for key, value in params.items()}
        exact = results(wide, x.astype(np.float64))
        found[name] = {}
        for precision in PRECISIONS:
            with energyscape.matmul_precision(precision):
                got = results(params, x)
            found[name][precision] = [
                float(np.linalg.norm(a - b) / np.linalg.norm(b))
                for a, b in zip(got, exact, strict=True)
            ]
    return found


def likelihoods(sizes: Sizes) -> dict[str, list[float]]:
    """Exact mean log-likelihoods of the digits by RBM(16), trained on either device."""
    import numpy as np

    from energyscape.data import load_digits
    from energyscape.models import RBM
    from energyscape.trainers import PCD

    X = (load_digits()[0] > 0.5).astype(np.float32)
    found: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for seed in range(sizes.seeds):
        for device, values in found.items():
            trainer = PCD(n_epochs=sizes.epochs, learning_rate=0.05)
            model = RBM(16, trainer=trainer, device=device, random_state=seed).fit(X)
            values.append(float(np.mean(model.score_samples(X))))
    return found


def convolutions(xp: Any, sizes: Sizes) -> dict[str, list[float]]:
    """Milliseconds of D'x and D z by windows and by the DFT, by the side of the filters."""
    import numpy as np

    from energyscape.solvers.conv_dictionary import ConvDictionary

    side, k, lengths = sizes.conv
    found: dict[str, list[float]] = {}
    for length in lengths:
        filters = np.random.default_rng(0).standard_normal((k, length, length, 1))
        made = ConvDictionary(xp.asarray(filters.astype(np.float32)), (side, side), "circular")
        x = rows(xp, side, side, False).reshape(1, side, side, 1)
        z = xp.empty((1, *made.maps_shape), np.float32)
        kinds = (
            lambda made=made, x=x, z=z: (made._analyze_direct(x, z), made._synthesize_direct(z)),
            lambda made=made, x=x, z=z: (made._analyze_dft(x, z), made._synthesize_dft(z)),
        )
        found[f"{length}×{length}"] = []
        for step in kinds:
            step()
            bench = Bench(step, 0.0, sizes.repeats)
            found[f"{length}×{length}"].append(
                statistics.median(timed(xp, bench) for _ in range(sizes.rounds))
            )
    return found


# ---------------------------------------------------------------- the whole


def measure(xp: Any, sizes: Sizes, torch: Any = None, device: str = "cuda") -> dict[str, Any]:
    """All of it, as the record that is kept."""
    import energyscape

    mine = ours(xp, sizes)
    both = mine | (peers(torch, sizes, device) if torch is not None else {})
    race(xp, both, sizes.rounds)
    record: dict[str, Any] = {"ms": {name: bench.times for name, bench in both.items()}}
    record["flops"] = {name: bench.flops for name, bench in both.items()}
    record["gaps"] = gaps(xp, mine)
    record["precisions"] = {}
    for precision in PRECISIONS:
        chosen = {key: Bench(mine[key].step, mine[key].flops, 1) for key in ("RBM", "product")}
        # The bare product by the same way as the others, which float16 needs.
        from energyscape.kernels import matmul

        n = sizes.product
        a, b = rows(xp, n, n, False), rows(xp, n, n, False)
        chosen["product"].step = lambda a=a, b=b: matmul(a, b)
        with energyscape.matmul_precision(precision):
            race(xp, chosen, sizes.rounds)
        record["precisions"][precision] = {key: bench.times for key, bench in chosen.items()}
    record["errors"] = errors(xp, sizes)
    record["likelihoods"] = likelihoods(sizes)
    record["convolutions"] = convolutions(xp, sizes)
    return record


def rate(record: dict[str, Any], name: str) -> float:
    """Operations a second, of the median."""
    return record["flops"][name] / (1e-3 * statistics.median(record["ms"][name]))


def report(record: dict[str, Any], sizes: Sizes, card: str) -> str:
    """The block's text."""
    bare = rate(record, "product")
    targets = {"RBM": 0.8, f"mPoT, {sizes.batches[0]}": 0.8, f"mPoT, {sizes.batches[-1]}": 0.6}
    lines = []
    for name, times in record["ms"].items():
        share = rate(record, name) / bare
        wanted = f" (target {targets[name]:.0%})" if name in targets else ""
        gap = f"{record['gaps'][name]:.0%}" if name in record["gaps"] else ""
        lines.append(
            [
                name,
                f"{statistics.median(times):.3g}",
                f"{min(times):.3g}",
                f"{share:.0%}{wanted}",
                gap,
            ]
        )
    parts = [
        f"{card}. Bare {sizes.product}³ float32 product: {bare / 1e12:.3g} Tflop/s in the same "
        f"run; {sizes.rounds} rounds in turn, CUDA events. Gaps: time in which the device waits "
        "to be asked, against the same update queued behind a long product.",
        table(["", "median ms", "least ms", "of the product's rate", "gaps"], lines),
    ]
    if any("PyTorch" in name for name in record["ms"]):
        parts.append(_against(record, sizes))
    else:
        parts.append("PyTorch: not measured (it is not in this interpreter).")
    return "\n\n".join([*parts, *_exactness(record)])


def _against(record: dict[str, Any], sizes: Sizes) -> str:
    """How often faster than PyTorch, which trains without centring and pools."""
    middle = {name: statistics.median(times) for name, times in record["ms"].items()}
    lines = []
    for name in ("RBM, plain", "small RBM, plain", *(f"mPoT, {b}" for b in sizes.batches)):
        both = [middle[f"{name}: PyTorch {kind}"] / middle[name] for kind in ("eager", "compiled")]
        lines.append([name, *(f"{ratio:.2f}" for ratio in both)])
    return "PyTorch's time over ours, of the same step (target: over 1, small RBM eager 1):\n\n" + (
        table(["", "eager", "torch.compile"], lines)
    )


def _exactness(record: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in record["errors"].items():
        for precision, (energy, grad) in found.items():
            lines.append([name, precision, f"{energy:.1e}", f"{grad:.1e}"])
    speeds = {
        precision: {key: statistics.median(times) for key, times in found.items()}
        for precision, found in record["precisions"].items()
    }
    first = speeds["float32"]
    said = "; ".join(
        f"{precision}: product {first['product'] / found['product']:.2f}×, RBM update "
        f"{first['RBM'] / found['RBM']:.2f}×"
        for precision, found in speeds.items()
    )
    on = record["likelihoods"]
    means = {device: statistics.fmean(values) for device, values in on.items()}
    error = sum(statistics.variance(v) / len(v) for v in on.values()) ** 0.5
    gap = abs(means["cpu"] - means["cuda"])
    convs = [[size, *(f"{t:.3g}" for t in times)] for size, times in record["convolutions"].items()]
    return [
        "Inputs of products rounded, against float64 (norm of the difference over the norm):",
        table(["", "inputs", "energies", "gradient in W"], lines),
        f"Speed over float32 inputs: {said}.",
        f"RBM(16) on digits, exact mean log-likelihood over {len(on['cpu'])} seeds: CPU "
        f"{means['cpu']:.3f}, GPU {means['cuda']:.3f}, difference {gap:.3f} ± {error:.3f} nats "
        f"(target: within three errors: {'met' if gap <= 3 * error else 'missed'}).",
        "D'x and D z of a convolutional dictionary, ms:\n\n"
        + table(["filters", "windows", "DFT"], convs),
    ]


def main() -> None:
    chosen = options(__doc__, threads=2, rounds={"type": int, "default": 10})
    from energyscape.backend import gpu_status

    status = gpu_status()
    if not status.usable:
        print(f"No GPU: {status.reason}. Nothing is measured or written.")
        sys.exit(1)
    import cupy

    try:
        import torch
    except ImportError:
        torch = None
    sizes = Sizes(rounds=chosen.rounds)
    record = measure(cupy, sizes, torch)
    versions = f"CuPy {cupy.__version__}, PyTorch {torch.__version__ if torch else 'absent'}"
    text = report(record, sizes, f"{status.name}, {versions}")
    write(chosen, "gpu", "GPU: updates against a bare product and PyTorch", text, record)


if __name__ == "__main__":
    main()
