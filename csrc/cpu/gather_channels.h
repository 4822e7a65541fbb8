// From channels one behind the other to lanes over channels. Part of a body: see foreach_target.h.

#if defined(__GNUC__) && !defined(__clang__)
template <int kStep, int... kLane>
CLS2DET_HD void exchange(Vec<float>& a, Vec<float>& b, std::integer_sequence<int, kLane...>) {
  typedef int Mask __attribute__((vector_size(kVectorBytes)));
  constexpr int n = kLanes<float>;
  const Mask low = {(kLane & kStep ? n + kLane - kStep : kLane)...};
  const Mask high = {(kLane & kStep ? n + kLane : kLane + kStep)...};
  const Vec<float> x = a;
  a = __builtin_shuffle(x, b, low);
  b = __builtin_shuffle(x, b, high);
}

template <int kStep>
CLS2DET_HD void transpose_steps(Vec<float>* block) {  // Eklundh: exchange off-diagonal halves of ever larger squares
  if constexpr (kStep < kLanes<float>) {
    for (int i = 0; i < kLanes<float>; ++i) {
      if (!(i & kStep)) exchange<kStep>(block[i], block[i + kStep], std::make_integer_sequence<int, kLanes<float>>());
    }
    transpose_steps<2 * kStep>(block);
  }
}
#endif

// count pixels from p on, one vector of n channels each.
template <typename T>
void gather_channels(const T* p, int64_t stride_c, int64_t stride_x, int n, int count, Vec<T>* out) {
#if defined(__GNUC__) && !defined(__clang__)
  if constexpr (sizeof(T) == 4) {
    constexpr int lanes = kLanes<T>;
    int x = 0;
    const bool shuffle = stride_x == 1 && 2 * n >= lanes;  // of few channels a scalar loop reads less
    if (shuffle && count >= lanes) {
      for (;; x = x + 2 * lanes <= count ? x + lanes : count - lanes) {  // the last block begins within the one before
        Vec<T> block[lanes];
        if (n == lanes) {  // without a question for each channel
          for (int c = 0; c < lanes; ++c) block[c] = load(p + c * stride_c + x);
        } else {
          for (int c = 0; c < lanes; ++c) block[c] = c < n ? load(p + c * stride_c + x) : Vec<T>{};
        }
        transpose_steps<1>(block);
        for (int i = 0; i < lanes; ++i) out[x + i] = block[i];
        if (x + lanes == count) return;
      }
    }
    if (shuffle) {
      Vec<T> block[lanes];
      for (int c = 0; c < lanes; ++c) block[c] = c < n ? load_n(p + c * stride_c, count, T(0)) : Vec<T>{};
      transpose_steps<1>(block);
      for (int i = 0; i < count; ++i) out[i] = block[i];
      return;
    }
  }
#endif
  for (int x = 0; x < count; ++x) {
    out[x] = Vec<T>{};
    for (int c = 0; c < n; ++c) out[x][c] = p[c * stride_c + x * stride_x];
  }
}
