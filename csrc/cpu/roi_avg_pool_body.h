#include "cpu/roi_pool_body.h"

// Tasks [begin, end) of (box, channel block): out (N, C, bins).
template <typename T>
void roi_avg_pool_tasks(const RoiPoolArgs<T>& args, int64_t begin, int64_t end) {
  const int bins = args.pooling.bins();
  const int64_t channels = args.roi.map.channels, blocks = channel_blocks<T>(channels);
  PoolScratch<T> scratch, storage;
  Vec<T>* pooled = storage.vectors(bins);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t box = task / blocks, c0 = task % blocks * kLanes<T>;
    pool_box<T, false>(args.roi, args.pooling, box, task % blocks, scratch, pooled);
    const int n = int(channels - c0 < kLanes<T> ? channels - c0 : kLanes<T>);
    for (int c = 0; c < n; ++c) {
      T* out = args.out + (box * channels + c0 + c) * bins;
      for (int j = 0; j < bins; ++j) out[j] = pooled[j][c];
    }
  }
}

// The gradient (N, C, bins) of one box and block, lanes over channels.
template <typename T>
void read_gradient(const RoiPoolArgs<T>& args, int64_t box, int64_t block, Vec<T>* grad) {
  const int bins = args.pooling.bins();
  const int64_t channels = args.roi.map.channels, c0 = block * kLanes<T>;
  const int n = int(channels - c0 < kLanes<T> ? channels - c0 : kLanes<T>);
  gather_channels<T>(args.grad + (box * channels + c0) * bins, bins, 1, n, bins, grad);
}

// Tasks [begin, end) of (box, channel block): d L / d edge = sum grad * d pooled / d edge, left in args.partial.
template <typename T>
void roi_avg_pool_box_tasks(const RoiPoolArgs<T>& args, int64_t begin, int64_t end) {
  const int bins = args.pooling.bins();
  const int64_t blocks = channel_blocks<T>(args.roi.map.channels);
  PoolScratch<T> scratch, storage;
  Vec<T>* grad = storage.vectors(size_t(bins) * (kPooledParts + 1));
  Vec<T>* pooled = grad + bins;
  for (int64_t task = begin; task < end; ++task) {
    read_gradient(args, task / blocks, task % blocks, grad);
    pool_box<T, true>(args.roi, args.pooling, task / blocks, task % blocks, scratch, pooled);
    for (int e = kX1; e < kPooledParts; ++e) {
      Vec<T> sum{};
      for (int j = 0; j < bins; ++j) sum += grad[j] * pooled[e * bins + j];
      args.partial[task * 4 + e - kX1] = sum_lanes<T>(sum);
    }
  }
}

// Tasks [begin, end) of (image, channel block): d L / d features, boxes of an image in their order.
template <typename T>
void roi_avg_pool_map_tasks(const RoiPoolArgs<T>& args, int64_t begin, int64_t end) {
  const int bins = args.pooling.bins();
  const int64_t blocks = channel_blocks<T>(args.roi.map.channels), area = int64_t(args.roi.map.height) * args.roi.map.width;
  PoolScratch<T> scratch, storage;
  Vec<T>* map = storage.vectors(size_t(area) + bins);
  Vec<T>* grad = map + area;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / blocks, block = task % blocks;
    std::memset(reinterpret_cast<T*>(map), 0, sizeof(Vec<T>) * area);
    for (int64_t i = args.groups->start[image]; i < args.groups->start[image + 1]; ++i) {
      read_gradient(args, args.groups->order[i], block, grad);
      spread_box(args.roi, args.pooling, args.groups->order[i], grad, scratch, map);
    }
    write_map(args.roi, block, map, args.out + image * args.roi.map.channels * area);
  }
}
