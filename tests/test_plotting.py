"""Pictures: pixel by pixel, as files that others read, and without matplotlib where promised."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES

from energyscape.evaluation import diagnose
from energyscape.models import RBM
from energyscape.plotting import image_grid, pool_members, save_curves, save_grid, save_png
from energyscape.trainers import PCD

Image = pytest.importorskip("PIL.Image")  # absent where only the GPU tests run

FRAME = 128  # mid grey: round(127.5) to even


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


# ---------------------------------------------------------------- grids


def test_an_image_is_stretched_and_framed() -> None:
    grid = image_grid(np.array([[1.0, 2.0, 3.0, 5.0]]))
    wanted = [
        [FRAME, FRAME, FRAME, FRAME],
        [FRAME, 0, 64, FRAME],
        [FRAME, 128, 255, FRAME],
        [FRAME, FRAME, FRAME, FRAME],
    ]
    assert grid.dtype == np.uint8 and grid.tolist() == wanted


def test_images_stand_in_lines_with_one_frame_between_them() -> None:
    rows = np.array([[0, 1], [1, 0], [0, 1]])
    f = FRAME
    two_columns = [
        [f, f, f, f, f],
        [f, 0, f, 255, f],
        [f, 255, f, 0, f],
        [f, f, f, f, f],
        [f, 0, f, f, f],
        [f, 255, f, f, f],
        [f, f, f, f, f],
    ]
    assert image_grid(rows, (2, 1)).tolist() == two_columns
    assert image_grid(rows, (2, 1), n_columns=2).tolist() == two_columns
    one_line = [[f] * 10, [f, 0, 255, f, 255, 0, f, 0, 255, f], [f] * 10]
    assert image_grid(rows, (1, 2), n_columns=3).tolist() == one_line
    assert image_grid(rows, (1, 2), n_columns=1).shape == (7, 4)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 9, 10])
def test_grids_are_as_square_as_can_be(n: int) -> None:
    columns = int(np.ceil(np.sqrt(n)))
    lines = -(-n // columns)
    assert image_grid(np.zeros((n, 6)), (2, 3)).shape == (3 * lines + 1, 4 * columns + 1)


def _inside(grid: np.ndarray, h: int, w: int) -> list[np.ndarray]:
    """The images of a grid, without their frames."""
    return [
        grid[top : top + h, left : left + w]
        for top in range(1, grid.shape[0], h + 1)
        for left in range(1, grid.shape[1], w + 1)
    ]


def test_each_image_or_all_alike() -> None:
    rows = np.array([[0.0, 1.0], [0.0, 0.2], [0.4, 0.6], [1.0, 0.5]])
    each = [i.ravel().tolist() for i in _inside(image_grid(rows, (1, 2)), 1, 2)]
    assert each == [[0, 255], [0, 255], [0, 255], [255, 0]]
    together = [i.ravel().tolist() for i in _inside(image_grid(rows, (1, 2), scale="all"), 1, 2)]
    assert together == [[0, 255], [0, 51], [102, 153], [255, 128]]


def test_symmetric_puts_zero_at_mid_grey() -> None:
    rows = np.array([[-2.0, 0.0, 1.0], [-0.1, 0.0, 0.4]])
    options: dict[str, Any] = {"image_shape": (1, 3), "symmetric": True}
    each = [i.ravel().tolist() for i in _inside(image_grid(rows, **options), 1, 3)]
    assert each == [[0, 128, 191], [96, 128, 255]]
    grid = image_grid(rows, **options, scale="all")
    assert [i.ravel().tolist() for i in _inside(grid, 1, 3)] == [[0, 128, 191], [121, 128, 153]]


def test_constant_images_do_not_divide_by_zero() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 3.0], [-3.0, -3.0]])
    plain = [i.ravel().tolist() for i in _inside(image_grid(rows, (1, 2), 3), 1, 2)]
    assert plain == [[0, 0], [0, 0], [0, 0]]
    signed = [i.ravel().tolist() for i in _inside(image_grid(rows, (1, 2), 3, True), 1, 2)]
    assert signed == [[128, 128], [255, 255], [0, 0]]
    assert (image_grid(np.zeros((1, 4)), scale="all")[1:-1, 1:-1] == 0).all()


def test_rows_may_be_images_already() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((5, 12))
    wanted = image_grid(rows, (3, 4))
    np.testing.assert_array_equal(image_grid(rows.reshape(5, 3, 4)), wanted)
    np.testing.assert_array_equal(image_grid(rows.tolist(), (3, 4)), wanted)
    np.testing.assert_array_equal(image_grid((rows * 1000).astype(int), (3, 4)).shape, wanted.shape)


def test_colours_stay_beside_each_other() -> None:
    pixels = np.array([[0.0, 0.5, 1.0, 1.0, 0.0, 0.25]])
    grid = image_grid(pixels, (1, 2, 3))
    assert grid.shape == (3, 4, 3)
    assert grid[1, 1:3].tolist() == [[0, 128, 255], [255, 0, 64]]
    assert (grid[0] == FRAME).all() and (grid[1, [0, 3]] == FRAME).all()
    np.testing.assert_array_equal(image_grid(pixels.reshape(1, 1, 2, 3)), grid)


def test_the_input_is_left_alone() -> None:
    rows = np.array([[1.0, 2.0, 3.0, 4.0]])
    image_grid(rows, symmetric=True)
    assert rows.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_rows_may_be_on_a_device(cupy: Any) -> None:
    rows = np.random.default_rng(0).random((3, 4))
    np.testing.assert_array_equal(image_grid(cupy.asarray(rows)), image_grid(rows))


def test_the_heaviest_filters_of_pools_stand_first() -> None:
    P = np.array([[0.2, 0.0], [0.0, 0.5], [0.8, 0.0], [0.0, 0.5]])
    filters = np.arange(1.0, 5.0)[:, None] * np.ones((4, 6))
    rows = pool_members(filters, P, n_members=3)
    assert rows[:, 0].tolist() == [3, 1, 0, 2, 4, 0]
    assert pool_members(filters.reshape(4, 2, 3), P, 1, 2).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="pools of 4 filters"):
        pool_members(filters, P[:3])


def test_grids_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"6 pixels are no square image; give image_shape="):
        image_grid(np.zeros((2, 6)))
    with pytest.raises(ValueError, match=r"image_shape=\(2, 2\) does not hold 6 pixels"):
        image_grid(np.zeros((2, 6)), (2, 2))
    with pytest.raises(ValueError, match="scale must be 'each' or 'all', got 'some'"):
        image_grid(np.zeros((2, 4)), scale="some")
    with pytest.raises(ValueError, match=r"at least one image .* is wanted, got shape \(0, 4\)"):
        image_grid(np.zeros((0, 4)))
    with pytest.raises(ValueError, match=r"at least one image .* is wanted, got shape \(4,\)"):
        image_grid(np.zeros(4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        image_grid(np.array([[0.0, np.nan, 1.0, 0.5]]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        image_grid(np.array([[0.0, np.inf, 1.0, 0.5]]))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (1, 300), (300, 1), (4, 6, 3), (1, 1, 3)])
def test_pixels_come_back(shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    save_png(tmp_path / "x.png", pixels)
    again = _read(tmp_path / "x.png")
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, pixels)


def test_pixels_need_not_be_contiguous(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8)).astype(np.uint8)
    for view in (pixels.T, pixels[::2, ::-1], np.asfortranarray(pixels)):
        save_png(tmp_path / "x.png", view)
        np.testing.assert_array_equal(_read(tmp_path / "x.png"), view)


def test_a_grid_is_written_enlarged(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((5, 6))
    options: dict[str, Any] = {"image_shape": (2, 3), "symmetric": True, "scale": "all"}
    grid = image_grid(rows, **options)
    save_grid(tmp_path / "x.png", rows, **options)
    np.testing.assert_array_equal(_read(tmp_path / "x.png"), np.kron(grid, np.ones((2, 2), int)))
    save_grid(tmp_path / "x.png", rows, zoom=1, **options)
    np.testing.assert_array_equal(_read(tmp_path / "x.png"), grid)
    save_grid(tmp_path / "x.png", rows, zoom=3, image_shape=(1, 2, 3))
    assert _read(tmp_path / "x.png").shape == (3 * 5, 3 * 10, 3)


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (np.zeros((2, 2)), r"float64 of shape \(2, 2\)"),
        (np.zeros((2, 2), np.int64), r"int64 of shape \(2, 2\)"),
        (np.zeros(4, np.uint8), r"uint8 of shape \(4,\)"),
        (np.zeros((2, 2, 4), np.uint8), r"uint8 of shape \(2, 2, 4\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"uint8 of shape \(1, 2, 2, 3\)"),
        (np.zeros((0, 2), np.uint8), r"uint8 of shape \(0, 2\)"),
    ],
)
def test_other_pixels_are_refused(pixels: np.ndarray, got: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"uint8 of shape \(h, w\) or \(h, w, 3\).* got {got}"):
        save_png(tmp_path / "x.png", pixels)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- curves and diagnoses


@pytest.fixture(scope="module")
def model() -> RBM:
    trainer = PCD(n_epochs=3, validation_fraction=0.2)
    return RBM(4, trainer=trainer, random_state=0).fit(CASES[0].data)


def test_curves_are_pictures(model: RBM, tmp_path: Path) -> None:
    save_curves(tmp_path / "all.png", model.history_)
    save_curves(tmp_path / "one.png", model.history_, keys=["reconstruction"])
    save_curves(tmp_path / "no suffix", model.history_, ["seconds", "grad_norm"])
    everything, one, two = (_read(tmp_path / n) for n in ("all.png", "one.png", "no suffix"))
    # Panels of 3.6 x 3 inches at 120 dots: energies, gap, reconstruction and gradient norm.
    assert everything.shape[:2] == (360, 4 * 432)
    assert one.shape[:2] == (360, 432) and two.shape[:2] == (360, 2 * 432)
    assert all(picture.std() > 0 for picture in (everything, one, two))


def test_curves_do_with_what_was_recorded(tmp_path: Path) -> None:
    history = {"epoch": [1, 2], "reconstruction": [2.0, float("nan")]}
    save_curves(tmp_path / "x.png", history)
    assert _read(tmp_path / "x.png").shape[:2] == (360, 432)
    with pytest.raises(KeyError, match="missing"):
        save_curves(tmp_path / "y.png", history, keys=["missing"])


def test_a_diagnosis_is_a_picture(model: RBM, tmp_path: Path) -> None:
    X = CASES[0].data
    for name, shape in (("flat", None), ("images", (1, 7))):
        result = diagnose(model, X, image_shape=shape)
        result.save_png(tmp_path / name)
        picture = _read(tmp_path / name)
        assert picture.shape[:2] == (700, 1200) and picture.std() > 0


def test_pictures_do_not_touch_the_global_figures(model: RBM, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    save_curves(tmp_path / "x.png", model.history_)
    diagnose(model, CASES[0].data).save_png(tmp_path / "y.png")
    assert plt.get_fignums() == before


def test_grids_do_without_matplotlib(tmp_path: Path) -> None:
    """In a process where matplotlib and Pillow cannot be imported; curves then say so."""
    code = """
        import sys
        for name in ("matplotlib", "matplotlib.figure", "PIL"):
            sys.modules[name] = None
        import numpy as np
        from energyscape.plotting import save_curves, save_grid
        save_grid("grid.png", np.arange(12.0).reshape(3, 4))
        try:
            save_curves("curves.png", {"epoch": [1], "grad_norm": [1.0]})
        except ImportError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "matplotlib" in run.stdout
    np.testing.assert_array_equal(
        _read(tmp_path / "grid.png"),
        image_grid(np.arange(12.0).reshape(3, 4)).repeat(2, axis=0).repeat(2, axis=1),
    )
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]
