#!/bin/sh
# Runs in the build stage of an image: installs one lock, each file checked by its digest.
#
#   install.sh [--torch] LOCK [DEVICE]    into the virtual environment /opt/venv; DEVICE cpu (the default) takes
#                                         /requirements/LOCK.txt, cuda /requirements/LOCK-cuda.txt
#   install.sh --beside LOCK              into the folder /opt/packages, beside the packages that the base image has
#
# With --torch the CPU build of torch comes first, apart from the lock and by its version in /requirements/pyproject.toml:
# the package index has only the build for CUDA, which LOCK-cuda.txt names.
# Wheels in /wheels are looked at beside the index. PIP_INDEX_URL is a mirror of the index, TORCH_INDEX has CPU builds.
set -eu

venv=/opt/venv
packages=/opt/packages

say() { echo "install.sh: $*" >&2; }

# An empty build argument means pip's own default.
[ -n "${PIP_INDEX_URL:-}" ] || unset PIP_INDEX_URL

pip_install() { # $1 the Python to install for, then what pip takes
  python=$1
  shift
  python3 -m pip --python "$python" install --disable-pip-version-check --no-input --root-user-action ignore --no-deps \
    --find-links /wheels "$@"
}

install_torch() {
  version=$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' /requirements/pyproject.toml | sort -u)
  if pip_install $venv/bin/python "torch==$version+cpu"; then return; fi
  # Where the index's own build is for CPUs (not on x86-64), a wheel of it may have been put into wheels/.
  if pip_install $venv/bin/python --no-index "torch==$version"; then return; fi
  say "no CPU build of torch $version in wheels/ or the package index; asking $TORCH_INDEX"
  if pip_install $venv/bin/python --index-url "$TORCH_INDEX" "torch==$version+cpu"; then return; fi
  say "torch $version could not be had. Put its CPU wheel into wheels/, or set TORCH_INDEX to an index that has it."
  exit 1
}

# What no service imports: the packages' own tests, the library of installers that torch names, what compiling needs.
remove_unused() { # $1 site-packages
  find "$1" -depth -type d \( -name tests -o -name test \) -exec rm -rf {} +
  rm -rf "$1"/setuptools "$1"/setuptools-* "$1"/pkg_resources "$1"/_distutils_hack "$1"/distutils-precedence.pth \
    "$1"/torch/include
  # OpenVINO is handed PyTorch's modules and its own files, and computes on the CPU.
  if [ -d "$1/openvino/libs" ]; then
    rm -f "$1"/openvino/libs/libopenvino_intel_[gn]pu_plugin.so "$1/openvino/libs/cache.json"
    find "$1/openvino/libs" -name 'libopenvino_*_frontend.so.*' ! -name '*_ir_*' ! -name '*_pytorch_*' -delete
  fi
  if [ -d "$1/torch/bin" ]; then
    find "$1/torch/bin" -mindepth 1 -maxdepth 1 ! -name torch_shm_manager -exec rm -rf {} +
  fi
  # Of hundreds of kinds of models one is run: it compiles its few files at its start, and 50 MB stay out.
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
  say "DEVICE=$2 is not known. Build with DEVICE=cpu or DEVICE=cuda."
  exit 1
  ;;
esac

python3 -m venv --without-pip $venv
[ $torch = no ] || install_torch
pip_install $venv/bin/python --require-hashes --requirement "/requirements/$lock.txt"
python3 -m pip --python $venv/bin/python check
site=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
remove_unused "$site"
# Not off NVIDIA's libraries and PyTorch's for them, which no build here has tried without.
[ "${2:-cpu}" = cuda ] || python3 "$(dirname "$0")/cut_symbols.py" "$site"
# One path for LD_LIBRARY_PATH, whatever the version of Python.
[ ! -d "$site/nvidia" ] || ln -s "$site/nvidia" $venv/lib/nvidia
