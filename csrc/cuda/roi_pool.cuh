// Pooling one bin of one box from the axis tables, for a few channels at a time:
//
//     v(f)  = sum_e e.weight I[e.pixel, f.pixel],  and the same with e.lo, e.hi
//     value = sum_f f.weight v(f)       d value / dx1 = sum_f f.lo v(f)     d value / dy1 = sum_f f.weight v_lo(f)
//
// Each pixel under the bin is read once, for the value and all four derivatives. The channels of a thread share the entries
// and read their pixels at the same time: a bin has few pixels, and most of its time is waiting for them.
#pragma once

#include "cuda/roi_pool_kernel.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "math/sampling.h"

namespace cls2det {

// The pooled value and its derivatives by the edges of the box, in the order of a box.
template <typename T>
struct Pooled {
  T value, x1, y1, x2, y2;
};

// The tables of one box.
template <typename T>
struct BoxTables {
  const AxisEntry<T>*y, *x;  // (out_h, slots_y), (out_w, slots_x)
  const int *y_count, *x_count;
  int state, slots_y, slots_x;
};

template <typename T>
__device__ __forceinline__ BoxTables<T> box_tables(const AxisTables<T>& tables, int64_t box) {
  const int64_t row = tables.shared ? 0 : box;
  const int64_t y_entries = int64_t(tables.out_h) * tables.slots_y, x_entries = int64_t(tables.out_w) * tables.slots_x;
  const AxisEntry<T>* entries = tables.entries + row * (y_entries + x_entries);
  const int* counts = tables.counts + row * (1 + int64_t(tables.out_h) + tables.out_w);
  return {entries, entries + y_entries, counts + 1, counts + 1 + tables.out_h, counts[0], tables.slots_y, tables.slots_x};
}

constexpr int kThreadChannels = 4;  // of one thread

// Bin (p, q) of `planes` channels `spread` apart, by `lanes` neighbouring lanes that each take a part of the columns; all of
// them get the results. All 32 lanes of the warp must call.
template <bool kEdges, typename S, typename T>
__device__ __forceinline__ void pool_bin(
    const S* first, int64_t spread, int planes, int64_t stride_y, int64_t stride_x, const BoxTables<T>& tables, int p, int q,
    int lanes, Pooled<T>* sums) {
  const int x_count = tables.x_count[q], y_count = tables.y_count[p];
  const AxisEntry<T>* ye = tables.y + int64_t(p) * tables.slots_y;
  const AxisEntry<T>* xe = tables.x + int64_t(q) * tables.slots_x;
  for (int c = 0; c < kThreadChannels; ++c) sums[c] = {};
  for (int f = threadIdx.x & (lanes - 1); f < x_count; f += lanes) {
    const AxisEntry<T> x = xe[f];
    const S* column = first + x.pixel * stride_x;
    T v[kThreadChannels] = {}, lo[kThreadChannels] = {}, hi[kThreadChannels] = {};
#pragma unroll 4
    for (int e = 0; e < y_count; ++e) {
      const AxisEntry<T> y = ye[e];
      const S* pixels = column + y.pixel * stride_y;
#pragma unroll
      for (int c = 0; c < kThreadChannels; ++c) {
        const T pixel = c < planes ? static_cast<T>(pixels[c * spread]) : T(0);
        v[c] += y.weight * pixel;
        if (kEdges) lo[c] += y.lo * pixel, hi[c] += y.hi * pixel;
      }
    }
#pragma unroll
    for (int c = 0; c < kThreadChannels; ++c) {
      sums[c].value += x.weight * v[c];
      if (kEdges) {
        sums[c].x1 += x.lo * v[c];
        sums[c].x2 += x.hi * v[c];
        sums[c].y1 += x.weight * lo[c];
        sums[c].y2 += x.weight * hi[c];
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kThreadChannels; ++c) {
    sums[c].value = lanes_sum(sums[c].value, lanes);
    if (kEdges) {
      sums[c].x1 = lanes_sum(sums[c].x1, lanes);
      sums[c].y1 = lanes_sum(sums[c].y1, lanes);
      sums[c].x2 = lanes_sum(sums[c].x2, lanes);
      sums[c].y2 = lanes_sum(sums[c].y2, lanes);
    }
    if (tables.state == kNotFinite) {
      const T nan = T(NAN);
      sums[c] = {nan, nan, nan, nan, nan};
    }
  }
}

// Channels that share a thread are this far apart, so that neighbouring threads have neighbouring channels.
__host__ __device__ inline int64_t channel_slots(int64_t channels) {
  return (channels + kThreadChannels - 1) / kThreadChannels;
}

// Calls visit(index in (C, bins), Pooled) once for each value of tile `tile` of one box.
template <bool kEdges, typename S, typename T, typename Visit>
__device__ __forceinline__ void pool_tile(
    const MapView<S>& map, int64_t image, const AxisTables<T>& tables, const BoxTables<T>& box, const Tiling& tiling,
    int64_t tile, const Visit& visit) {
  const int64_t bins = int64_t(tables.out_h) * tables.out_w, slots = channel_slots(map.channels), all = slots * bins;
  const int64_t begin = tile * tiling.items, end = begin + tiling.items < all ? begin + tiling.items : all;
  const int group = threadIdx.x / tiling.lanes, groups = kBlock / tiling.lanes;
  const S* base = map.data + image * map.stride_n;
  for (int64_t first = begin; first < end; first += groups) {  // the same rounds for all lanes: pool_bin shuffles
    const bool active = first + group < end;
    const int64_t item = active ? first + group : end - 1;
    const int64_t fast = tiling.channels_first ? slots : bins, slow = divide(item, fast), rest = item - slow * fast;
    const int64_t slot = tiling.channels_first ? rest : slow, bin = tiling.channels_first ? slow : rest;
    const int planes = int((map.channels - slot + slots - 1) / slots);  // slot, slot + slots, ...
    const int p = int(divide(bin, tables.out_w)), q = int(bin - int64_t(p) * tables.out_w);
    Pooled<T> pooled[kThreadChannels];
    pool_bin<kEdges>(
        base + slot * map.stride_c, slots * map.stride_c, planes, map.stride_y, map.stride_x, box, p, q, tiling.lanes, pooled);
    if (!active || (threadIdx.x & (tiling.lanes - 1)) != 0) continue;
#pragma unroll
    for (int c = 0; c < kThreadChannels; ++c) {
      if (c < planes) visit((slot + c * slots) * bins + bin, pooled[c]);
    }
  }
}

}  // namespace cls2det
