# SPDX-License-Identifier: Apache-2.0
#
# cmake --install: headers, the CMake package (find_package(hymba CONFIG)), pkg-config files, and bin/hymba if it was built.
# Everything of the library is in the component hymba_dev and carries no path of this machine.

include(CMakePackageConfigHelpers)
set(hymba_cmake_dir "${CMAKE_INSTALL_DATADIR}/cmake/hymba")
set(hymba_pkgconfig_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")

if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.23)
  install(TARGETS hymba EXPORT hymbaTargets FILE_SET HEADERS COMPONENT hymba_dev)
else()
  install(TARGETS hymba EXPORT hymbaTargets)
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/hymba" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT hymba_dev)
endif()
install(EXPORT hymbaTargets NAMESPACE hymba:: DESTINATION "${hymba_cmake_dir}" COMPONENT hymba_dev)

configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/hymbaConfig.cmake.in" "${PROJECT_BINARY_DIR}/hymbaConfig.cmake"
                              INSTALL_DESTINATION "${hymba_cmake_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/hymbaConfigVersion.cmake" COMPATIBILITY SameMajorVersion
                                                                                  ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/hymbaConfig.cmake" "${PROJECT_BINARY_DIR}/hymbaConfigVersion.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/HymbaXsimd.cmake"
        DESTINATION "${hymba_cmake_dir}" COMPONENT hymba_dev)

# pkg-config: the prefix is worked out from where the .pc file lies.
file(RELATIVE_PATH hymba_pc_prefix "/prefix/${hymba_pkgconfig_dir}" "/prefix")
string(REGEX REPLACE "/$" "" hymba_pc_prefix "${hymba_pc_prefix}")
set(hymba_pc_requires "eigen3, xsimd")
if(HYMBA_JSON)
  string(APPEND hymba_pc_requires ", nlohmann_json")
endif()
set(hymba_pc_openmp "")
if(HYMBA_OPENMP)
  if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    set(hymba_pc_openmp " -fopenmp")
  else()
    set(hymba_pc_openmp " ${OpenMP_CXX_FLAGS}")
  endif()
endif()
configure_file("${PROJECT_SOURCE_DIR}/cmake/hymba.pc.in" "${PROJECT_BINARY_DIR}/hymba.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/hymba.pc" DESTINATION "${hymba_pkgconfig_dir}" COMPONENT hymba_dev)

if(TARGET hymba_tokenizer)
  install(TARGETS hymba_tokenizer EXPORT hymbaTokenizerTargets)
  install(EXPORT hymbaTokenizerTargets NAMESPACE hymba:: DESTINATION "${hymba_cmake_dir}" COMPONENT hymba_dev)
  install(FILES "${PROJECT_SOURCE_DIR}/cmake/FindSentencePiece.cmake" DESTINATION "${hymba_cmake_dir}"
          COMPONENT hymba_dev)
  configure_file("${PROJECT_SOURCE_DIR}/cmake/hymba-tokenizer.pc.in" "${PROJECT_BINARY_DIR}/hymba-tokenizer.pc" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/hymba-tokenizer.pc" DESTINATION "${hymba_pkgconfig_dir}" COMPONENT hymba_dev)
endif()

if(TARGET hymba_cli)
  install(TARGETS hymba_cli RUNTIME COMPONENT hymba_cli)
endif()
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT hymba_dev)
