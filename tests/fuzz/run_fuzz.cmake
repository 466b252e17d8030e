# SPDX-License-Identifier: Apache-2.0
#
# Runs one libFuzzer PROGRAM over RUNS inputs, from a fixed seed and an empty WORK folder, so that every run is the same and
# nothing is written into the SEEDS of the source tree. An input that fails is left in WORK.

file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}/found")
set(seeds "")
if(IS_DIRECTORY "${SEEDS}")
  set(seeds "${SEEDS}")
endif()
execute_process(
  COMMAND "${PROGRAM}" -runs=${RUNS} -seed=1 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1
          "-artifact_prefix=${WORK}/" "${WORK}/found" ${seeds}
  WORKING_DIRECTORY "${WORK}"
  RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "the fuzz target failed (${result}); the input that did it is in ${WORK}")
endif()
