// Adaptive average pooling of crops and their comparison: plane by plane with lanes over the pixels of a row, or, where
// channels are the last dimension, with lanes over neighbours in memory.
#include "cpu/gather_channels.h"

// What pooling needs beside its input: sums of columns, of some planes side by side or of all channels, and the same with lanes
// over planes.
template <typename T>
struct CropScratch {
  std::vector<T> sums, lanes;

  explicit CropScratch(const MatchedArgs<T>& args)
      : sums(size_t(args.width) * (args.channels_last ? args.channels : kLanes<T>)),
        lanes(size_t(args.width + 1) * kLanes<T>) {}

  Vec<T>* vectors() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(lanes.data());
    return reinterpret_cast<Vec<T>*>((address + kVectorBytes - 1) / kVectorBytes * kVectorBytes);
  }
};

// out (bins_h,) of one plane (height, width): whole rows, neighbours in memory.
template <typename T>
void pool_crop_rows(const MatchedArgs<T>& args, const T* plane, T* out) {
  for (int p = 0; p < args.out_h; ++p) {
    const int y0 = bin_begin(p, args.height, args.out_h), y1 = bin_end(p, args.height, args.out_h);
    Vec<T> sum{};
    for_vectors<T>(int64_t(y1 - y0) * args.width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      sum += load_up_to(plane + int64_t(y0) * args.width + i, n, T(0));
    });
    out[p] = sum_lanes<T>(sum) / T((y1 - y0) * args.width);
  }
}

// out (n, bins_h, bins_w) of n planes (height, width), at most a vector of them: columns plane by plane with lanes over pixels,
// then rows with lanes over planes, because a bin has few columns.
template <typename T>
void pool_crop_planes(const MatchedArgs<T>& args, const T* planes, int n, CropScratch<T>& scratch, T* out) {
  const int64_t area = int64_t(args.height) * args.width, bins = int64_t(args.out_h) * args.out_w;
  Vec<T>* lanes = scratch.vectors();
  for (int p = 0; p < args.out_h; ++p) {
    const int y0 = bin_begin(p, args.height, args.out_h), y1 = bin_end(p, args.height, args.out_h);
    for (int c = 0; c < n; ++c) {
      const T* plane = planes + c * area;
      T* sums = scratch.sums.data() + int64_t(c) * args.width;
      std::memcpy(sums, plane + int64_t(y0) * args.width, args.width * sizeof(T));
      for (int y = y0 + 1; y < y1; ++y) {
        const T* row = plane + int64_t(y) * args.width;
        for (int x = 0; x < args.width; ++x) sums[x] += row[x];
      }
    }
    gather_channels<T>(scratch.sums.data(), args.width, 1, n, args.width, lanes);
    for (int q = 0; q < args.out_w; ++q) {
      Vec<T> sum{};
      for (int x = args.begin_x[q]; x < args.end_x[q]; ++x) sum += lanes[x];
      sum /= T((y1 - y0) * (args.end_x[q] - args.begin_x[q]));
      for (int c = 0; c < n; ++c) out[c * bins + p * args.out_w + q] = sum[c];
    }
  }
}

// out (bins_h, bins_w, channels) of one crop (height, width, channels).
template <typename T>
void pool_crop_positions(const MatchedArgs<T>& args, const T* crop, CropScratch<T>& scratch, T* out) {
  const int64_t channels = args.channels, row = args.width * channels;
  T* sums = scratch.sums.data();
  for (int p = 0; p < args.out_h; ++p) {
    const int y0 = bin_begin(p, args.height, args.out_h), y1 = bin_end(p, args.height, args.out_h);
    for_vectors<T>(row, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Vec<T> sum = load_up_to(crop + y0 * row + i, n, T(0));
      for (int y = y0 + 1; y < y1; ++y) sum += load_up_to(crop + y * row + i, n, T(0));
      store_up_to(sums + i, sum, n);
    });
    for (int q = 0; q < args.out_w; ++q) {
      const int x0 = args.begin_x[q], x1 = args.end_x[q];
      T* bin = out + (int64_t(p) * args.out_w + q) * channels;
      for_vectors<T>(channels, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        Vec<T> sum{};
        for (int x = x0; x < x1; ++x) sum += load_up_to(sums + x * channels + i, n, T(0));
        store_up_to(bin + i, Vec<T>(sum / T((y1 - y0) * (x1 - x0))), n);
      });
    }
  }
}

// out (count, bins) of `count` planes (height, width), or (bins, channels) of one crop with the channels last.
template <typename T>
void pool_crops(const MatchedArgs<T>& args, const T* from, int64_t count, CropScratch<T>& scratch, T* out) {
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  if (args.channels_last) return pool_crop_positions(args, from, scratch, out);
  if (args.out_w == 1) {
    for (int64_t c = 0; c < count; ++c) pool_crop_rows(args, from + c * area, out + c * bins);
    return;
  }
  for (int64_t c = 0; c < count; c += kLanes<T>) {
    const int n = int(count - c < kLanes<T> ? count - c : kLanes<T>);
    pool_crop_planes(args, from + c * area, n, scratch, out + c * bins);
  }
}

// Parts [begin, end) of args.pooled_target (G, C, bins), of those ground truths that some row is matched to.
template <typename T>
void matched_targets(const MatchedArgs<T>& args, int64_t begin, int64_t end) {
  CropScratch<T> scratch(args);
  const int64_t parts = args.parts(), area = int64_t(args.height) * args.width,
                values = args.channels / parts * args.out_h * args.out_w;
  for (int64_t i = begin, next; i < end; i = next) {
    const int64_t g = i / parts, last = (g + 1) * parts;
    next = last < end ? last : end;
    const T* from = args.target + g * args.target_stride + i % parts * area;
    if (args.used[g]) pool_crops(args, from, next - i, scratch, args.pooled_target + i * values);
  }
}

// Rows [begin, end): loss, and d row / d pooled where it is asked for.
template <typename T>
void matched_rows(const MatchedArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t values = args.channels * args.out_h * args.out_w;
  const T share = T(1) / T(values > 0 ? values : 1);
  CropScratch<T> scratch(args);
  std::vector<T> pooled(values);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t match = args.matched[k];
    T* grad = args.grad ? args.grad + k * values : nullptr;
    args.rows[k] = T(0);
    if (match < 0 || match >= args.targets) {  // ignored
      if (grad) std::memset(grad, 0, values * sizeof(T));
      continue;
    }
    pool_crops(args, args.features + k * args.features_stride, args.channels, scratch, pooled.data());
    const T* target = args.pooled_target + match * values;
    Vec<T> sum{};
    for_vectors<T>(values, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      const Vec<T> difference = load_up_to(pooled.data() + j, n, T(0)) - load_up_to(target + j, n, T(0));
      sum += distance(difference, args.loss, args.beta);
      if (grad) store_up_to(grad + j, Vec<T>(distance_slope(difference, args.loss, args.beta) * share), n);
    });
    args.rows[k] = sum_lanes<T>(sum) * share;
  }
}

// Planes [begin, end) of d L / d features: every pixel gets the share of the bins that it lies in.
template <typename T>
void matched_planes_backward(const MatchedArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  std::vector<T> line(args.width);
  for (int64_t i = begin; i < end; ++i) {
    const T* pooled = args.pooled_grad + i / args.channels * args.pooled_grad_stride + i % args.channels * bins;
    T* plane = args.grad + i * area;
    const T g = args.grad_rows[i / args.channels];
    if (bins == 1) {  // one value; 0 in front as in a sum
      std::fill(plane, plane + area, T(0) + g * pooled[0] / T(area));
      continue;
    }
    std::memset(plane, 0, area * sizeof(T));
    for (int p = 0; p < args.out_h; ++p) {
      const int y0 = bin_begin(p, args.height, args.out_h), y1 = bin_end(p, args.height, args.out_h);
      if (args.out_w == 1) {
        const T value = g * pooled[p] / T((y1 - y0) * args.width);
        for (int64_t x = int64_t(y0) * args.width; x < int64_t(y1) * args.width; ++x) plane[x] += value;
        continue;
      }
      std::memset(line.data(), 0, args.width * sizeof(T));
      for (int q = 0; q < args.out_w; ++q) {
        const T value = g * pooled[p * args.out_w + q] / T((y1 - y0) * (args.end_x[q] - args.begin_x[q]));
        for (int x = args.begin_x[q]; x < args.end_x[q]; ++x) line[x] += value;
      }
      for (int y = y0; y < y1; ++y) {
        T* row = plane + int64_t(y) * args.width;
        for (int x = 0; x < args.width; ++x) row[x] += line[x];
      }
    }
  }
}

// Crops [begin, end) of d L / d features with the channels last.
template <typename T>
void matched_crops_backward(const MatchedArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t channels = args.channels, row = args.width * channels;
  std::vector<T> line(row);
  for (int64_t k = begin; k < end; ++k) {
    const T* pooled = args.pooled_grad + k * args.pooled_grad_stride;
    T* crop = args.grad + k * args.height * row;
    const T g = args.grad_rows[k];
    int first = 0;  // the first row that no bin has reached
    for (int p = 0; p < args.out_h; ++p) {
      const int y0 = bin_begin(p, args.height, args.out_h), y1 = bin_end(p, args.height, args.out_h);
      std::memset(line.data(), 0, row * sizeof(T));
      for (int q = 0; q < args.out_w; ++q, pooled += channels) {
        const int x0 = args.begin_x[q], x1 = args.end_x[q];
        for_vectors<T>(channels, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
          const Vec<T> value = g * load_up_to(pooled + i, n, T(0)) / T((y1 - y0) * (x1 - x0));
          for (int x = x0; x < x1; ++x) {
            T* pixel = line.data() + x * channels + i;
            store_up_to(pixel, Vec<T>(load_up_to(pixel, n, T(0)) + value), n);
          }
        });
      }
      for (int y = y0; y < y1 && y < first; ++y) {
        for_vectors<T>(row, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
          store_up_to(
              crop + y * row + i, Vec<T>(load_up_to(crop + y * row + i, n, T(0)) + load_up_to(line.data() + i, n, T(0))), n);
        });
      }
      for (int y = y0 > first ? y0 : first; y < y1; ++y) std::memcpy(crop + y * row, line.data(), row * sizeof(T));
      first = y1;
    }
  }
}
