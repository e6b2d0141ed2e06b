# librmp_fast with its C header, for find_package(rmp_fast) and pkg-config. BUILD_SHARED_LIBS=OFF makes it static.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

option(BUILD_SHARED_LIBS "Build librmp_fast as a shared library" ON)

add_library(rmp_fast csrc/dispatch.cpp csrc/library/api.cpp csrc/library/blur.cpp csrc/library/filling.cpp
            csrc/library/measurement.cpp csrc/library/plan.cpp csrc/library/table.cpp)
add_library(rmp_fast::rmp_fast ALIAS rmp_fast)
target_link_libraries(rmp_fast PRIVATE $<BUILD_INTERFACE:rmp_fast_options> OpenMP::OpenMP_CXX)
target_include_directories(rmp_fast INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/include>
                           $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_definitions(rmp_fast PRIVATE RMP_FAST_VERSION="${PROJECT_VERSION}")
# As for the kernels: the coefficients of the chain must not depend on what a processor can fuse.
target_compile_options(rmp_fast PRIVATE -ffp-contract=off)
# Before version 1 every minor version may change the binary interface.
set_target_properties(rmp_fast PROPERTIES VERSION ${PROJECT_VERSION}
                      SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
# The standard library's templates are visible whatever the compiler is told.
if(BUILD_SHARED_LIBS AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(rmp_fast PRIVATE "LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/rmp_fast.map")
  set_property(TARGET rmp_fast APPEND PROPERTY LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/rmp_fast.map)
endif()

set(rmp_fast_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/rmp_fast)
install(TARGETS rmp_fast EXPORT rmp_fastTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES csrc/include/rmp_fast.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT rmp_fastTargets NAMESPACE rmp_fast:: DESTINATION ${rmp_fast_cmake_dir})
configure_package_config_file(cmake/rmp_fastConfig.cmake.in rmp_fastConfig.cmake
                              INSTALL_DESTINATION ${rmp_fast_cmake_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(rmp_fastConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/rmp_fastConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/rmp_fastConfigVersion.cmake
        DESTINATION ${rmp_fast_cmake_dir})
# Libraries may lie deeper than in lib, as in lib/x86_64-linux-gnu.
file(RELATIVE_PATH rmp_fast_prefix /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(cmake/rmp_fast.pc.in rmp_fast.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/rmp_fast.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
