"""The README's picture: test digits, samples and filters of an RBM trained on MNIST.

python benchmarks/mnist_likelihood.py --units 500 --out out/mnist_500.h5
python benchmarks/picture.py out/mnist_500.h5
"""

from __future__ import annotations

import sys

import numpy as np

import energyscape
from energyscape.data import binarize, load_mnist
from energyscape.plotting import image_grid, save_png

if __name__ == "__main__":
    model = energyscape.load(sys.argv[1])
    digits = binarize(load_mnist("test")[0][:100], 0)
    samples = model.sample(100, n_steps=2000)
    panels = [image_grid(digits, scale="all"), image_grid(samples, scale="all")]
    panels.append(image_grid(model.components_[:100], symmetric=True))
    gap = np.full((len(panels[0]), 12), 255, np.uint8)
    save_png("docs/images/mnist.png", np.hstack([panels[0], gap, panels[1], gap, panels[2]]))
