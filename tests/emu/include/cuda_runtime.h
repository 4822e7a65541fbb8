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
#define __launch_bounds__(...)

#define CLS2DET_LAUNCH(kernel, blocks, stream, ...) \
  ((void)(stream), ::emulator::launch(#kernel, blocks, ::cls2det::kBlock, [&] { (kernel)(__VA_ARGS__); }))
#define CLS2DET_SHARED(type, name, size) \
  static const char name##_site = 0;     \
  type* const name = static_cast<type*>(::emulator::shared_memory(&name##_site, sizeof(type) * (size), alignof(type)))

struct EmulatedIndex {
  unsigned x;
};
extern EmulatedIndex threadIdx, blockIdx, gridDim, blockDim;

using cudaStream_t = void*;

inline void cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(memory, value, bytes);
}

namespace emulator {

struct Site {  // one call of a collective in the source
  const char *name, *file;
  int line;
};

void launch(const char* kernel, unsigned blocks, unsigned threads, const std::function<void()>& thread);

// The same memory for all threads of a block, filled with 0xFF (NaN) when the block starts.
void* shared_memory(const void* site, size_t bytes, size_t alignment);

void block_barrier(Site site);

// Waits for the lanes of `mask`; returns the value of each of them. Valid until the next collective.
const uint64_t* exchange(unsigned mask, uint64_t value, Site site);

void check_source(unsigned mask, unsigned source, Site site);

void begin_atomic(const volatile void* address, size_t bytes);
void end_atomic();

unsigned lane();

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
  static_assert(sizeof(T) <= 8);
  check_source(mask, source, site);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t result = exchange(mask, bits, site)[source];
  std::memcpy(&value, &result, sizeof(T));
  return value;
}

}  // namespace emulator

#define EMULATED_SITE(name) emulator::Site site = {name, __builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(EMULATED_SITE("__syncthreads")) { emulator::block_barrier(site); }
inline void __syncwarp(unsigned mask = ~0u, EMULATED_SITE("__syncwarp")) { emulator::exchange(mask, 0, site); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, EMULATED_SITE("__shfl_sync")) {
  return emulator::shuffle(mask, value, unsigned(source) % 32, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step, EMULATED_SITE("__shfl_xor_sync")) {
  return emulator::shuffle(mask, value, emulator::lane() ^ unsigned(step), site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, EMULATED_SITE("__shfl_down_sync")) {
  const unsigned lane = emulator::lane();
  return emulator::shuffle(mask, value, lane + step < 32 ? lane + step : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, bool vote, EMULATED_SITE("__ballot_sync")) {
  const uint64_t* votes = emulator::exchange(mask, vote, site);
  unsigned bits = 0;
  for (unsigned i = 0; i < 32; ++i) bits |= unsigned(mask >> i & 1 && votes[i]) << i;
  return bits;
}

template <typename T>
T atomicAdd(T* address, T value) {
  emulator::begin_atomic(address, sizeof(T));
  const T before = *address;
  *address = before + value;
  emulator::end_atomic();
  return before;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
