// Compiles the file named by CLS2DET_BODY once for each instruction set, in the namespaces avx512, avx2 and plain.
//
// The body is written once, on the vectors of simd.h. Nothing may be #included inside it: a system header compiled for
// AVX-512 would leak into the rest of the library. Include this file once per kernel file, after all other headers;
// CLS2DET_CALL(function, arguments...) then calls the body that fits the processor.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/simd_level.h"
#include "math/host_device.h"

#if CLS2DET_X86_TARGETS
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define CLS2DET_TARGET 512
namespace cls2det::avx512 {
#include "cpu/simd.h"
#include CLS2DET_BODY
}  // namespace cls2det::avx512
#undef CLS2DET_TARGET
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define CLS2DET_TARGET 256
namespace cls2det::avx2 {
#include "cpu/simd.h"
#include CLS2DET_BODY
}  // namespace cls2det::avx2
#undef CLS2DET_TARGET
#pragma GCC pop_options
#endif

#define CLS2DET_TARGET 0
namespace cls2det::plain {
#include "cpu/simd.h"
#include CLS2DET_BODY
}  // namespace cls2det::plain
#undef CLS2DET_TARGET

#if CLS2DET_X86_TARGETS
#define CLS2DET_CALL(function, ...)                                                    \
  (cls2det::simd_level() == cls2det::SimdLevel::avx512 ? avx512::function(__VA_ARGS__) \
   : cls2det::simd_level() == cls2det::SimdLevel::avx2 ? avx2::function(__VA_ARGS__)   \
                                                       : plain::function(__VA_ARGS__))
#else
#define CLS2DET_CALL(function, ...) plain::function(__VA_ARGS__)
#endif
