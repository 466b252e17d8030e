# SPDX-License-Identifier: Apache-2.0
#
# What hymba stands on: an installed package first, a download (HYMBA_FETCH) behind it, a sentence if there is neither.
# No version is asked for: xsimd's version file refuses a newer major release, and the headers guard the differences.
#
# Sets HYMBA_DEPENDENCIES (what hymba::hymba links) and HYMBA_FETCHED (what was downloaded).

include(FetchContent)
set(HYMBA_DEPENDENCIES "")
set(HYMBA_FETCHED "")

# hymba_need(NAME TARGET GIT_URL TAG "how to get it"): after it, TARGET exists, or the configuration has stopped.
macro(hymba_need name target url tag hint)
  if(NOT TARGET ${target})
    find_package(${name} CONFIG QUIET)
  endif()
  if(NOT TARGET ${target} AND HYMBA_FETCH)
    message(STATUS "hymba: ${name} is not installed, fetching ${tag} from ${url}")
    FetchContent_Declare(hymba_${name} GIT_REPOSITORY ${url} GIT_TAG ${tag} GIT_SHALLOW ON)
    FetchContent_MakeAvailable(hymba_${name})
    list(APPEND HYMBA_FETCHED ${name})
  endif()
  if(NOT TARGET ${target})
    message(FATAL_ERROR "hymba: ${name} was not found. Install it (${hint}), or set HYMBA_FETCH=ON to download ${tag}.")
  endif()
endmacro()

# Switches of the projects that may be fetched; an entry of the cache made by the user wins.
set(EIGEN_BUILD_DOC OFF CACHE BOOL "")
set(EIGEN_BUILD_TESTING OFF CACHE BOOL "")
set(EIGEN_BUILD_PKGCONFIG ON CACHE BOOL "")
set(JSON_BuildTests OFF CACHE BOOL "")
set(JSON_Install ${HYMBA_INSTALL} CACHE BOOL "")
mark_as_advanced(EIGEN_BUILD_DOC EIGEN_BUILD_TESTING EIGEN_BUILD_PKGCONFIG JSON_BuildTests JSON_Install)

# Subprojects must not add their own tests to ours.
set(hymba_saved_build_testing "${BUILD_TESTING}")
set(BUILD_TESTING OFF)

hymba_need(Eigen3 Eigen3::Eigen https://gitlab.com/libeigen/eigen.git 3.4.0 "Debian: libeigen3-dev")
hymba_need(xsimd xsimd https://github.com/xtensor-stack/xsimd.git 13.2.0 "Debian: libxsimd-dev")
include("${CMAKE_CURRENT_LIST_DIR}/HymbaXsimd.cmake")
list(APPEND HYMBA_DEPENDENCIES Eigen3::Eigen xsimd)

if(HYMBA_JSON)
  hymba_need(nlohmann_json nlohmann_json::nlohmann_json https://github.com/nlohmann/json.git v3.11.3
             "Debian: nlohmann-json3-dev; HYMBA_JSON=OFF goes without hymba/io")
  list(APPEND HYMBA_DEPENDENCIES nlohmann_json::nlohmann_json)
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
list(APPEND HYMBA_DEPENDENCIES Threads::Threads)

if(HYMBA_OPENMP)
  find_package(OpenMP QUIET COMPONENTS CXX)
  if(NOT TARGET OpenMP::OpenMP_CXX)
    message(FATAL_ERROR "hymba: ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} (${CMAKE_CXX_COMPILER}) has no "
                        "working OpenMP. Install it (clang on Debian: libomp-dev), or set HYMBA_OPENMP=OFF.")
  endif()
  list(APPEND HYMBA_DEPENDENCIES OpenMP::OpenMP_CXX)
endif()

if(HYMBA_TOKENIZER)
  if(NOT TARGET SentencePiece::SentencePiece)
    list(PREPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}")
    find_package(SentencePiece QUIET MODULE)
    list(POP_FRONT CMAKE_MODULE_PATH)
  endif()
  if(NOT TARGET SentencePiece::SentencePiece AND HYMBA_FETCH)
    message(STATUS "hymba: SentencePiece is not installed, fetching v0.2.0")
    set(SPM_ENABLE_SHARED OFF CACHE BOOL "")
    FetchContent_Declare(hymba_sentencepiece GIT_REPOSITORY https://github.com/google/sentencepiece.git GIT_TAG v0.2.0
                                                                                          GIT_SHALLOW ON)
    FetchContent_MakeAvailable(hymba_sentencepiece)
    add_library(SentencePiece::SentencePiece INTERFACE IMPORTED GLOBAL)
    set_target_properties(
      SentencePiece::SentencePiece
      PROPERTIES INTERFACE_LINK_LIBRARIES sentencepiece-static
                 INTERFACE_INCLUDE_DIRECTORIES "${hymba_sentencepiece_SOURCE_DIR}/src")
    list(APPEND HYMBA_FETCHED SentencePiece)
  endif()
  if(NOT TARGET SentencePiece::SentencePiece)
    message(STATUS "hymba: SentencePiece was not found (Debian: libsentencepiece-dev): hymba::tokenizer is left out")
  endif()
endif()

set(BUILD_TESTING "${hymba_saved_build_testing}")
