// kd_sigmoid_loss, S = sigmoid(z / T):
//   bce     L_k = T^2 / C sum_c KL([S^t, 1 - S^t], [S^s, 1 - S^s])     dL/dz^s = T / C (S^s - S^t)
//   l1norm  L_k = T^2 KL(Q^t, Q^s), Q = S / sum S = softmax(log S)     dL/dz^s = T (1 - S^s) (Q^s - Q^t)
#include "cuda/kd_sigmoid_loss_kernel.h"

#include "cuda/kd_row.cuh"

namespace cls2det {
namespace {

template <typename S, int kLanes, int kRegisters, bool kPlain>
__global__ void __launch_bounds__(kBlock) kd_sigmoid_kernel(LogitsView<S> a) {
  using T = Accumulate<S>;
  for_rows<kLanes, kRegisters, kPlain>(a, [&](LogitsRow<S, kLanes, kRegisters, kPlain>& row, int64_t k, bool matched) {
    const T scale = T(1) / a.temperature;
    S* grad = a.grad && matched ? a.grad + k * a.columns : nullptr;
    const int first = first_class_column(a.background);
    T loss = T(0), unused = T(0);
    if (a.mode == SigmoidMode::bce) {
      const auto same = [](T z) { return z; };
      const T share = a.temperature / T(a.classes);
      row.load(same);
      row.for_classes(same, [&](int, auto c, T s, T t) {
        if (!row.has(c)) return;
        const Sigmoid<T> on_s = sigmoid(s * scale), on_t = sigmoid(t * scale);
        loss += two_way_kl(on_s, on_t);
        if (grad) grad[first + c] = static_cast<S>(share * (on_s.on - on_t.on));
      });
      loss = lanes_sum(loss, kLanes) / T(a.classes);
    } else {
      const auto log_sigmoid = [&](T z) { return sigmoid(z * scale).log_on; };
      row.load(log_sigmoid);
      kl_by_lanes(
          row, log_sigmoid, static_cast<const T*>(nullptr), T(1), a.temperature, &loss, &unused, grad != nullptr,
          [&](auto c, T log_on, T difference) {  // 1 - S = -expm1(log S), without cancellation
            grad[first + c] = static_cast<S>(-std::expm1(log_on) * difference);
          });
    }
    if (matched && threadIdx.x % kLanes == 0) {
      a.rows[k] = a.loss_scale * loss;
      if (grad && a.background != Background::none) grad[background_column(a.background, a.classes)] = static_cast<S>(0.0f);
    }
  });
}

}  // namespace

template <typename S>
void kd_sigmoid_rows(const LogitsView<S>& args, cudaStream_t stream) {
  CLS2DET_LAUNCH_ROWS(kd_sigmoid_kernel, S, args, stream);
}

#define INSTANTIATE(S) template void kd_sigmoid_rows(const LogitsView<S>&, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
