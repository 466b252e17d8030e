# SPDX-License-Identifier: Apache-2.0
#
# Flags of the programs that this repository itself builds (tests, examples, benchmarks, command line, fuzz targets).
# None of them reaches a consumer of hymba::hymba.

add_library(hymba_own_flags INTERFACE)
if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang" AND NOT CMAKE_CXX_COMPILER_FRONTEND_VARIANT STREQUAL "MSVC")
  target_compile_options(hymba_own_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # gcc 12 takes its own AVX-512 intrinsics for uninitialised reads (gcc bug 105593), all over Eigen.
    target_compile_options(hymba_own_flags INTERFACE -Wno-uninitialized -Wno-maybe-uninitialized -Wno-restrict)
  endif()
  if(HYMBA_WERROR)
    target_compile_options(hymba_own_flags INTERFACE -Werror)
  endif()
  if(HYMBA_NATIVE)
    target_compile_options(hymba_own_flags INTERFACE -march=native)
  endif()
  if(HYMBA_SANITIZE)
    target_compile_options(hymba_own_flags INTERFACE -fsanitize=${HYMBA_SANITIZE} -fno-sanitize-recover=all
                                                     -fno-omit-frame-pointer)
    target_link_options(hymba_own_flags INTERFACE -fsanitize=${HYMBA_SANITIZE})
  endif()
elseif(MSVC)
  target_compile_options(hymba_own_flags INTERFACE /W4 /permissive- /Zc:__cplusplus /utf-8 $<$<BOOL:${HYMBA_WERROR}>:/WX>)
  if(HYMBA_SANITIZE)
    message(FATAL_ERROR "hymba: HYMBA_SANITIZE needs gcc or clang")
  endif()
endif()

# hymba_add_program(NAME DIRECTORY SOURCE...): an executable in <build>/bin/DIRECTORY with our flags.
function(hymba_add_program name directory)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE hymba::hymba hymba_own_flags)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin/${directory}")
endfunction()

# hymba_sources_without_tokenizer(VAR): drops from the list VAR every source that includes SentencePiece or our tokeniser.
# Called when hymba::tokenizer is not there.
function(hymba_sources_without_tokenizer list)
  set(kept "")
  foreach(source IN LISTS ${list})
    file(STRINGS "${source}" uses REGEX "^#include <(sentencepiece|hymba/text/.*tokenizer)")
    if(uses)
      message(STATUS "hymba: ${source} needs hymba::tokenizer and is left out")
    else()
      list(APPEND kept "${source}")
    endif()
  endforeach()
  set(${list} "${kept}" PARENT_SCOPE)
endfunction()

# Environment of every test: threads that wait give their core to the test beside them.
set(HYMBA_TEST_ENVIRONMENT "OMP_WAIT_POLICY=passive")
if(HYMBA_SANITIZE MATCHES "undefined")
  list(APPEND HYMBA_TEST_ENVIRONMENT "UBSAN_OPTIONS=print_stacktrace=1")
endif()
if(HYMBA_SANITIZE MATCHES "address")
  list(APPEND HYMBA_TEST_ENVIRONMENT
       "LSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0")
endif()
if(HYMBA_SANITIZE STREQUAL "thread")
  if(HYMBA_OPENMP AND NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(WARNING "hymba: gcc's libgomp is not instrumented; the thread sanitizer will report races that are none. "
                    "Use clang with libomp and its archer library.")
  endif()
  # Archer tells the sanitizer of OpenMP's own synchronisation; what is not instrumented (libomp itself) is not judged.
  get_filename_component(hymba_clang "${CMAKE_CXX_COMPILER}" REALPATH)
  get_filename_component(hymba_clang_bin "${hymba_clang}" DIRECTORY)
  find_file(HYMBA_ARCHER NAMES libarcher.so HINTS "${hymba_clang_bin}/../lib")
  mark_as_advanced(HYMBA_ARCHER)
  list(APPEND HYMBA_TEST_ENVIRONMENT "TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1")
  if(HYMBA_ARCHER)
    list(APPEND HYMBA_TEST_ENVIRONMENT "OMP_TOOL_LIBRARIES=${HYMBA_ARCHER}")
  elseif(HYMBA_OPENMP)
    message(WARNING "hymba: libarcher.so was not found; the thread sanitizer cannot see OpenMP's barriers")
  endif()
endif()

# hymba_test_properties(LABEL TEST...): what every test of ours has in common.
function(hymba_test_properties label)
  set_tests_properties(${ARGN} PROPERTIES LABELS "${label}" ENVIRONMENT "${HYMBA_TEST_ENVIRONMENT}" TIMEOUT 900)
endfunction()
