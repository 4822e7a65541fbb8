// Adaptive average pooling of crops and their comparison, plane by plane, lanes over the pixels of a row.

// out (bins_h, bins_w) of one plane (height, width). sums: scratch of width.
template <typename T>
void pool_crop_plane(const MatchedArgs<T>& args, const T* plane, T* sums, T* out) {
  for (int p = 0; p < args.out_h; ++p) {
    const int y0 = bin_begin(p, args.height, args.out_h), y1 = bin_end(p, args.height, args.out_h);
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
  constexpr int lanes = kLanes<T>;
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  const T share = T(1) / T(args.channels > 0 ? args.channels * bins : 1);
  std::vector<T> sums(args.width), pooled(bins);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t match = args.matched[k];
    T* grad = args.grad ? args.grad + k * args.channels * bins : nullptr;
    args.rows[k] = T(0);
    if (match < 0 || match >= args.targets) {  // ignored
      if (grad) std::memset(grad, 0, args.channels * bins * sizeof(T));
      continue;
    }
    Vec<T> sum{};
    for (int64_t c = 0; c < args.channels; ++c) {
      pool_crop_plane(args, args.features + (k * args.channels + c) * area, sums.data(), pooled.data());
      const T* target = args.pooled_target + (match * args.channels + c) * bins;
      for (int64_t j = 0; j < bins; j += lanes) {
        const int n = int(bins - j < lanes ? bins - j : lanes);
        const Vec<T> difference = load_n(pooled.data() + j, n, T(0)) - load_n(target + j, n, T(0));
        sum += distance(difference, args.loss, args.beta);
        if (grad) store_n(grad + c * bins + j, Vec<T>(distance_slope(difference, args.loss, args.beta) * share), n);
      }
    }
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
