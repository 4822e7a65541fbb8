// matched_feature_loss on the CPU. Each target is pooled once; then each crop is pooled and compared, and its pooled values
// are not kept. The gradient that the forward leaves behind has the pooled size.
#include "matched_feature_loss.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "math/feature_distance.h"
#include "math/sampling.h"

namespace cls2det {
namespace {

template <typename T>
struct MatchedArgs {
  const T *features, *target;  // (K, C, height, width), (G, C, height, width)
  const int64_t* matched;      // (K,)
  int64_t channels, targets;
  int height, width, out_h, out_w;
  Distance loss;
  T beta, factor;
  const int *begin_x, *end_x;        // pixels of each bin along x
  const char* used;                  // (G,)
  T* pooled_target;                  // (G, C, bins)
  T* rows;                           // (K,)
  T* grad;                           // forward: (K, C, bins) or null; backward: (K, C, height, width)
  const T *grad_rows, *pooled_grad;  // backward: (K,), (K, C, bins)
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/matched_feature_loss_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

template <typename T>
struct Bins {  // the part of the arguments that follows from the sizes, and the memory that it points into
  std::vector<int> begin, end;
  MatchedArgs<T> args{};

  Bins(const Tensor& features, int64_t out_h, int64_t out_w) {
    args.channels = features.size(1);
    args.height = int(features.size(2)), args.width = int(features.size(3));
    args.out_h = int(out_h), args.out_w = int(out_w);
    for (int q = 0; q < args.out_w; ++q) {
      begin.push_back(bin_begin(q, args.width, args.out_w));
      end.push_back(bin_end(q, args.width, args.out_w));
    }
    args.begin_x = begin.data(), args.end_x = end.data();
  }

  int64_t planes_worth_a_thread() const { return 1 + 32768 / (int64_t(args.height) * args.width); }
};

template <typename T>
std::tuple<Tensor, Tensor> forward(const MatchedLossCall& call) {
  const ScalarType acc = accumulate_dtype(call.features.scalar_type());
  const Tensor crops = packed(call.features, acc), truths = packed(call.target_features, acc);
  const Tensor matched = packed(call.matched_idxs);
  const int64_t count = call.count(), channels = call.channels(), targets = call.targets();
  Bins<T> bins(crops, call.out_h, call.out_w);
  MatchedArgs<T>& args = bins.args;
  Tensor rows = make(crops, {count}, acc);
  Tensor grad = make(crops, call.need_grad ? Shape{count, channels, call.out_h, call.out_w} : Shape{0}, acc);
  Tensor pooled = make(crops, {targets, channels, call.out_h, call.out_w}, acc);
  args.features = data<const T>(crops);
  args.target = data<const T>(truths);
  args.matched = data<const int64_t>(matched);
  args.targets = targets;
  args.loss = call.loss;
  args.beta = T(call.beta);
  args.factor = T(call.factor);
  args.pooled_target = data<T>(pooled);
  args.rows = data<T>(rows);
  args.grad = call.need_grad ? data<T>(grad) : nullptr;
  std::vector<char> used(targets, 0);
  for (int64_t k = 0; k < count; ++k) {
    if (args.matched[k] >= 0 && args.matched[k] < targets) used[args.matched[k]] = 1;
  }
  args.used = used.data();
  torch::stable::parallel_for(0, targets * channels, bins.planes_worth_a_thread(), [&](int64_t begin, int64_t end) {
    CLS2DET_CALL(matched_targets<T>, args, begin, end);
  });
  torch::stable::parallel_for(0, count, 1 + bins.planes_worth_a_thread() / (channels + 1), [&](int64_t begin, int64_t end) {
    CLS2DET_CALL(matched_rows<T>, args, begin, end);
  });
  return {rows, grad};
}

template <typename T>
Tensor backward(const Tensor& grad_rows, const Tensor& pooled_grad, const Tensor& features, double factor) {
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const Tensor upstream = packed(grad_rows, acc), pooled = packed(pooled_grad, acc);
  Bins<T> bins(features, pooled_grad.size(2), pooled_grad.size(3));
  Tensor grad = make(features, shape_of(features), acc);
  bins.args.factor = T(factor);
  bins.args.grad_rows = data<const T>(upstream);
  bins.args.pooled_grad = data<const T>(pooled);
  bins.args.grad = data<T>(grad);
  torch::stable::parallel_for(
      0, features.size(0) * features.size(1), bins.planes_worth_a_thread(),
      [&](int64_t begin, int64_t end) { CLS2DET_CALL(matched_planes_backward<T>, bins.args, begin, end); });
  return to_dtype(grad, features.scalar_type());
}

std::tuple<Tensor, Tensor> loss(const MatchedLossCall& call) {
  return call.features.scalar_type() == ScalarType::Double ? forward<double>(call) : forward<float>(call);
}

Tensor loss_backward(const Tensor& grad_rows, const Tensor& pooled_grad, const Tensor& features, double factor) {
  const auto run = features.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  return run(grad_rows, pooled_grad, features, factor);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def(
      "matched_feature_loss(Tensor features, Tensor target_features, Tensor matched_idxs, int out_h, int out_w, int loss, "
      "float beta, bool need_grad, float factor) -> (Tensor, Tensor)");
  m.def("matched_feature_loss_backward(Tensor grad_rows, Tensor pooled_grad, Tensor features, float factor) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("matched_feature_loss", TORCH_BOX(&cls2det::matched_feature_loss<cls2det::loss>));
  m.impl("matched_feature_loss_backward", TORCH_BOX(&cls2det::matched_feature_loss_backward<cls2det::loss_backward>));
}
