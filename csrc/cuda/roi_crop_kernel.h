// The kernels of roi_crop; the gradient of the images is that of roi_map_gradient_kernel.h.
#pragma once

#include "cuda/storage.h"

namespace cls2det {

// out (N, C, h, w), h and w as in `pooling`.
template <typename S>
void roi_crop_forward(
    const MapView<S>& map, const BoxList<Accumulate<S>>& boxes, const Pooling& pooling, S* out, cudaStream_t stream);

int64_t roi_crop_tiles(const Pooling& pooling);
// partial (N, tiles, kPooledParts): the sums of grad * crop by edge, 0 for the value. grad: (N, C, h, w).
template <typename S>
void roi_crop_edges(
    const MapView<S>& map, const BoxList<Accumulate<S>>& boxes, const Pooling& pooling, const Accumulate<S>* grad,
    Accumulate<S>* partial, cudaStream_t stream);

}  // namespace cls2det
