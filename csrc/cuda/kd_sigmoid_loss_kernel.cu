// kd_sigmoid_loss on the GPU: a warp per row.
//   bce:    L = T^2 / C sum_c KL([S^t, 1 - S^t], [S^s, 1 - S^s]), dL/dz^s = T / C (S^s - S^t)
//   l1norm: L = T^2 KL(Q^t, Q^s), Q = S / sum S = softmax(log S),  dL/dz^s = T (1 - S^s) (Q^s - Q^t)
#include "cuda/kernels.h"
#include "cuda/kl_row.cuh"

namespace cls2det {
namespace {

template <typename S>
__global__ void kd_sigmoid_loss(Logits<S> args) {
  using A = Accumulate<S>;
  const int lane = threadIdx.x % kWarp;
  const int64_t k = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (k >= args.count) return;  // the same for all lanes of the warp
  const int64_t match = args.matched[k], other = background_column(args.background, int(args.classes));
  S* grad = args.grad ? args.grad + k * args.columns : nullptr;
  const bool counts = match >= 0 && match < args.teachers;
  for (int64_t c = lane; grad && c < args.columns; c += kWarp) {  // ignored rows and the unused column
    if (!counts || c == other) grad[c] = static_cast<S>(0.0f);
  }
  if (!counts) {
    if (lane == 0) args.rows[k] = A(0);
    return;
  }
  const A scale = A(1) / args.temperature, squared = args.temperature * args.temperature, classes = A(args.classes);
  const int64_t first = first_class_column(args.background);
  const S *student = args.student + k * args.student_row, *teacher = args.teacher + match * args.teacher_row;
  const auto s = [&](int64_t c) { return sigmoid(static_cast<A>(student[(first + c) * args.student_column]) * scale); };
  const auto t = [&](int64_t c) { return sigmoid(static_cast<A>(teacher[c * args.teacher_column]) * scale); };
  if (args.mode == kBce) {
    A sum = 0;
    for (int64_t c = lane; c < args.classes; c += kWarp) {
      const Sigmoid<A> p_s = s(c), p_t = t(c);
      sum += two_way_kl(p_s, p_t);
      if (grad) grad[first + c] = static_cast<S>(args.temperature / classes * (p_s.on - p_t.on));
    }
    sum = warp_sum(sum);
    if (lane == 0) args.rows[k] = squared / classes * sum;
    return;
  }
  const auto log_s = [&](int64_t c) { return s(c).log_on; };
  const auto log_t = [&](int64_t c) { return t(c).log_on; };
  const SoftmaxRow<A> row_s = softmax_row<A>(args.classes, log_s), row_t = softmax_row<A>(args.classes, log_t);
  const A kl = kl_of_rows(args.classes, row_s, log_s, row_t, log_t);
  if (lane == 0) args.rows[k] = squared * kl;
  for (int64_t c = lane; grad && c < args.classes; c += kWarp) {
    const Sigmoid<A> p_s = s(c);
    const A difference = row_s.probability(p_s.log_on) - row_t.probability(log_t(c));
    grad[first + c] = static_cast<S>(args.temperature * p_s.off * difference);
  }
}

}  // namespace

template <typename S>
void launch_kd_sigmoid_loss(const Logits<S>& args, cudaStream_t stream) {
  CLS2DET_LAUNCH(kd_sigmoid_loss<S>, blocks_for(args.count, kThreads / kWarp), kThreads, 0, stream, args);
}

template void launch_kd_sigmoid_loss<float>(const Logits<float>&, cudaStream_t);
template void launch_kd_sigmoid_loss<double>(const Logits<double>&, cudaStream_t);
template void launch_kd_sigmoid_loss<Half>(const Logits<Half>&, cudaStream_t);
template void launch_kd_sigmoid_loss<BFloat16>(const Logits<BFloat16>&, cudaStream_t);

}  // namespace cls2det
