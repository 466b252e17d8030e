# SPDX-License-Identifier: Apache-2.0
#
# FindSentencePiece: SentencePiece ships a pkg-config file but no CMake package.
#
# Defines SentencePiece_FOUND, SentencePiece_VERSION (if pkg-config knows it) and the target SentencePiece::SentencePiece.

find_package(PkgConfig QUIET)
if(PkgConfig_FOUND)
  pkg_check_modules(PC_SentencePiece QUIET sentencepiece)
endif()

find_path(SentencePiece_INCLUDE_DIR NAMES sentencepiece_processor.h HINTS ${PC_SentencePiece_INCLUDE_DIRS}
                                                                          ${PC_SentencePiece_INCLUDEDIR})
find_library(SentencePiece_LIBRARY NAMES sentencepiece HINTS ${PC_SentencePiece_LIBRARY_DIRS} ${PC_SentencePiece_LIBDIR})
set(SentencePiece_VERSION "${PC_SentencePiece_VERSION}")

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  SentencePiece
  REQUIRED_VARS SentencePiece_LIBRARY SentencePiece_INCLUDE_DIR
  VERSION_VAR SentencePiece_VERSION)

if(SentencePiece_FOUND AND NOT TARGET SentencePiece::SentencePiece)
  add_library(SentencePiece::SentencePiece UNKNOWN IMPORTED)
  set_target_properties(
    SentencePiece::SentencePiece PROPERTIES IMPORTED_LOCATION "${SentencePiece_LIBRARY}"
                                            INTERFACE_INCLUDE_DIRECTORIES "${SentencePiece_INCLUDE_DIR}")
endif()
mark_as_advanced(SentencePiece_INCLUDE_DIR SentencePiece_LIBRARY)
