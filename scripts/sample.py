"""Pictures of a trained model: samples, and a row painted in from its upper half.

python scripts/sample.py rbm.h5 digits --out out/samples
"""

import argparse
from pathlib import Path

import numpy as np

import energyscape
from energyscape.data.reading import read_table
from energyscape.plotting import save_grid

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("model", help="file of a trained model")
parser.add_argument("data", help="rows to paint in: mnist-test, digits, or a file of images")
parser.add_argument("--out", type=Path, default=Path("out/samples"), help="folder of the pictures")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)

model = energyscape.load(options.model)
table = read_table(options.data)
shape = table.image_shape
if shape is None:
    parser.error(f"rows of {options.data} are no images")
save_grid(options.out / "samples.png", model.sample(100, n_steps=1000), image_shape=shape)

height, width = shape
known = np.zeros(shape, bool)
known[: height // 2] = True
lines = []
for row in np.asarray(table.X[:10], np.float32):
    painted = model.sample(9, clamp=(known.ravel(), row), n_steps=500)
    lines += [row[None], painted]
save_grid(options.out / "painted_in.png", np.concatenate(lines), image_shape=shape, n_columns=10)
print(f"In {options.out}: samples.png, painted_in.png (first column: the real row)")
