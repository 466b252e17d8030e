# SPDX-License-Identifier: Apache-2.0
#
# xsimd 8 as Debian and Ubuntu package it links "xtl" without looking for it; only xsimd's complex numbers, which hymba does
# not use, need that library. Include after find_package(xsimd).
if(TARGET xsimd AND NOT TARGET xtl)
  get_target_property(hymba_xsimd_links xsimd INTERFACE_LINK_LIBRARIES)
  if("xtl" IN_LIST hymba_xsimd_links)
    list(REMOVE_ITEM hymba_xsimd_links xtl)
    set_target_properties(xsimd PROPERTIES INTERFACE_LINK_LIBRARIES "${hymba_xsimd_links}")
  endif()
  unset(hymba_xsimd_links)
endif()
