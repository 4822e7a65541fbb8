// Dense images cut into tiles for the threads. Their size follows from the map alone: no sum depends on the number of threads.
#pragma once

#include <algorithm>

#include "dense_map.h"

namespace cls2det {

struct MapTile {
  int64_t image, down, across;  // which one
  int64_t outer_begin, outer_end, inner_begin, inner_end;
};

struct MapTiles {
  static constexpr int64_t kValues = 65536;         // of a full tile
  static constexpr int64_t kPastCaches = 16 << 20;  // bytes
  DenseShape shape;
  int64_t columns, rows;  // of a full tile
  int64_t down, across;   // tiles of one image

  // most_columns: how many values of a row should stay in the cache until the next row.
  MapTiles(const DenseShape& s, int64_t most_columns)
      : shape(s),
        columns(std::clamp(shape.inner, int64_t(1), most_columns)),
        rows(std::clamp(kValues / columns, int64_t(1), std::max(shape.outer, int64_t(1)))),
        down((shape.outer + rows - 1) / rows),
        across((shape.inner + columns - 1) / columns) {}

  int64_t count() const { return shape.images * down * across; }

  MapTile operator[](int64_t i) const {
    const int64_t image = i / (down * across), y = i / across % down, x = i % across;
    const int64_t top = y * rows, left = x * columns;
    return {image, y, x, top, std::min(top + rows, shape.outer), left, std::min(left + columns, shape.inner)};
  }

  // Whether a dense result of this shape should be written past the caches: it is larger than they are, and its rows are whole
  // lines.
  template <typename T>
  bool past_caches(const T* result) const {
    const int64_t row = shape.inner * int64_t(sizeof(T));
    return shape.images * shape.outer * row >= kPastCaches && row % 64 == 0 && reinterpret_cast<uintptr_t>(result) % 64 == 0;
  }

  // run(begin, end) for all tiles, in parallel; several at once where they are small.
  template <typename Run>
  void for_tiles(const Run& run) const {
    torch::stable::parallel_for(0, count(), 1 + kValues / 4 / (rows * columns), run);
  }
};

}  // namespace cls2det
