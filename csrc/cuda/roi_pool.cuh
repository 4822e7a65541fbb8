// The separable form of "crop and pool" on the GPU:
//
//     pooled[c, p, q] = sum_r sum_s Wy[p, r] Wx[q, s] I[c, r, s]
//
// A thread, or a warp where bins are large, sums one bin of one channel over the pixels that its two sparse rows name, and
// its derivatives by the four edges in the same pass. The S x S samples never exist.
#pragma once

#include "cuda/roi.h"

namespace cls2det {

template <typename A>
__device__ inline A nan_of() {
  return static_cast<A>(__int_as_float(0x7fffffff));
}

// Pixels, both inclusive, outside of which no sample of a box reads; empty if last < first.
struct PixelRange {
  int first, last;
};

template <typename A>
__device__ inline PixelRange pixel_range(A lo, A hi, int size, bool border) {
  A low = (lo < hi ? lo : hi) - A(2), high = (lo < hi ? hi : lo) + A(1);  // a sample reads floor(u), floor(u) + 1; u = x - 1/2
  const A end = A(size - 1);
  if (border) {  // held at the outermost pixels
    low = low < end ? low : end;
    high = high > A(0) ? high : A(0);
  }
  if (!(low <= end) || !(high >= A(0))) return {0, -1};
  return {int(low > A(0) ? low : A(0)), int(high < end ? high : end)};
}

template <typename A>
struct Pooled {
  A value = 0, x1 = 0, y1 = 0, x2 = 0, y2 = 0;  // and d value / d edge, on the map
};

// One bin; this lane takes every `lanes`-th pixel of a row. With one lane the result is complete, else a part of it.
template <bool kGrad, typename S, typename A = Accumulate<S>>
__device__ inline Pooled<A> pool_bin(
    const RoiSide<S>& side, const RoiTables<A>& tables, int64_t box, int64_t channel, int p, int q, int lane, int lanes) {
  Pooled<A> out;
  const int64_t row_y = box * tables.y.bins + p, row_x = box * tables.x.bins + q;
  const int ny = tables.y.counts[row_y], nx = tables.x.counts[row_x];
  if (ny < 0) {
    out.value = out.x1 = out.y1 = out.x2 = out.y2 = nan_of<A>();
    return out;
  }
  if (ny == 0 || nx == 0) return out;
  const AxisEntry<A>* ys = tables.y.entries + row_y * tables.y.capacity;
  const AxisEntry<A>* xs = tables.x.entries + row_x * tables.x.capacity;
  const S* plane = side.data + side.image_index[box] * side.stride_n + channel * side.stride_c;
  for (int j = 0; j < ny; ++j) {
    const AxisEntry<A> y = ys[j];
    const S* row = plane + y.pixel * side.stride_y;
    A value = 0, lo = 0, hi = 0;
    for (int i = lane; i < nx; i += lanes) {
      const AxisEntry<A> x = xs[i];
      const A v = static_cast<A>(row[x.pixel * side.stride_x]);
      value += x.weight * v;
      if (kGrad) {
        lo += x.lo * v;
        hi += x.hi * v;
      }
    }
    out.value += y.weight * value;
    if (kGrad) {
      out.x1 += y.weight * lo;
      out.x2 += y.weight * hi;
      out.y1 += y.lo * value;
      out.y2 += y.hi * value;
    }
  }
  return out;
}

template <typename S>
__device__ inline bool has_image(const RoiSide<S>& side, int64_t box) {
  return side.image_index[box] >= 0 && side.image_index[box] < side.images;
}

// d loss / d box (x1, y1, x2, y2) from its sums by edge on the map: the scale's chain rule, nothing for clipped edges.
template <typename S, typename A = Accumulate<S>>
__device__ inline void write_box_gradient(const RoiSide<S>& side, bool clip, int64_t box, const A* by_edge, A* grad) {
  const MapBox<A> b = map_box(side.boxes + 4 * box, side.scale, side.height, side.width, clip);
  const bool moves[4] = {b.moves_x1, b.moves_y1, b.moves_x2, b.moves_y2};
  for (int e = 0; e < 4; ++e) {
    grad[4 * box + e] = !b.finite ? nan_of<A>() : moves[e] ? by_edge[e] * side.scale : A(0);
  }
}

// The transpose of pooling for one box and channel, by all threads of the block:
//     plane[r, s] += sum_q Wx[q, s] sum_p Wy[p, r] grad[p, q]
// A warp takes a row r and forms the inner sums in `line` (out_w values of its own); its lanes then own the pixels s.
// Called by every thread; no two threads touch one pixel, and the caller puts a barrier between boxes.
template <typename S, typename A = Accumulate<S>>
__device__ inline void spread_bins(
    const RoiSide<S>& side, const RoiPooling& pooling, const RoiTables<A>& tables, int64_t box, const A* grad, A* line, A* plane) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  const MapBox<A> b = map_box(side.boxes + 4 * box, side.scale, side.height, side.width, pooling.clip);
  if (!b.finite) return;  // the same for every thread of the block
  const PixelRange rows = pixel_range(b.y1, b.y2, side.height, pooling.border);
  const PixelRange columns = pixel_range(b.x1, b.x2, side.width, pooling.border);
  const AxisEntry<A>* ys = tables.y.entries + box * tables.y.bins * tables.y.capacity;
  const AxisEntry<A>* xs = tables.x.entries + box * tables.x.bins * tables.x.capacity;
  const int *ny = tables.y.counts + box * tables.y.bins, *nx = tables.x.counts + box * tables.x.bins;
  for (int r = rows.first + warp; r <= rows.last; r += warps) {
    for (int q = lane; q < pooling.out_w; q += kWarp) {
      A sum = 0;
      for (int p = 0; p < pooling.out_h; ++p) {
        for (int j = 0; j < ny[p]; ++j) {
          const AxisEntry<A>& y = ys[p * tables.y.capacity + j];
          if (y.pixel == r) sum += y.weight * grad[p * pooling.out_w + q];
        }
      }
      line[q] = sum;
    }
    __syncwarp();
    for (int s = columns.first + lane; s <= columns.last; s += kWarp) {
      A sum = 0;
      for (int q = 0; q < pooling.out_w; ++q) {
        for (int i = 0; i < nx[q]; ++i) {
          const AxisEntry<A>& x = xs[q * tables.x.capacity + i];
          if (x.pixel == s) sum += x.weight * line[q];
        }
      }
      plane[int64_t(r) * side.width + s] += sum;
    }
    __syncwarp();
  }
}

}  // namespace cls2det
