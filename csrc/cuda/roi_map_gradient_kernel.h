// The gradient of the map for every operator on boxes.
#pragma once

#include "cuda/axis_tables_kernel.h"

namespace cls2det {

// grad_map (images, C, height, width): the transpose of pooling, for grad (count, C, bins). Written, not added to.
// image_stride: elements from one image of grad_map to the next.
template <typename S, typename T>
void roi_map_gradient(
    const T* grad, int64_t channels, const BoxList<T>& boxes, const Pooling& pooling, const AxisTables<T>& tables,
    int64_t images, int height, int width, int64_t image_stride, S* grad_map, cudaStream_t stream);

}  // namespace cls2det
