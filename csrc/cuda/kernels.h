// The launchers, one list for all operators. Each is defined in the .cu file of its operator and instantiated for float,
// double, Half and BFloat16. Every pointer is device memory; sizes and strides are in elements.
#pragma once

#include "cuda/roi.h"

namespace cls2det {

// roi_tables.cu: fill the tables of every box of `side`.
template <typename S>
void launch_roi_tables(const RoiSide<S>& side, const RoiPooling& pooling, const RoiTables<Accumulate<S>>& tables, cudaStream_t stream);

// roi_avg_pool_kernel.cu
template <typename S, typename O>  // out (N, C, bins)
void launch_roi_avg_pool(
    const RoiSide<S>& side, const RoiPooling& pooling, const RoiTables<Accumulate<S>>& tables, O* out, cudaStream_t stream);
template <typename S>  // grad (N, C, bins) -> partial (N, chunks, 4), then grad_boxes (N, 4)
void launch_roi_avg_pool_boxes(
    const RoiSide<S>& side, const RoiPooling& pooling, const RoiTables<Accumulate<S>>& tables, const Accumulate<S>* grad,
    int64_t chunks, Accumulate<S>* partial, Accumulate<S>* grad_boxes, cudaStream_t stream);
template <typename S>  // grad (N, C, bins) -> grad_map (images, C, height, width), zeroed by the caller
void launch_roi_spread(
    const RoiSide<S>& side, const RoiPooling& pooling, const RoiTables<Accumulate<S>>& tables, const Accumulate<S>* grad,
    Accumulate<S>* grad_map, cudaStream_t stream);

// roi_crop_kernel.cu: out, grad (N, C, h, w), h = pooling.out_h = pooling.samples_h
template <typename S>
void launch_roi_crop(const RoiSide<S>& side, const RoiPooling& pooling, S* out, cudaStream_t stream);
template <typename S>
void launch_roi_crop_boxes(
    const RoiSide<S>& side, const RoiPooling& pooling, const Accumulate<S>* grad, Accumulate<S>* grad_boxes, cudaStream_t stream);

// roi_feature_loss_kernel.cu
template <typename S>
struct RoiLoss {
  RoiSide<S> side, target;
  RoiPooling pooling;
  RoiTables<Accumulate<S>> tables;
  const Accumulate<S>* pooled_target;  // (G, C, bins)
  const int64_t* matched;              // (K,)
  int loss;
  Accumulate<S> beta;
};
template <typename S>  // partial (K, chunks, 5) -> rows (K,), grad_boxes (K, 4) or null
void launch_roi_feature_loss(
    const RoiLoss<S>& args, int64_t chunks, Accumulate<S>* partial, Accumulate<S>* rows, Accumulate<S>* grad_boxes, cudaStream_t stream);
template <typename S>  // scratch (images, C, bins); grad_map (images, C, height, width), zeroed by the caller
void launch_roi_feature_loss_backward(
    const RoiLoss<S>& args, const Accumulate<S>* grad_rows, Accumulate<S>* scratch, Accumulate<S>* grad_map, cudaStream_t stream);
// Channel chunks that the kernels with a `partial` buffer use.
template <typename S>
int64_t channel_chunks(const RoiSide<S>& side, const RoiPooling& pooling);

// matched_feature_loss_kernel.cu
template <typename S>
struct Matched {
  const S *features, *target;  // (K, C, height, width), (G, C, height, width), contiguous
  const int64_t* matched;      // (K,)
  int64_t count, targets, channels;
  int height, width, out_h, out_w, loss;
  Accumulate<S> beta;
};
template <typename S>  // pooled_target: scratch (G, C, bins); rows (K,); grad (K, C, bins) or null
void launch_matched_feature_loss(
    const Matched<S>& args, Accumulate<S>* pooled_target, Accumulate<S>* rows, Accumulate<S>* grad, cudaStream_t stream);
template <typename S>  // grad (K, C, height, width)
void launch_matched_feature_loss_backward(
    const Matched<S>& args, const Accumulate<S>* grad_rows, const Accumulate<S>* pooled_grad, S* grad, cudaStream_t stream);

// kd_softmax_loss_kernel.cu, kd_sigmoid_loss_kernel.cu
template <typename S>
struct Logits {
  const S *student, *teacher;  // (rows, columns), (teachers, classes) at the strides below
  int64_t student_row, student_column, teacher_row, teacher_column;
  const int64_t* matched;  // (rows,)
  int64_t count, columns, classes, teachers;
  Accumulate<S> temperature;
  int background, mode;
  Accumulate<S>* rows;  // (rows,)
  S* grad;              // (rows, columns) or null
};
template <typename S>
void launch_kd_softmax_loss(const Logits<S>& args, cudaStream_t stream);
template <typename S>
void launch_kd_sigmoid_loss(const Logits<S>& args, cudaStream_t stream);

// scale_rows_kernel.cu: out (count, width) = upstream (count,) * row_grads (count, width)
template <typename In, typename Out>
void launch_scale_rows(
    const Accumulate<In>* upstream, int64_t upstream_stride, const In* row_grads, int64_t count, int64_t width, Out* out, cudaStream_t stream);

}  // namespace cls2det
