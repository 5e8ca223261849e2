#!/bin/sh
# Put the packages of requirements.lock, and this project, into .venv. Does nothing when
# nothing changed: the stamp holds a checksum of everything that decides what is installed.
set -eu
cd "$(dirname "$0")/.."

stamp=.venv/.setup-stamp
wanted=$(printf '%s\n' "$PWD" | cat - requirements.lock pyproject.toml tools/setup.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
  exit 0
fi

# The Pythons the lock supports, newest first.
versions="3.14 3.13 3.12"

usable() { # a Python of version $2 at $1 that can make environments
  "$1" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$2')" 2>/dev/null
}

find_python() {
  for version in $versions; do
    for candidate in "python$version" python3 python \
      "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
      if usable "$candidate" "$version"; then
        echo "$candidate"
        return
      fi
    done
    if command -v uv >/dev/null 2>&1; then
      candidate=$(uv python find --no-python-downloads --system "$version" 2>/dev/null) || continue
      if usable "$candidate" "$version"; then
        echo "$candidate"
        return
      fi
    fi
  done
}

fetch_python() { # with uv, which any Python 3 can install
  version=$(cat .python-version)
  uv=$(command -v uv) || {
    python3 -m venv _build/uv
    _build/uv/bin/pip install --quiet "$(sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements.lock)"
    uv=_build/uv/bin/uv
  }
  "$uv" python install --quiet "$version" && "$uv" python find --system "$version"
}

python=$(find_python)
if [ -z "$python" ]; then
  echo "No Python 3.12, 3.13 or 3.14 here; fetching one with uv." >&2
  python=$(fetch_python 2>/dev/null) || python=
fi
if [ -z "$python" ]; then
  echo "Please install Python $(cat .python-version) (from python.org, your package manager or" \
    "\`pyenv install $(cat .python-version)\`) and run the same command again: this book needs" \
    "Python 3.12 or later, found none, and could not fetch one." >&2
  exit 1
fi

echo "Setting up .venv with $("$python" --version) (once; a minute or two)." >&2
rm -f "$stamp"
"$python" -m venv --clear .venv
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
