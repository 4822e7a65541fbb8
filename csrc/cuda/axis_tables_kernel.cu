// Builds the axis tables: one thread per box, axis and bin.
#include "cuda/axis_tables_kernel.h"

#include "cuda/launch.cuh"
#include "math/sampling.h"

namespace cls2det {
namespace {

__device__ int64_t image_of_match(const ImagesOfMatches& a, int64_t box) {
  const int64_t match = a.matched[box];
  return match >= 0 && match < a.targets ? a.target_images[match] : -1;
}

// Appends entries to one row of W. Samples move in one direction along the axis, so those that read the same pixel follow each
// other, and two pending entries merge nearly all of them. Two entries of one pixel give the same sums.
template <typename T>
struct RowBuilder {
  AxisEntry<T>* out;
  int count;
  AxisEntry<T> older, newer;  // pixel -1: empty

  __device__ explicit RowBuilder(AxisEntry<T>* row) : out(row), count(0), older{-1, T(0), T(0), T(0)}, newer(older) {}

  // lo, hi: dW / d lo = slope (1 - a), dW / d hi = slope a
  __device__ void add(int pixel, T weight, T slope, T a) {
    if (weight == T(0) && slope == T(0)) return;  // outside the map, where a pixel must not be read: it may be infinite
    const AxisEntry<T> entry{pixel, weight, slope * (T(1) - a), slope * a};
    if (older.pixel == pixel) {
      merge(older, entry);
    } else if (newer.pixel == pixel) {
      merge(newer, entry);
    } else {
      flush(older);
      older = newer;
      newer = entry;
    }
  }

  __device__ void flush(const AxisEntry<T>& entry) {
    if (entry.pixel >= 0) out[count++] = entry;
  }

  __device__ static void merge(AxisEntry<T>& into, const AxisEntry<T>& entry) {
    into.weight += entry.weight;
    into.lo += entry.lo;
    into.hi += entry.hi;
  }
};

template <typename T>
__device__ int build_row(T lo, T hi, int samples, int bins, int bin, int size, bool border, AxisEntry<T>* row) {
  RowBuilder<T> builder(row);
  const int begin = bin_begin(bin, samples, bins), end = bin_end(bin, samples, bins);
  const T share = T(1) / T(end - begin);
  for (int i = begin; i < end; ++i) {
    const Tap<T> tap = sample_tap(lo, hi, i, samples, size, border);
    builder.add(tap.pixel0, tap.weight0 * share, tap.slope0 * share, tap.a);
    builder.add(tap.pixel1, tap.weight1 * share, tap.slope1 * share, tap.a);
  }
  builder.flush(builder.older);
  builder.flush(builder.newer);
  return builder.count;
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    build_axis_tables_kernel(AxisTablesTask<T> first, AxisTablesTask<T> second, Pooling pooling) {
  const int64_t rows = int64_t(pooling.out_h) + pooling.out_w, tasks = (first.boxes.count + second.boxes.count) * rows;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < tasks; i += int64_t(gridDim.x) * kBlock) {
    const int64_t box_of_both = divide(i, rows), row = i - box_of_both * rows;
    const bool is_first = box_of_both < first.boxes.count;
    const AxisTablesTask<T> task = is_first ? first : second;
    const int64_t box = is_first ? box_of_both : box_of_both - first.boxes.count;
    const AxisTables<T>& tables = task.tables;
    const int64_t y_entries = int64_t(tables.out_h) * tables.slots_y,
                  all_entries = y_entries + int64_t(tables.out_w) * tables.slots_x;
    const int height = task.height, width = task.width;
    const bool by_match = task.of_matches.images != nullptr;
    const int64_t image = by_match ? image_of_match(task.of_matches, box) : task.boxes.image_index[box];
    if (by_match && row == 0) task.of_matches.images[box] = image;
    const MapBox<T> b = map_box(task.boxes.xyxy + 4 * box, task.boxes.scale, height, width, pooling.clip);
    const int state = image < 0 || image >= task.images ? kIgnored : b.finite ? kPooled : kNotFinite;
    AxisEntry<T>* entries = tables.entries + box * all_entries;
    int* counts = tables.counts + box * (1 + rows);
    if (row == 0) counts[0] = state;
    int used = 0;
    if (state == kPooled && row < tables.out_h) {
      used = build_row(
          b.y1, b.y2, pooling.samples_h, tables.out_h, int(row), height, pooling.border, entries + row * tables.slots_y);
    } else if (state == kPooled) {
      const int64_t q = row - tables.out_h;
      used = build_row(
          b.x1, b.x2, pooling.samples_w, tables.out_w, int(q), width, pooling.border, entries + y_entries + q * tables.slots_x);
    }
    counts[1 + row] = used;
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) build_window_tables_kernel(int height, int width, AxisTables<T> tables) {
  const int64_t rows = int64_t(tables.out_h) + tables.out_w;
  for (int64_t row = int64_t(blockIdx.x) * kBlock + threadIdx.x; row < rows; row += int64_t(gridDim.x) * kBlock) {
    const bool along_y = row < tables.out_h;
    const int bin = int(along_y ? row : row - tables.out_h), size = along_y ? height : width;
    const int bins = along_y ? tables.out_h : tables.out_w;
    const int begin = bin_begin(bin, size, bins), end = bin_end(bin, size, bins);
    AxisEntry<T>* entries = tables.entries + (along_y ? int64_t(bin) * tables.slots_y
                                                      : int64_t(tables.out_h) * tables.slots_y + int64_t(bin) * tables.slots_x);
    for (int i = begin; i < end; ++i) entries[i - begin] = {i, T(1) / T(end - begin), T(0), T(0)};
    tables.counts[1 + row] = end - begin;
    if (row == 0) tables.counts[0] = kPooled;
  }
}

}  // namespace

int slots_per_bin(int samples, int bins) {
  int most = 0;
  for (int q = 0; q < bins; ++q) {
    const int size = bin_end(q, samples, bins) - bin_begin(q, samples, bins);
    most = size > most ? size : most;
  }
  return 2 * most;
}

template <typename T>
void build_axis_tables(
    const AxisTablesTask<T>& first, const AxisTablesTask<T>& second, const Pooling& pooling, cudaStream_t stream) {
  const int64_t tasks = (first.boxes.count + second.boxes.count) * (int64_t(pooling.out_h) + pooling.out_w);
  if (tasks == 0) return;
  CLS2DET_LAUNCH(build_axis_tables_kernel<T>, grid_of(ceil_div(tasks, kBlock)), stream, first, second, pooling);
}

template <typename T>
void build_window_tables(int height, int width, const AxisTables<T>& tables, cudaStream_t stream) {
  const int64_t rows = int64_t(tables.out_h) + tables.out_w;
  CLS2DET_LAUNCH(build_window_tables_kernel<T>, grid_of(ceil_div(rows, kBlock)), stream, height, width, tables);
}

#define INSTANTIATE(T)                                                                                               \
  template void build_axis_tables(const AxisTablesTask<T>&, const AxisTablesTask<T>&, const Pooling&, cudaStream_t); \
  template void build_window_tables(int, int, const AxisTables<T>&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace cls2det
