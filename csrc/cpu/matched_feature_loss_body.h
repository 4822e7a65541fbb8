// Adaptive average pooling of crops and their comparison: plane by plane with lanes over the pixels of a row, or, where
// channels are the last dimension, with lanes over neighbours in memory.
#include "cpu/gather_channels.h"
#include "cpu/storage.h"

// What pooling needs beside its input: sums of columns, of some planes side by side or of all channels, and the same with lanes
// over planes.
template <typename T>
struct CropScratch {
  std::vector<T> sums, lanes;

  template <typename S>
  explicit CropScratch(const MatchedArgs<S>& args)
      : sums(size_t(args.width) * (args.channels_last ? args.channels : kLanes<T>)),
        lanes(size_t(args.width + 1) * kLanes<T>) {}

  Vec<T>* vectors() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(lanes.data());
    return reinterpret_cast<Vec<T>*>((address + kVectorBytes - 1) / kVectorBytes * kVectorBytes);
  }
};

// out (bins_h,) of one plane (height, width): whole rows, neighbours in memory.
template <typename S, typename T>
void pool_crop_rows(const MatchedArgs<S>& args, const S* plane, T* out) {
  for (int p = 0; p < args.out_h; ++p) {
    const int y0 = args.begin_y[p], y1 = args.end_y[p];
    const S* from = plane + int64_t(y0) * args.width;
    out[p] = sum_lanes<T>(sum_lanewise(from, int64_t(y1 - y0) * args.width)) / T((y1 - y0) * args.width);
  }
}

// sums (count,) of the rows [0, rows) of `count` values each.
template <typename S, typename T>
CLS2DET_HD void sum_rows(const S* first, int rows, int64_t count, T* sums) {
  for_overlapping_vectors<T>(count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    const S* at = first + i;
    Vec<T> sum = read_up_to(at, n);
    for (int y = 1; y < rows; ++y) sum += read_up_to(at += count, n);
    store_up_to(sums + i, sum, n);
  });
}

// out (n, bins_h, bins_w) of n planes (height, width), at most a vector of them: columns plane by plane with lanes over pixels,
// then rows with lanes over planes, because a bin has few columns.
template <typename S, typename T>
void pool_crop_planes(const MatchedArgs<S>& args, const S* planes, int n, CropScratch<T>& scratch, T* out) {
  const int64_t area = int64_t(args.height) * args.width, bins = int64_t(args.out_h) * args.out_w;
  Vec<T>* lanes = scratch.vectors();
  for (int p = 0; p < args.out_h; ++p) {
    const int y0 = args.begin_y[p], y1 = args.end_y[p];
    for (int c = 0; c < n; ++c) {
      sum_rows(
          planes + c * area + int64_t(y0) * args.width, y1 - y0, args.width, scratch.sums.data() + int64_t(c) * args.width);
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
template <typename S, typename T>
void pool_crop_positions(const MatchedArgs<S>& args, const S* crop, CropScratch<T>& scratch, T* out) {
  const int64_t channels = args.channels, row = args.width * channels;
  T* sums = scratch.sums.data();
  for (int p = 0; p < args.out_h; ++p) {
    const int y0 = args.begin_y[p], y1 = args.end_y[p];
    sum_rows(crop + y0 * row, y1 - y0, row, sums);
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
template <typename S, typename T>
void pool_crops(const MatchedArgs<S>& args, const S* from, int64_t count, CropScratch<T>& scratch, T* out) {
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
template <typename S>
void matched_targets(const MatchedArgs<S>& args, int64_t begin, int64_t end) {
  CropScratch<Accumulate<S>> scratch(args);
  const int64_t parts = args.parts(), area = int64_t(args.height) * args.width,
                values = args.channels / parts * args.out_h * args.out_w;
  for (int64_t i = begin, next; i < end; i = next) {
    const int64_t g = i / parts, last = (g + 1) * parts;
    next = last < end ? last : end;
    const S* from = args.target + g * args.target_stride + i % parts * area;
    if (args.used[g]) pool_crops(args, from, next - i, scratch, args.pooled_target + i * values);
  }
}

// Rows [begin, end): loss, and d row / d pooled where it is asked for.
template <typename S>
void matched_rows(const MatchedArgs<S>& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
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
    args.rows[k] = sum_lanes<T>(sum) * share * args.factor;
  }
}

// Unpools rows of `count` values: the lines of a few bins along y, of which each row of the map adds those that it lies in.
template <typename T>
struct Unpooling {
  int64_t count, stride;     // of a line in memory: whole vectors
  int slots;                 // as many bins as can share a row
  std::vector<T> lines;      // (slots, stride)
  std::vector<const T*> in;  // the lines of a row's bins

  template <typename S>
  Unpooling(const MatchedArgs<S>& args, int64_t count)
      : count(count),
        stride((count + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        slots((args.out_h + args.height - 1) / args.height + 1),
        lines(size_t(slots) * stride),
        in(slots) {}

  // out (height, count); add_line(p, line) adds the bins (p, *) to a line of zeros.
  template <typename S, typename AddLine>
  CLS2DET_HD void rows(const MatchedArgs<S>& args, S* out, const AddLine& add_line) {
    int first = 0, last = 0;  // bins that hold the row
    for (int y = 0; y < args.height; ++y, out += count) {
      for (; last < args.out_h && args.begin_y[last] <= y; ++last) {
        T* line = lines.data() + last % slots * stride;
        std::memset(line, 0, stride * sizeof(T));
        add_line(last, line);
      }
      while (args.end_y[first] <= y) ++first;
      const int bins = last - first;
      for (int p = first; p < last; ++p) in[p - first] = lines.data() + p % slots * stride;
      const T* const* from = in.data();
      for_overlapping_vectors<T>(count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        Vec<T> sum = load(from[0] + i);
        for (int p = 1; p < bins; ++p) sum += load(from[p] + i);
        write_rounded(out + i, sum, n, false);
      });
    }
  }
};

// Planes [begin, end) of d L / d features: every pixel gets the share of the bins that it lies in.
template <typename S>
void matched_planes_backward(const MatchedArgs<S>& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  Unpooling<T> unpooling(args, args.width);
  for (int64_t i = begin; i < end; ++i) {
    const T* pooled = args.pooled_grad + i / args.channels * args.pooled_grad_stride + i % args.channels * bins;
    S* plane = args.grad_features + i * area;
    const T g = args.factor * args.grad_rows[i / args.channels];
    if (bins == 1) {  // one value; 0 in front as in a sum
      std::fill(plane, plane + area, S(T(0) + g * pooled[0] / T(area)));
      continue;
    }
    unpooling.rows(args, plane, [&](int p, T* line) __attribute__((always_inline)) {
      for (int q = 0; q < args.out_w; ++q) {
        const T value =
            g * pooled[p * args.out_w + q] / T((args.end_y[p] - args.begin_y[p]) * (args.end_x[q] - args.begin_x[q]));
        for (int x = args.begin_x[q]; x < args.end_x[q]; ++x) line[x] += value;
      }
    });
  }
}

// The same of crops [begin, end) with the channels last.
template <typename S>
void matched_crops_backward(const MatchedArgs<S>& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const int64_t channels = args.channels, row = args.width * channels;
  Unpooling<T> unpooling(args, row);
  for (int64_t k = begin; k < end; ++k) {
    const T* pooled = args.pooled_grad + k * args.pooled_grad_stride;
    const T g = args.factor * args.grad_rows[k];
    unpooling.rows(args, args.grad_features + k * args.height * row, [&](int p, T* line) __attribute__((always_inline)) {
      for (int q = 0; q < args.out_w; ++q) {
        const int x0 = args.begin_x[q], x1 = args.end_x[q];
        const T* bin = pooled + (int64_t(p) * args.out_w + q) * channels;
        for_vectors<T>(channels, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
          const Vec<T> value = g * load_up_to(bin + i, n, T(0)) / T((args.end_y[p] - args.begin_y[p]) * (x1 - x0));
          for (int x = x0; x < x1; ++x) {
            T* pixel = line + x * channels + i;
            store_up_to(pixel, Vec<T>(load_up_to(pixel, n, T(0)) + value), n);
          }
        });
      }
    });
  }
}
