"""Files: what is written comes back, what is not ours is refused, nothing is ever half there."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cases import CASES, Case, short
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import energyscape
from energyscape import io, registry
from energyscape.callbacks import Checkpoint
from energyscape.errors import FileFormatError
from energyscape.models import RBM
from energyscape.optim import SGD, LinearDecay
from energyscape.trainers import FPCD, PCD

BITS = CASES[0].data.astype(np.float32)
FORMATS = Path(__file__).parent / "formats"


@pytest.fixture
def model() -> RBM:
    return RBM(4, trainer=PCD(n_epochs=2), random_state=0).fit(BITS)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_model_comes_back_whole(case: Case, tmp_path: Path) -> None:
    kind = FPCD if FPCD in case.trainers else case.trainers[0]
    name = next(k for k, spec in case.make().param_specs().items() if spec.trainable)
    trainer = short(
        kind,
        n_epochs=2,
        tol=0.9,
        optimizer=SGD(0.001, momentum=0.5, schedule=LinearDecay(end=0.1), rates={name: 0.5}),
        callbacks=(Checkpoint(tmp_path / "c.h5"),),
    )
    model = case.make(trainer=trainer, random_state=7).fit(case.data)
    model.save(tmp_path / "m.h5")
    again = energyscape.load(tmp_path / "m.h5")
    assert repr(again.get_params()) == repr(
        model.get_params() | {"trainer__callbacks": again.trainer.callbacks}
    ).replace(repr(tmp_path / "c.h5"), repr(str(tmp_path / "c.h5")))
    for name in ("params", "carry"):
        mine, theirs = getattr(model._state, name), getattr(again._state, name)
        assert mine.keys() == theirs.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key])
            assert mine[key].dtype == theirs[key].dtype
    assert again.history_ == model.history_
    np.testing.assert_array_equal(model.transform(case.data), again.transform(case.data))
    if model.proper or hasattr(model, "sample_exact"):
        np.testing.assert_array_equal(model.sample(3, n_steps=5), again.sample(3, n_steps=5))
    assert model.score(case.data) == again.score(case.data)


def test_pipelines_come_back(tmp_path: Path) -> None:
    small = {"trainer": PCD(n_epochs=1), "random_state": 0}
    pipeline = make_pipeline(RBM(5, **small), RBM(3, **small)).fit(BITS)
    energyscape.save(pipeline, tmp_path / "p.h5")
    again = energyscape.load(tmp_path / "p.h5")
    np.testing.assert_array_equal(pipeline.transform(BITS), again.transform(BITS))
    assert list(again.named_steps) == list(pipeline.named_steps)
    classifier = make_pipeline(RBM(**small), LogisticRegression()).fit(BITS, BITS[:, 0])
    with pytest.raises(TypeError, match="LogisticRegression cannot be saved in a model file"):
        energyscape.save(classifier, tmp_path / "q.h5")
    assert not (tmp_path / "q.h5").exists()


def test_feature_names_and_random_states_survive(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame(BITS, columns=[f"pixel {i}" for i in range(7)])
    model = RBM(4, trainer=PCD(n_epochs=1), random_state=np.random.default_rng(3))
    model.fit(frame).save(tmp_path / "m.h5")
    again = energyscape.load(tmp_path / "m.h5")
    assert again.random_state == model.seed_  # the integer that was drawn from it
    assert list(again.feature_names_in_) == list(frame.columns)
    assert again.seed_ == model.seed_


def test_callables_are_named_and_left_out(tmp_path: Path) -> None:
    def mine(model: Any, state: Any, info: Any) -> bool:
        return False

    trainer = PCD(n_epochs=1, callbacks=[mine, Checkpoint(tmp_path / "c.h5", every=100)])
    model = RBM(4, trainer=trainer, random_state=0).fit(BITS)
    with pytest.warns(UserWarning, match=r"callbacks\[0\] = .*mine is not stored"):
        model.save(tmp_path / "m.h5")
    again = energyscape.load(tmp_path / "m.h5")
    assert [type(c) for c in again.trainer.callbacks] == [Checkpoint]
    again.resume(BITS)


def test_only_fitted_models_of_registered_classes_are_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        RBM().save(tmp_path / "m.h5")
    with pytest.raises(TypeError, match="dict cannot be saved"):
        energyscape.save({}, tmp_path / "m.h5")

    class Private(PCD):
        pass

    model = RBM(4, trainer=Private(n_epochs=1), random_state=0).fit(BITS)
    with pytest.raises(TypeError, match=r"Private is not registered.*energyscape\.register"):
        model.save(tmp_path / "m.h5")
    assert list(tmp_path.iterdir()) == []


def test_any_hdf5_reader_opens_the_file(model: RBM, tmp_path: Path) -> None:
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        np.testing.assert_array_equal(file["arrays/params/W"], model.params_["W"])


def test_saving_is_repeatable_and_keeps_the_permissions(model: RBM, tmp_path: Path) -> None:
    model.save(tmp_path / "a.h5")
    model.save(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.h5").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_saving_through_a_link_leaves_it_one(model: RBM, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, there = tmp_path / "link.h5", tmp_path / "far" / "m.h5"
    link.symlink_to(there)
    for _ in range(2):  # to a file that is not there yet, and to one that is
        model.save(link)
        assert link.is_symlink()
        np.testing.assert_array_equal(energyscape.load(there).params_["W"], model.params_["W"])
    assert len(list(tmp_path.rglob("*"))) == 3


def test_names_may_be_as_long_as_the_system_has_it(model: RBM, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 252 + ".h5")
    model.save(path)
    assert energyscape.load(path).n_iter_ == model.n_iter_


# ---------------------------------------------------------------- files that are not right


def _reseal(image: bytes, number: int = io.FORMAT) -> bytes:
    """A header that fits ``image``, as one who forges a file would write it."""
    digest = hashlib.sha256(image).hexdigest()
    header = io._MAGIC + f"format {number}\nsize {len(image)}\nsha256 {digest}\n".encode()
    return header.ljust(io._HEADER_BYTES, b"\0") + image


def _forge(path: Path, write: Any, meta: bool = True) -> None:
    """A sealed file with whatever ``write`` puts into it."""
    inner = path.with_suffix(".inner")
    with h5py.File(inner, "w") as file:
        if meta:
            file["meta"] = np.frombuffer(b"{}", np.uint8)
        write(file)
    path.write_bytes(_reseal(inner.read_bytes()))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    for content in (b"", b"hello", b"\x89HDF\r\n\x1a\n" + b"\0" * 100, os.urandom(5000)):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"f\.h5: not an energyscape model file"):
            energyscape.load(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(FileFormatError, match="not an energyscape model file"):
        energyscape.load(path)
    with pytest.raises(FileNotFoundError):
        energyscape.load(tmp_path / "none.h5")


def test_newer_and_truncated_and_damaged_files_say_so(model: RBM, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    model.save(path)
    data = path.read_bytes()
    path.write_bytes(_reseal(data[io._HEADER_BYTES :], io.FORMAT + 1))
    with pytest.raises(FileFormatError, match=r"format 2, this version reads up to 1; upgrade"):
        energyscape.load(path)
    for keep in (10, 100, 511, 600, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(FileFormatError, match=r"damaged|not an energyscape"):
            energyscape.load(path)


def test_every_fuzzed_file_is_refused(model: RBM, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    model.save(path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    used = len(data[: io._HEADER_BYTES].rstrip(b"\0"))
    places = np.r_[np.arange(used), rng.integers(io._HEADER_BYTES, len(data), 300)]
    for place in places:
        broken = bytearray(data)
        broken[place] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        with pytest.raises(FileFormatError):
            energyscape.load(path)


def test_fuzzed_and_resealed_files_never_do_more_than_raise(model: RBM, tmp_path: Path) -> None:
    """Damage that the checksum cannot see, in a process of its own in case HDF5 dies of it."""
    path = tmp_path / "m.h5"
    model.save(path)
    code = """
        import sys, numpy as np, energyscape
        sys.path.insert(0, sys.argv[2])
        from test_io import _reseal
        from energyscape import io
        from energyscape.errors import FileFormatError
        path = sys.argv[1]
        data, rng = open(path, "rb").read(), np.random.default_rng(0)
        image = data[io._HEADER_BYTES:]
        for _ in range(300):
            broken = bytearray(image)
            for place in rng.integers(0, 4000, 3):
                broken[place] ^= int(rng.integers(1, 256))
            with open(path, "wb") as file:
                file.write(_reseal(bytes(broken)))
            try:
                energyscape.load(path)
            except FileFormatError:
                pass
        print("done")
    """
    here = str(Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path), here],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.strip() == "done", run.stderr[-2000:]


def test_links_and_foreign_data_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret!!")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(4)

    def external_storage(file: Any) -> None:
        file.create_dataset("arrays/x", (8,), "u1", external=[(str(secret), 0, 8)])

    def external_link(file: Any) -> None:
        file["arrays/x"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")

    def soft_link(file: Any) -> None:
        file["arrays/x"] = h5py.SoftLink("/meta")

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((4,), "i8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4,))
        file.create_virtual_dataset("arrays/x", layout)

    def objects(file: Any) -> None:
        file.create_dataset("arrays/x", data=["a", "b"], dtype=h5py.string_dtype())

    def named_type(file: Any) -> None:
        file["arrays/x"] = np.dtype("f8")

    def bomb(file: Any) -> None:
        file.create_dataset("arrays/x", (1 << 40,), "f8", chunks=(1 << 16,), compression="gzip")

    def loop(file: Any) -> None:
        file.create_group("arrays")["x"] = file["/"]

    path = tmp_path / "forged.h5"
    for write, message in [
        (external_storage, "keeps its data outside"),
        (external_link, "is a ExternalLink"),
        (soft_link, "is a SoftLink"),
        (virtual, "keeps its data outside"),
        (objects, "dtype object, which is refused"),
        (named_type, "is a Datatype"),
        (bomb, "claims more bytes than the file has"),
        (loop, "nested too deep"),
    ]:
        _forge(path, write)
        with pytest.raises(FileFormatError, match=message):
            energyscape.load(path)
    _forge(path, lambda file: None, meta=False)
    with pytest.raises(FileFormatError, match="description is missing"):
        energyscape.load(path)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"class": "os.system", "params": {}}, "no class 'os.system' is registered"),
        ({"class": "RBM", "params": {"nonsense": 1}}, "does not take the stored parameters"),
        ({"class": "RBM", "params": {"n_components": {"float": "1;2"}}}, "malformed number"),
        ({"what": 1}, "malformed parameter tree"),
        ({"tuple": 3}, "malformed tuple"),
        ({"dict": []}, "malformed dictionary"),
    ],
)
def test_malformed_trees_are_refused(tree: Any, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        registry.from_tree(tree)


def test_missing_and_misshapen_parameters_are_refused(model: RBM, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    meta, arrays = io.describe(model)
    for change in (
        {"params/W": np.zeros((3, 3), np.float32)},
        {"params/extra": np.zeros(2, np.float32)},
    ):
        io.write_file(path, meta, arrays | change)
        with pytest.raises(FileFormatError, match="parameters have shapes"):
            energyscape.load(path)
    io.write_file(path, {"estimator": meta["estimator"]}, arrays)
    with pytest.raises(FileFormatError, match="lacks a part of the model"):
        energyscape.load(path)


def test_trees_keep_tuples_and_odd_numbers() -> None:
    value = {"a": (1, [2.5, None]), "b": np.float32(0.5), "c": float("inf"), "d": Path("x")}
    assert registry.from_tree(registry.to_tree(value)) == value | {"b": 0.5, "d": "x"}
    assert np.isnan(registry.from_tree(registry.to_tree(float("nan"))))


def test_a_name_is_registered_once() -> None:
    fake = type("RBM", (), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match=r"'RBM' is taken by energyscape\.models\.rbm\.RBM"):
        energyscape.register(fake)
    assert energyscape.register(RBM) is RBM


@pytest.mark.parametrize("path", sorted(FORMATS.glob("*.h5")), ids=lambda p: p.stem)
def test_files_of_every_format_are_still_read(path: Path) -> None:
    model = energyscape.load(path)
    assert model.transform(BITS).shape == (60, 4)
    model.resume(BITS)


# ---------------------------------------------------------------- crashes


def test_a_full_disk_leaves_the_old_file(model: RBM, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    model.save(path)
    before = path.read_bytes()
    large = RBM(400, trainer=PCD(n_epochs=1), random_state=0).fit(BITS)

    # A limit on the size of files fails the write itself, as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError):
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.h5"]


@pytest.mark.slow
def test_a_hundred_kills_leave_no_broken_file(tmp_path: Path) -> None:
    """SIGKILL at random instants while a process does nothing but save."""
    path = tmp_path / "m.h5"
    code = """
        import sys, numpy as np
        from energyscape.models import RBM
        from energyscape.trainers import PCD
        X = (np.random.default_rng(0).random((60, 300)) < 0.5).astype("f4")
        model = RBM(400, trainer=PCD(n_epochs=1), random_state=0).fit(X)
        print("ready", flush=True)
        while True:
            model.save(sys.argv[1])
    """
    rng = np.random.default_rng(0)
    for _ in range(100):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.wait()
        child.stdout.close()
        if path.exists():
            assert energyscape.load(path).n_iter_ == 1
    assert path.exists()
