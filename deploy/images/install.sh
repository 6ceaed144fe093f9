#!/bin/sh
# Runs in the build stage of an image: install one lock, each file verified by its digest.
#
#   install.sh [--torch] LOCK [DEVICE]    into the virtual environment /opt/venv; DEVICE cpu (the default) uses
#                                         /requirements/LOCK.txt, cuda /requirements/LOCK-cuda.txt
#   install.sh --beside LOCK              into the folder /opt/packages, in addition to the packages of the base image
#
# With --torch the CPU build of torch comes first, apart from the lock and by its version in /requirements/pyproject.toml:
# the package index has only the build for CUDA, which LOCK-cuda.txt names.
# Wheels in /wheels are used in addition to the index. PIP_INDEX_URL is a mirror of the index, TORCH_INDEX has CPU builds.
set -eu

venv=/opt/venv
packages=/opt/packages

say() { echo "install.sh: $*" >&2; }

# An empty build argument means pip's own default.
[ -n "${PIP_INDEX_URL:-}" ] || unset PIP_INDEX_URL

pip_install() { # pip_install PYTHON ARGUMENT...
  python=$1
  shift
  python3 -m pip --python "$python" install --disable-pip-version-check --no-input --root-user-action ignore --no-deps \
    --find-links /wheels "$@"
}

install_torch() {
  version=$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' /requirements/pyproject.toml | sort -u)
  if pip_install $venv/bin/python "torch==$version+cpu"; then return; fi
  # On other architectures than x86-64 the index's own build is for CPUs; a wheel of it may be in wheels/.
  if pip_install $venv/bin/python --no-index "torch==$version"; then return; fi
  say "no CPU build of torch $version in wheels/ or the package index; trying $TORCH_INDEX"
  if pip_install $venv/bin/python --index-url "$TORCH_INDEX" "torch==$version+cpu"; then return; fi
  say "torch $version was not found. Put its CPU wheel into wheels/, or set TORCH_INDEX to an index that has it."
  exit 1
}

# Files that no service imports: tests of packages, setuptools (required by torch), headers.
remove_unused() { # $1 site-packages
  find "$1" -depth -type d \( -name tests -o -name test \) -exec rm -rf {} +
  rm -rf "$1"/setuptools "$1"/setuptools-* "$1"/pkg_resources "$1"/_distutils_hack "$1"/distutils-precedence.pth \
    "$1"/torch/include
  # OpenVINO reads PyTorch modules and its own format, and runs on the CPU.
  if [ -d "$1/openvino/libs" ]; then
    rm -f "$1"/openvino/libs/libopenvino_intel_[gn]pu_plugin.so "$1/openvino/libs/cache.json"
    find "$1/openvino/libs" -name 'libopenvino_*_frontend.so.*' ! -name '*_ir_*' ! -name '*_pytorch_*' -delete
  fi
  if [ -d "$1/torch/bin" ]; then
    find "$1/torch/bin" -mindepth 1 -maxdepth 1 ! -name torch_shm_manager -exec rm -rf {} +
  fi
  # Bytecode of hundreds of model types, of which one is used and compiles at its start: saves 50 MB.
  if [ -d "$1/transformers/models" ]; then
    find "$1/transformers/models" -mindepth 2 -depth -name __pycache__ ! -path '*/models/auto/*' -exec rm -rf {} +
  fi
}

torch=no
case $1 in
--beside)
  pip_install "$(command -v python3)" --require-hashes --requirement "/requirements/$2.txt" --target $packages
  exit
  ;;
--torch)
  torch=yes
  shift
  ;;
esac
lock=$1
case ${2:-cpu} in
cpu) ;;
cuda) lock=$lock-cuda torch=no ;;
*)
  say "Unknown DEVICE=$2. Build with DEVICE=cpu or DEVICE=cuda."
  exit 1
  ;;
esac

python3 -m venv --without-pip $venv
[ $torch = no ] || install_torch
pip_install $venv/bin/python --require-hashes --requirement "/requirements/$lock.txt"
python3 -m pip --python $venv/bin/python check
site=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
remove_unused "$site"
# CPU builds only: untested with NVIDIA's libraries and PyTorch's CUDA build.
[ "${2:-cpu}" = cuda ] || python3 "$(dirname "$0")/cut_symbols.py" "$site"
# One path for LD_LIBRARY_PATH, for every version of Python.
[ ! -d "$site/nvidia" ] || ln -s "$site/nvidia" $venv/lib/nvidia
