// What every kernel file needs: launch and shared-memory macros, types, and sums over a warp and a block.
//
// Kernels are free of torch: raw pointers, sizes and a stream. The two macros are all that a test build on the CPU replaces.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#if !defined(CLS2DET_LAUNCH)
#define CLS2DET_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(__VA_ARGS__)
#define CLS2DET_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace cls2det {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

// The dtype of sums: float for 16 and 32 bits, double for double.
template <typename S>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <typename S>
using Accumulate = typename AccumulateOf<S>::type;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 128;  // of every block

// Blocks for `items` items of `per_block`; at least one, so that an empty launch is still a valid one.
inline int64_t blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return blocks > 0 ? blocks : 1;
}

#if defined(__CUDACC__) || defined(CLS2DET_EMULATED)

// Butterfly: every lane gets the same sum, always added in the same order.
template <typename T>
__device__ inline T warp_sum(T x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

template <typename T>
__device__ inline T warp_max(T x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// Sums of n values over the block; the result is in values[] of thread 0. shared: (kThreads / kWarp, n).
template <int n, typename T>
__device__ inline void block_sum(T (&values)[n], T* shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int i = 0; i < n; ++i) {
    values[i] = warp_sum(values[i]);
    if (lane == 0) shared[warp * n + i] = values[i];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; i < n; ++i) {
      for (int w = 1; w < kThreads / kWarp; ++w) values[i] += shared[w * n + i];
    }
  }
  __syncthreads();
}

#endif

}  // namespace cls2det
