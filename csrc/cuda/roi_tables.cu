// The sparse rows of Wx and Wy of every box: one thread per box, axis and bin.
#include "cuda/kernels.h"
#include "cuda/roi_pool.cuh"

namespace cls2det {
namespace {

template <typename A>
__device__ void add(AxisEntry<A>* entries, int& count, int pixel, A weight, A slope, A a) {
  if (weight == A(0) && slope == A(0)) return;
  const A lo = slope * (A(1) - a), hi = slope * a;
  for (int e = count - 1; e >= 0 && e >= count - 3; --e) {  // samples are monotonous: a repeat is a near one
    if (entries[e].pixel == pixel) {
      entries[e].weight += weight;
      entries[e].lo += lo;
      entries[e].hi += hi;
      return;
    }
  }
  entries[count++] = AxisEntry<A>{pixel, weight, lo, hi};
}

template <typename S>
__global__ void roi_tables(RoiSide<S> side, RoiPooling pooling, RoiTables<Accumulate<S>> tables) {
  using A = Accumulate<S>;
  const int64_t per_box = tables.x.bins + tables.y.bins;
  const int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= side.count * per_box) return;
  const int64_t box = item / per_box;
  int q = int(item % per_box);
  const bool along_x = q < tables.x.bins;
  if (!along_x) q -= tables.x.bins;
  const AxisTable<A>& table = along_x ? tables.x : tables.y;
  const int64_t row = box * table.bins + q;
  AxisEntry<A>* entries = table.entries + row * table.capacity;
  int count = 0;
  if (has_image(side, box)) {
    const MapBox<A> b = map_box(side.boxes + 4 * box, side.scale, side.height, side.width, pooling.clip);
    const int begin = bin_begin(q, table.samples, table.bins), end = b.finite ? bin_end(q, table.samples, table.bins) : begin;
    const A share = A(1) / A(end > begin ? end - begin : 1);
    for (int i = begin; i < end; ++i) {
      const Tap<A> tap = along_x ? sample_tap(b.x1, b.x2, i, table.samples, side.width, pooling.border)
                                 : sample_tap(b.y1, b.y2, i, table.samples, side.height, pooling.border);
      add(entries, count, tap.pixel0, tap.weight0 * share, tap.slope0 * share, tap.a);
      add(entries, count, tap.pixel1, tap.weight1 * share, tap.slope1 * share, tap.a);
    }
    if (!b.finite) count = -1;
  }
  table.counts[row] = count;
}

}  // namespace

template <typename S>
void launch_roi_tables(const RoiSide<S>& side, const RoiPooling& pooling, const RoiTables<Accumulate<S>>& tables, cudaStream_t stream) {
  const int64_t items = side.count * (tables.x.bins + tables.y.bins);
  CLS2DET_LAUNCH(roi_tables<S>, blocks_for(items, kThreads), kThreads, 0, stream, side, pooling, tables);
}

#define INSTANTIATE(S) \
  template void launch_roi_tables<S>(const RoiSide<S>&, const RoiPooling&, const RoiTables<Accumulate<S>>&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace cls2det
