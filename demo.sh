#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing (Debian), builds the command line program, and generates text with the model that this library
# trained, then shows its cache and speed beside a transformer's. Works from any folder, asks nothing, may be run again.

set -eu
cd "$(dirname "$0")"
. cmake/packages.sh

model=examples/models/jacobean-5m
prompt="${1:-And the king said unto}"

install_missing g++ cmake ninja-build pkg-config libeigen3-dev libxsimd-dev nlohmann-json3-dev libsentencepiece-dev \
  libcli11-dev

prepare_folder build
if [ ! -f build/CMakeCache.txt ]; then
  echo "==> configuring: build/, Release, the command line program and one example"
  cmake --preset default -G Ninja -DHYMBA_BUILD_TESTS=OFF -DHYMBA_BUILD_EXAMPLES=ON -DHYMBA_BUILD_BENCH=OFF
else
  echo "==> build/ is configured"
  cmake -S . -B build -DHYMBA_BUILD_EXAMPLES=ON > /dev/null
fi
echo "==> building build/bin/hymba and build/bin/examples/beside_a_transformer"
cmake --build build --target hymba_cli example_beside_a_transformer -j "$(jobs_that_fit)"

run() {
  echo "==> $*"
  "$@"
}
echo
echo "==> $model: 5.5 million parameters, trained by this library on the King James Bible and Shakespeare"
run build/bin/hymba generate --model "$model" --prompt "$prompt" --max-new-tokens 120 --temperature 0.7 --seed 1
echo
echo "==> the same model beside a plain transformer of as many parameters (random weights, same engine, one thread, 16-bit caches)"
run build/bin/examples/beside_a_transformer "$model" 4096
echo
echo "==> done. The same with a checkpoint of yours:"
echo "==>   build/bin/hymba generate --model DIR --prompt \"...\""
