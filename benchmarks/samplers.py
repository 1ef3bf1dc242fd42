"""HMC at the same step size and length, ours beside BlackJAX and NumPyro on the CPU.

Three targets in float32: (a) N(0, I) in 100 dimensions, 256 chains; (b) a GaussianRBM of 784 × 500,
256 chains; (c) an overcomplete PoT of 64 × 256, 1,024 chains. Every contender runs in its own
process, rounds interleaved, from the same states near the target. Compilation is not counted.
Budget: 50 minutes. The peers live in `benchmarks/.venv`, made from peers.txt at the first run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# step size, leapfrog steps, steps of the chains, chains
TARGETS = {
    "a": (0.6, 3, 400, 256),
    "b": (0.25, 20, 30, 256),
    "c": (0.1, 20, 50, 1024),
}
WHAT = {"a": "Gaussian, 100 d", "b": "GaussianRBM 784×500", "c": "PoT 64×256"}
GAMMA, SHOWN, BURN, BLOCK = 2.5, 10, 500, 512
# OpenBLAS 0.3.31 does not know this processor and runs its AVX2 kernels; told, it runs AVX-512.
AVX512 = {"OPENBLAS_CORETYPE": "SkylakeX"}
OURS = {"ours": {}, "ours, AVX-512": AVX512, "roofline": {}, "roofline, AVX-512": AVX512}
PEERS = ("BlackJAX", "NumPyro")


def problem(name: str, folder: Path):
    """Weights and the states to begin with."""
    import numpy as np

    return dict(np.load(folder / f"{name}.npz"))


# ---------------------------------------------------------------- ours


def make_problems(folder: Path) -> None:
    """Weights, and states of each target: exact for (a), after many steps for the others."""
    import numpy as np

    from energyscape.samplers import HMC

    rng = np.random.default_rng(0)
    np.savez(folder / "a.npz", x=rng.standard_normal((256, 100), dtype=np.float32))
    W = 0.06 * rng.standard_normal((784, 500), dtype=np.float32)
    b = rng.standard_normal(784, dtype=np.float32)
    c = (-1 - 0.5 * (W * W).sum(0) - b @ W).astype(np.float32)
    np.savez(
        folder / "b.npz", W=W, b=b, c=c, x=b + rng.standard_normal((256, 784), dtype=np.float32)
    )
    C = 0.2 * rng.standard_normal((64, 256), dtype=np.float32)
    np.savez(folder / "c.npz", W=C, x=rng.standard_normal((1024, 64), dtype=np.float32))
    for name in "bc":
        step, length, *_ = TARGETS[name]
        arrays = problem(name, folder)
        run = HMC(length, step_size=step).run(our_target(name, arrays), arrays["x"], BURN, 1)
        np.savez(folder / f"{name}.npz", **(arrays | {"x": run.x}))


def our_target(name: str, arrays):
    import numpy as np

    from energyscape.models import GaussianRBM
    from energyscape.samplers import from_functions

    if name == "a":
        return from_functions(lambda x: 0.5 * (x * x).sum(axis=1, dtype=np.float64), lambda x: x)
    W = arrays["W"]
    if name == "b":
        zeros = np.zeros(784, np.float32)
        params = {key: arrays[key] for key in "Wbc"} | {"log_var": zeros}
        return GaussianRBM(500).target(params)
    root = np.float32(0.5**0.5)
    half, back = root * W, np.ascontiguousarray(W.T) * np.float32(2 * GAMMA * 0.5**0.5)
    r, q = (np.empty((BLOCK, W.shape[1]), np.float32) for _ in range(2))
    g = np.empty((1024, 64), np.float32)
    one = np.float32(1)

    def energy(x):
        """γ Σ log(1 + s²), s = W'x/√2; log, unlike log1p, is a vector function in NumPy."""
        found = []
        for i in range(0, len(x), BLOCK):
            s = x[i : i + BLOCK] @ half
            s *= s
            s += one
            found.append(np.log(s, out=s).sum(axis=1, dtype=np.float64))
        return GAMMA * np.concatenate(found)

    def grad(x):
        """2γ W/√2 (s / (1 + s²)), block by block and in place: blocks stay in the cache."""
        for i in range(0, len(x), BLOCK):
            np.matmul(x[i : i + BLOCK], half, out=r)
            np.multiply(r, r, out=q)
            np.add(q, one, out=q)
            np.divide(r, q, out=r)
            np.matmul(r, back, out=g[i : i + BLOCK])
        return g

    return from_functions(energy, grad, (64,))


def ours(name: str, folder: Path, seed: int):
    """Seconds, acceptance of every step (mean over chains), draws of the first coordinates."""
    import numpy as np

    from energyscape.backend import Purpose, stream
    from energyscape.samplers import HMC

    step, length, steps, _ = TARGETS[name]
    arrays = problem(name, folder)
    target, sampler = our_target(name, arrays), HMC(length, step_size=step, jitter=0)
    rng = stream(seed, Purpose.SAMPLE)
    chains = sampler.start(target, arrays["x"], rng)
    sampler.step(target, chains, rng)
    shown, rates = [], []
    start = time.perf_counter()
    for _ in range(steps):
        rates.append(sampler.step(target, chains, rng)["acceptance"])
        shown.append(chains.x[:, :SHOWN].copy())
    seconds = time.perf_counter() - start
    return seconds, np.array(rates), np.stack(shown, axis=1)


def roofline(name: str, folder: Path, seed: int):
    """The products of a gradient, and one pass over every array that must be written."""
    import numpy as np

    _, length, steps, n = TARGETS[name]
    arrays = problem(name, folder)
    x, W = arrays["x"], arrays.get("W")
    g, p = np.empty_like(x), np.ones_like(x)
    r = None if W is None else np.ones((n, W.shape[1]), np.float32)
    one = np.float32(1)

    def products() -> None:
        if W is not None:
            np.matmul(x, W, out=r)
            np.matmul(r, W.T, out=g)

    def passes() -> None:
        if W is not None:
            np.multiply(r, one, out=r)
        for a in (g, p, x):
            np.multiply(a, one, out=a)

    times = []
    for parts in ((products,), (products, passes)):
        start = time.perf_counter()
        for _ in range(steps * length):
            for part in parts:
                part()
        times.append(time.perf_counter() - start)
    return times[1], np.full((1, 1), times[0]), np.zeros((1, 4, 1))


# ---------------------------------------------------------------- peers


def _log_density(name: str, arrays):
    import jax
    import jax.numpy as jnp

    if name == "a":
        return lambda x: -0.5 * (x * x).sum()
    W = jnp.asarray(arrays["W"])
    if name == "b":
        b, c = jnp.asarray(arrays["b"]), jnp.asarray(arrays["c"])
        return lambda x: -0.5 * ((x - b) ** 2).sum() + jax.nn.softplus(x @ W + c).sum()
    return lambda x: -GAMMA * jnp.log1p(0.5 * (x @ W) ** 2).sum()


def _timed(advance, state, seed: int, steps: int):
    """Run a compiled loop twice, on random numbers of its own, and time the second."""
    import jax
    import numpy as np

    for repeat in range(2):
        key = jax.random.key(2 * seed + repeat)
        start = time.perf_counter()
        _, (rates, shown) = jax.block_until_ready(advance(state, key, steps))
        seconds = time.perf_counter() - start
    return seconds, np.asarray(rates), np.asarray(shown).swapaxes(0, 1)


def blackjax(name: str, folder: Path, seed: int):
    import functools

    import blackjax as library
    import jax
    import jax.numpy as jnp

    step, length, steps, n = TARGETS[name]
    arrays = problem(name, folder)
    x = jnp.asarray(arrays["x"])
    density = _log_density(name, arrays)
    algorithm = library.hmc(density, step, jnp.ones(x.shape[1]), length)

    @functools.partial(jax.jit, static_argnums=2)
    def advance(state, key, count):
        def one(state, key):
            state, info = jax.vmap(algorithm.step)(jax.random.split(key, n), state)
            return state, (info.acceptance_rate, state.position[:, :SHOWN])

        return jax.lax.scan(one, state, jax.random.split(key, count))

    return _timed(advance, jax.vmap(algorithm.init)(x), seed, steps)


def numpyro(name: str, folder: Path, seed: int):
    import functools

    import jax
    import jax.numpy as jnp
    from numpyro.infer.hmc import hmc

    step, length, steps, n = TARGETS[name]
    arrays = problem(name, folder)
    x = jnp.asarray(arrays["x"])
    density = _log_density(name, arrays)
    begin, move = hmc(lambda x: -density(x), algo="HMC")

    def init(x, key):
        return begin(
            x,
            num_warmup=0,
            step_size=step,
            num_steps=length,
            trajectory_length=None,
            adapt_step_size=False,
            adapt_mass_matrix=False,
            rng_key=key,
        )

    state = jax.vmap(init)(x, jax.random.split(jax.random.key(seed), n))

    @functools.partial(jax.jit, static_argnums=2)
    def advance(state, key, count):
        def one(state, _):
            state = jax.vmap(move)(state)
            return state, (state.accept_prob, state.z[:, :SHOWN])

        return jax.lax.scan(one, state, None, length=count)

    return _timed(advance, state, seed, steps)


RUNNERS = {"BlackJAX": blackjax, "NumPyro": numpyro} | {
    name: (roofline if "roofline" in name else ours) for name in OURS
}


def contend(name: str, folder: Path, seed: int) -> None:
    """All three targets in this process; figures as JSON on stdout, draws in ``folder``."""
    import numpy as np

    found = {}
    for target, (_, length, steps, _) in TARGETS.items():
        seconds, rates, shown = RUNNERS[name](target, folder, seed)
        found[target] = {
            "ms": 1e3 * seconds / (steps * length),
            "products": 1e3 * float(rates[0, 0]) / (steps * length),
            "acceptance": float(rates.mean()),
            "error": float(rates.mean(axis=0).std(ddof=1) / np.sqrt(rates.shape[1]))
            if rates.shape[1] > 1
            else 0.0,
        }
        np.save(folder / f"draws {target}.npy", shown)
    print(json.dumps(found))


# ---------------------------------------------------------------- rounds


def measure(name: str, threads: int, folder: Path, seed: int) -> dict:
    from step_time import peers_python

    eigen = "true" if threads > 1 else "false"
    variables = {f"{lib}_NUM_THREADS": str(threads) for lib in ("OMP", "OPENBLAS", "MKL")}
    variables["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={eigen}"
    cores = sorted(os.sched_getaffinity(0))[:threads]
    run = subprocess.run(
        [
            *("taskset", "-c", ",".join(map(str, cores))),
            sys.executable if name in OURS else peers_python(),
            *(__file__, "--contender", name, "--folder", str(folder), "--seed", str(seed)),
            *("--threads", str(threads)),
        ],
        env=os.environ | variables | OURS.get(name, {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def effective(folder: Path) -> dict[str, float]:
    """Least effective sample size per gradient over the shown coordinates and their squares."""
    import numpy as np

    from energyscape.samplers.diagnostics import ess_mean

    found = {}
    for target, (_, length, steps, n) in TARGETS.items():
        draws = np.load(folder / f"draws {target}.npy").astype(np.float64)
        centred = draws - draws.mean(axis=(0, 1))
        ess = np.minimum(ess_mean(centred), ess_mean(centred**2))
        found[target] = float(ess.min()) / (n * steps * length)
    return found


def report(target: str, runs: dict, threads: int) -> tuple[str, dict]:
    """One table, and the figures that the targets are about."""
    from common import table

    n = TARGETS[target][3]
    ms = {name: statistics.median(r[target]["ms"] for r in found) for name, found in runs.items()}
    rows, figures = [], {}
    for name, found in runs.items():
        if "roofline" in name:
            continue
        each = [r[target] for r in found]
        floor = "roofline" + name.removeprefix("ours") if name.startswith("ours") else ""
        rate = statistics.mean(e["acceptance"] for e in each)
        error = statistics.mean(e["error"] for e in each) / len(each) ** 0.5
        per_gradient = statistics.median(r[target]["ess"] for r in found)
        per_second = 1e3 * per_gradient * n / ms[name]
        figures[name] = {
            "ms": ms[name],
            "acceptance": rate,
            "error": error,
            "per gradient": per_gradient,
            "per second": per_second,
        }
        ratio = products = ""
        if floor:
            bare = statistics.median(r[target]["products"] for r in runs[floor])
            ratio = f"{ms[name] / ms[floor]:.2f}"
            products = f"{ms[name] / bare:.2f}" if bare > 0.01 else ""
        least = min(e["ms"] for e in each)
        rows.append(
            [
                *(name, f"{rate:.4f} ± {error:.4f}", f"{ms[name]:.3f}", f"{least:.3f}"),
                *(ratio, products, f"{per_gradient:.4f}", f"{per_second:,.0f}"),
            ]
        )
    header = [
        *("", "acceptance", "ms / gradient", "least", "/ roofline", "/ bare products"),
        *("ESS / gradient and chain", "ESS / s"),
    ]
    step, length, _, _ = TARGETS[target]
    title = f"({target}) {WHAT[target]}, {n} chains, ε = {step}, L = {length}, {threads} thread(s)"
    return f"{title}:\n\n{table(header, rows)}", figures


def main() -> None:
    from common import options, write

    chosen = options(
        __doc__,
        contender={"help": "run this one and print its figures"},
        folder={"type": Path},
        seed={"type": int, "default": 0},
        rounds={"type": int, "default": 10},
    )
    if chosen.contender:
        contend(chosen.contender, chosen.folder, chosen.seed)
        return
    names, record, blocks, verdicts = [*OURS, *PEERS], {}, [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_problems(folder)
        for threads in (1, 2):
            runs: dict[str, list] = {name: [] for name in names}
            for turn in range(chosen.rounds):
                k = turn % len(names)
                for name in names[k:] + names[:k]:
                    found = measure(name, threads, folder, turn)
                    if "roofline" not in name:
                        for target, value in effective(folder).items():
                            found[target]["ess"] = value
                    runs[name].append(found)
            for target in TARGETS:
                block, figures = report(target, runs, threads)
                blocks.append(block)
                verdicts.append(verdict(target, threads, figures))
                record[f"{target}, {threads} threads"] = figures
    text = (
        f"{chosen.rounds} rounds, each contender in its own process pinned to its cores, order "
        "rotating; medians. ESS is the least over ten coordinates and their squares. Roofline: the "
        "products of a gradient and one pass over every array that must be written. GPU: not "
        "measured.\n\n" + "\n\n".join(blocks) + "\n\nTargets:\n\n" + "\n".join(verdicts)
    )
    write(chosen, "samplers", "HMC beside BlackJAX and NumPyro", text, record)


def verdict(target: str, threads: int, figures: dict) -> str:
    """What the figures say to the targets, in one line."""
    best = max(PEERS, key=lambda name: figures[name]["per second"])
    words = []
    for name in ("ours", "ours, AVX-512"):
        mine, theirs = figures[name], figures[best]
        gap = abs(mine["acceptance"] - theirs["acceptance"])
        error = (mine["error"] ** 2 + theirs["error"] ** 2) ** 0.5
        words.append(
            f"{name}: {mine['per second'] / theirs['per second']:.2f} × {best} per second, "
            f"{mine['per gradient'] / theirs['per gradient']:.2f} × per gradient, acceptances "
            f"{gap / error:.1f} standard errors apart"
        )
    return f"* ({target}), {threads} thread(s): " + "; ".join(words) + "."


if __name__ == "__main__":
    main()
