// The host code of attention_means on CUDA.
#include "attention_means.h"

#include "cuda/attention_means_kernel.h"
#include "cuda/tensors.h"

namespace cls2det {
namespace {

template <typename S>
AttentionMeans<S> attention(const DenseMap& dense, bool absolute) {
  AttentionMeans<S> args{};
  args.shape = dense.shape;
  args.features = data<const S>(dense.map);
  args.stride = dense.stride;
  args.absolute = absolute;
  return args;
}

std::tuple<Tensor, Tensor> attention_means(Tensor features, bool absolute) {
  check_map("features", features);
  const CurrentDevice device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const bool last = is_channels_last(features);
  const DenseMap dense(features, last);
  const DenseShape& shape = dense.shape;
  const AttentionTiles tiles = attention_tiles(shape);
  Tensor spatial = make(features, {features.size(0), features.size(2), features.size(3)}, acc);
  Tensor channel = make(features, {features.size(0), features.size(1)}, acc);
  const Tensor outer_partial = make(features, {shape.images, tiles.across, shape.outer}, acc);
  const Tensor inner_partial = make(features, {shape.images, tiles.down, shape.inner}, acc);
  for_storage(features.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    AttentionMeans<S> args = attention<S>(dense, absolute);
    args.outer_means = data<T>(last ? spatial : channel);
    args.inner_means = data<T>(last ? channel : spatial);
    args.outer_partial = data<T>(outer_partial);
    args.inner_partial = data<T>(inner_partial);
    attention_sums(args, device.stream());
  });
  device.check_launch();
  return {spatial, channel};
}

Tensor attention_means_backward(Tensor grad_spatial, Tensor grad_channel, Tensor features, bool absolute) {
  check_attention_means_backward(grad_spatial, grad_channel, features);
  const CurrentDevice device(features);
  const ScalarType dtype = features.scalar_type(), acc = accumulate_dtype(dtype);
  const bool last = is_channels_last(features);
  const DenseMap dense(features, last);
  const Tensor spatial = packed(grad_spatial, acc), channel = packed(grad_channel, acc);
  Tensor grad = make_map(features, last, dtype);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    AttentionMeans<S> args = attention<S>(dense, absolute);
    args.outer_grad = data<const T>(last ? spatial : channel);
    args.inner_grad = data<const T>(last ? channel : spatial);
    args.grad = data<S>(grad);
    attention_gradients(args, device.stream());
  });
  device.check_launch();
  return grad;
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("attention_means", TORCH_BOX(&cls2det::attention_means));
  m.impl("attention_means_backward", TORCH_BOX(&cls2det::attention_means_backward));
}
