#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# How long the smallest useful program takes to compile at -O2: the time a user waits. We want less than 10 s of one
# core of a small machine.
#
#   bench/compile_time.sh [COMPILER]      default: c++; CPPFLAGS for include folders other than the system's

set -eu
cd "$(dirname "$0")/.."
compiler=${1:-c++}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/three_lines.cpp" <<'PROGRAM'
#include <hymba/hymba.hpp>
int main() {
  auto model = hymba::Model<hymba::presets::Hymba1_5B>::open("Hymba-1.5B-Instruct");
  auto session = model.session({.max_context = 8192});
  session.prefill({1, 450, 7483, 310, 3444, 338});
  for (hymba::Token t : session.generate({.max_new_tokens = 64})) (void)t;
}
PROGRAM
echo '#include <hymba/hymba.hpp>' > "$folder/include_only.cpp"
for source in include_only three_lines; do
  for run in 1 2 3; do
    start=$(date +%s.%N)
    "$compiler" -std=c++20 -O2 -march=native -fopenmp ${CPPFLAGS:-} -Iinclude -c "$folder/$source.cpp" -o "$folder/out.o"
    end=$(date +%s.%N)
    echo "$source, run $run: $(echo "$end $start" | awk '{printf "%.1f", $1 - $2}') s"
  done
done
