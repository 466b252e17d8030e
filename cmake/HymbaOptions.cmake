# SPDX-License-Identifier: Apache-2.0
#
# Every option of the build. What only serves the work on hymba itself is on when hymba is the top-level project and off
# when it is part of another one.

option(HYMBA_OPENMP "Run over the host's cores with OpenMP. OFF: serial, or an executor of your own" ON)
option(HYMBA_JSON "Link nlohmann_json, which the headers of hymba/io (config.json, safetensors) include" ON)
option(HYMBA_TOKENIZER "Provide hymba::tokenizer when SentencePiece is there" ON)
option(HYMBA_FETCH "Download a dependency that is not installed (FetchContent, exact tags)" ${PROJECT_IS_TOP_LEVEL})
option(HYMBA_INSTALL "Generate the install rules: headers, CMake package, pkg-config files" ${PROJECT_IS_TOP_LEVEL})

option(HYMBA_BUILD_TESTS "Build the tests (doctest) and register them with ctest" ${PROJECT_IS_TOP_LEVEL})
option(HYMBA_BUILD_EXAMPLES "Build examples/*.cpp into bin/examples; with the tests on, each runs as a test"
       ${PROJECT_IS_TOP_LEVEL})
option(HYMBA_BUILD_CLI "Build the command line program bin/hymba (CLI11, SentencePiece, nlohmann_json)"
       ${PROJECT_IS_TOP_LEVEL})
option(HYMBA_BUILD_BENCH "Build the benchmarks (Google Benchmark) into bin/bench" ${PROJECT_IS_TOP_LEVEL})
option(HYMBA_BUILD_FUZZ "Build the libFuzzer targets of tests/fuzz and register them with ctest; needs clang" OFF)

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_CROSSCOMPILING)
  set(hymba_native_default ON)
else()
  set(hymba_native_default OFF)
endif()
option(HYMBA_NATIVE "Compile hymba's own programs with -march=native (never a consumer of hymba::hymba)"
       ${hymba_native_default})
option(HYMBA_WERROR "Make the compiler's warnings errors in hymba's own programs" OFF)

set(HYMBA_SANITIZE "" CACHE STRING "Sanitizers of hymba's own programs: empty, 'address,undefined' or 'thread'")
set_property(CACHE HYMBA_SANITIZE PROPERTY STRINGS "" "address,undefined" "thread")
set(HYMBA_THREAD_TESTS "test_*thread*;test_team*;test_step_shares;test_session*;test_batch*;test_train_trainer"
    CACHE STRING "Globs over the names of unit tests that the target hymba_thread_tests builds and the label 'thread' runs")
set(HYMBA_FUZZ_RUNS "20000" CACHE STRING "Inputs each fuzz target tries when it runs as a test")

set(hymba_sanitizers_known "" "address,undefined" "thread" "address" "undefined")
if(NOT HYMBA_SANITIZE IN_LIST hymba_sanitizers_known)
  message(FATAL_ERROR "hymba: HYMBA_SANITIZE is '${HYMBA_SANITIZE}'; use '', 'address,undefined' or 'thread'")
endif()

if(PROJECT_IS_TOP_LEVEL)
  get_property(hymba_multi_config GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
  if(NOT hymba_multi_config AND NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
  endif()
  set(CMAKE_CXX_EXTENSIONS OFF)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
endif()
