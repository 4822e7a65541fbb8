// ReLU and max-pool of rows, lanes over channels; and the gradient of whole images, lanes along a row of the kernel.

// Rows [begin, end) of images * out_h.
template <typename T>
void stem_pool_rows(const StemPool<T>& args, int64_t begin, int64_t end) {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
  constexpr int lanes = kLanes<T>;
  const StemShape& s = args.shape;
  const int64_t channels = s.channels, plane = int64_t(s.out_h) * s.out_w;
  std::vector<T> values(s.out_w * channels + lanes);
  std::vector<Index> chosen(s.out_w * channels + lanes);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / s.out_h;
    const int oy = int(row - image * s.out_h);
    const T* conv = args.conv + image * s.conv_h * s.conv_w * channels;
    for (int ox = 0; ox < s.out_w; ++ox) {
      const T* places[kWindow * kWindow];  // of the convolution, those inside
      int numbers[kWindow * kWindow], inside = 0;
      for (int k = 0; k < kWindow * kWindow; ++k) {
        const int y = 2 * oy - 1 + k / kWindow, x = 2 * ox - 1 + k % kWindow;
        if (y < 0 || y >= s.conv_h || x < 0 || x >= s.conv_w) continue;
        places[inside] = conv + (int64_t(y) * s.conv_w + x) * channels;
        numbers[inside++] = k;
      }
      for_vectors<T>(channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
        Vec<T> best{};
        Vec<Index> at{};
        at += Index(-1);
        for (int i = 0; i < inside; ++i) {
          const Vec<T> value = load_up_to(places[i] + c, n, T(0));
          const auto better = (value > best) | (value != value) | (at < 0);  // NaN wins, as in torch's max-pool
          best = better ? value : best;
          at = better ? Vec<Index>{} + Index(numbers[i]) : at;
        }
        const auto dead = best <= Vec<T>{};
        best = dead ? Vec<T>{} : best;
        at = dead ? Vec<Index>{} + Index(kDead) : at;
        store(values.data() + ox * channels + c, best);  // beyond the channels it writes what the next place overwrites
        store(chosen.data() + ox * channels + c, at);
      });
    }
    const int64_t first = image * channels * plane + int64_t(oy) * s.out_w;
    for (int64_t c = 0; c < channels; ++c) {
      for (int ox = 0; ox < s.out_w; ++ox) args.out[first + c * plane + ox] = values[ox * channels + c];
      if (!args.index) continue;
      for (int ox = 0; ox < s.out_w; ++ox) args.index[first + c * plane + ox] = uint8_t(chosen[ox * channels + c]);
    }
  }
}

// The gradient at one place of the convolution, an entry for each pool that chose it: where the kernel of the entry's channel
// begins, and the pool's gradient.
template <typename T>
struct StemPlace {
  int* kernels;
  T* grads;
  int count;
};

// Adds the channels of one pool whose index is `step`. Writes up to a vector behind the last entry.
template <typename T>
CLS2DET_HD void add_chosen(const T* grad, const uint8_t* index, int channels, int step, int kernel_size, StemPlace<T>& place) {
#if CLS2DET_TARGET == 512
  if constexpr (sizeof(T) == 4) {
    const __m128i target = _mm_set1_epi8(char(step));
    const __m512i size = _mm512_set1_epi32(kernel_size),
                  first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i kernel = _mm512_mullo_epi32(first, size);
    for (int c = 0; c < channels; c += 16, kernel = _mm512_add_epi32(kernel, _mm512_slli_epi32(size, 4))) {
      const __mmask16 inside = channels - c < 16 ? __mmask16((1u << (channels - c)) - 1) : __mmask16(-1);
      const __mmask16 chosen = _mm_mask_cmpeq_epi8_mask(inside, _mm_maskz_loadu_epi8(inside, index + c), target);
      _mm512_storeu_ps(place.grads + place.count, _mm512_maskz_compress_ps(chosen, _mm512_maskz_loadu_ps(inside, grad + c)));
      _mm512_storeu_si512(place.kernels + place.count, _mm512_maskz_compress_epi32(chosen, kernel));
      place.count += __builtin_popcount(chosen);
    }
    return;
  }
#endif
  for (int c = 0; c < channels; ++c) {  // without branches: half of them would be mispredicted
    place.kernels[place.count] = c * kernel_size;
    place.grads[place.count] = grad[c];
    place.count += index[c] == step;
  }
}

// image[r] += sum over the entries of grad * row r of their kernels, for kVectors vectors of rows from `first` on.
template <typename T, int kVectors>
CLS2DET_HD void add_kernels(const StemPlace<T>& place, const T* weight, int first, int rows, T* image, int64_t image_row) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sums[kVectors] = {};
  for (int i = 0; i < place.count; ++i) {
    const T* from = weight + place.kernels[i] + first;
    for (int j = 0; j < kVectors; ++j) sums[j] += place.grads[i] * load(from + j * lanes);
  }
  T flat[kVectors * lanes];
  for (int j = 0; j < kVectors; ++j) store(flat + j * lanes, sums[j]);
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < kMostKernel; ++j) image[r * image_row + j] += flat[r * kMostKernel + j];
  }
}

template <typename T>
CLS2DET_HD void add_place(const StemPlace<T>& place, const T* weight, int kernel_h, T* image, int64_t image_row) {
  constexpr int lanes = kLanes<T>;
  constexpr int kOfSeven = (7 * kMostKernel + lanes - 1) / lanes, kOfThree = (3 * kMostKernel + lanes - 1) / lanes;
  if (kernel_h == 7) {
    add_kernels<T, kOfSeven>(place, weight, 0, 7, image, image_row);
  } else if (kernel_h == 3) {
    add_kernels<T, kOfThree>(place, weight, 0, 3, image, image_row);
  } else {
    constexpr int rows = lanes > kMostKernel ? lanes / kMostKernel : 1, kVectors = rows * kMostKernel / lanes;
    for (int r = 0; r < kernel_h; r += rows) {
      const int chosen = kernel_h - r < rows ? kernel_h - r : rows;
      add_kernels<T, kVectors>(place, weight, r * kMostKernel, chosen, image + r * image_row, image_row);
    }
  }
}

// Images [begin, end). The sum of a pixel has a fixed order, whatever the number of threads.
template <typename T>
void stem_images_backward(const StemBackward<T>& args, int64_t begin, int64_t end) {
  const StemShape& s = args.shape;
  const int channels = s.channels;
  const int64_t plane = int64_t(s.out_h) * s.out_w;
  // an image with its padding, and room for whole vectors at its right edge
  const int reach_h = (s.conv_h - 1) * s.stride + s.kernel_h, reach_w = (s.conv_w - 1) * s.stride + kMostKernel;
  const int64_t padded_h = reach_h > s.height + s.padding ? reach_h : s.height + s.padding;
  const int64_t padded_w = reach_w > s.width + s.padding ? reach_w : s.width + s.padding;
  std::vector<T> padded(s.inputs * padded_h * padded_w), upstream(plane * channels);
  std::vector<uint8_t> chosen(plane * channels);
  const int64_t most = 4 * channels + 16;  // four pools cover a place, and add_chosen writes a vector behind
  std::vector<T> grads(s.conv_w * most);
  std::vector<int> kernels(s.conv_w * most);
  std::vector<StemPlace<T>> line(s.conv_w);
  for (int64_t image = begin; image < end; ++image) {
    std::fill(padded.begin(), padded.end(), T(0));
    for (int64_t c0 = 0; c0 < channels;
         c0 += 16) {  // a transpose: of a few channels at a time, so that whole cache lines are written
      const int64_t c1 = c0 + 16 < channels ? c0 + 16 : channels, first = image * channels * plane;
      for (int64_t i = 0; i < plane; ++i) {
        for (int64_t c = c0; c < c1; ++c) upstream[i * channels + c] = args.grad[first + c * plane + i];
        for (int64_t c = c0; c < c1; ++c) chosen[i * channels + c] = args.index[first + c * plane + i];
      }
    }
    for (int y = 0; y < s.conv_h; ++y) {
      for (int x = 0; x < s.conv_w; ++x) {
        line[x] = {kernels.data() + x * most, grads.data() + x * most, 0};
        for (int k = 0; k < kWindow * kWindow; ++k) {
          int oy, ox;
          if (!pool_of(y, k / kWindow, s.out_h, oy) || !pool_of(x, k % kWindow, s.out_w, ox)) continue;
          const int64_t at = (int64_t(oy) * s.out_w + ox) * channels;
          add_chosen(upstream.data() + at, chosen.data() + at, channels, k, args.kernel_size, line[x]);
        }
      }
      for (int i = 0; i < s.inputs; ++i) {
        const T* weight = args.weight + int64_t(i) * channels * args.kernel_size;
        T* row = padded.data() + (i * padded_h + int64_t(y) * s.stride) * padded_w;
        for (int x = 0; x < s.conv_w; ++x) {
          if (line[x].count) add_place(line[x], weight, s.kernel_h, row + int64_t(x) * s.stride, padded_w);
        }
      }
    }
    for (int64_t i = 0; i < s.inputs; ++i) {
      for (int64_t y = 0; y < s.height; ++y) {
        std::memcpy(
            args.out + ((image * s.inputs + i) * s.height + y) * s.width,
            padded.data() + (i * padded_h + y + s.padding) * padded_w + s.padding, s.width * sizeof(T));
      }
    }
  }
}
