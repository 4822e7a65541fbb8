// Stands in for CUDA's header when the kernels are compiled for the CPU: every thread of a block runs as a fiber, blocks run
// one after another. See emulator.cpp for what is checked; what is not declared here does not compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)

#define CLS2DET_LAUNCH(kernel, blocks, stream, ...) \
  ((void)(stream), ::emulator::launch(blocks, ::cls2det::kBlock, [&] { (kernel)(__VA_ARGS__); }))
#define CLS2DET_SHARED(type, name, size) \
  static const char name##_site = 0;     \
  type* const name = static_cast<type*>(::emulator::shared_memory(&name##_site, sizeof(type) * (size)))

struct EmulatedIndex {
  unsigned x;
};
extern EmulatedIndex threadIdx, blockIdx, gridDim, blockDim;

using cudaStream_t = void*;

inline void cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(memory, value, bytes);
}

namespace emulator {

struct Site {  // where a collective was called
  const char* file;
  int line;
};

void launch(unsigned blocks, unsigned threads, const std::function<void()>& thread);

// The same memory for all threads of a block, filled with 0xFF (NaN) when the block starts.
void* shared_memory(const void* site, size_t bytes);

void block_barrier(Site site);

// Waits for all 32 lanes of the warp; returns what each of them brought. Valid until the next collective.
const uint64_t* exchange(unsigned mask, uint64_t brought, Site site);

unsigned lane();

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t received = exchange(mask, bits, site)[source % 32];
  std::memcpy(&value, &received, sizeof(T));
  return value;
}

}  // namespace emulator

#define EMULATED_SITE emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(EMULATED_SITE) { emulator::block_barrier(site); }
inline void __syncwarp(unsigned mask = ~0u, EMULATED_SITE) { emulator::exchange(mask, 0, site); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, EMULATED_SITE) {
  return emulator::shuffle(mask, value, unsigned(source), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step, EMULATED_SITE) {
  return emulator::shuffle(mask, value, emulator::lane() ^ unsigned(step), site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, EMULATED_SITE) {
  const unsigned lane = emulator::lane();
  return emulator::shuffle(mask, value, lane + step < 32 ? lane + step : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, bool vote, EMULATED_SITE) {
  const uint64_t* votes = emulator::exchange(mask, vote, site);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= unsigned(votes[i]) << i;
  return bits;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
