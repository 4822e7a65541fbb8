#include "cpu/roi_pool_body.h"

// Tasks [begin, end) of (ground truth, channel block): pool the ground truth once, then each of its predicted boxes, and
// leave per box and block the sums {loss, d loss / dx1, dy1, dx2, dy2} in args.partial.
template <typename T>
void roi_feature_loss_tasks(const RoiLossArgs<T>& args, int64_t begin, int64_t end) {
  const int bins = args.pooling.bins(), parts = args.need_boxes ? kPooledParts : 1;
  const int64_t blocks = channel_blocks<T>(args.predicted.map.channels);
  PoolScratch<T> scratch, storage;
  Vec<T>* target = storage.vectors(size_t(bins) * (parts + 1));
  Vec<T>* pooled = target + bins;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t truth = task / blocks, block = task % blocks;
    const int64_t first = args.groups->start[truth], last = args.groups->start[truth + 1];
    if (first == last) continue;
    pool_box<T, false>(args.target, args.pooling, truth, block, scratch, target);
    for (int64_t i = first; i < last; ++i) {
      const int64_t k = args.groups->order[i];
      if (args.need_boxes) {
        pool_box<T, true>(args.predicted, args.pooling, k, block, scratch, pooled);
      } else {
        pool_box<T, false>(args.predicted, args.pooling, k, block, scratch, pooled);
      }
      Vec<T> sums[kPooledParts] = {};
      for (int j = 0; j < bins; ++j) {
        const Vec<T> difference = pooled[j] - target[j];
        sums[kValue] += distance(difference, args.loss, args.beta);
        if (args.need_boxes) {  // d L / d edge = d'(difference) * d pooled / d edge
          const Vec<T> slope = distance_slope(difference, args.loss, args.beta);
          for (int e = kX1; e < kPooledParts; ++e) sums[e] += slope * pooled[e * bins + j];
        }
      }
      T* partial = args.partial + (k * blocks + block) * kPooledParts;
      for (int e = 0; e < parts; ++e) partial[e] = sum_lanes<T>(sums[e]);
    }
  }
}

// Tasks [begin, end) of (image, channel block) of d L / d features: recomputes both sides, then spreads
// grad_rows[k] d'(difference) over the map.
template <typename T>
void roi_feature_loss_backward_tasks(const RoiLossArgs<T>& args, int64_t begin, int64_t end) {
  const int bins = args.pooling.bins();
  const int64_t blocks = channel_blocks<T>(args.predicted.map.channels),
                area = int64_t(args.predicted.map.height) * args.predicted.map.width;
  const T share = args.factor / (T(args.predicted.map.channels) * T(bins));
  PoolScratch<T> scratch, storage;
  Vec<T>* map = storage.vectors(size_t(area) + 2 * bins);
  Vec<T>*target = map + area, *pooled = target + bins;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / blocks, block = task % blocks;
    std::memset(reinterpret_cast<T*>(map), 0, sizeof(Vec<T>) * area);
    int64_t truth = -1;
    for (int64_t i = args.groups->start[image]; i < args.groups->start[image + 1]; ++i) {
      const int64_t k = args.groups->order[i];
      if (args.matched[k] != truth)
        pool_box<T, false>(args.target, args.pooling, truth = args.matched[k], block, scratch, target);
      pool_box<T, false>(args.predicted, args.pooling, k, block, scratch, pooled);
      const T g = args.grad_rows[k] * share;
      for (int j = 0; j < bins; ++j) pooled[j] = distance_slope(Vec<T>(pooled[j] - target[j]), args.loss, args.beta) * g;
      spread_box(args.predicted, args.pooling, k, pooled, scratch, map);
    }
    write_map(args.predicted, block, map, args.grad_features + image * args.predicted.map.channels * area);
  }
}
