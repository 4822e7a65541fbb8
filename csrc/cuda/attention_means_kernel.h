// The kernels of attention_means.
#pragma once

#include "cuda/storage.h"

namespace cls2det {

template <typename S>
struct AttentionMeans {
  using T = Accumulate<S>;
  DenseShape shape;
  const S* features;  // images `stride` apart
  int64_t stride;
  bool absolute;
  T *outer_means, *inner_means;      // forward: (images, outer), (images, inner), and for partial sums
  T *outer_partial, *inner_partial;  // (images, tiles.across, outer), (images, tiles.down, inner)
  const T *outer_grad, *inner_grad;  // backward: (images, outer), (images, inner)
  S* grad;                           // dense
};
struct AttentionTiles {
  int64_t down, across;  // of one image
};
AttentionTiles attention_tiles(const DenseShape& shape);
template <typename S>
void attention_sums(const AttentionMeans<S>& args, cudaStream_t stream);
template <typename S>
void attention_gradients(const AttentionMeans<S>& args, cudaStream_t stream);

}  // namespace cls2det
