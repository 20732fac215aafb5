#!/bin/bash
# The container image, end to end: written from the store, loaded into the engine of the stand-ins, asked, stopped. Not
# part of `make test`: it writes 13 GB and takes minutes. Arguments: pytest's. IMAGE_ENGINE=stock: the image of the
# released vLLM, once with its own wheels and once with operators for the CPU; 35 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/environment.sh

in_standin() { PYTHONPATH=molecule/shared python -c "$1"; }
DOCKER_HOST="$(in_standin 'import os
from standin import engine
engine.ensure()
print(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))' | tail -n 1)"
export DOCKER_HOST
base="$(in_standin 'from standin import image; print(image.debian_base())' | tail -n 1)"
work="$(mktemp -d -p "$KEPLER_CACHE")"
trap 'rm -rf "$work"' EXIT

# load TAG INVENTORY STORE PYTHON: writes the image and loads it. Layers of the image before are taken again.
load() {
    local began="$SECONDS"
    ansible-playbook -i "$2" -c local playbooks/image.yml -e "ansible_python_interpreter=$(command -v python)" \
        -e image_host=localhost -e "store_root=$3" -e "{store_artifacts: [$KEPLER_CACHE/artifacts]}" \
        -e pytorch_provider=wheel -e python_provider=prebuilt -e vllm_kernels=false -e "python_interpreter=$4" \
        -e "image_base=$base" -e image_base_name=vllm-kepler/el8-standin \
        -e "image_base_digest=sha256:$(sha256sum "$base" | cut -d ' ' -f 1)" -e "image_name=vllm-kepler:$1" \
        -e "image_directory=$work/image"
    echo "== written in $((SECONDS - began)) s"
    # Apart: what is measured is the image.
    python -c 'import sys
sys.path.insert(0, "plugins")
from module_utils.store import image
image.archive(image.Image(sys.argv[1]), sys.argv[2])' "$work/image" "$work/image.tar"
    docker load --quiet --input "$work/image.tar"
    rm "$work/image.tar"
}

if [ "${IMAGE_ENGINE:-port}" = stock ]; then
    python312="$(in_standin 'from standin import artifacts
artifacts.ensure("volta"), artifacts.released("volta")
print(artifacts.python("volta"))' | tail -n 1)"
    load released tests/image/stock.yml "$work/store" "$python312"
    KEPLER_PROFILES_DIR="$(in_standin 'from standin import artifacts; print(artifacts.profiles("image"))' | tail -n 1)"
    export KEPLER_PROFILES_DIR
    load test tests/image/stock.yml "$work/store" "$python312"
else
    . tests/serving.sh
    load test tests/port/hosts.yml "$KEPLER_CACHE/store" "$(PYTHONPATH=molecule/shared python -m standin python)"
fi
rm -rf "$work"
python -m pytest -q tests/image "$@"
docker image rm --force vllm-kepler:test vllm-kepler:released >/dev/null
