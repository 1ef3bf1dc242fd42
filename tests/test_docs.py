"""The pages in docs/ say what is so: excerpts are in the files that they name, code runs and prints
what is shown, links lead somewhere, and the two example files do what their pages claim."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cases
import numpy as np
import oracles
import pytest
import standin
from scipy.special import logsumexp
from scipy.stats import chi2
from sklearn.utils.estimator_checks import check_estimator
from streams import ReplayStream

import energyscape
from energyscape import registry
from energyscape.backend import Purpose, stream, to_host
from energyscape.errors import CapabilityError
from energyscape.evaluation.laws import generic_params
from energyscape.models import RBM
from energyscape.optim import SGD, Moment
from energyscape.trainers import CD, PCD
from energyscape.trainers.base import Batch, Trainer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LINKING = [*PAGES, *(path for path in [ROOT / "README.md"] if path.is_file())]


class Examples(NamedTuple):
    """The example files as modules."""

    models: ModuleType
    trainers: ModuleType


def _import(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where pickle and the pages look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Examples:
    """Both files, registered for the length of one test in a copy of the registry's table."""
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    return Examples(_import("new_model", monkeypatch), _import("new_trainer", monkeypatch))


@pytest.fixture
def models(examples: Examples) -> ModuleType:
    return examples.models


@pytest.fixture
def trainers(examples: Examples) -> ModuleType:
    return examples.trainers


def test_examples_leave_no_trace() -> None:
    before = dict(registry.registered())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
        _import("new_model", patch)
        assert "CategoricalRBM" in registry.registered()
    assert registry.registered() == before
    assert "new_model" not in sys.modules


# ---------------------------------------------------------------- pages


class Block(NamedTuple):
    """A fenced block with the comment before it, which says what the block is."""

    mark: str
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page in order; ``mark`` is empty without a comment before."""
    pattern = r"(?:^<!-- (.+?) -->\n)?^```(\w*)\n(.*?)^```$"
    text = page.read_text()
    return [
        Block(m[1] or "", m[2], m[3], text.count("\n", 0, m.start(3)))
        for m in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_excerpts_are_in_the_files_that_they_name(page: Path) -> None:
    """White space aside: formatters take the indentation of a method off a block in a page."""
    for block in blocks(page):
        if block.mark.startswith("from "):
            source = (DOCS / block.mark.removeprefix("from ")).read_text()
            assert _dense(block.text) in _dense(source), (
                f"{page.name}:{block.line} is not in {block.mark}"
            )


def _dense(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_runs_and_prints_what_is_shown(
    page: Path, examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python blocks without a mark run in order; a block marked ``printed`` is the output."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    output = io.StringIO()
    for block in blocks(page):
        if block.mark == "printed":
            assert output.getvalue() == block.text, f"{page.name}:{block.line}"
        elif block.language == "python" and not block.mark:
            output = io.StringIO()
            # The line numbers of a traceback are then those of the page.
            code = compile("\n" * block.line + block.text, str(page), "exec")
            with contextlib.redirect_stdout(output):
                exec(code, names)


@pytest.mark.parametrize("page", LINKING, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for link in found:
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name} links to {link}"
            if anchor:
                assert anchor in _anchors(target), f"{page.name} links to {link}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def _marked(mark: str) -> str:
    return next(b.text for b in blocks(DOCS / "architecture.md") if b.mark == mark)


def test_the_house_is_as_drawn() -> None:
    named, folder = set(), Path()
    for line in _marked("tree").splitlines():
        words = line.split()
        if not line.startswith(" "):
            assert all((ROOT / word).is_dir() for word in words if word.endswith("/"))
        elif words[0].endswith("/"):
            folder = Path(words[0])
        else:
            base = folder if line.startswith("    ") else Path()
            named |= {base / word for word in words if re.search(r"\.(py|cu|typed)$", word)}
    package = ROOT / "energyscape"
    files = {p for end in ("py", "cu", "typed") for p in package.rglob(f"*.{end}")}
    assert named == {p.relative_to(package) for p in files}


def test_knowledge_flows_one_way() -> None:
    """Every import, also those inside functions, is from a group to the left or the own folder."""
    groups = [g.replace(",", " ").split() for g in _marked("order").split("<")]
    rank = {name: i for i, group in enumerate(groups) for name in group}
    package = ROOT / "energyscape"
    for path in package.rglob("*.py"):
        own = path.relative_to(package).with_suffix("").parts[0]
        if own == "__init__":
            continue
        assert own in rank, f"{path.relative_to(ROOT)} has no place in the order"
        for name in _imported(ast.parse(path.read_text())) - {own}:
            assert rank[name] < rank[own], f"{path.relative_to(ROOT)} imports {name}"


def _imported(tree: ast.AST) -> set[str]:
    """First names below ``energyscape`` that a module imports."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {n.split(".")[1] for n in names if n.startswith("energyscape.")}


class Counting(np.ndarray):
    """An array that counts the multiply-adds of the products which it takes part in."""

    total = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [np.asarray(a) for a in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(np.asarray(a) for a in kwargs["out"])
        result = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Counting.total += result.size * plain[0].shape[-1]
        return result.view(Counting) if isinstance(result, np.ndarray) else result


def test_an_update_of_pcd_is_five_products() -> None:
    n, d, k = 100, 30, 20
    x = (np.random.default_rng(0).random((n, d)) < 0.3).astype(np.float32)
    model, trainer = RBM(k), PCD(n_chains=n)
    params = model.init_params(x, stream(0, Purpose.INIT))
    carry = trainer.start(model, params, x, stream(0, Purpose.START))
    params = {key: value.view(Counting) for key, value in params.items()}
    Counting.total = 0
    sums = trainer.collect(model, params, carry, Batch(x, n), stream(0, Purpose.COLLECT))
    # b's gradient is a product of a row of weights with all rows.
    vector = 2 * n * d
    assert 5 * n * d * k <= Counting.total <= 5 * n * d * k + vector
    collected = Counting.total
    trainer.apply(model, params, carry, sums, Moment(0, 0, 0.0))
    # Centring: a rank-two correction and two products with vectors.
    assert Counting.total - collected <= 4 * d * k + 2 * (d + k)


# ---------------------------------------------------------------- the model


def test_the_model_obeys_every_law_that_it_has_verbs_for(models: ModuleType) -> None:
    wanted = {
        "energy_is_free_energy",
        "gradient_is_central_difference",
        "gradient_is_additive",
        "free_energy_sums_out_hidden_units",
    }
    for seed in (0, 1):
        model, X = models.CategoricalRBM(4), cases._bits(10, 7)
        assert set(energyscape.check_model(model, X, random_state=seed)) == wanted


def test_the_model_sums_to_one_and_draws_what_it_says(models: ModuleType) -> None:
    """exp(score) over all states is 1; exact draws and Gibbs steps from them have these odds."""
    model, X = models.CategoricalRBM(3), cases._bits(10, 6)
    params, v = generic_params(model, X, noise=1.0), oracles.states(6)
    p = np.exp(-model.free_energy(params, v) - model.log_partition(params))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    draws = model.sample_exact(params, 50_000, stream(0, Purpose.SAMPLE))
    run = model.default_sampler().run(model.target(params), draws, 1, stream(1, Purpose.SAMPLE))
    moved = run.x
    for x in (draws, moved):
        expected, observed = (
            len(x) * p,
            np.bincount((x @ (1 << np.arange(6))).astype(int), None, 64),
        )
        misfit = ((observed - expected) ** 2 / expected)[expected > 5].sum()
        assert misfit < chi2.isf(1e-6, (expected > 5).sum())
        # Negative control: the odds of a model whose second component is half as likely.
        other = params | {"c": params["c"] - np.array([0, np.log(2), 0])}
        q = len(x) * np.exp(-model.free_energy(other, v) - model.log_partition(other))
        assert ((observed - q) ** 2 / q)[q > 5].sum() > chi2.isf(1e-6, (q > 5).sum())


@pytest.mark.parametrize("trainer", ["CD", "PCD", "FPCD", "ExactDraws"])
def test_the_model_recovers_a_planted_truth(trainer: str, examples: Examples) -> None:
    """Three noisy patterns, learned with eight components from 2,000 rows.

    For a regular model 2n KL(truth, estimate) is χ² with one degree of freedom a parameter, here
    8·8 + 8 - 1: the bound is its 1e-6 quantile. (Spare components make this model singular, so
    that the quantile is a scale: over 64 truths and seeds the largest value was 0.6 of it.)
    Independent bits, the control, miss the truth by 0.7 nats and more.
    """
    n, v = 2000, oracles.states(8)
    rng = np.random.default_rng(0)
    odds = np.where(rng.integers(0, 2, (3, 8)), 0.9, 0.1)
    truth = np.exp(v @ np.log(odds).T + (1 - v) @ np.log(1 - odds).T).mean(axis=1)
    X = v[rng.choice(len(v), n, p=truth)]
    settings = registry.lookup(trainer)(n_epochs=100, learning_rate=1.0)
    model = examples.models.CategoricalRBM(8, trainer=settings, random_state=0).fit(X)
    bound = chi2.isf(1e-6, 71) / (2 * n)
    assert truth @ (np.log(truth) - model.score_samples(v)) < bound
    mean = X.mean(axis=0)
    independent = v @ np.log(mean) + (1 - v) @ np.log(1 - mean)
    assert truth @ (np.log(truth) - independent) > 0.7


@pytest.mark.filterwarnings("ignore::energyscape.errors.DataRangeWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_the_model_passes_the_checks_of_scikit_learn(models: ModuleType) -> None:
    check_estimator(models.CategoricalRBM(3, trainer=PCD(n_epochs=2, n_chains=20)))


@pytest.mark.parametrize("trainer", ["PCD", "ExactDraws"])
def test_the_examples_compute_alike_on_both_kinds_of_arrays(
    trainer: str, examples: Examples, fake_cupy: Any
) -> None:
    """Updates from equal noise agree to rounding, and none waits for the device."""
    model = examples.models.CategoricalRBM(4)
    strategy, results = registry.lookup(trainer)(optimizer=SGD(0.1, momentum=0.5)), []
    for xp in (np, fake_cupy):
        x = xp.asarray(cases._bits(60, 7))
        params = model.init_params(x, ReplayStream(xp, 1))
        carry = strategy.start(model, params, x, ReplayStream(xp, 2))
        standin.Counter.syncs = 0
        for step in range(3):
            sums = strategy.collect(model, params, carry, Batch(x, 60), ReplayStream(xp, 3, step))
            strategy.apply(model, params, carry, sums, Moment(0, step, 0.1))
        assert standin.Counter.syncs == 0
        results.append({k: to_host(value) for k, value in (params | carry).items()})
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, atol=1e-9, err_msg=name)


def test_the_row_for_the_table_of_cases_holds(models: ModuleType) -> None:
    marked = [b for b in blocks(DOCS / "add_a_model.md") if b.mark.startswith("row of ")]
    case = eval(marked[0].text, vars(cases) | {"CategoricalRBM": models.CategoricalRBM})
    assert case.name == type(case.make()).__name__ == "CategoricalRBM"
    energyscape.check_model(case.make(), case.data[:10])
    for name, trainer in registry.registered(Trainer).items():
        if trainer in case.trainers:
            model = case.make(trainer=trainer(n_epochs=3, batch_size=25), random_state=0)
            assert np.isfinite(model.fit(case.data).score(case.data))
        elif name != "ExactDraws":  # fits, but is no trainer of the library
            with pytest.raises(CapabilityError, match=f"{name} cannot train CategoricalRBM"):
                case.make(trainer=trainer()).fit(case.data)


# ---------------------------------------------------------------- the trainer


def _loss_gradient(params: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """Central differences of the mean of -log p(x), from the definition of the RBM."""
    rows = (x @ (1 << np.arange(x.shape[1]))).astype(int)
    grads = {}
    for name in "Wbc":
        grads[name] = np.empty_like(params[name])
        for at in np.ndindex(params[name].shape):
            sides = []
            for sign in (1, -1):
                moved = params[name].copy()
                moved[at] += sign * 1e-5
                sides.append(-oracles.rbm_log_p(params | {name: moved})[rows].mean())
            grads[name][at] = (sides[0] - sides[1]) / 2e-5
    return grads


def test_its_gradient_is_that_of_the_log_likelihood(trainers: ModuleType) -> None:
    """29 means over 400 streams within six standard errors: false alarm below 1e-6."""
    model, x = RBM(4), cases._bits(60, 5)
    params = generic_params(model, x, noise=3.0)
    wanted = _loss_gradient(params, x)

    def misfit(trainer: Trainer) -> float:
        """Largest distance from the gradient in standard errors of the mean."""
        runs = []
        for step in range(400):
            rng = stream(step, Purpose.COLLECT)
            carry = trainer.start(model, params, x, stream(step, Purpose.START))
            runs.append(trainer.collect(model, params, carry, Batch(x, len(x)), rng))
        worst = 0.0
        for name, grad in wanted.items():
            values = np.array([sums[name] for sums in runs])
            error = values.std(axis=0) / np.sqrt(len(runs))
            worst = max(worst, float((np.abs(values.mean(axis=0) - grad) / error).max()))
        return worst

    assert misfit(trainers.ExactDraws(n_draws=500)) < 6
    assert misfit(CD(n_chains=500)) > 6


def test_it_learns_bars_and_stripes(trainers: ModuleType) -> None:
    """Exact log-likelihood 3 nats above independent bits, and 0.2 below the best possible: about
    twice the distance that 500 updates leave, and a fifteenth of what there is to learn."""
    images = oracles.bars_and_stripes(3)
    settings = trainers.ExactDraws(n_epochs=500, batch_size=96, learning_rate=1.0)
    model = RBM(16, trainer=settings, random_state=0).fit(np.tile(images, (6, 1)))
    W, b, c = (model.params_[name].astype(np.float64) for name in "Wbc")

    def log_f(v: np.ndarray) -> np.ndarray:
        return v @ b + np.logaddexp(0, c + v @ W).sum(axis=1)

    score = log_f(images).mean() - logsumexp(log_f(oracles.states(9)))
    best = -(0.75 * np.log(16) + 0.25 * np.log(8))
    assert best - 0.2 < score < best
    assert score > 9 * np.log(0.5) + 3


class Stop:
    """Ends a run after some epochs."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, model: Any, state: Any, info: Any) -> bool:
        return state.epoch == self.epoch


@pytest.mark.parametrize("epoch", [1, 4])
@pytest.mark.parametrize("name", ["RBM", "CategoricalRBM"])
def test_resume_is_bit_exact(name: str, epoch: int, trainers: ModuleType, tmp_path: Path) -> None:
    X, make = cases._bits(60, 7).astype(np.float32), registry.lookup(name)

    def trainer(**settings: Any) -> Trainer:
        optimizer = SGD(0.1, momentum=0.9)
        return trainers.ExactDraws(n_epochs=6, batch_size=25, optimizer=optimizer, **settings)

    whole = make(5, trainer=trainer(), random_state=3).fit(X)
    stopped = make(5, trainer=trainer(callbacks=[Stop(epoch)]), random_state=3).fit(X)
    assert stopped.n_iter_ == epoch
    stopped.trainer_.callbacks = ()  # a file holds no functions
    stopped.set_params(trainer=trainer()).save(tmp_path / "stopped.h5")
    resumed = energyscape.load(tmp_path / "stopped.h5").resume(X)
    for part in ("params", "carry"):
        ours, theirs = getattr(resumed._state, part), getattr(whole._state, part)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[k], theirs[k]) for k in ours)


def test_a_model_without_the_verb_is_refused(trainers: ModuleType) -> None:
    class Undrawable(RBM):
        sample_exact = None  # type: ignore[assignment]

    message = r"ExactDraws cannot train Undrawable: it needs sample_exact.* Trainers that can: CD"
    with pytest.raises(CapabilityError, match=message):
        Undrawable(trainer=trainers.ExactDraws()).fit(cases._bits(60, 7))
    with pytest.raises(ValueError, match=r"ExactDraws\.n_draws must be >= 1, got 0"):
        RBM(trainer=trainers.ExactDraws(n_draws=0)).fit(cases._bits(60, 7))
