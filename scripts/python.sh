# Sourced by the other scripts: finds or makes a Python that has what they need.
#
#   need EXTRA MODULE...   sets $PYTHON to an interpreter that can import all the modules
#
# In turn: .venv if it was set up for EXTRA by this pyproject.toml, the python3 at hand if it has
# everything, else .venv is made (or brought up to date) with pip.

need() {
    local extra=$1
    shift
    python3 - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"energyscape needs Python 3.11 or newer; python3 is {sys.version.split()[0]}")
PY
    local stamp=".venv/energyscape-$extra" wanted
    wanted=$(python3 -c 'import hashlib; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())')
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        PYTHON=$PWD/.venv/bin/python
    elif python3 - "$@" <<'PY'
import importlib.metadata
import importlib.util
import sys



def there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of its parent
        return False


missing = [name for name in sys.argv[1:] if not there(name)]
old = not missing and (
    int(importlib.metadata.version("numpy").split(".")[0]) < 2
    or tuple(map(int, importlib.metadata.version("scikit-learn").split(".")[:2])) < (1, 6)
)
sys.exit(bool(missing) or old)
PY
    then
        PYTHON=python3
        export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
    else
        echo "setting up .venv (once)" >&2
        [ -x .venv/bin/python ] || python3 -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extra]" >&2
        echo "$wanted" > "$stamp"
        PYTHON=$PWD/.venv/bin/python
    fi
}
