// Adaptive average pooling of crops and their comparison, plane by plane, lanes over the pixels of a row.
#include "cpu/gather_channels.h"

// What pooling needs beside its input: sums of columns, of some planes side by side, and the same with lanes over planes.
template <typename T>
struct CropScratch {
  std::vector<T> sums, lanes;

  explicit CropScratch(const MatchedArgs<T>& args)
      : sums(size_t(args.width) * kLanes<T>), lanes(size_t(args.width + 1) * kLanes<T>) {}

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

// out (count, bins) of `count` planes (height, width).
template <typename T>
void pool_crops(const MatchedArgs<T>& args, const T* from, int64_t count, CropScratch<T>& scratch, T* out) {
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  if (args.out_w == 1) {
    for (int64_t c = 0; c < count; ++c) pool_crop_rows(args, from + c * area, out + c * bins);
    return;
  }
  for (int64_t c = 0; c < count; c += kLanes<T>) {
    const int n = int(count - c < kLanes<T> ? count - c : kLanes<T>);
    pool_crop_planes(args, from + c * area, n, scratch, out + c * bins);
  }
}

// Planes [begin, end) of args.pooled_target (G, C, bins), of those ground truths that some row is matched to.
template <typename T>
void matched_targets(const MatchedArgs<T>& args, int64_t begin, int64_t end) {
  CropScratch<T> scratch(args);
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  for (int64_t i = begin, next; i < end; i = next) {
    const int64_t g = i / args.channels, last = (g + 1) * args.channels;
    next = last < end ? last : end;
    if (args.used[g]) pool_crops(args, args.target + i * area, next - i, scratch, args.pooled_target + i * bins);
  }
}

// Rows [begin, end): loss, and d row / d pooled where it is asked for.
template <typename T>
void matched_rows(const MatchedArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width,
                values = args.channels * bins;
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
    pool_crops(args, args.features + k * args.channels * area, args.channels, scratch, pooled.data());
    const T* target = args.pooled_target + match * values;
    Vec<T> sum{};
    for_vectors<T>(values, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      const Vec<T> difference = load_up_to(pooled.data() + j, n, T(0)) - load_up_to(target + j, n, T(0));
      sum += distance(difference, args.loss, args.beta);
      if (grad) store_up_to(grad + j, Vec<T>(distance_slope(difference, args.loss, args.beta) * share), n);
    });
    args.rows[k] = sum_lanes<T>(sum) * share * args.factor;
  }
}

// Planes [begin, end) of d L / d features: every pixel gets the share of the bins that it lies in.
template <typename T>
void matched_planes_backward(const MatchedArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  std::vector<T> line(args.width);
  for (int64_t i = begin; i < end; ++i) {
    const T* pooled = args.pooled_grad + i * bins;
    T* plane = args.grad + i * area;
    const T g = args.factor * args.grad_rows[i / args.channels];
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
