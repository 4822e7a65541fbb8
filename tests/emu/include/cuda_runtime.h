// Stand-in for CUDA's header: runs the unmodified kernels of csrc/cuda on the CPU, one fiber per CUDA thread.
//
// Blocks run one after another. Inside a block the scheduler is greedy: a thread runs until it waits for others, which shows
// a missing barrier that a fair scheduler would hide. A collective checks that all threads it waits for are still alive;
// when nobody can go on, the launch fails with the kernel's name. Dynamic shared memory is filled with NaN for each block.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#define CLS2DET_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define CLS2DET_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  ((void)(stream), ::emulated::launch(#kernel, blocks, threads, shared_bytes, [=] { (kernel)(__VA_ARGS__); }))
#define CLS2DET_DYNAMIC_SHARED(name) unsigned char* name = ::emulated::shared_memory()

typedef void* cudaStream_t;

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

namespace emulated {

enum class Wait { nothing, warp, block };

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
  Wait wait = Wait::nothing;
  const char* at = "";
};

struct Block {
  const char* kernel = "";
  std::function<void()> body;
  std::vector<Thread> threads;
  std::vector<unsigned char> shared;
  std::vector<uint64_t> exchange;  // one slot per thread, for shuffles
  std::string error;
  ucontext_t scheduler;
  int current = 0;
};

Block& block();
void launch(const char* kernel, int64_t blocks, int threads, size_t shared_bytes, const std::function<void()>& body);
void wait(Wait kind, const char* at);
unsigned char* shared_memory();

// All lanes of a warp hand in a value and read another lane's. Two barriers: hand in, read.
template <typename T>
T shuffle_xor(unsigned mask, T value, int step) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "one slot per lane");
  if (mask != 0xffffffffu) throw std::runtime_error("emulated: only full masks are supported");
  Block& b = block();
  const int me = b.current;
  std::memcpy(&b.exchange[me], &value, sizeof(T));
  wait(Wait::warp, "__shfl_xor_sync");
  T other;
  std::memcpy(&other, &b.exchange[(me & ~31) | ((me & 31) ^ step)], sizeof(T));
  wait(Wait::warp, "__shfl_xor_sync");
  return other;
}

}  // namespace emulated

extern Index3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { ::emulated::wait(::emulated::Wait::block, "__syncthreads"); }
inline void __syncwarp() { ::emulated::wait(::emulated::Wait::warp, "__syncwarp"); }
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
  return ::emulated::shuffle_xor(mask, value, step);
}
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
