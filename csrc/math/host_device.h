// Marks functions that both back ends compile: nvcc for host and device, any C++ compiler for the host.
#pragma once

#if defined(__CUDACC__)
#define CLS2DET_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define CLS2DET_HD inline __attribute__((always_inline))
#else
#define CLS2DET_HD inline
#endif
