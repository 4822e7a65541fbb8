// Adaptive average pooling of crops and their comparison, plane by plane, lanes over the pixels of a row.

// out (bins_h, bins_w) of one plane (height, width). sums: scratch of width.
template <typename T>
void pool_crop_plane(const MatchedArgs<T>& args, const T* plane, T* sums, T* out) {
  for (int p = 0; p < args.out_h; ++p) {
    const int y0 = bin_begin(p, args.height, args.out_h), y1 = bin_end(p, args.height, args.out_h);
    if (args.out_w == 1) {  // whole rows, neighbours in memory
      Vec<T> sum{};
      for_vectors<T>(int64_t(y1 - y0) * args.width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        sum += load_up_to(plane + int64_t(y0) * args.width + i, n, T(0));
      });
      out[p] = sum_lanes<T>(sum) / T((y1 - y0) * args.width);
      continue;
    }
    std::memcpy(sums, plane + int64_t(y0) * args.width, args.width * sizeof(T));
    for (int y = y0 + 1; y < y1; ++y) {
      const T* row = plane + int64_t(y) * args.width;
      for (int x = 0; x < args.width; ++x) sums[x] += row[x];
    }
    for (int q = 0; q < args.out_w; ++q) {
      T sum = T(0);
      for (int x = args.begin_x[q]; x < args.end_x[q]; ++x) sum += sums[x];
      out[p * args.out_w + q] = sum / T((y1 - y0) * (args.end_x[q] - args.begin_x[q]));
    }
  }
}

// Ground truths [begin, end): args.pooled_target (G, C, bins), of those that some row is matched to.
template <typename T>
void matched_targets(const MatchedArgs<T>& args, int64_t begin, int64_t end) {
  std::vector<T> sums(args.width);
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  for (int64_t i = begin; i < end; ++i) {
    if (!args.used[i / args.channels]) continue;
    pool_crop_plane(args, args.target + i * area, sums.data(), args.pooled_target + i * bins);
  }
}

// Rows [begin, end): loss, and d row / d pooled where it is asked for.
template <typename T>
void matched_rows(const MatchedArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width,
                values = args.channels * bins;
  const T share = T(1) / T(values > 0 ? values : 1);
  std::vector<T> sums(args.width), pooled(values);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t match = args.matched[k];
    T* grad = args.grad ? args.grad + k * values : nullptr;
    args.rows[k] = T(0);
    if (match < 0 || match >= args.targets) {  // ignored
      if (grad) std::memset(grad, 0, values * sizeof(T));
      continue;
    }
    for (int64_t c = 0; c < args.channels; ++c) {
      pool_crop_plane(args, args.features + (k * args.channels + c) * area, sums.data(), pooled.data() + c * bins);
    }
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
    const T* pooled = args.pooled_grad + i * bins;
    T* plane = args.grad + i * area;
    const T g = args.grad_rows[i / args.channels];
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
