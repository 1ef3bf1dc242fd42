"""What the test suite shows of reliability, counted: runs the named tests and keeps the outcome.

Resume, kills, planted faults, scikit-learn's checks, odd scales. Budget: 40 minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from common import HERE, Clock, options, table, write

ROWS = [
    (
        "resumed at epoch k equals uninterrupted, bit for bit: CD, PCD, FPCD × every optimiser",
        "tests/test_trainers.py -k resume_is_bit_exact",
    ),
    ("a killed run resumes to the same bits", "tests/test_training.py -k after_a_kill"),
    ("the command line: killed or interrupted, then resumed", "tests/test_cli.py -k resum"),
    ("100 kills at random instants leave no broken file", "tests/test_io.py -k hundred_kills"),
    (
        "ten partial_fit equal one constant-rate fit, every trainer × optimiser",
        "tests/test_trainers.py -k ten_partial_fits",
    ),
    (
        "diagnose names each of eight planted faults and none on a good model",
        "tests/test_evaluation.py -k 'named or no_finding'",
    ),
    (
        "scikit-learn's estimator checks, none expected to fail, also for `RBM()`, `GaussianRBM()`",
        "tests/test_sklearn.py -k learn_checks",
    ),
    (
        "GridSearchCV over trainer__learning_rate picks the best exact likelihood",
        "tests/test_sklearn.py -k grid_search",
    ),
    ("defaults stay finite on any scale", "tests/test_sklearn.py -k any_scale"),
    ("no copy of the training set", "tests/test_training.py -k no_copy"),
    (
        "a damaged, newer, forged or foreign file; a full disk",
        "tests/test_io.py -k 'refused or disk or damaged or fuzzed'",
    ),
]


def main() -> None:
    chosen = options(__doc__, threads=1)
    lines, record, clock = [], {}, Clock()
    for what, words in ROWS:
        command = f"{sys.executable} -m pytest -q -p no:cacheprovider {words}"
        run = subprocess.run(
            command,
            shell=True,
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},
            check=False,
        )
        outcome = run.stdout.strip().splitlines()[-1]
        outcome = re.sub(r", \d+ deselected| in .*", "", outcome).strip("= ")
        lines.append([what, f"`pytest {words}`", outcome, f"{clock():.0f} s"])
        record[what] = outcome
    header = ["", "shown by", "outcome", "time"]
    write(chosen, "reliability", "Reliability", table(header, lines), record)


if __name__ == "__main__":
    main()
