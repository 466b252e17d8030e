#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing (Debian), builds, and runs every test. Works from any folder, asks nothing, may be run again.
#
#   ./test.sh           1 gcc, Release, warnings are errors: everything, every test
#                       2 clang, address and undefined sanitizers: the unit tests
#                       3 clang, thread sanitizer: the tests that use threads
#                       4 the fuzz targets, a fixed number of inputs each
#   ./test.sh --quick   only 1
#
# The last line is "N passed, N failed", summed over the steps. Exit code 0 only if nothing failed and something ran.

set -u
cd "$(dirname "$0")" || exit 1
. cmake/packages.sh

quick=no
case "${1:-}" in
  "") ;;
  --quick) quick=yes ;;
  *)
    echo "usage: ./test.sh [--quick]" >&2
    exit 2
    ;;
esac

packages="g++ cmake ninja-build pkg-config python3 libeigen3-dev libxsimd-dev nlohmann-json3-dev libsentencepiece-dev"
packages="$packages libcli11-dev doctest-dev libbenchmark-dev"
if [ "$quick" = no ]; then packages="$packages clang libclang-rt-dev libomp-dev llvm"; fi
if ! install_missing $packages; then
  echo "==> the packages could not be installed"
  echo "0 passed, 1 failed"
  exit 1
fi

passed=0
failed=0
jobs=$(jobs_that_fit)
started=$SECONDS

# The sanitizers of clang before 18 do not run where the kernel scatters addresses over more than 28 bits.
plain_addresses=""
if [ "$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 0)" -gt 28 ] && setarch -R true 2>/dev/null; then
  plain_addresses="setarch -R"
fi

announce() { echo "==> [$((SECONDS - started)) s] $*"; }

# configure PRESET FOLDER COMPILER [OPTION...]
configure() {
  preset=$1 folder=$2 wanted=$3
  shift 3
  prepare_folder "$folder" "$wanted"
  if [ ! -f "$folder/CMakeCache.txt" ]; then set -- -G Ninja "-DCMAKE_CXX_COMPILER=$wanted" "$@"; fi
  cmake --preset "$preset" "$@"
}

# build PRESET: goes on after an error, so that one broken source does not hide the other tests.
build() {
  go_on="-k"
  if [ -f "$folder/build.ninja" ]; then go_on="-k 0"; fi
  cmake --build --preset "$1" -j "$jobs" -- $go_on
}

# run_tests PRESET [COMMAND...]: runs ctest (through COMMAND) and adds to the counts. No test at all is not a failure here.
run_tests() {
  preset=$1
  shift
  log="$folder/ctest-$preset.log"
  "$@" ctest --preset "$preset" -j "$jobs" --no-tests=ignore 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  # "97% tests passed, 1 tests failed out of 33"
  summary=$(sed -n 's/^[0-9]*% tests passed, \([0-9]*\) tests\{0,1\} failed out of \([0-9]*\)$/\1 \2/p' "$log" | tail -n 1)
  if [ -n "$summary" ]; then
    skipped=$(grep -c '[*][*][*]Skipped ' "$log")
    passed=$((passed + ${summary#* } - ${summary% *} - skipped))
    failed=$((failed + ${summary% *}))
  fi
  if [ "$status" -ne 0 ] && { [ -z "$summary" ] || [ "${summary% *}" -eq 0 ]; }; then
    announce "ctest itself failed ($status)"
    failed=$((failed + 1))
  fi
}

# What could not be built counts as one failure, beside the tests that then cannot run.
broken() {
  announce "FAILED: $*"
  failed=$((failed + 1))
}

announce "1: gcc, Release, everything ($jobs jobs)"
if configure ci build g++; then
  build ci || broken "the build with gcc"
  run_tests ci
else
  broken "configuring with gcc"
fi

if [ "$quick" = no ]; then
  announce "2: address and undefined sanitizers, unit tests"
  if configure asan build-asan clang++; then
    build asan || broken "the build with the address and undefined sanitizers"
    run_tests asan $plain_addresses
    asan_configured=yes
  else
    broken "configuring with the address and undefined sanitizers"
    asan_configured=no
  fi

  announce "3: thread sanitizer, the tests that use threads"
  if configure tsan build-tsan clang++; then
    build tsan || broken "the build with the thread sanitizer"
    run_tests tsan $plain_addresses
  else
    broken "configuring with the thread sanitizer"
  fi

  announce "4: fuzz targets"
  if [ "$asan_configured" = yes ]; then
    folder=build-asan
    build fuzz || broken "the build of the fuzz targets"
    run_tests fuzz $plain_addresses
  fi
fi

announce "done"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
