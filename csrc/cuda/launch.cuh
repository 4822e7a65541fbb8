// How kernels are launched and shared memory is declared: the only two places where CUDA's own syntax is hidden, so that
// the same files can be compiled and run by a C++ compiler (tests/emu).
//
// What that cannot run (inline assembly, tensor cores, asynchronous copies, cooperative groups, code for one
// architecture) belongs here as well, each behind a helper with a portable body: exp2_fast.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#ifndef CLS2DET_LAUNCH
#define CLS2DET_LAUNCH(kernel, blocks, stream, ...) (kernel)<<<blocks, ::cls2det::kBlock, 0, stream>>>(__VA_ARGS__)
#define CLS2DET_SHARED(type, name, size) __shared__ type name[size]
#endif

namespace cls2det {

constexpr int kBlock = 256;  // threads of every block
constexpr int kWarp = 32;
constexpr int kWarps = kBlock / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Grids are one-dimensional and kernels stride over them, so that no argument is too large for one.
inline unsigned grid_of(int64_t blocks) { return unsigned(blocks < INT32_MAX ? blocks : INT32_MAX); }

// a / b for a >= 0, b > 0. A 64-bit division costs a GPU about 100 instructions, a 32-bit one 20.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

// 2^x to 2 units in the last place, 0 where that is no normal number. One instruction; expf takes eight.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

}  // namespace cls2det
