// The separable form of "crop and pool" on the CPU: what a box reads on each axis, computed once per box.
//
//     pooled[c, p, q] = sum_r sum_s Wy[p, r] Wx[q, s] I[c, r, s]
//
// AxisTable holds the sparse rows of Wx (or Wy) and their derivatives by the two edges of the box, so that one pass over the
// pixels gives the pooled value and its derivative for all four edges. The S x S samples never exist.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "math/feature_distance.h"
#include "math/sampling.h"
#include "roi.h"

namespace cls2det {

template <typename T>
struct AxisTable {
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
    const int stop = std::max(start.back(), int(entries.size()) - 3);  // samples move one way: only the last pixels can repeat
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

// A map and boxes on its images.
template <typename T>
struct RoiView {
  MapView<T> map;
  BoxList<T> boxes;

  bool has_image(int64_t box) const { return boxes.image_index[box] >= 0 && boxes.image_index[box] < map.images; }

  MapBox<T> on_map(int64_t box, const Pooling& pooling) const {
    return map_box(boxes.xyxy + 4 * box, boxes.scale, map.height, map.width, pooling.clip);
  }
};

// The tensors that a RoiView points into, the map in accumulate dtype.
struct RoiTensors {
  Tensor map;
  BoxTensors boxes;

  RoiTensors(const Tensor& features, const Tensor& xyxy, const Tensor& image_index)
      : map(to_dtype(features, accumulate_dtype(features.scalar_type()))), boxes(xyxy, image_index) {}

  template <typename T>
  RoiView<T> view(double scale) const {
    return {map_view<T>(map), boxes.list<T>(scale)};
  }
};

// Rows 0..n-1 grouped by key; rows with key < 0 are left out. The rows of key j, in their order, are order[start[j]] to
// order[start[j + 1] - 1].
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
void write_box_gradient(const RoiView<T>& roi, const Pooling& pooling, int64_t box, const T* by_edge, T* grad) {
  const MapBox<T> b = roi.on_map(box, pooling);
  const bool moves[4] = {b.moves_x1, b.moves_y1, b.moves_x2, b.moves_y2};
  for (int e = 0; e < 4; ++e) {
    grad[e] = !b.finite ? std::numeric_limits<T>::quiet_NaN() : moves[e] ? by_edge[e] * roi.boxes.scale : T(0);
  }
}

}  // namespace cls2det
