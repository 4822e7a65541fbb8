// Maps of 16 bits, read and written where they lie: values are widened on their way into a vector and rounded on their way out
// of it. Those of 32 and 64 bits pass as they are. Part of a body: see foreach_target.h.

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

// With intrinsics, because gcc takes __builtin_convertvector apart into quarters of a vector.
CLS2DET_HD Words to_words(Halves halves) {
#if CLS2DET_TARGET == 512
  return (Words)_mm512_cvtepu16_epi32((__m256i)halves);
#elif CLS2DET_TARGET == 256
  return (Words)_mm256_cvtepu16_epi32((__m128i)halves);
#else
  return __builtin_convertvector(halves, Words);
#endif
}

CLS2DET_HD Halves to_halves(Words words) {  // of words below 2^16
#if CLS2DET_TARGET == 512
  return (Halves)_mm512_cvtepi32_epi16((__m512i)words);
#elif CLS2DET_TARGET == 256
  return (Halves)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)words), _mm256_extracti128_si256((__m256i)words, 1));
#else
  return __builtin_convertvector(words, Halves);
#endif
}

CLS2DET_HD Vec<float> widen(Halves halves, c10::BFloat16) { return (Vec<float>)(to_words(halves) << 16); }

CLS2DET_HD Halves narrow(Vec<float> v, c10::BFloat16) {
  const Words words = (Words)v;
  const Words nearest = (words + 0x7fff + ((words >> 16) & 1)) >> 16;  // of two that are as near, the even one
  return to_halves(v == v ? nearest : Words{} + 0x7fc0);
}

CLS2DET_HD Vec<float> widen(Halves halves, c10::Half) {
#if CLS2DET_TARGET == 512
  return (Vec<float>)_mm512_cvtph_ps((__m256i)halves);
#elif CLS2DET_TARGET == 256
  return (Vec<float>)_mm256_cvtph_ps((__m128i)halves);
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = c10::Half(halves[i], c10::Half::from_bits());
  return v;
#endif
}

CLS2DET_HD Halves narrow(Vec<float> v, c10::Half) {
#if CLS2DET_TARGET == 512
  return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif CLS2DET_TARGET == 256
  return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  Halves halves;
  for (int i = 0; i < kLanes<float>; ++i) halves[i] = c10::Half(v[i]).x;
  return halves;
#endif
}

// The first n values from p on, or all lanes of them; missing lanes hold 0.
template <typename S>
CLS2DET_HD Vec<Accumulate<S>> read_up_to(const S* p, int64_t n) {
  if constexpr (std::is_same_v<S, Accumulate<S>>) {
    return load_up_to(p, n, S(0));
  } else {
    Halves halves{};
    if (n >= kLanes<float>) {
      __builtin_memcpy(&halves, p, sizeof halves);
    } else {
      for (int i = 0; i < int(n); ++i) halves[i] = p[i].x;
    }
    return widen(halves, S());
  }
}

// The last n lanes of the vector that ends at `end`; the others hold 0.
template <typename S>
CLS2DET_HD Vec<Accumulate<S>> read_last(const S* end, int n) {
  using T = Accumulate<S>;
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
  Vec<Index> lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane >= Index(kLanes<T> - n) ? read_up_to(end - kLanes<T>, kLanes<T>) : Vec<T>{};
}

// `count` neighbouring values, added lane by lane.
template <typename S>
CLS2DET_HD Vec<Accumulate<S>> sum_lanewise(const S* p, int64_t count) {
  constexpr int lanes = kLanes<Accumulate<S>>;
  if (count < lanes) return read_up_to(p, count);
  Vec<Accumulate<S>> sum = read_up_to(p, lanes);
  int64_t i = lanes;
  for (; i + lanes <= count; i += lanes) sum += read_up_to(p + i, lanes);
  return i < count ? sum + read_last(p + count, int(count - i)) : sum;
}

// Like write_up_to of simd.h.
template <typename S>
CLS2DET_HD void write_rounded(S* p, Vec<Accumulate<S>> v, int64_t n, bool past_caches) {
  if constexpr (std::is_same_v<S, Accumulate<S>>) {
    write_up_to(p, v, n, past_caches);
  } else {
    const Halves halves = narrow(v, S());
#if CLS2DET_TARGET == 512
    if (past_caches) return _mm256_stream_si256((__m256i*)p, (__m256i)halves);
#elif CLS2DET_TARGET == 256
    if (past_caches) return _mm_stream_si128((__m128i*)p, (__m128i)halves);
#else
    (void)past_caches;
#endif
    if (n >= kLanes<float>) {
      __builtin_memcpy(p, &halves, sizeof halves);
    } else {
      for (int i = 0; i < int(n); ++i) p[i].x = halves[i];
    }
  }
}
