// The separable form of "crop and pool" on the CPU: what a box reads on each axis, computed once per box.
//
//     pooled[c, p, q] = sum_r sum_s Wy[p, r] Wx[q, s] I[c, r, s]
//
// AxisTaps holds the sparse rows of Wx (or Wy) together with their derivatives by the two edges of the box, so that one pass
// over the pixels gives the pooled value and its derivative for all four edges. The S x S samples never exist.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "checks.h"
#include "math/feature_distance.h"
#include "math/sampling.h"

namespace cls2det {

template <typename T>
struct AxisTaps {
  struct Entry {
    int pixel, bin;
    T weight, lo, hi;  // W, dW / d lo, dW / d hi
  };
  std::vector<Entry> entries;  // by bin, then by pixel
  std::vector<int> start;      // entries of bin q: [start[q], start[q + 1])
  int first = 0, last = -1;    // the pixels read, both inclusive

  void build(T lo, T hi, int samples, int bins, int size, bool border) {
    entries.clear();
    start.assign(1, 0);
    first = size;
    last = -1;
    for (int q = 0; q < bins; ++q) {
      const int begin = bin_begin(q, samples, bins), end = bin_end(q, samples, bins);
      const T share = T(1) / T(end - begin);
      for (int i = begin; i < end; ++i) {
        const Tap<T> tap = sample_tap(lo, hi, i, samples, size, border);
        add(tap.pixel0, q, tap.weight0 * share, tap.slope0 * share, tap.a);
        add(tap.pixel1, q, tap.weight1 * share, tap.slope1 * share, tap.a);
      }
      start.push_back(int(entries.size()));
    }
  }

  void sort_by_pixel() {  // neighbouring bins share pixels: each row of the map is then read once
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.pixel < b.pixel; });
  }

 private:
  void add(int pixel, int bin, T weight, T slope, T a) {
    if (weight == T(0) && slope == T(0)) return;
    first = std::min(first, pixel);
    last = std::max(last, pixel);
    const int stop = std::max(start.back(), int(entries.size()) - 3);  // samples are monotonous: a repeat is a near one
    for (int e = int(entries.size()) - 1; e >= stop; --e) {
      if (entries[e].pixel == pixel) {
        entries[e].weight += weight;
        entries[e].lo += slope * (T(1) - a);
        entries[e].hi += slope * a;
        return;
      }
    }
    entries.push_back({pixel, bin, weight, slope * (T(1) - a), slope * a});
  }
};

// Boxes on a map.
template <typename T>
struct RoiSide {
  const T* data;  // (images, channels, height, width) at the strides n, c, y, x
  int64_t images, channels, stride_n, stride_c, stride_y, stride_x;
  int height, width;
  const T* boxes;              // (count, 4)
  const int64_t* image_index;  // (count,)
  int64_t count;
  T scale;

  bool has_image(int64_t box) const { return image_index[box] >= 0 && image_index[box] < images; }
};

struct RoiPooling {
  int out_h, out_w, samples_h, samples_w;
  bool border, clip;

  int bins() const { return out_h * out_w; }
};

// Tensors in accumulate dtype that a RoiSide points into.
struct RoiTensors {
  Tensor map, boxes, image_index;

  RoiTensors(const Tensor& features, const Tensor& b, const Tensor& index)
      : map(to_dtype(features, accumulate_dtype(features.scalar_type()))), boxes(packed(b)), image_index(packed(index)) {}

  template <typename T>
  RoiSide<T> side(double scale) const {
    return {
        static_cast<const T*>(map.data_ptr()),
        map.size(0),
        map.size(1),
        map.stride(0),
        map.stride(1),
        map.stride(2),
        map.stride(3),
        int(map.size(2)),
        int(map.size(3)),
        static_cast<const T*>(boxes.data_ptr()),
        static_cast<const int64_t*>(image_index.data_ptr()),
        boxes.size(0),
        T(scale)};
  }
};

// Rows 0..n-1 sorted by key (rows with key < 0 left out), rows of one key in their order: rows of key j are
// order[start[j]] .. order[start[j + 1] - 1].
struct Groups {
  std::vector<int64_t> order, start;

  template <typename Key>
  Groups(int64_t n, int64_t keys, const Key& key) : start(keys + 1, 0) {
    for (int64_t i = 0; i < n; ++i) {
      if (key(i) >= 0) ++start[key(i) + 1];
    }
    for (int64_t j = 0; j < keys; ++j) start[j + 1] += start[j];
    order.resize(start[keys]);
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < n; ++i) {
      if (key(i) >= 0) order[next[key(i)]++] = i;
    }
  }
};

// d loss / d box (x1, y1, x2, y2) from the sums by edge on the map: chain rule of the scale, none for clipped edges.
template <typename T>
void write_box_gradient(const RoiSide<T>& side, const RoiPooling& pooling, int64_t box, const T* by_edge, T* grad) {
  const MapBox<T> b = map_box(side.boxes + 4 * box, side.scale, side.height, side.width, pooling.clip);
  const bool moves[4] = {b.moves_x1, b.moves_y1, b.moves_x2, b.moves_y2};
  for (int e = 0; e < 4; ++e) {
    grad[e] = !b.finite ? std::numeric_limits<T>::quiet_NaN() : moves[e] ? by_edge[e] * side.scale : T(0);
  }
}

}  // namespace cls2det
