#!/bin/bash
# What the other parts need of this machine: programs, the container engine, the stand-ins' image and repositories, files
# to install from, and a compiler. One part alone does it, since installing and downloading take turns.
set -euo pipefail
cd "$(dirname "$0")/.."

tests/programs.sh
# The engine stays up for the whole run, and for a demo beside it.
exec env -u KEPLER_TEST_RUN python -m standin prepare
