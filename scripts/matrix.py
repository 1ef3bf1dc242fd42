"""Write which trainer trains which model into the pages that show it, from the registry.

python scripts/matrix.py
"""

import argparse
import re
from pathlib import Path

import energyscape.models  # noqa: F401 (registers them all)
from energyscape.evaluation import trainer_matrix

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="of the pages")
root = parser.parse_args().root
matrix = trainer_matrix()
pages = {"docs/strategies.md": matrix.to_markdown(), "README.md": matrix.to_short_markdown()}
for name, text in pages.items():
    path = root / name
    found = re.split(r"(?<=<!-- matrix -->\n).*?(?=<!-- /matrix -->)", path.read_text(), flags=re.S)
    if len(found) != 2:
        raise SystemExit(f"{name} needs one <!-- matrix --> … <!-- /matrix --> to write between")
    path.write_text(f"\n{text}\n\n".join(found))
    print(f"{name}: {len(matrix.models)} models, {len(matrix.trainers)} trainers")
