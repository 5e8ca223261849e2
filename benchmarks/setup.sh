#!/bin/sh
# Put the packages of benchmarks/requirements.lock into benchmarks/.venv, and the checkout on its
# path. Does nothing when nothing changed. Python 3.12, because httpstan's build for 3.13 refers to
# a function that Python 3.13 no longer exports; where there is none, uv fetches one.
set -eu
cd "$(dirname "$0")"

stamp=.venv/.setup-stamp
wanted=$(printf '%s\n' "$PWD" | cat - requirements.lock setup.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
  exit 0
fi

echo "Setting up benchmarks/.venv (once; a minute or two)." >&2
python=3.12
for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12.*/bin/python; do
  if [ -x "$candidate" ]; then python=$candidate; fi
done
uv=../.venv/bin/uv
"$uv" venv --quiet --clear --python "$python" .venv
"$uv" pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
dirname "$PWD" >"$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/book.pth"
echo "$wanted" >"$stamp"
