// kd_softmax_loss on the GPU: a warp per row. L = T^2 KL(P^t, P^s), dL/dz^s = T (P^s - P^t).
#include "cuda/kernels.h"
#include "cuda/kl_row.cuh"

namespace cls2det {
namespace {

template <typename S>
__global__ void kd_softmax_loss(Logits<S> args) {
  using A = Accumulate<S>;
  const int lane = threadIdx.x % kWarp;
  const int64_t k = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (k >= args.count) return;  // the same for all lanes of the warp
  const int64_t match = args.matched[k];
  S* grad = args.grad ? args.grad + k * args.columns : nullptr;
  if (match < 0 || match >= args.teachers) {  // ignored
    if (lane == 0) args.rows[k] = A(0);
    for (int64_t c = lane; grad && c < args.columns; c += kWarp) grad[c] = static_cast<S>(0.0f);
    return;
  }
  const A scale = A(1) / args.temperature;
  const int64_t first = first_class_column(args.background), other = background_column(args.background, int(args.classes));
  const S *student = args.student + k * args.student_row, *teacher = args.teacher + match * args.teacher_row;
  const auto column = [&](int64_t c) { return static_cast<A>(student[c * args.student_column]) * scale; };
  const auto s = [&](int64_t c) { return column(first + c); };
  const auto t = [&](int64_t c) { return static_cast<A>(teacher[c * args.teacher_column]) * scale; };
  const SoftmaxRow<A> row_s = softmax_row<A>(args.columns, column), row_t = softmax_row<A>(args.classes, t);
  const A kl = kl_of_rows(args.classes, row_s, s, row_t, t);
  if (lane == 0) args.rows[k] = args.temperature * args.temperature * kl;
  for (int64_t c = lane; grad && c < args.columns; c += kWarp) {
    const A p_t = c == other ? A(0) : row_t.probability(t(c - first));
    grad[c] = static_cast<S>(args.temperature * (row_s.probability(column(c)) - p_t));
  }
}

}  // namespace

template <typename S>
void launch_kd_softmax_loss(const Logits<S>& args, cudaStream_t stream) {
  CLS2DET_LAUNCH(kd_softmax_loss<S>, blocks_for(args.count, kThreads / kWarp), kThreads, 0, stream, args);
}

template void launch_kd_softmax_loss<float>(const Logits<float>&, cudaStream_t);
template void launch_kd_softmax_loss<double>(const Logits<double>&, cudaStream_t);
template void launch_kd_softmax_loss<Half>(const Logits<Half>&, cudaStream_t);
template void launch_kd_softmax_loss<BFloat16>(const Logits<BFloat16>&, cudaStream_t);

}  // namespace cls2det
