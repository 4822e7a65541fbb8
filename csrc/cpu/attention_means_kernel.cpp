// attention_means on the CPU: one pass over the map in the order in which it lies gives the sums of its rows and columns.
#include "attention_means.h"

#include <cstring>

#include "cpu/map_tiles.h"
#include "math/feature_distance.h"

namespace cls2det {
namespace {

template <typename S>
struct MeansArgs {
  using T = Accumulate<S>;
  MapTiles tiles;
  const S* features;  // (images, outer, inner), images `stride` apart
  int64_t stride;
  bool absolute;
  T outer_share, inner_share;                            // of one value in the mean of its row, of its column
  T *outer_partial = nullptr, *inner_partial = nullptr;  // forward: (images, tiles across, outer), (images, tiles down, inner)
  const T *outer_grad = nullptr, *inner_grad = nullptr;  // backward: (images, outer), (images, inner)
  S* grad = nullptr;
  bool past_caches = false;  // see MapTiles

  MeansArgs(const DenseMap& dense, bool absolute, int64_t most_columns)
      : tiles(dense.shape, most_columns),
        features(data<const S>(dense.map)),
        stride(dense.stride),
        absolute(absolute),
        outer_share(T(1) / T(std::max(dense.shape.inner, int64_t(1)))),
        inner_share(T(1) / T(std::max(dense.shape.outer, int64_t(1)))) {}
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/attention_means_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

// means (images, width) = share * the sum over `parts` of partial (images, parts, width)
template <typename T>
void mean_of_parts(const std::vector<T>& partial, int64_t images, int64_t parts, int64_t width, T share, const Tensor& means) {
  T* out = data<T>(means);
  std::fill(out, out + images * width, T(0));
  for (int64_t b = 0; b < images; ++b) {
    T* row = out + b * width;
    for (int64_t p = 0; p < parts; ++p) {
      for (int64_t i = 0; i < width; ++i) row[i] += partial[(b * parts + p) * width + i];
    }
    for (int64_t i = 0; i < width; ++i) row[i] *= share;
  }
}

template <typename S>
void forward(const DenseMap& dense, bool absolute, const Tensor& outer_means, const Tensor& inner_means) {
  using T = Accumulate<S>;
  MeansArgs<S> args(dense, absolute, 1024);
  const DenseShape& shape = dense.shape;
  std::vector<T> outer_partial(shape.images * args.tiles.across * shape.outer);
  std::vector<T> inner_partial(shape.images * args.tiles.down * shape.inner);
  args.outer_partial = outer_partial.data();
  args.inner_partial = inner_partial.data();
  args.tiles.for_tiles([&](int64_t begin, int64_t end) { CLS2DET_CALL(attention_sums<S>, args, begin, end); });
  mean_of_parts(outer_partial, shape.images, args.tiles.across, shape.outer, args.outer_share, outer_means);
  mean_of_parts(inner_partial, shape.images, args.tiles.down, shape.inner, args.inner_share, inner_means);
}

template <typename S>
void backward(const DenseMap& dense, bool absolute, const Tensor& outer_grad, const Tensor& inner_grad, const Tensor& grad) {
  using T = Accumulate<S>;
  MeansArgs<S> args(dense, absolute, 16384);
  args.outer_grad = data<const T>(outer_grad);
  args.inner_grad = data<const T>(inner_grad);
  args.grad = data<S>(grad);
  args.past_caches = args.tiles.past_caches(args.grad);
  args.tiles.for_tiles([&](int64_t begin, int64_t end) { CLS2DET_CALL(attention_gradients<S>, args, begin, end); });
}

std::tuple<Tensor, Tensor> attention_means(Tensor features, bool absolute) {
  check_map("features", features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const bool last = is_channels_last(features);
  const DenseMap dense(features, last);
  Tensor spatial = make(features, {features.size(0), features.size(2), features.size(3)}, acc);
  Tensor channel = make(features, {features.size(0), features.size(1)}, acc);
  for_storage(features.scalar_type(), [&](auto storage) {
    forward<decltype(storage)>(dense, absolute, last ? spatial : channel, last ? channel : spatial);
  });
  return {spatial, channel};
}

Tensor attention_means_backward(Tensor grad_spatial, Tensor grad_channel, Tensor features, bool absolute) {
  check_attention_means_backward(grad_spatial, grad_channel, features);
  const ScalarType dtype = features.scalar_type(), acc = accumulate_dtype(dtype);
  const bool last = is_channels_last(features);
  const DenseMap dense(features, last);
  const Tensor spatial = packed(grad_spatial, acc), channel = packed(grad_channel, acc);
  const Tensor grad = make_map(features, last, dtype);
  for_storage(dtype, [&](auto storage) {
    backward<decltype(storage)>(dense, absolute, last ? spatial : channel, last ? channel : spatial, grad);
  });
  return grad;
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def("attention_means(Tensor features, bool absolute) -> (Tensor, Tensor)");
  m.def("attention_means_backward(Tensor grad_spatial, Tensor grad_channel, Tensor features, bool absolute) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("attention_means", TORCH_BOX(&cls2det::attention_means));
  m.impl("attention_means_backward", TORCH_BOX(&cls2det::attention_means_backward));
}
