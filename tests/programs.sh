#!/bin/bash
# What unit tests drive beside Python: dkms with the headers of two kernels. Installed as root where apt-get is; a test
# that misses its program is skipped and says so.
set -euo pipefail

headers() { ls -d /lib/modules/*/build/Makefile 2>/dev/null | wc -l; }

if command -v dkms >/dev/null && [ "$(headers)" -ge 2 ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "programs.sh: dkms and the headers of two kernels are missing, and this is not root with apt-get: tests are skipped"
    exit 0
fi
echo "Installing dkms and the headers of two kernels"
export DEBIAN_FRONTEND=noninteractive
apt-get --quiet=2 update
apt-get --quiet=2 install --yes --no-install-recommends dkms linux-headers-amd64 linux-headers-cloud-amd64 >/dev/null
