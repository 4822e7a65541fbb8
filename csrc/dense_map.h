// Maps whose images are dense in one of torch's two orders, so that one loop serves both: an image is `outer` rows of `inner`
// neighbouring values, channels x positions of a planar map, positions x channels of a channels-last one.
#pragma once

#include <initializer_list>

#include "compat.h"
#include "views.h"

namespace cls2det {

// Whether every image is dense with the dimensions in this order, the innermost first. Images may lie at any distance.
inline bool is_dense(const Tensor& map, std::initializer_list<int64_t> order) {
  int64_t expected = 1;
  for (int64_t d : order) {
    if (map.size(d) != 1 && map.stride(d) != expected) return false;
    expected *= map.size(d);
  }
  return true;
}

inline bool is_dense(const Tensor& map, bool channels_last) {
  return channels_last ? is_dense(map, {1, 3, 2}) : is_dense(map, {3, 2, 1});
}

// Planar wins where both hold. map_like in cls2det_ops/ops/_common.py decides in the same way.
inline bool is_channels_last(const Tensor& map) { return map.numel() > 0 && is_dense(map, true) && !is_dense(map, false); }

// A new map of this shape, (images, channels, height, width), on the device of `like`.
inline Tensor make_map(const Tensor& like, const Shape& shape, bool channels_last, ScalarType dtype) {
  if (!channels_last) return make(like, shape, dtype);
  const Tensor map = make(like, {shape[0], shape[2], shape[3], shape[1]}, dtype);
  return torch::stable::transpose(torch::stable::transpose(map, 1, 3), 2, 3);
}

inline Tensor make_map(const Tensor& like, bool channels_last, ScalarType dtype) {
  return make_map(like, shape_of(like), channels_last, dtype);
}

struct DenseMap {
  Tensor map;  // the tensor itself, or a copy in the other order
  DenseShape shape;
  int64_t stride;  // from one image to the next

  DenseMap(const Tensor& tensor, bool channels_last) : map(tensor) {
    if (!is_dense(tensor, channels_last)) {
      map = make_map(tensor, channels_last, tensor.scalar_type());
      torch::stable::copy_(map, tensor);
    }
    const int64_t channels = map.size(1), positions = map.size(2) * map.size(3);
    shape = {map.size(0), channels_last ? positions : channels, channels_last ? channels : positions};
    stride = map.stride(0);
  }
};

}  // namespace cls2det
