#!/bin/sh
# Make .venv and install medseg into it. Reads PYTHON (default python3) and TORCH (what to
# install where no torch is found, with options of pip). A torch that is there is kept.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

torch_of() {
    # torch carries its version in a file of its own: no need to import all of it.
    "$1" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true
}

if ! .venv/bin/python -c '' 2>/dev/null; then
    if ! command -v "$python" >/dev/null 2>&1; then
        echo "error: '$python' was not found. Install Python 3.11 or newer, or name one: make setup PYTHON=..." >&2
        exit 2
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: expected Python 3.11 or newer, got $("$python" -V 2>&1). Name another: make setup PYTHON=python3.12" >&2
        exit 2
    fi
    echo "making .venv with $("$python" -V 2>&1)"
    if [ -n "$(torch_of "$python")" ]; then
        "$python" -m venv --clear --system-site-packages .venv
        if [ -z "$(torch_of .venv/bin/python)" ]; then
            # That Python is itself a virtual environment, whose packages venv does not hand on.
            site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
            "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/parent.pth"
        fi
    else
        "$python" -m venv --clear .venv
    fi
fi

kept=$(torch_of .venv/bin/python)
if [ -n "$kept" ]; then
    echo "keeping torch $kept"
else
    # Unquoted on purpose: TORCH may hold options, such as --index-url.
    # shellcheck disable=SC2086
    .venv/bin/python -m pip install ${TORCH:-$(grep '^torch==' constraints.txt)}
    kept=$(torch_of .venv/bin/python)
fi
if ! .venv/bin/python -c 'import sys; sys.exit(tuple(map(int, sys.argv[1].split(".")[:2])) < (2, 6))' "$kept"; then
    echo "error: expected torch 2.6 or newer, got $kept. Update it, or take another Python: make clean setup PYTHON=..." >&2
    exit 2
fi
# The pinned torch gives way to the one that is there; the other versions stay as tested.
{ grep -v '^torch==' constraints.txt; echo "torch==$kept"; } >.venv/constraints.txt
# A path for --constraint must hold no space on some versions of pip; this one is relative.
.venv/bin/python -m pip install --quiet --constraint .venv/constraints.txt --editable '.[dev]'
.venv/bin/python -m medseg --version
