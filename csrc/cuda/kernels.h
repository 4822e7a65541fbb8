// The launchers of the CUDA kernels, free of torch's tensors: pointers, sizes, strides and a stream.
//
// S is the storage type of maps and logits (float, double, Half, BFloat16), Accumulate<S> that of sums, boxes and losses.
// All launchers are asynchronous, allocate nothing and take counts of 0.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "math/dense_shape.h"
#include "math/iou.h"
#include "math/stem_shape.h"

namespace cls2det {

template <typename S>
using Accumulate = std::conditional_t<std::is_same_v<S, double>, double, float>;

// (images, channels, height, width), at any strides.
template <typename S>
struct MapView {
  const S* data;
  int64_t images, channels, stride_n, stride_c, stride_y, stride_x;
  int height, width;
};

template <typename T>
struct BoxList {
  const T* boxes;              // (count, 4)
  const int64_t* image_index;  // (count,)
  int64_t count;
  T scale;
};

struct Pooling {
  int out_h, out_w, samples_h, samples_w;
  bool border, clip;
};

// One pixel that a bin reads along one axis: W, dW / d lo and dW / d hi of the separable form.
template <typename T>
struct alignas(16) AxisEntry {
  int pixel;
  T weight, lo, hi;
};

enum BoxState { kIgnored = 0, kPooled = 1, kNotFinite = 2 };

// The sparse rows of Wy and Wx of every box:
//     pooled[c, p, q] = sum over e in row p of Wy, f in row q of Wx:  e.weight f.weight I[c, e.pixel, f.pixel]
template <typename T>
struct Axes {
  AxisEntry<T>* entries;  // (count, out_h slots_y + out_w slots_x), the rows of Wy, then those of Wx
  int* counts;            // (count, 1 + out_h + out_w): BoxState, then the entries used in each row
  int64_t count;
  bool shared;  // one table serves all boxes
  int out_h, out_w, slots_y, slots_x;

  int64_t entries_per_box() const { return int64_t(out_h) * slots_y + int64_t(out_w) * slots_x; }
  int64_t counts_per_box() const { return 1 + int64_t(out_h) + out_w; }
};

// The slots that a row of W needs: every sample reads two pixels.
int slots_per_bin(int samples, int bins);

// The boxes of one map, and the tables to fill for them.
template <typename T>
struct AxesOf {
  BoxList<T> boxes;
  int64_t images;
  int height, width;
  Axes<T> axes;
};

// Fills the tables of both, in one launch; of `first` alone if `second` has no boxes.
template <typename T>
void build_axes(const AxesOf<T>& first, const AxesOf<T>& second, const Pooling& pooling, cudaStream_t stream);

// Fills the one shared table of plain adaptive average pooling of a whole (height, width) map.
template <typename T>
void build_window_axes(int height, int width, const Axes<T>& axes, cudaStream_t stream);

// How the bins and channels of one box are split over blocks.
struct Tiling {
  int lanes;             // of a warp, that share one bin
  bool channels_first;   // neighbouring lanes take neighbouring channels instead of bins
  int64_t items, tiles;  // bins of a few channels per block; blocks per box
};
template <typename S>
Tiling pool_tiling(const MapView<S>& map, const Axes<Accumulate<S>>& axes);

// out (count, C, bins): pooled map; 0 for ignored boxes, NaN for boxes that are not finite.
// image_index null: box k lies on image k.
template <typename S, typename Out>
void roi_avg_pool_forward(
    const MapView<S>& map, const int64_t* image_index, const Axes<Accumulate<S>>& axes, Out* out, cudaStream_t stream);

// partial (count, tiles, 5): {0, d / dx1, dy1, dx2, dy2} of sum grad * pooled. grad: (count, C, bins).
template <typename S>
void roi_avg_pool_edges(
    const MapView<S>& map, const int64_t* image_index, const Axes<Accumulate<S>>& axes, const Accumulate<S>* grad,
    Accumulate<S>* partial, cudaStream_t stream);

// out (N, C, h, w), h and w as in `pooling`.
template <typename S>
void roi_crop_forward(
    const MapView<S>& map, const BoxList<Accumulate<S>>& boxes, const Pooling& pooling, S* out, cudaStream_t stream);

int64_t roi_crop_tiles(const Pooling& pooling);
// partial (N, tiles, 5) like roi_avg_pool_edges.
template <typename S>
void roi_crop_edges(
    const MapView<S>& map, const BoxList<Accumulate<S>>& boxes, const Pooling& pooling, const Accumulate<S>* grad,
    Accumulate<S>* partial, cudaStream_t stream);

// rows (count,) = share * sum of partial[.., 0]; grad_boxes (count, 4) = share * scale * sum of partial[.., 1..4], 0 for
// clipped edges. Either may be null.
template <typename T>
void sum_partials(
    const T* partial, int64_t tiles, T share, const BoxList<T>& boxes, int height, int width, bool clip, T* rows, T* grad_boxes,
    cudaStream_t stream);

// grad_map (images, C, height, width): the transpose of pooling, for grad (count, C, bins). Written, not added to.
// image_stride: elements from one image of grad_map to the next.
template <typename S, typename T>
void roi_map_gradient(
    const T* grad, int64_t channels, const BoxList<T>& boxes, const Pooling& pooling, const Axes<T>& axes, int64_t images,
    int height, int width, int64_t image_stride, S* grad_map, cudaStream_t stream);

// Compares pooled boxes with pooled targets (G, C, bins), row k with target matched[k].
template <typename S>
struct FeatureLoss {
  using T = Accumulate<S>;
  MapView<S> map;
  const int64_t* image_index;  // (K,) or null: row k lies on image k
  Axes<T> axes;
  const T* target;           // (G, C, bins)
  const int* target_counts;  // counts of the targets' Axes, or null: all are pooled
  int64_t target_counts_stride, targets;
  const int64_t* matched;  // (K,)
  int loss;
  T beta;
  T share;             // 1 / (C bins)
  const T* grad_rows;  // (K,), grad_stride apart, or null: 1
  int64_t grad_stride;
  T* partial;      // (K, tiles, 5) or null: {loss, d loss / dx1, dy1, dx2, dy2}, not yet times share
  bool edges;      // whether the last four are wanted
  T* pooled_grad;  // (K, C, bins) or null: grad_rows[k] * share * d'(difference)
};
template <typename S>
void feature_loss(const FeatureLoss<S>& args, cudaStream_t stream);

// grad (K, C, height, width) = grad_rows[k] * the transpose of adaptive average pooling of pooled_grad (K, C, bins).
template <typename S>
void unpool_windows(
    const Accumulate<S>* grad_rows, const Accumulate<S>* pooled_grad, int64_t rows, int64_t channels, int height, int width,
    int out_h, int out_w, S* grad, cudaStream_t stream);

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

// out, index (images, channels, out_h, out_w) of images (images, inputs, height, width): ReLU and max-pool of their
// convolution, and the chosen place in each window, or null. weight (channels, inputs, kernel), bias (channels,).
template <typename S>
void stem(
    const StemShape& shape, const S* images, const Accumulate<S>* weight, const Accumulate<S>* bias, S* out, uint8_t* index,
    cudaStream_t stream);

// grad_images of grad (images, channels, out_h, out_w).
template <typename S>
void stem_backward(
    const StemShape& shape, const S* grad, const uint8_t* index, const Accumulate<S>* weight, S* grad_images,
    cudaStream_t stream);

// The same for a ResNet's kernel, in float32 sums.
bool is_resnet_stem(const StemShape& shape);
template <typename S>
void resnet_stem(
    const StemShape& shape, const S* images, const float* weight, const float* bias, S* out, uint8_t* index,
    cudaStream_t stream);
template <typename S>
void resnet_stem_backward(
    const StemShape& shape, const S* grad, const uint8_t* index, const float* weight, S* grad_images, cudaStream_t stream);

template <typename T>
struct ImitationMask {
  const T *anchors, *boxes;    // (anchors, 4), (boxes_count, 4)
  const int64_t* image_index;  // (boxes_count,)
  int64_t boxes_count, images;
  int levels, assignment;
  int64_t level_begin[kMostLevels + 1];  // the first anchor of each level, then the number of anchors
  T factor;
  T* thresholds;  // (boxes_count, levels), scratch
  bool* mask;     // (images, anchors)
};
template <typename T>
void imitation_marks(const ImitationMask<T>& args, cudaStream_t stream);

template <typename S>
struct LogitsLoss {
  using T = Accumulate<S>;
  const S *student, *teacher;  // (K, columns), (G, classes), at the strides below
  int64_t student_row, student_column, teacher_row, teacher_column;
  const int64_t* matched;  // (K,)
  int64_t count, teachers, classes, columns;
  T temperature;
  int background, mode;
  T* rows;  // (K,)
  S* grad;  // (K, columns) or null
};
template <typename S>
void kd_softmax_rows(const LogitsLoss<S>& args, cudaStream_t stream);
template <typename S>
void kd_sigmoid_rows(const LogitsLoss<S>& args, cudaStream_t stream);

// out (count, width) = grad_rows[k] * row_grads[k, i]; grad_rows lie grad_stride apart, which is 0 for those of a plain sum
template <typename S>
void multiply_rows(
    const Accumulate<S>* grad_rows, int64_t grad_stride, const S* row_grads, int64_t count, int64_t width, S* out,
    cudaStream_t stream);

// Instantiates a launcher for every storage type.
#define CLS2DET_FOR_STORAGE(INSTANTIATE) \
  INSTANTIATE(float)                     \
  INSTANTIATE(double)                    \
  INSTANTIATE(c10::Half)                 \
  INSTANTIATE(c10::BFloat16)

}  // namespace cls2det
