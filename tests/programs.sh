#!/bin/bash
# What unit tests drive beside Python, as Debian has it: dkms with the headers of two kernels, installed as root; nginx
# and promtool, unpacked into the cache, since nobody here is to run them as services. A test that misses its program is
# skipped and says so.
set -euo pipefail

schema="$KEPLER_CACHE/programs/compose_spec.json"
if [ ! -e "$schema" ]; then
    work="$(mktemp -d)"
    if python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest "$work" \
        -r requirements/compose-schema.txt; then
        mkdir -p "${schema%/*}"
        python -m zipfile -e "$work"/*.whl "$work"
        mv "$work/compose/config/compose_spec.json" "$schema"
    fi
    rm -rf "$work"
fi

headers() { find /lib/modules/*/build/Makefile 2>/dev/null | wc -l; }
missing() { ! command -v "$1" >/dev/null && [ ! -x "$KEPLER_CACHE/programs/usr/sbin/$1" ] \
    && [ ! -x "$KEPLER_CACHE/programs/usr/bin/$1" ]; }

unpacked=""
missing nginx && unpacked+=" nginx"
missing promtool && unpacked+=" prometheus"
installed=""
if ! command -v dkms >/dev/null || [ "$(headers)" -lt 2 ]; then
    installed="dkms linux-headers-amd64 linux-headers-cloud-amd64"
fi
if [ -z "$unpacked$installed" ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "programs.sh: missing:$unpacked $installed; this is not root with apt-get: their tests are skipped"
    exit 0
fi
echo "Getting$unpacked $installed"
export DEBIAN_FRONTEND=noninteractive
# Another program may be installing something.
apt="apt-get -o DPkg::Lock::Timeout=300 --quiet=2"
$apt update
if [ -n "$installed" ]; then
    # shellcheck disable=SC2086
    $apt install --yes --no-install-recommends $installed >/dev/null
fi
if [ -n "$unpacked" ]; then
    mkdir -p "$KEPLER_CACHE/programs"
    work="$(mktemp -d)"
    chmod 755 "$work"
    # shellcheck disable=SC2086
    (cd "$work" && $apt download $unpacked 2>/dev/null && for package in *.deb; do
        dpkg -x "$package" "$KEPLER_CACHE/programs"
    done)
    rm -rf "$work"
fi
