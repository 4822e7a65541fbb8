// The arguments of the kernel in feature_loss.cuh, which roi_feature_loss and matched_feature_loss share.
#pragma once

#include "cuda/axis_tables_kernel.h"
#include "math/feature_distance.h"

namespace cls2det {

// Compares pooled boxes with pooled targets (G, C, bins), row k with target matched[k].
template <typename S>
struct FeatureLoss {
  using T = Accumulate<S>;
  MapView<S> map;
  const int64_t* image_index;  // (K,) or null: row k lies on image k
  AxisTables<T> tables;
  const T* target;           // (G, C, bins)
  const int* target_counts;  // counts of the targets' tables, or null: all are pooled
  int64_t target_counts_stride, targets;
  const int64_t* matched;  // (K,)
  Distance loss;
  T beta;
  T share;             // 1 / (C bins)
  const T* grad_rows;  // (K,), grad_stride apart, or null: 1
  int64_t grad_stride;
  T* partial;      // (K, tiles, kPooledParts) or null: loss and d loss / d edges, not yet times share
  bool edges;      // whether to compute d loss / d edges
  T* pooled_grad;  // (K, C, bins) or null: grad_rows[k] * share * d'(difference)
};

// The share of one pooled value in the mean of its row.
inline double mean_share(int64_t channels, int64_t bins) { return 1.0 / (double(channels > 0 ? channels : 1) * double(bins)); }

}  // namespace cls2det
