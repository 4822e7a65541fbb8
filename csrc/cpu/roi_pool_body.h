// Pooling of one box for one block of channels, lanes over channels. Part of a body: see foreach_target.h.
#include "cpu/gather_channels.h"

// Maps of few channels are read row by row with lanes over pixels, others channel block by channel block.
template <typename T>
bool few_channels(int64_t channels) {
  return channels < kLanes<T> / 2;
}

template <typename T>
int64_t channel_blocks(int64_t channels) {
  return (channels + kLanes<T> - 1) / kLanes<T>;
}

// Scratch of one thread; `axis_x` and `axis_y` hold the taps of the box that was pooled or spread last.
template <typename T>
struct PoolScratch {
  AxisTable<T> axis_x, axis_y;
  const RoiView<T>* roi = nullptr;  // of that box
  int64_t box = -1;
  std::vector<T> buffer;  // raw storage for the vectors below, grown on demand

  // The tables of a box, kept for its next block of channels. False: it lies wholly outside the map.
  bool build_axes(const RoiView<T>& of, const Pooling& pooling, int64_t number, const MapBox<T>& b) {
    if (roi != &of || box != number) {
      axis_x.build(b.x1, b.x2, pooling.samples_w, pooling.out_w, of.map.width, pooling.border);
      axis_y.build(b.y1, b.y2, pooling.samples_h, pooling.out_h, of.map.height, pooling.border);
      axis_y.sort_by_pixel();
      roi = &of, box = number;
    }
    return axis_x.last >= 0 && axis_y.last >= 0;
  }

  Vec<T>* vectors(size_t count) {
    const size_t need = (count + 1) * kLanes<T>;
    if (buffer.size() < need) buffer.resize(need);
    const uintptr_t address = reinterpret_cast<uintptr_t>(buffer.data());
    return reinterpret_cast<Vec<T>*>((address + kVectorBytes - 1) / kVectorBytes * kVectorBytes);
  }
};

template <typename T, bool kGrad>
void pool_channels(const T* base, const RoiView<T>& roi, const Pooling& pooling, int n, PoolScratch<T>& scratch, Vec<T>* out) {
  using Entry = typename AxisTable<T>::Entry;
  const AxisTable<T>&xs = scratch.axis_x, &ys = scratch.axis_y;
  const int bins = pooling.bins(), width = xs.last - xs.first + 1;
  const bool direct = roi.map.stride_c == 1 && n == kLanes<T>;
  Vec<T>* sums = scratch.vectors(size_t(3) * pooling.out_w + width);
  Vec<T>* pixels = sums + 3 * pooling.out_w;
  for (size_t e = 0; e < ys.entries.size();) {
    const int row = ys.entries[e].pixel;
    const T* p = base + row * roi.map.stride_y + xs.first * roi.map.stride_x;
    if (!direct) gather_channels(p, roi.map.stride_c, roi.map.stride_x, n, width, pixels);
    for (int q = 0; q < pooling.out_w; ++q) {  // contract the row with Wx, dWx / dx1, dWx / dx2
      Vec<T> value{}, lo{}, hi{};
      for (int i = xs.start[q]; i < xs.start[q + 1]; ++i) {
        const Entry& x = xs.entries[i];
        const int offset = x.pixel - xs.first;
        const Vec<T> v = direct ? load(p + offset * roi.map.stride_x) : pixels[offset];
        value += x.weight * v;
        if (kGrad) lo += x.lo * v, hi += x.hi * v;
      }
      sums[q] = value;
      if (kGrad) sums[pooling.out_w + q] = lo, sums[2 * pooling.out_w + q] = hi;
    }
    for (; e < ys.entries.size() && ys.entries[e].pixel == row; ++e) {  // add it to its bins with Wy and its derivatives
      const Entry& y = ys.entries[e];
      Vec<T>* o = out + y.bin * pooling.out_w;
      for (int q = 0; q < pooling.out_w; ++q) {
        o[kValue * bins + q] += y.weight * sums[q];
        if (kGrad) {
          o[kX1 * bins + q] += y.weight * sums[pooling.out_w + q];
          o[kX2 * bins + q] += y.weight * sums[2 * pooling.out_w + q];
          o[kY1 * bins + q] += y.lo * sums[q];
          o[kY2 * bins + q] += y.hi * sums[q];
        }
      }
    }
  }
}

// One channel with lanes over the pixels of a row: columns first (Wy), then the rows' dot products with Wx.
template <typename T, bool kGrad>
void pool_plane(
    const T* base, const RoiView<T>& roi, const Pooling& pooling, int channel, PoolScratch<T>& scratch, Vec<T>* out) {
  constexpr int lanes = kLanes<T>;
  const AxisTable<T>&xs = scratch.axis_x, &ys = scratch.axis_y;
  const int bins = pooling.bins(), width = xs.last - xs.first + 1, chunks = (width + lanes - 1) / lanes;
  const int stride = (chunks + 1) * lanes;  // room for dot products that start anywhere
  // per output row p: column sums with Wy, dWy / dy1, dWy / dy2; then a copied row; then one bin of Wx as a dense band
  T* column = reinterpret_cast<T*>(scratch.vectors(size_t(chunks + 1) * (3 * pooling.out_h + 1 + 4)));
  T* copy = column + int64_t(3) * pooling.out_h * stride;
  T* band = copy + stride;
  std::memset(column, 0, sizeof(T) * 3 * pooling.out_h * stride);
  for (size_t e = 0; e < ys.entries.size();) {
    const int row = ys.entries[e].pixel;
    const T* p = base + row * roi.map.stride_y + xs.first * roi.map.stride_x;
    if (roi.map.stride_x != 1) {
      for (int x = 0; x < width; ++x) copy[x] = p[x * roi.map.stride_x];
      p = copy;
    }
    for (; e < ys.entries.size() && ys.entries[e].pixel == row; ++e) {
      const auto& y = ys.entries[e];
      T* sums = column + int64_t(3) * y.bin * stride;
      for (int x = 0; x < width; x += lanes) {
        const int n = width - x;
        const Vec<T> v = n >= lanes ? load(p + x) : load_n(p + x, n, T(0));
        store(sums + x, Vec<T>(load(sums + x) + y.weight * v));
        if (kGrad) {
          store(sums + stride + x, Vec<T>(load(sums + stride + x) + y.lo * v));
          store(sums + 2 * stride + x, Vec<T>(load(sums + 2 * stride + x) + y.hi * v));
        }
      }
    }
  }
  for (int q = 0; q < pooling.out_w; ++q) {
    if (xs.start[q] == xs.start[q + 1]) continue;
    int low = xs.last, high = xs.first;
    for (int i = xs.start[q]; i < xs.start[q + 1]; ++i) {
      low = xs.entries[i].pixel < low ? xs.entries[i].pixel : low;
      high = xs.entries[i].pixel > high ? xs.entries[i].pixel : high;
    }
    std::memset(band, 0, sizeof(T) * 4 * stride);
    T* read = band + 3 * stride;  // 1 where a sample reads the pixel: those between samples may be infinite
    for (int i = xs.start[q]; i < xs.start[q + 1]; ++i) {
      const auto& x = xs.entries[i];
      read[x.pixel - low] = T(1);
      band[x.pixel - low] += x.weight;
      band[stride + x.pixel - low] += x.lo;
      band[2 * stride + x.pixel - low] += x.hi;
    }
    for (int p = 0; p < pooling.out_h; ++p) {
      const T* sums = column + int64_t(3) * p * stride + (low - xs.first);
      Vec<T> value{}, x1{}, x2{}, y1{}, y2{};
      for (int x = 0; x <= high - low; x += lanes) {
        const Vec<T> w = load(band + x), reads = load(read + x);
        const Vec<T> v = reads != T(0) ? load(sums + x) : Vec<T>{};
        value += w * v;
        if (kGrad) {
          x1 += load(band + stride + x) * v;
          x2 += load(band + 2 * stride + x) * v;
          y1 += w * (reads != T(0) ? load(sums + stride + x) : Vec<T>{});
          y2 += w * (reads != T(0) ? load(sums + 2 * stride + x) : Vec<T>{});
        }
      }
      Vec<T>* o = out + p * pooling.out_w + q;
      o[kValue * bins][channel] = sum_lanes<T>(value);
      if (kGrad) {
        o[kX1 * bins][channel] = sum_lanes<T>(x1);
        o[kX2 * bins][channel] = sum_lanes<T>(x2);
        o[kY1 * bins][channel] = sum_lanes<T>(y1);
        o[kY2 * bins][channel] = sum_lanes<T>(y2);
      }
    }
  }
}

// out (parts, bins): the pooled features of `box` for channel block `block`; with kGrad all kPooledParts, else the values
// alone. Lanes past the last channel are 0, and so is everything for a box whose image is out of range. A box that is not
// finite gives NaN.
template <typename T, bool kGrad>
void pool_box(const RoiView<T>& roi, const Pooling& pooling, int64_t box, int64_t block, PoolScratch<T>& scratch, Vec<T>* out) {
  const int64_t c0 = block * kLanes<T>;
  const int n = int(roi.map.channels - c0 < kLanes<T> ? roi.map.channels - c0 : kLanes<T>);
  const int parts = kGrad ? kPooledParts : 1;
  std::memset(reinterpret_cast<T*>(out), 0, sizeof(Vec<T>) * parts * pooling.bins());
  if (!roi.has_image(box)) return;
  const MapBox<T> b = roi.on_map(box, pooling);
  if (!b.finite) {
    for (int i = 0; i < parts * pooling.bins(); ++i) out[i] += std::numeric_limits<T>::quiet_NaN();
    return;
  }
  if (!scratch.build_axes(roi, pooling, box, b)) return;
  const T* base = roi.map.data + roi.boxes.image_index[box] * roi.map.stride_n + c0 * roi.map.stride_c;
  if (few_channels<T>(roi.map.channels)) {
    for (int c = 0; c < n; ++c) pool_plane<T, kGrad>(base + c * roi.map.stride_c, roi, pooling, c, scratch, out);
  } else {
    pool_channels<T, kGrad>(base, roi, pooling, n, scratch, out);
  }
}

// The transpose of pool_box: map[r, s] += Wy[p, r] Wx[q, s] grad[p, q], lanes over channels. map: (height, width).
template <typename T>
void spread_box(
    const RoiView<T>& roi, const Pooling& pooling, int64_t box, const Vec<T>* grad, PoolScratch<T>& scratch, Vec<T>* map) {
  const MapBox<T> b = roi.on_map(box, pooling);
  if (!b.finite) return;
  if (!scratch.build_axes(roi, pooling, box, b)) return;
  const AxisTable<T>&xs = scratch.axis_x, &ys = scratch.axis_y;
  Vec<T>* sums = scratch.vectors(pooling.out_w);
  for (size_t e = 0; e < ys.entries.size();) {
    const int row = ys.entries[e].pixel;
    for (int q = 0; q < pooling.out_w; ++q) sums[q] = Vec<T>{};
    for (; e < ys.entries.size() && ys.entries[e].pixel == row; ++e) {
      const Vec<T>* g = grad + ys.entries[e].bin * pooling.out_w;
      for (int q = 0; q < pooling.out_w; ++q) sums[q] += ys.entries[e].weight * g[q];
    }
    Vec<T>* m = map + int64_t(row) * roi.map.width;
    for (const auto& x : xs.entries) m[x.pixel] += x.weight * sums[x.bin];
  }
}

// map (height, width) of block c0 into a contiguous (channels, height, width) tensor.
template <typename T>
void write_map(const RoiView<T>& roi, int64_t block, const Vec<T>* map, T* out) {
  const int64_t c0 = block * kLanes<T>, area = int64_t(roi.map.height) * roi.map.width;
  const int n = int(roi.map.channels - c0 < kLanes<T> ? roi.map.channels - c0 : kLanes<T>);
  for (int c = 0; c < n; ++c) {
    T* plane = out + (c0 + c) * area;
    for (int64_t i = 0; i < area; ++i) plane[i] = map[i][c];
  }
}
