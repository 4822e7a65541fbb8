// SIMD vectors for the bodies that foreach_target.h compiles once per instruction set. No include guard: it is read again
// inside each target's namespace. `Vec<T>` is a compiler vector with the usual operators; a comparison gives a lane mask.

#if CLS2DET_TARGET == 512
constexpr int kVectorBytes = 64;
#elif CLS2DET_TARGET == 256
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vec = typename VectorOf<T>::type;
template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <typename T>
CLS2DET_HD Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
CLS2DET_HD void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The first n lanes (0 <= n <= lanes); the others hold `fill` and touch no memory.
template <typename T>
CLS2DET_HD Vec<T> load_n(const T* p, int n, T fill) {
#if CLS2DET_TARGET == 512
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << n) - 1), p);
  }
#endif
  Vec<T> v = Vec<T>{} + fill;
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

template <typename T>
CLS2DET_HD void store_n(T* p, Vec<T> v, int n) {
#if CLS2DET_TARGET == 512
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
    return;
  }
#endif
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

// p[index[0]], p[index[1]], and so on.
template <typename T>
CLS2DET_HD Vec<T> load_at(const T* p, const int* index) {
  Vec<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = p[index[i]];
  return v;
}

// The first n values from p on, or all lanes of them; missing lanes hold `fill`.
template <typename T>
CLS2DET_HD Vec<T> load_up_to(const T* p, int64_t n, T fill) {
  return n >= kLanes<T> ? load(p) : load_n(p, int(n), fill);
}

template <typename T>
CLS2DET_HD void store_up_to(T* p, Vec<T> v, int64_t n) {
  if (n >= kLanes<T>) {
    store(p, v);
  } else {
    store_n(p, v, int(n));
  }
}

// Calls visit(i, n) for the vectors of `count` neighbouring values: n is the number of lanes, a constant for the compiler, and
// less only in the last vector.
template <typename T, typename Visit>
CLS2DET_HD void for_vectors(int64_t count, const Visit& visit) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) visit(i, int64_t(kLanes<T>));
  if (i < count) visit(i, count - i);
}

// Like for_vectors, but from a vector's worth of values on all vectors are whole ones: the last begins within the one before.
// So visit may only write what does not depend on what it has written.
template <typename T, typename Visit>
CLS2DET_HD void for_overlapping_vectors(int64_t count, const Visit& visit) {
  if (count < kLanes<T>) return visit(0, count);
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) visit(i, int64_t(kLanes<T>));
  if (i < count) visit(count - kLanes<T>, int64_t(kLanes<T>));
}

// Like store_up_to. With `past_caches` all lanes are written past the caches, so that the memory is not read first; n is then
// at least a vector. finish_writes() must follow the last one.
template <typename T>
CLS2DET_HD void write_up_to(T* p, Vec<T> v, int64_t n, bool past_caches) {
#if CLS2DET_TARGET == 512
  if (past_caches) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif CLS2DET_TARGET == 256
  if (past_caches) return _mm256_stream_si256((__m256i*)p, (__m256i)v);
#else
  (void)past_caches;
#endif
  store_up_to(p, v, n);
}

CLS2DET_HD void finish_writes() {
#if CLS2DET_TARGET
  _mm_sfence();
#endif
}

// Lanes combined in halves, always in the same order: in registers where the compiler has __builtin_shuffle.
template <int kStep, typename T, typename Combine>
CLS2DET_HD T fold_lanes(Vec<T> v, const Combine& combine) {
  if constexpr (kStep == 0) {
    return v[0];
  } else {
    Vec<T> moved;
#if defined(__GNUC__) && !defined(__clang__)
    typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
    Vec<Index> from;
    for (int i = 0; i < kLanes<T>; ++i) from[i] = i ^ kStep;
    moved = __builtin_shuffle(v, from);
#else
    for (int i = 0; i < kLanes<T>; ++i) moved[i] = v[i ^ kStep];
#endif
    return fold_lanes<kStep / 2, T>(combine(v, moved), combine);
  }
}

template <typename T>
CLS2DET_HD T sum_lanes(Vec<T> v) {
  return fold_lanes<kLanes<T> / 2, T>(v, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}

template <typename T>
CLS2DET_HD T max_lanes(Vec<T> v) {
  return fold_lanes<kLanes<T> / 2, T>(v, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

// exp(x) for x <= 0: 2^n e^r with |r| <= ln 2 / 2 and a degree-6 polynomial; relative error below 3e-7 (measured).
// Below -87 the result is exactly 0: denormals would halve the speed. NaN stays NaN.
CLS2DET_HD Vec<float> exp_nonpositive(Vec<float> x) {
  typedef int Int __attribute__((vector_size(kVectorBytes)));
  const Vec<float> bounded = x < -87.0f ? Vec<float>{} - 87.0f : x;
  const Int n = __builtin_convertvector(bounded * 1.44269504f - 0.5f, Int);  // rounds to nearest: the argument is negative
  const Vec<float> nf = __builtin_convertvector(n, Vec<float>);
  const Vec<float> r = (bounded - nf * 0.693359375f) + nf * 2.12194440e-4f;
  Vec<float> p = r * 1.3888889e-3f + 8.3333333e-3f;  // Taylor: its remainder on |r| <= 0.347 is 1.2e-7
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Int power = (n + 127) << 23;
  Vec<float> scale;
  __builtin_memcpy(&scale, &power, sizeof scale);
  const Vec<float> value = x < -87.0f ? Vec<float>{} : p * scale;
  return x == x ? value : x;
}

// log(1 + x) for 0 <= x <= 1 as 2 atanh(x / (2 + x)); relative error below 3e-7 (measured).
CLS2DET_HD Vec<float> log1p_unit(Vec<float> x) {
  const Vec<float> s = x / (x + 2.0f);
  const Vec<float> z = s * s;  // at most 1 / 9
  Vec<float> p = z * (1.0f / 15) + 1.0f / 13;
  p = p * z + 1.0f / 11;
  p = p * z + 1.0f / 9;
  p = p * z + 1.0f / 7;
  p = p * z + 1.0f / 5;
  p = p * z + 1.0f / 3;
  p = p * z + 1.0f;
  return 2.0f * s * p;
}

// float64 goes through the C library lane by lane: it is for checking gradients, not for speed.
CLS2DET_HD Vec<double> exp_nonpositive(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

CLS2DET_HD Vec<double> log1p_unit(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::log1p(x[i]);
  return x;
}
