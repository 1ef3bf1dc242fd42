"""Pictures of a trained model: samples, filters, pools, and images painted in from upper halves.

python scripts/sample.py rbm.h5 digits --out out/samples
"""

import argparse
from pathlib import Path

import numpy as np

import energyscape
from energyscape.data.reading import read_table
from energyscape.plotting import pool_members, save_grid

FRAMES = (1, 3, 5, 7, 10, 20, 30, 40, 50)  # sweeps after which the painting is shown

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
made = ["samples.png"]
attributes = {
    "filters": "components_",
    "patterns": "patterns_",
    "mean_filters": "mean_components_",
}
for name, attribute in attributes.items():
    filters = getattr(model, attribute, None)
    if filters is not None:
        size = getattr(model, "filter_shape", shape)
        save_grid(options.out / f"{name}.png", filters[:100], image_shape=size, symmetric=True)
        made.append(f"{name}.png")
pools = getattr(model, "params_", {}).get("P")
if pools is not None and hasattr(model, "patterns_"):
    members = pool_members(model.patterns_, pools)
    save_grid(options.out / "pools.png", members, image_shape=shape, symmetric=True, n_columns=9)
    made.append("pools.png")

height, width = shape[:2]
known = np.zeros(shape, bool)
known[: height // 2] = True
X = np.asarray(table.X[:10], np.float32)
if hasattr(model, "image_shape_"):
    X = X.reshape(len(X), *shape)
else:
    known = known.ravel()
frames, x, done = [X], None, 0
for sweeps in FRAMES:
    x = model.sample(len(X), clamp=(known, X), start=x, n_steps=sweeps - done, random_state=sweeps)
    frames.append(x)
    done = sweeps
painted = np.stack(frames, axis=1).reshape(-1, *X.shape[1:])
save_grid(options.out / "painted_in.png", painted, image_shape=shape, n_columns=len(frames))
print(
    f"In {options.out}: {', '.join(made)}, painted_in.png (the real image, then after "
    f"{', '.join(map(str, FRAMES))} sweeps)"
)
