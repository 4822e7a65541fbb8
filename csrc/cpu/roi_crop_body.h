// One channel of one box is resampled row by row: input rows are resampled along x once and kept while neighbouring output
// rows still read them; output rows are a blend of two. Lanes over the samples of a row.

// Resampled input rows of one plane: value[j] = w0[j] row[p0[j]] + w1[j] row[p1[j]], slope[j] = d value[j] / d u_j.
// A pixel that is not read (weight and slope 0) is replaced by 0: it may be infinite.
template <typename T, bool kSlope>
struct RowCache {
  const SampleAxis<T>& xs;
  const T* base;  // the plane
  int64_t stride_y, stride_x;
  T *value[2], *slope[2], *copy;  // copy: the pixels of a row whose pixels are not neighbours
  int row[2] = {-1, -1};

  // Index of the buffer that holds row y; row `keep` must stay.
  int get(int y, int keep) {
    if (row[0] == y) return 0;
    if (row[1] == y) return 1;
    const int slot = row[0] == keep && keep >= 0 ? 1 : 0;
    const T* p = base + y * stride_y;
    if (stride_x != 1) {
      for (int x = xs.first; x <= xs.last; ++x) copy[x] = p[x * stride_x];
      p = copy;
    }
    const int *p0 = xs.pixel0.data(), *p1 = xs.pixel1.data();
    const T *w0 = xs.weight0.data(), *w1 = xs.weight1.data(), *s0 = xs.slope0.data(), *s1 = xs.slope1.data();
    T *v = value[slot], *s = slope[slot];
    constexpr int lanes = kLanes<T>;
    int j = 0;
    for (; xs.all_read && j + lanes <= xs.samples; j += lanes) {
      const Vec<T> a = load_at(p, p0 + j), b = load_at(p, p1 + j);
      store(v + j, Vec<T>(load(w0 + j) * a + load(w1 + j) * b));
      if (kSlope) store(s + j, Vec<T>(load(s0 + j) * a + load(s1 + j) * b));
    }
    for (; j < xs.samples; ++j) {
      const T a = s0[j] != T(0) || w0[j] != T(0) ? p[p0[j]] : T(0);
      const T b = s1[j] != T(0) || w1[j] != T(0) ? p[p1[j]] : T(0);
      v[j] = w0[j] * a + w1[j] * b;
      if (kSlope) s[j] = s0[j] * a + s1[j] * b;
    }
    row[slot] = y;
    return slot;
  }
};

// Boxes [begin, end): args.out (N, C, h, w).
template <typename T>
void roi_crop_boxes(const RoiCropArgs<T>& args, int64_t begin, int64_t end) {
  const RoiView<T>& roi = args.roi;
  const Pooling& pooling = args.pooling;
  SampleAxis<T> xs, ys;
  std::vector<T> buffer(2 * pooling.out_w + roi.map.width), nothing(pooling.out_w);  // the row beyond the image
  for (int64_t n = begin; n < end; ++n) {
    T* out = args.out + n * roi.map.channels * pooling.out_h * pooling.out_w;
    const int64_t area = int64_t(pooling.out_h) * pooling.out_w;
    const MapBox<T> b = roi.on_map(n, pooling);
    if (!roi.has_image(n) || !b.finite) {
      const T fill = roi.has_image(n) ? std::numeric_limits<T>::quiet_NaN() : T(0);
      for (int64_t i = 0; i < roi.map.channels * area; ++i) out[i] = fill;
      continue;
    }
    xs.build(b.x1, b.x2, pooling.out_w, roi.map.width, pooling.border);
    ys.build(b.y1, b.y2, pooling.out_h, roi.map.height, pooling.border);
    for (int64_t c = 0; c < roi.map.channels; ++c) {
      T* v = buffer.data();
      RowCache<T, false> rows{
          xs,
          roi.map.data + roi.boxes.image_index[n] * roi.map.stride_n + c * roi.map.stride_c,
          roi.map.stride_y,
          roi.map.stride_x,
          {v, v + pooling.out_w},
          {nullptr, nullptr},
          v + 2 * pooling.out_w};
      for (int i = 0; i < pooling.out_h; ++i) {
        const int k0 = rows.get(ys.pixel0[i], ys.pixel1[i]), k1 = rows.get(ys.pixel1[i], ys.pixel0[i]);
        const T* r0 = ys.weight0[i] != T(0) ? rows.value[k0] : nothing.data();
        const T* r1 = ys.weight1[i] != T(0) ? rows.value[k1] : nothing.data();
        const T w0 = ys.weight0[i], w1 = ys.weight1[i];
        T* o = out + c * area + int64_t(i) * pooling.out_w;
        for (int j = 0; j < pooling.out_w; ++j) o[j] = w0 * r0[j] + w1 * r1[j];
      }
    }
  }
}

// Boxes [begin, end): args.grad_boxes (N, 4) from args.grad (N, C, h, w).
//   dL/dx1 = sum g_ij D^x_ij (1 - a_j), dL/dx2 = sum g_ij D^x_ij a_j, D^x = d crop / d u; the same in y.
template <typename T>
void roi_crop_box_gradients(const RoiCropArgs<T>& args, int64_t begin, int64_t end) {
  constexpr int lanes = kLanes<T>;
  const RoiView<T>& roi = args.roi;
  const Pooling& pooling = args.pooling;
  const int padded = (pooling.out_w + lanes - 1) / lanes * lanes;
  SampleAxis<T> xs, ys;
  std::vector<T> buffer(5 * padded + roi.map.width);  // zero beyond out_w
  T *value = buffer.data(), *slope = value + 2 * padded, *a = slope + 2 * padded, *copy = a + padded;
  for (int64_t n = begin; n < end; ++n) {
    const MapBox<T> b = roi.on_map(n, pooling);
    T edges[4] = {};
    if (roi.has_image(n) && b.finite) {
      xs.build(b.x1, b.x2, pooling.out_w, roi.map.width, pooling.border);
      ys.build(b.y1, b.y2, pooling.out_h, roi.map.height, pooling.border);
      std::memcpy(a, xs.a.data(), pooling.out_w * sizeof(T));
      Vec<T> all{}, far{};  // sum g D^x, sum g D^x a
      for (int64_t c = 0; c < roi.map.channels; ++c) {
        RowCache<T, true> rows{
            xs,
            roi.map.data + roi.boxes.image_index[n] * roi.map.stride_n + c * roi.map.stride_c,
            roi.map.stride_y,
            roi.map.stride_x,
            {value, value + padded},
            {slope, slope + padded},
            copy};
        for (int i = 0; i < pooling.out_h; ++i) {
          const int k0 = rows.get(ys.pixel0[i], ys.pixel1[i]), k1 = rows.get(ys.pixel1[i], ys.pixel0[i]);
          const T* g = args.grad + ((n * roi.map.channels + c) * pooling.out_h + i) * pooling.out_w;
          Vec<T> dy{};
          for (int j = 0; j < pooling.out_w; j += lanes) {
            const Vec<T> gv = pooling.out_w - j >= lanes ? load(g + j) : load_n(g + j, pooling.out_w - j, T(0));
            const Vec<T> gdx = gv * (ys.weight0[i] * load(rows.slope[k0] + j) + ys.weight1[i] * load(rows.slope[k1] + j));
            all += gdx;
            far += gdx * load(a + j);
            dy += gv * (ys.slope0[i] * load(rows.value[k0] + j) + ys.slope1[i] * load(rows.value[k1] + j));
          }
          const T g_dy = sum_lanes<T>(dy);
          edges[1] += g_dy * (T(1) - ys.a[i]);
          edges[3] += g_dy * ys.a[i];
        }
      }
      edges[2] = sum_lanes<T>(far);
      edges[0] = sum_lanes<T>(all) - edges[2];
    }
    T* out = args.grad_boxes + 4 * n;
    if (roi.has_image(n)) {
      write_box_gradient(roi, pooling, n, edges, out);
    } else {
      std::memset(out, 0, 4 * sizeof(T));
    }
  }
}

// Planes [begin, end) of (image, channel): args.grad_images, boxes of an image in their order. The transpose of the crop:
// rows first, then along x.
template <typename T>
void roi_crop_image_gradients(const RoiCropArgs<T>& args, int64_t begin, int64_t end) {
  const RoiView<T>& roi = args.roi;
  const Pooling& pooling = args.pooling;
  SampleAxis<T> xs, ys;
  const int64_t area = int64_t(roi.map.height) * roi.map.width;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / roi.map.channels, c = task % roi.map.channels;
    T* plane = args.grad_images + task * area;
    std::memset(plane, 0, area * sizeof(T));
    for (int64_t k = args.groups->start[image]; k < args.groups->start[image + 1]; ++k) {
      const int64_t n = args.groups->order[k];
      const MapBox<T> b = roi.on_map(n, pooling);
      if (!b.finite) continue;
      xs.build(b.x1, b.x2, pooling.out_w, roi.map.width, pooling.border);
      ys.build(b.y1, b.y2, pooling.out_h, roi.map.height, pooling.border);
      for (int i = 0; i < pooling.out_h; ++i) {
        const T* g = args.grad + ((n * roi.map.channels + c) * pooling.out_h + i) * pooling.out_w;
        T *row0 = plane + int64_t(ys.pixel0[i]) * roi.map.width, *row1 = plane + int64_t(ys.pixel1[i]) * roi.map.width;
        for (int j = 0; j < pooling.out_w; ++j) {
          const T g0 = g[j] * xs.weight0[j], g1 = g[j] * xs.weight1[j];
          row0[xs.pixel0[j]] += ys.weight0[i] * g0;
          row0[xs.pixel1[j]] += ys.weight0[i] * g1;
          row1[xs.pixel0[j]] += ys.weight1[i] * g0;
          row1[xs.pixel1[j]] += ys.weight1[i] * g1;
        }
      }
    }
  }
}
