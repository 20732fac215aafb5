#!/bin/bash
# The container image, end to end: written from the outputs that the port's tests use, loaded into the engine of the
# stand-ins, asked, stopped. Not part of `make test`: it writes 13 GB and takes minutes. Arguments: pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/environment.sh

. tests/serving.sh
in_standin() { PYTHONPATH=molecule/shared python -c "$1"; }
DOCKER_HOST="$(in_standin 'import os
from standin import engine
engine.ensure()
print(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))' | tail -n 1)"
export DOCKER_HOST
base="$(in_standin 'from standin import image; print(image.debian_base())' | tail -n 1)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
began="$SECONDS"
ansible-playbook -i tests/port/hosts.yml -c local playbooks/image.yml -e "ansible_python_interpreter=$(command -v python)" \
    -e image_host=localhost -e "store_root=$KEPLER_CACHE/store" -e "{store_artifacts: [$KEPLER_CACHE/artifacts]}" \
    -e pytorch_provider=wheel -e python_provider=prebuilt -e vllm_kernels=false \
    -e "python_interpreter=$(PYTHONPATH=molecule/shared python -m standin python)" \
    -e "image_base=$base" -e image_base_name=vllm-kepler/el8-standin \
    -e "image_base_digest=sha256:$(sha256sum "$base" | cut -d ' ' -f 1)" -e image_name=vllm-kepler:test \
    -e "image_directory=$work/image"
echo "== written in $((SECONDS - began)) s"
# Apart: what is measured is the image.
python -c 'import sys
sys.path.insert(0, "plugins")
from module_utils.store import image
image.archive(image.Image(sys.argv[1]), sys.argv[2])' "$work/image" "$work/image.tar"
rm -rf "$work/image"
docker load --quiet --input "$work/image.tar"
rm "$work/image.tar"
python -m pytest -q tests/image "$@"
docker image rm --force vllm-kepler:test >/dev/null
