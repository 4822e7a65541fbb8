// matched_feature_loss on the CPU. Each target is pooled once; then each crop is pooled and compared, and its pooled values
// are not kept. The gradient that the forward leaves behind has the pooled size.
#include "matched_feature_loss.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "dense_map.h"
#include "math/feature_distance.h"
#include "math/sampling.h"

namespace cls2det {
namespace {

template <typename S>
struct MatchedArgs {
  using T = Accumulate<S>;
  bool channels_last;          // of the crops, and of all that is pooled
  const S *features, *target;  // (K, C, height, width), (G, C, height, width), crops at these distances
  int64_t features_stride, target_stride;
  const int64_t* matched;  // (K,)
  int64_t channels, targets;
  int height, width, out_h, out_w;
  Distance loss;
  T beta, factor;
  const int *begin_x, *end_x, *begin_y, *end_y;  // pixels of each bin
  const char* used;                              // (G,)
  T* pooled_target;                              // (G, C, bins)
  T* rows;                                       // (K,)
  T* grad;                                       // (K, C, bins), or null
  S* grad_features;                              // backward: (K, C, height, width)
  const T *grad_rows, *pooled_grad;              // backward: (K,), (K, C, bins), crops at this distance
  int64_t pooled_grad_stride;

  int64_t parts() const { return channels_last ? 1 : channels; }  // of a crop, pooled one by one: planes, or all of it
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/matched_feature_loss_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

template <typename S>
struct Bins {  // the part of the arguments that follows from the sizes, and the memory that it points into
  std::vector<int> begin_x, end_x, begin_y, end_y;
  MatchedArgs<S> args{};

  Bins(const Tensor& features, bool channels_last, int64_t out_h, int64_t out_w) {
    args.channels_last = channels_last;
    args.channels = features.size(1);
    args.height = int(features.size(2)), args.width = int(features.size(3));
    args.out_h = int(out_h), args.out_w = int(out_w);
    for (int q = 0; q < args.out_w; ++q) {
      begin_x.push_back(bin_begin(q, args.width, args.out_w));
      end_x.push_back(bin_end(q, args.width, args.out_w));
    }
    for (int p = 0; p < args.out_h; ++p) {
      begin_y.push_back(bin_begin(p, args.height, args.out_h));
      end_y.push_back(bin_end(p, args.height, args.out_h));
    }
    args.begin_x = begin_x.data(), args.end_x = end_x.data();
    args.begin_y = begin_y.data(), args.end_y = end_y.data();
  }

  int64_t planes_worth_a_thread() const { return 1 + 32768 / (int64_t(args.height) * args.width); }
  int64_t crops_worth_a_thread() const { return 1 + planes_worth_a_thread() / (args.channels + 1); }
  int64_t parts_worth_a_thread() const { return args.channels_last ? crops_worth_a_thread() : planes_worth_a_thread(); }
};

template <typename S>
std::tuple<Tensor, Tensor> forward(const MatchedLossCall& call) {
  using T = Accumulate<S>;
  const ScalarType acc = accumulate_dtype(call.features.scalar_type());
  const bool last = is_channels_last(call.features);
  const DenseMap crops(call.features, last), truths(call.target_features, last);
  const Tensor matched = packed(call.matched_idxs);
  const int64_t count = call.count(), channels = call.channels(), targets = call.targets();
  Bins<S> bins(crops.map, last, call.out_h, call.out_w);
  MatchedArgs<S>& args = bins.args;
  Tensor rows = make(crops.map, {count}, acc);
  Tensor grad =
      call.need_grad ? make_map(crops.map, {count, channels, call.out_h, call.out_w}, last, acc) : make(crops.map, {0}, acc);
  Tensor pooled = make_map(crops.map, {targets, channels, call.out_h, call.out_w}, last, acc);
  args.features = data<const S>(crops.map);
  args.features_stride = crops.stride;
  args.target = data<const S>(truths.map);
  args.target_stride = truths.stride;
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
  torch::stable::parallel_for(0, targets * args.parts(), bins.parts_worth_a_thread(), [&](int64_t begin, int64_t end) {
    CLS2DET_CALL(matched_targets<S>, args, begin, end);
  });
  torch::stable::parallel_for(0, count, bins.crops_worth_a_thread(), [&](int64_t begin, int64_t end) {
    CLS2DET_CALL(matched_rows<S>, args, begin, end);
  });
  return {rows, grad};
}

template <typename S>
Tensor backward(const Tensor& grad_rows, const Tensor& pooled_grad, const Tensor& features, double factor) {
  using T = Accumulate<S>;
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const bool last = is_channels_last(features);
  const Tensor upstream = packed(grad_rows, acc);
  const DenseMap pooled(to_dtype(pooled_grad, acc), last);
  Bins<S> bins(features, last, pooled_grad.size(2), pooled_grad.size(3));
  MatchedArgs<S>& args = bins.args;
  const Tensor grad = make_map(features, last, features.scalar_type());
  args.factor = T(factor);
  args.grad_rows = data<const T>(upstream);
  args.pooled_grad = data<const T>(pooled.map);
  args.pooled_grad_stride = pooled.stride;
  args.grad_features = data<S>(grad);
  torch::stable::parallel_for(0, features.size(0) * args.parts(), bins.parts_worth_a_thread(), [&](int64_t begin, int64_t end) {
    if (last) {
      CLS2DET_CALL(matched_crops_backward<S>, args, begin, end);
    } else {
      CLS2DET_CALL(matched_planes_backward<S>, args, begin, end);
    }
  });
  return grad;
}

std::tuple<Tensor, Tensor> loss(const MatchedLossCall& call) {
  return for_storage(call.features.scalar_type(), [&](auto storage) { return forward<decltype(storage)>(call); });
}

Tensor loss_backward(const Tensor& grad_rows, const Tensor& pooled_grad, const Tensor& features, double factor) {
  return for_storage(features.scalar_type(), [&](auto storage) {
    return backward<decltype(storage)>(grad_rows, pooled_grad, features, factor);
  });
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
