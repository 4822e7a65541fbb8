// kd_softmax_loss: L_k = T^2 KL(softmax(z^t / T), softmax(z^s / T)), dL/dz^s = T (P^s - P^t); the background column of the
// student has teacher probability 0.
#include "cuda/kd_softmax_loss_kernel.h"

#include "cuda/kd_row.cuh"

namespace cls2det {
namespace {

template <typename S, int kLanes, int kRegisters, bool kPlain>
__global__ void __launch_bounds__(kBlock) kd_softmax_kernel(LogitsView<S> a) {
  using T = Accumulate<S>;
  for_rows<kLanes, kRegisters, kPlain>(a, [&](LogitsRow<S, kLanes, kRegisters, kPlain>& row, int64_t k, bool matched) {
    const auto same = [](T z) { return z; };
    row.load(same);
    const int first = first_class_column(a.background);
    const int64_t column = background_column(a.background, a.classes);
    const T background = column < 0 ? T(0) : static_cast<T>(a.student[k * a.student_row + column * a.student_column]);
    S* grad = a.grad && matched ? a.grad + k * a.columns : nullptr;
    T kl, background_share;
    kl_by_lanes(
        row, same, column < 0 ? nullptr : &background, T(1) / a.temperature, a.temperature, &kl, &background_share,
        grad != nullptr, [&](auto c, T, T difference) { grad[first + c] = static_cast<S>(difference); });
    if (matched && threadIdx.x % kLanes == 0) {
      a.rows[k] = a.loss_scale * kl;
      if (grad && column >= 0) grad[column] = static_cast<S>(a.temperature * background_share);
    }
  });
}

}  // namespace

template <typename S>
void kd_softmax_rows(const LogitsView<S>& args, cudaStream_t stream) {
  CLS2DET_LAUNCH_ROWS(kd_softmax_kernel, S, args, stream);
}

#define INSTANTIATE(S) template void kd_softmax_rows(const LogitsView<S>&, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
