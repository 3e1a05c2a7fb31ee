// Stands in for <metal_stdlib> when a .metal file, rewritten by rewrite.py, is compiled as C++ by clang.
// It holds what this project's kernels use and no more; what is missing is a compile error, not a guess.
//
// MSL_ADDRESS_SPACES 1 keeps Metal's address spaces as clang's, so that mixing them is an error. 0 drops them: the
// sanitizers do not watch accesses outside address space 0.
#pragma once
#pragma clang system_header  // newer C++ than the kernels may use

#include "kernel_abi.h"

#ifndef MSL_ADDRESS_SPACES
#define MSL_ADDRESS_SPACES 1
#endif
#if MSL_ADDRESS_SPACES
#define MSL_DEVICE __attribute__((address_space(1)))
#define MSL_CONSTANT __attribute__((address_space(2)))
#define MSL_THREADGROUP __attribute__((address_space(3)))
#else
#define MSL_DEVICE
#define MSL_CONSTANT
#define MSL_THREADGROUP
#endif
#define MSL_THREAD
#define MSL_INLINE inline __attribute__((always_inline))

#include "msl_types.h"

#include "msl_math.h"

#include "msl_simdgroup.h"

#include "msl_matrix.h"

#include "msl_kernel.h"
