#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing (Debian), builds the command line program, and generates text from a checkpoint of this
# repository. Works from any folder, asks nothing, may be run again.

set -eu
cd "$(dirname "$0")"
. cmake/packages.sh

model=examples/models/random-tiny
prompt="${1:-The capital of France is}"

install_missing g++ cmake ninja-build pkg-config libeigen3-dev libxsimd-dev nlohmann-json3-dev libsentencepiece-dev \
  libcli11-dev

prepare_folder build
if [ ! -f build/CMakeCache.txt ]; then
  echo "==> configuring: build/, Release, the command line program only"
  cmake --preset default -G Ninja -DHYMBA_BUILD_TESTS=OFF -DHYMBA_BUILD_EXAMPLES=OFF -DHYMBA_BUILD_BENCH=OFF
else
  echo "==> build/ is configured"
fi
echo "==> building build/bin/hymba"
cmake --build --preset cli -j "$(jobs_that_fit)"

run() {
  echo "==> $*"
  "$@"
}
echo
echo "==> $model is a very small model with RANDOM weights: it shows that everything from the prompt to the text"
echo "==> works, on this machine's instructions and cores. What it writes means nothing."
run build/bin/hymba generate --model "$model" --prompt "$prompt" --max-new-tokens 48 --temperature 0.8 --seed 1
echo
echo "==> done. The same with a checkpoint of yours:"
echo "==>   build/bin/hymba generate --model DIR --prompt \"...\""
