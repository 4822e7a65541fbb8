// A kernel's walk over all values of dense images, in runs of neighbouring values, one thread each.
//
// A run of 16 bytes is one load, and one division finds its place. Where images do not consist of whole runs, a run is one
// value.
#pragma once

#include "cuda/launch.cuh"
#include "views.h"

namespace cls2det {

// kRun neighbouring values
template <typename S, int kRun>
struct alignas(kRun * sizeof(S)) Run {
  S values[kRun];
};

template <typename S>
constexpr int kWide = 16 / int(sizeof(S));

template <int kRun, typename S>
__device__ __forceinline__ Run<S, kRun> load_run(const S* from) {
  return *reinterpret_cast<const Run<S, kRun>*>(from);
}

template <typename S, int kRun>
__device__ __forceinline__ void store_run(S* to, const Run<S, kRun>& run) {
  *reinterpret_cast<Run<S, kRun>*>(to) = run;
}

struct MapPlace {
  int64_t image, value;  // value: of its image
  int64_t outer, inner;
};

__device__ __forceinline__ MapPlace place_of(const DenseShape& shape, int64_t image, int64_t value) {
  const int64_t outer = divide(value, shape.inner);
  return {image, value, outer, value - outer * shape.inner};
}

__device__ __forceinline__ void advance(const DenseShape& shape, MapPlace& at) {
  ++at.value;
  if (++at.inner == shape.inner) at.inner = 0, ++at.outer;
}

// Calls visit(index in all images, place) for the first value of each run.
template <int kRun, typename Visit>
__device__ __forceinline__ void for_runs(const DenseShape& shape, const Visit& visit) {
  const int64_t runs = shape.outer * shape.inner / kRun, total = shape.images * runs;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < total; i += int64_t(gridDim.x) * kBlock) {
    const int64_t image = divide(i, runs);
    visit(i * kRun, place_of(shape, image, (i - image * runs) * kRun));
  }
}

// Whether a map with images `stride` apart, or null, begins every run of 16 bytes at a multiple of 16 bytes.
template <typename S>
bool is_wide(const DenseShape& shape, const S* map, int64_t stride) {
  const bool whole = shape.outer * shape.inner % kWide<S> == 0 && (shape.images == 1 || stride % kWide<S> == 0);
  return map == nullptr || (whole && reinterpret_cast<uintptr_t>(map) % 16 == 0);
}

}  // namespace cls2det
