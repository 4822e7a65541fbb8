// Which of the compiled bodies this processor runs, chosen once.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(CLS2DET_PLAIN)
#define CLS2DET_X86_TARGETS 1
#include <cpuid.h>
#else
#define CLS2DET_X86_TARGETS 0
#endif

namespace cls2det {

enum class SimdLevel { plain, avx2, avx512 };

#if CLS2DET_X86_TARGETS
// F16C, asked of the processor itself: not every gcc knows its name.
inline bool converts_halves() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// CLS2DET_SIMD=plain|avx2 in the environment lowers the level, for tests and comparisons.
inline SimdLevel simd_level() {
  static const SimdLevel level = [] {
    SimdLevel best = SimdLevel::plain;
#if CLS2DET_X86_TARGETS
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_halves()) best = SimdLevel::avx2;
    if (best == SimdLevel::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = SimdLevel::avx512;
    }
#endif
    const char* wish = std::getenv("CLS2DET_SIMD");
    if (wish && !std::strcmp(wish, "plain")) return SimdLevel::plain;
    if (wish && !std::strcmp(wish, "avx2") && best == SimdLevel::avx512) return SimdLevel::avx2;
    return best;
  }();
  return level;
}

inline const char* simd_level_name() {
  switch (simd_level()) {
    case SimdLevel::avx512: return "AVX-512";
    case SimdLevel::avx2: return "AVX2";
    default: return "plain C++";
  }
}

}  // namespace cls2det
