// Pooling one value of one box from the axis tables:
//
//     v(e)  = sum_f f.weight I[e.pixel, f.pixel],  and the same with f.lo, f.hi
//     value = sum_e e.weight v(e)       d value / dx1 = sum_e e.weight v_lo(e)     d value / dy1 = sum_e e.lo v(e)
//
// Each pixel under the bin is read once, for the value and all four derivatives.
#pragma once

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

namespace cls2det {

// The pooled value and its derivatives by the edges of the box, in the order of a box.
template <typename T>
struct Pooled {
  T value, x1, y1, x2, y2;
};

// The table of one box.
template <typename T>
struct BoxAxes {
  const AxisEntry<T>*y, *x;   // (out_h, slots_y), (out_w, slots_x)
  const int *y_count, *x_count;
  int state, slots_y, slots_x;
};

template <typename T>
__device__ __forceinline__ BoxAxes<T> box_axes(const Axes<T>& axes, int64_t box) {
  const int64_t row = axes.shared ? 0 : box;
  const int64_t y_entries = int64_t(axes.out_h) * axes.slots_y, x_entries = int64_t(axes.out_w) * axes.slots_x;
  const AxisEntry<T>* entries = axes.entries + row * (y_entries + x_entries);
  const int* counts = axes.counts + row * (1 + int64_t(axes.out_h) + axes.out_w);
  return {entries, entries + y_entries, counts + 1, counts + 1 + axes.out_h, counts[0], axes.slots_y, axes.slots_x};
}

// Bin (p, q) of one plane, by `lanes` neighbouring lanes that each take a part of the row; all of them get the result.
// All 32 lanes of the warp must call.
template <bool kEdges, typename S, typename T>
__device__ __forceinline__ Pooled<T> pool_bin(
    const S* plane, int64_t stride_y, int64_t stride_x, const BoxAxes<T>& axes, int p, int q, int lanes) {
  Pooled<T> sum{};
  const int x_count = axes.x_count[q], y_count = axes.y_count[p];
  const AxisEntry<T>* ye = axes.y + int64_t(p) * axes.slots_y;
  const AxisEntry<T>* xe = axes.x + int64_t(q) * axes.slots_x;
  for (int e = 0; e < y_count; ++e) {
    const AxisEntry<T> y = ye[e];
    const S* row = plane + y.pixel * stride_y;
    T v = T(0), lo = T(0), hi = T(0);
    for (int f = threadIdx.x & (lanes - 1); f < x_count; f += lanes) {
      const AxisEntry<T> x = xe[f];
      const T pixel = static_cast<T>(row[x.pixel * stride_x]);
      v += x.weight * pixel;
      if (kEdges) lo += x.lo * pixel, hi += x.hi * pixel;
    }
    sum.value += y.weight * v;
    if (kEdges) {
      sum.x1 += y.weight * lo;
      sum.x2 += y.weight * hi;
      sum.y1 += y.lo * v;
      sum.y2 += y.hi * v;
    }
  }
  sum.value = lanes_sum(sum.value, lanes);
  if (kEdges) {
    sum.x1 = lanes_sum(sum.x1, lanes);
    sum.y1 = lanes_sum(sum.y1, lanes);
    sum.x2 = lanes_sum(sum.x2, lanes);
    sum.y2 = lanes_sum(sum.y2, lanes);
  }
  if (axes.state == kNotFinite) {
    const T nan = T(NAN);
    sum = {nan, nan, nan, nan, nan};
  }
  return sum;
}

// visit(index in (C, bins), Pooled) for the values of tile `tile` of one box, once per value.
template <bool kEdges, typename S, typename T, typename Visit>
__device__ __forceinline__ void pool_tile(
    const MapView<S>& map, int64_t image, const Axes<T>& axes, const BoxAxes<T>& box, const Tiling& tiling, int64_t tile,
    const Visit& visit) {
  const int64_t bins = int64_t(axes.out_h) * axes.out_w, all = map.channels * bins;
  const int64_t begin = tile * tiling.items, end = begin + tiling.items < all ? begin + tiling.items : all;
  const int group = threadIdx.x / tiling.lanes, groups = kBlock / tiling.lanes;
  const S* base = map.data + image * map.stride_n;
  for (int64_t first = begin; first < end; first += groups) {  // the same rounds for all lanes: pool_bin shuffles
    const bool active = first + group < end;
    const int64_t item = active ? first + group : end - 1;
    const int64_t fast = tiling.channels_first ? map.channels : bins, slow = divide(item, fast), rest = item - slow * fast;
    const int64_t channel = tiling.channels_first ? rest : slow, bin = tiling.channels_first ? slow : rest;
    const int p = int(divide(bin, axes.out_w)), q = int(bin - int64_t(p) * axes.out_w);
    const Pooled<T> pooled =
        pool_bin<kEdges>(base + channel * map.stride_c, map.stride_y, map.stride_x, box, p, q, tiling.lanes);
    if (active && (threadIdx.x & (tiling.lanes - 1)) == 0) visit(channel * bins + bin, pooled);
  }
}

}  // namespace cls2det
