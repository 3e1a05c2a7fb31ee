# The Metal backend, on Apple systems only: Objective-C++ with ARC, and the kernels inside the library.
# With Xcode's compiler a metallib is made at build time; the command line tools alone have none, and the kernels are
# then compiled when the backend starts. FLASH_MOE_METALLIB=OFF takes that way on purpose.
enable_language(OBJCXX)
set(CMAKE_OBJCXX_STANDARD 20)
set(CMAKE_OBJCXX_STANDARD_REQUIRED ON)
set(CMAKE_OBJCXX_EXTENSIONS OFF)
set(CMAKE_OBJCXX_VISIBILITY_PRESET hidden)
option(FLASH_MOE_METALLIB "Compile Metal kernels at build time where the compiler is installed" ON)

file(GLOB metal_sources CONFIGURE_DEPENDS csrc/backend/metal/*.mm)
file(GLOB metal_kernels CONFIGURE_DEPENDS metal/*.metal)
file(GLOB metal_headers CONFIGURE_DEPENDS metal/*.h)
set(metallib "")
if(FLASH_MOE_METALLIB)
  execute_process(COMMAND xcrun --sdk macosx --find metal RESULT_VARIABLE metal_missing OUTPUT_QUIET ERROR_QUIET)
  if(metal_missing EQUAL 0)
    set(metallib ${CMAKE_CURRENT_BINARY_DIR}/flash_moe.metallib)
    set(metal_objects "")
    foreach(kernel ${metal_kernels})
      get_filename_component(stem ${kernel} NAME_WE)
      set(object ${CMAKE_CURRENT_BINARY_DIR}/${stem}.air)
      # No fast maths: the tolerances of the tests assume IEEE infinities, NaN and order.
      add_custom_command(OUTPUT ${object} DEPENDS ${kernel} ${metal_headers} VERBATIM
        COMMAND xcrun --sdk macosx metal -std=metal3.1 -mmacosx-version-min=14.0 -fno-fast-math -O2 -c ${kernel} -o ${object})
      list(APPEND metal_objects ${object})
    endforeach()
    add_custom_command(OUTPUT ${metallib} DEPENDS ${metal_objects} VERBATIM
      COMMAND xcrun --sdk macosx metallib ${metal_objects} -o ${metallib})
  else()
    message(STATUS "No Metal compiler: kernels are compiled at run time")
  endif()
endif()

set(embedded ${CMAKE_CURRENT_BINARY_DIR}/metal_kernels.cpp)
add_custom_command(OUTPUT ${embedded} VERBATIM
  DEPENDS ${PROJECT_SOURCE_DIR}/cmake/embed_metal.cmake ${metal_kernels} ${metal_headers} ${metallib}
  COMMAND ${CMAKE_COMMAND} -DSOURCE_DIR=${PROJECT_SOURCE_DIR}/metal -DOUTPUT=${embedded} -DMETALLIB=${metallib}
          -P ${PROJECT_SOURCE_DIR}/cmake/embed_metal.cmake)

target_sources(flash_moe_objects PRIVATE ${metal_sources} ${embedded})
set_source_files_properties(${metal_sources} PROPERTIES COMPILE_OPTIONS "-fobjc-arc")
set_source_files_properties(${embedded} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
target_include_directories(flash_moe_objects PRIVATE ${PROJECT_SOURCE_DIR})  # "metal/args.h"
list(APPEND frameworks "-framework Foundation" "-framework Metal")
