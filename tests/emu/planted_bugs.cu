// Kernels with one bug each, and the same kernels without it: what the emulator must report, and must not.
// Some break a rule of this project (docs/testing.md) rather than one of CUDA: an exited thread counts at no barrier there.
//   planted_bugs NAME bug|clean   prints "clean", "wrong result" or what was reported, and exits with 0, 2 or 1.
// A sanitizer ends the program by itself. test_planted_bugs.py says which build has to notice which bug.
#include <cstdio>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

namespace cls2det {
namespace {

// Each kernel gets two buffers of kBlock floats: input i holds i, and output i must end as each `Planted` says.

template <bool kBug>
__global__ void global_out_of_bounds(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x + (kBug ? 1 : 0)];  // the last thread reads one too many
}

template <bool kBug>
__global__ void shared_out_of_bounds(const float* in, float* out) {
  CLS2DET_SHARED(float, shared, kBlock);
  shared[threadIdx.x + (kBug ? 1 : 0)] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x + (kBug ? 1 : 0)];
}

template <bool kBug>
__global__ void local_out_of_bounds(const float* in, float* out) {
  float local[4] = {};
  const int steps = int(in[kBug ? 5 : 4]);
  for (int i = 0; i < steps; ++i) local[i] = in[threadIdx.x];
  out[threadIdx.x] = local[int(in[3])];
}

struct alignas(16) Four {
  float x[4];
};

template <bool kBug>
__global__ void misaligned_vector_load(const float* in, float* out) {
  const int i = threadIdx.x, last = kBlock - 4, first = i / 4 * 4 + (kBug && i < last ? 1 : 0);
  const Four four = *reinterpret_cast<const Four*>(in + first);
  out[i] = four.x[i - first < 0 ? 0 : i - first];
}

template <bool kBug>
__global__ void misaligned_shared_load(const float* in, float* out) {
  CLS2DET_SHARED(float, first, 1);
  CLS2DET_SHARED(float, shared, kBlock);
  CLS2DET_SHARED(Four, fours, kBlock / 4);
  const int i = threadIdx.x;
  if (i == 0) first[0] = 0;
  shared[i] = in[i];
  fours[i / 4].x[i % 4] = in[i];
  __syncthreads();
  // an array of floats may begin anywhere that suits a float
  const Four four = kBug ? *reinterpret_cast<const Four*>(shared + i / 4 * 4) : fours[i / 4];
  out[i] = four.x[i % 4];
}

template <bool kBug>
__global__ void float_that_fits_no_int(const float* in, float* out) {
  const float far = in[kBug ? 200 : 2] * 1e8f;
  out[threadIdx.x] = in[threadIdx.x] + float(int(far) / 2000000000);
}

template <bool kBug>
__global__ void index_overflow(const float* in, float* out) {
  const int stride = int(in[kBug ? 128 : 1]) << 24;  // 128 * 2^24 does not fit an int
  const int index = (stride / (1 << 24)) * int(in[1]) + (kBug ? stride + stride : 0);
  out[threadIdx.x] = in[threadIdx.x] + float(index) * 0.0f;
}

template <bool kBug>
__global__ void missing_syncthreads_after_write(const float* in, float* out) {
  CLS2DET_SHARED(float, shared, kBlock);
  shared[threadIdx.x] = in[threadIdx.x];
  if (!kBug) __syncthreads();
  out[threadIdx.x] = shared[kBlock - 1 - threadIdx.x];
}

template <bool kBug>
__global__ void missing_syncthreads_before_reuse(const float* in, float* out) {
  CLS2DET_SHARED(float, shared, kBlock);
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = in[threadIdx.x] * float(1 - 2 * round);
    __syncthreads();
    sum += shared[kBlock - 1 - threadIdx.x] * float(2 - 3 * round);
    if (!kBug) __syncthreads();  // else a fast warp overwrites what a slow one has not read
  }
  out[threadIdx.x] = sum / 3;
}

template <bool kBug>
__global__ void missing_syncwarp(const float* in, float* out) {
  CLS2DET_SHARED(float, shared, kBlock);
  shared[threadIdx.x] = in[threadIdx.x];
  if (!kBug) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 31];
}

template <bool kBug>
__global__ void shuffle_as_fence(const float* in, float* out) {
  CLS2DET_SHARED(float, shared, kBlock);
  shared[threadIdx.x] = in[threadIdx.x];
  __shfl_xor_sync(kAllLanes, in[threadIdx.x], 1);  // waits for the lanes, but orders no memory
  if (!kBug) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 31];
}

template <bool kBug>
__global__ void partial_syncwarp(const float* in, float* out) {
  CLS2DET_SHARED(float, shared, kBlock);
  shared[threadIdx.x] = in[threadIdx.x];
  const unsigned lane = threadIdx.x % kWarp, half = lane < 16 ? 0xffffu : 0xffff0000u;
  __syncwarp(kBug ? half : kAllLanes);  // the halves are ordered within, not with each other
  out[threadIdx.x] = shared[threadIdx.x ^ 31];
}

template <bool kBug>
__global__ void sum_across_blocks(const float* in, float* out) {
  if (kBug) {
    out[threadIdx.x] += in[threadIdx.x];
  } else {
    atomicAdd(out + threadIdx.x, in[threadIdx.x]);
  }
}

template <bool kBug>
__global__ void sum_across_blocks_after_a_look(const float* in, float* out) {
  const float before = kBug && blockIdx.x == 0 ? out[threadIdx.x] : 0;  // while others may be adding
  atomicAdd(out + threadIdx.x, in[threadIdx.x] + before);
}

template <bool kBug>
__global__ void read_across_blocks(const float* in, float* out) {
  if (blockIdx.x == 0) out[threadIdx.x] = in[threadIdx.x];
  if (kBug && blockIdx.x == 1) out[threadIdx.x] = out[kBlock - 1 - threadIdx.x];
}

template <bool kBug>
__global__ void struct_copied_without_barrier(const float* in, float* out) {
  CLS2DET_SHARED(Four, shared, kBlock);
  shared[threadIdx.x] = {{in[threadIdx.x], 0, 0, 0}};
  if (!kBug) __syncthreads();
  Four four = shared[kBlock - 1 - threadIdx.x];
  out[threadIdx.x] = four.x[int(in[0])];
}

template <bool kBug>
__global__ void divergent_barrier(const float* in, float* out) {
  if (kBug && threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

template <bool kBug>
__global__ void early_exit_before_barrier(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (kBug && threadIdx.x >= 200) return;
  __syncthreads();
}

template <bool kBug>
__global__ void early_exit_before_shuffle(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (kBug && threadIdx.x % kWarp == 7) return;
  out[threadIdx.x] = __shfl_sync(kAllLanes, in[threadIdx.x], threadIdx.x % kWarp);
}

template <bool kBug>
__global__ void mask_without_the_caller(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  __syncwarp(kBug ? 0x0000ffffu : kAllLanes);
}

template <bool kBug>
__global__ void mask_of_lanes_that_do_not_come(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x % kWarp < 16) out[threadIdx.x] = __shfl_sync(kBug ? kAllLanes : 0xffffu, in[threadIdx.x], threadIdx.x % 16);
}

template <bool kBug>
__global__ void two_masks_in_one_call(const float* in, float* out) {
  const unsigned lane = threadIdx.x % kWarp;
  out[threadIdx.x] = __shfl_sync(kBug && lane == 3 ? 0xffu : kAllLanes, in[threadIdx.x], int(lane));
}

template <bool kBug>
__global__ void shuffle_from_outside_the_mask(const float* in, float* out) {
  const unsigned lane = threadIdx.x % kWarp, half = lane < 16 ? 0xffffu : 0xffff0000u;
  out[threadIdx.x] = __shfl_sync(half, in[threadIdx.x], int(kBug ? lane ^ 16 : lane));
}

template <bool kBug>
__global__ void vote_meets_shuffle(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (kBug && threadIdx.x % 2) {
    __ballot_sync(kAllLanes, true);
  } else {
    __shfl_sync(kAllLanes, in[threadIdx.x], 0);
  }
  if (!kBug) __ballot_sync(kAllLanes, true);
}

template <bool kBug>
__global__ void warp_waits_at_barrier_and_shuffle(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (kBug && threadIdx.x % kWarp < 4) __syncthreads();
  __syncwarp();
  if (!kBug || threadIdx.x % kWarp >= 4) __syncthreads();
}

template <bool kBug>
__global__ void shared_memory_read_before_written(const float* in, float* out) {
  CLS2DET_SHARED(float, shared, kBlock);
  if (!kBug) shared[threadIdx.x] = 0;
  out[threadIdx.x] = in[threadIdx.x] + shared[threadIdx.x];
}

template <bool kBug>
__global__ void shared_count_read_before_written(const float* in, float* out) {
  CLS2DET_SHARED(int, count, 1);  // -1 where it was not written: no NaN shows
  if (!kBug && threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
  for (int i = 0; i < count[0]; ++i) out[threadIdx.x] = 0;
}

template <bool kBug>
__global__ void reuse_when_blocks_stride(const float* in, float* out) {
  CLS2DET_SHARED(float, shared, kBlock);
  float sum = 0;
  for (unsigned block = blockIdx.x; block < 4; block += gridDim.x) {  // a grid may be smaller than the work
    shared[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    sum += shared[kBlock - 1 - threadIdx.x];
    if (!kBug) __syncthreads();
  }
  const float rounds = gridDim.x == 1 ? 4 : 1;
  if (blockIdx.x == 0) out[threadIdx.x] = sum / rounds;
}

template <bool kBug>
__global__ void too_much_shared_memory(const float* in, float* out) {
  CLS2DET_SHARED(float, shared, (kBug ? 13000 : 12000));
  shared[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = shared[threadIdx.x];
}

struct Planted {
  std::function<void(const float*, float*)> bug, clean;
  std::function<float(int)> expected;
};

float same(int i) { return float(i); }
float mirrored(int i) { return float(kBlock - 1 - i); }
float in_warp(int i) { return float(i ^ 31); }

// The kernel on two blocks that write the same, or on one where they must not.
#define PLANT(name, blocks, expected)                                                                          \
  {                                                                                                            \
    #name, {                                                                                                   \
      [](const float* in, float* out) { CLS2DET_LAUNCH(name<true>, blocks, nullptr, in, out); },               \
          [](const float* in, float* out) { CLS2DET_LAUNCH(name<false>, blocks, nullptr, in, out); }, expected \
    }                                                                                                          \
  }

const std::map<std::string, Planted> kPlanted = {
    PLANT(global_out_of_bounds, 1, same),
    PLANT(shared_out_of_bounds, 1, same),
    PLANT(local_out_of_bounds, 1, same),
    PLANT(misaligned_vector_load, 1, same),
    PLANT(misaligned_shared_load, 1, same),
    PLANT(float_that_fits_no_int, 1, same),
    PLANT(index_overflow, 1, same),
    PLANT(missing_syncthreads_after_write, 1, mirrored),
    PLANT(missing_syncthreads_before_reuse, 1, [](int i) { return mirrored(i) * (2 + 1) / 3; }),
    PLANT(missing_syncwarp, 1, in_warp),
    PLANT(shuffle_as_fence, 1, in_warp),
    PLANT(partial_syncwarp, 1, in_warp),
    PLANT(sum_across_blocks, 3, [](int i) { return 3 * float(i); }),
    PLANT(sum_across_blocks_after_a_look, 3, [](int i) { return 3 * float(i); }),
    PLANT(read_across_blocks, 2, same),
    PLANT(struct_copied_without_barrier, 1, mirrored),
    PLANT(divergent_barrier, 1, same),
    PLANT(early_exit_before_barrier, 1, same),
    PLANT(early_exit_before_shuffle, 1, same),
    PLANT(mask_without_the_caller, 1, same),
    PLANT(mask_of_lanes_that_do_not_come, 1, same),
    PLANT(two_masks_in_one_call, 1, same),
    PLANT(shuffle_from_outside_the_mask, 1, same),
    PLANT(vote_meets_shuffle, 1, same),
    PLANT(warp_waits_at_barrier_and_shuffle, 1, same),
    PLANT(shared_memory_read_before_written, 1, same),
    PLANT(shared_count_read_before_written, 1, same),
    PLANT(reuse_when_blocks_stride, 4, mirrored),
    PLANT(too_much_shared_memory, 1, same),
};

}  // namespace
}  // namespace cls2det

int main(int count, char** arguments) {
  using namespace cls2det;
  if (count != 3) {
    for (const auto& [name, planted] : kPlanted) std::puts(name.c_str());
    return 0;
  }
  std::vector<float> in(kBlock), out(kBlock);
  for (int i = 0; i < kBlock; ++i) in[i] = float(i);
  const Planted& planted = kPlanted.at(arguments[1]);
  try {
    (std::string(arguments[2]) == "bug" ? planted.bug : planted.clean)(in.data(), out.data());
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return 1;
  }
  for (int i = 0; i < kBlock; ++i) {
    if (!(out[i] == planted.expected(i))) {  // so is NaN
      std::printf("wrong result: %g at %d\n", out[i], i);
      return 2;
    }
  }
  std::puts("clean");
  return 0;
}
