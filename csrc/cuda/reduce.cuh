// Sums and maxima over the lanes of a warp and over a block, always in the same order.
#pragma once

#include "cuda/launch.cuh"

namespace cls2det {

// Over aligned groups of `lanes` lanes (a power of two); every lane of the group gets the sum. All 32 lanes must call.
template <typename T>
__device__ __forceinline__ T lanes_sum(T value, int lanes = kWarp) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <typename T>
__device__ __forceinline__ T lanes_max(T value, int lanes = kWarp) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// values[0..N) summed over the block, valid in thread 0. shared: N * kWarps values. All threads must call, and may call
// again at once.
template <int N, typename T>
__device__ __forceinline__ void block_sum(T* values, T* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int i = 0; i < N; ++i) {
    const T sum = lanes_sum(values[i]);
    if (lane == 0) shared[i * kWarps + warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; i < N; ++i) {
      values[i] = T(0);
      for (int w = 0; w < kWarps; ++w) values[i] += shared[i * kWarps + w];
    }
  }
  __syncthreads();
}

}  // namespace cls2det
