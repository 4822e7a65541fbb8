// The kernels of masked_feature_loss.
#pragma once

#include "cuda/storage.h"

namespace cls2det {

// Both maps lie in the same order, images at these distances; the gradients are dense.
template <typename S>
struct MaskedLoss {
  using T = Accumulate<S>;
  DenseShape shape;
  const S *student, *teacher;
  int64_t student_stride, teacher_stride;
  const T *outer_mask, *inner_mask;  // (images, outer), (images, inner), or null: 1
  T* partial;                        // forward: (images, tiles)
  const T* grad_rows;                // backward: (images,)
  S *grad_student, *grad_teacher;    // or null
};
int64_t masked_tiles(const DenseShape& shape);
template <typename S>
void masked_sums(const MaskedLoss<S>& args, Accumulate<S>* rows, cudaStream_t stream);
template <typename S>
void masked_gradients(const MaskedLoss<S>& args, cudaStream_t stream);

}  // namespace cls2det
