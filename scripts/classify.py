"""Features of a trained model in any classifier: here a logistic regression.

energyscape features rbm.h5 mnist --out train.npz
energyscape features rbm.h5 mnist-test --out test.npz
python scripts/classify.py train.npz test.npz
"""

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("train", help="features with labels: arrays X and y")
parser.add_argument("test", help="the same of the test rows")
parser.add_argument("--C", type=float, default=1.0, help="inverse strength of the penalty")
options = parser.parse_args()

train, test = np.load(options.train), np.load(options.test)
classifier = LogisticRegression(C=options.C, max_iter=1000).fit(train["X"], train["y"])
print(f"test error {100 * (1 - classifier.score(test['X'], test['y'])):.2f} %")
