// The memory of axis tables, and their building, for the host code of the operators that pool.
#pragma once

#include "cuda/axis_tables_kernel.h"
#include "cuda/tensors.h"
#include "roi.h"

namespace cls2det {

template <typename T>
struct AxisTensors {
  AxisTables<T> tables;
  Tensor entries, counts;  // that the tables point into

  AxisTensors(const Tensor& like, int64_t boxes, bool shared, const Pooling& p)
      : tables{nullptr,
               nullptr,
               boxes,
               shared,
               p.out_h,
               p.out_w,
               slots_per_bin(p.samples_h, p.out_h),
               slots_per_bin(p.samples_w, p.out_w)},
        entries(make(like, {rows() * tables.entries_per_box() * int64_t(sizeof(AxisEntry<T>))}, ScalarType::Byte)),
        counts(make(like, {rows() * tables.counts_per_box()}, ScalarType::Int)) {
    tables.entries = data<AxisEntry<T>>(entries);
    tables.counts = data<int>(counts);
  }

  AxisTablesTask<T> task(const Tensor& map, const BoxList<T>& boxes, const ImagesOfMatches& of_matches = {}) const {
    return {boxes, of_matches, map.size(0), int(map.size(2)), int(map.size(3)), tables};
  }

 private:
  int64_t rows() const { return tables.shared ? 1 : tables.count; }
};

// The tables of boxes on a map.
template <typename T>
AxisTensors<T> box_tables(const Tensor& map, const BoxList<T>& boxes, const Pooling& pooling, cudaStream_t stream) {
  AxisTensors<T> tensors(map, boxes.count, false, pooling);
  build_axis_tables(tensors.task(map, boxes), AxisTablesTask<T>{}, pooling, stream);
  return tensors;
}

// The one table of adaptive average pooling of whole maps.
template <typename T>
AxisTensors<T> window_tables(const Tensor& maps, int64_t out_h, int64_t out_w, cudaStream_t stream) {
  const int height = int(maps.size(2)), width = int(maps.size(3));
  AxisTensors<T> tensors(maps, maps.size(0), true, Pooling{int(out_h), int(out_w), height, width, false, false});
  build_window_tables(height, width, tensors.tables, stream);
  return tensors;
}

}  // namespace cls2det
