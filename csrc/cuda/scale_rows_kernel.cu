// scale_rows: out[k, i] = factor * grad_rows[k] * row_grads[k, i], the backward of every loss whose forward left its gradient
// behind.
#include "cuda/scale_rows_kernel.h"

#include "cuda/launch.cuh"
#include "cuda/map_walk.cuh"

namespace cls2det {
namespace {

constexpr int kAhead = 2;  // runs that a thread loads before it uses the first

template <typename S, typename T>
__device__ __forceinline__ S scaled(T g, S value) {  // where g is 0 so is the result, even if the row's gradient is NaN
  return static_cast<S>(g == T(0) ? T(0) : g * static_cast<T>(value));
}

// kRun is 1 or at most `width`: a run then touches at most two rows, so that one division finds them.
template <int kRun, typename S, typename T>
__global__ void __launch_bounds__(kBlock) scale_rows_kernel(
    const T* grad_rows, int64_t grad_stride, T share, const S* row_grads, int64_t count, int64_t width, S* out) {
  const int64_t runs = count * width / kRun, step = int64_t(gridDim.x) * kBlock * kAhead;
  for (int64_t first = int64_t(blockIdx.x) * kBlock * kAhead + threadIdx.x; first < runs; first += step) {
    Run<S, kRun> run[kAhead];
    T factor[kAhead], next_factor[kAhead];  // what the run's row and the one after it are multiplied by
    int left[kAhead];                       // values of the run in its first row
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t i = first + u * kBlock;
      if (i >= runs) continue;
      run[u] = load_run<kRun>(row_grads + i * kRun);
      const int64_t row = divide(i * kRun, width), rest = (row + 1) * width - i * kRun;
      left[u] = rest < kRun ? int(rest) : kRun;
      factor[u] = share * grad_rows[row * grad_stride];
      next_factor[u] = left[u] < kRun ? share * grad_rows[(row + 1) * grad_stride] : T(0);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t i = first + u * kBlock;
      if (i >= runs) continue;
#pragma unroll
      for (int j = 0; j < kRun; ++j) run[u].values[j] = scaled(j < left[u] ? factor[u] : next_factor[u], run[u].values[j]);
      store_run(out + i * kRun, run[u]);
    }
  }
  const int64_t rest = runs * kRun + threadIdx.x;  // fewer than a run
  if (blockIdx.x == 0 && rest < count * width)
    out[rest] = scaled(share * grad_rows[divide(rest, width) * grad_stride], row_grads[rest]);
}

bool starts_run(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

}  // namespace

template <typename S>
void multiply_rows(
    const Accumulate<S>* grad_rows, int64_t grad_stride, Accumulate<S> factor, const S* row_grads, int64_t count, int64_t width,
    S* out, cudaStream_t stream) {
  using T = Accumulate<S>;
  if (count * width == 0) return;
  const int64_t threads = ceil_div(count * width, kAhead);  // of one value per run
  if (width >= kWide<S> && starts_run(row_grads) && starts_run(out)) {
    CLS2DET_LAUNCH(
        (scale_rows_kernel<kWide<S>, S, T>), grid_of(ceil_div(threads, kBlock * kWide<S>)), stream, grad_rows, grad_stride,
        factor, row_grads, count, width, out);
  } else {
    CLS2DET_LAUNCH(
        (scale_rows_kernel<1, S, T>), grid_of(ceil_div(threads, kBlock)), stream, grad_rows, grad_stride, factor, row_grads,
        count, width, out);
  }
}

#define INSTANTIATE(S) \
  template void multiply_rows(const Accumulate<S>*, int64_t, Accumulate<S>, const S*, int64_t, int64_t, S*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
