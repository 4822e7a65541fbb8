// The gradient of maps and images: the transpose of pooling, for roi_crop, roi_avg_pool and roi_feature_loss.
//
//     grad_map[b, c, r, s] = sum over boxes n of image b, in their order:  sum_p sum_q Wy[p, r] Wx[q, s] grad[n, c, p, q]
//
// It is gathered: a block owns a tile of pixels of one image and some channels, finds the boxes that reach the tile, and
// each thread sums for one pixel in registers. No atomics, one order, every element written once.
#include "cuda/roi_map_gradient_kernel.h"

#include "cuda/launch.cuh"
#include "math/sampling.h"

namespace cls2det {
namespace {

constexpr int kTile = 16;     // pixels along each side: one per thread
constexpr int kBins = 32;     // bins along each axis whose weights fit in shared memory
constexpr int kChannels = 8;  // channels per block
static_assert(kTile * kTile == kBlock && 2 * kBins <= kBlock && 2 * kTile <= kBlock);

// Whether a box may reach pixels [begin, begin + kTile): samples lie in [min - 1/2, max - 1/2] and read floor and floor + 1.
template <typename T>
__device__ bool may_reach(T lo, T hi, int size, bool border, int begin) {
  T low = lo < hi ? lo : hi, high = lo < hi ? hi : lo;
  if (border) {  // samples beyond the border read its pixel
    low = low < T(0) ? T(0) : low > T(size) ? T(size) : low;
    high = high < T(0) ? T(0) : high > T(size) ? T(size) : high;
  }
  return high + T(1) >= T(begin) && low - T(2) <= T(begin + kTile);
}

// Weights of one bin for the pixels of the tile: column `bin` of weights (kTile, kBins).
template <typename T>
__device__ void spread_row(const AxisEntry<T>* row, int count, int begin, int bin, T* weights) {
  for (int i = 0; i < kTile; ++i) weights[i * kBins + bin] = T(0);
  for (int e = 0; e < count; ++e) {
    const int i = row[e].pixel - begin;
    if (i >= 0 && i < kTile) weights[i * kBins + bin] += row[e].weight;
  }
}

template <typename S, typename T>
__global__ void __launch_bounds__(kBlock) map_gradient_kernel(
    const T* grad, int64_t channels, BoxList<T> boxes, Pooling pooling, AxisTables<T> tables, int64_t images, int height,
    int width, int64_t image_stride, S* grad_map) {
  CLS2DET_SHARED(T, wy, kTile * kBins);  // (pixel, bin)
  CLS2DET_SHARED(T, wx, kTile * kBins);
  CLS2DET_SHARED(int, first, 2 * kTile);  // the bins that reach a pixel, y then x: [first, last)
  CLS2DET_SHARED(int, last, 2 * kTile);
  CLS2DET_SHARED(unsigned, reach, kWarps);  // a bit for each of kBlock boxes

  const int t = threadIdx.x, ty = t / kTile, tx = t % kTile;
  const int64_t tiles_x = (width + kTile - 1) / kTile, tiles_y = (height + kTile - 1) / kTile;
  const int64_t groups = (channels + kChannels - 1) / kChannels;
  const int64_t bins = int64_t(tables.out_h) * tables.out_w, rows = int64_t(tables.out_h) + tables.out_w;
  const int64_t y_entries = int64_t(tables.out_h) * tables.slots_y,
                all_entries = y_entries + int64_t(tables.out_w) * tables.slots_x;

  for (int64_t block = blockIdx.x; block < images * groups * tiles_y * tiles_x; block += gridDim.x) {
    const int64_t above = divide(block, tiles_x), tile_x = block - above * tiles_x;
    const int64_t above_y = divide(above, tiles_y), tile_y = above - above_y * tiles_y;
    const int64_t image = divide(above_y, groups), c0 = (above_y - image * groups) * kChannels;
    const int y0 = int(tile_y) * kTile, x0 = int(tile_x) * kTile;
    const int count = int(channels - c0 < kChannels ? channels - c0 : kChannels);
    T sum[kChannels] = {};

    for (int64_t round = 0; round < boxes.count; round += kBlock) {
      bool reaches = false;
      if (round + t < boxes.count && boxes.image_index[round + t] == image) {
        const MapBox<T> b = map_box(boxes.xyxy + 4 * (round + t), boxes.scale, height, width, pooling.clip);
        reaches =
            b.finite && may_reach(b.x1, b.x2, width, pooling.border, x0) && may_reach(b.y1, b.y2, height, pooling.border, y0);
      }
      const unsigned votes = __ballot_sync(kAllLanes, reaches);
      if (t % kWarp == 0) reach[t / kWarp] = votes;
      __syncthreads();
      for (int w = 0; w < kWarps; ++w) {
        for (unsigned left = reach[w]; left != 0; left &= left - 1) {
          const int64_t n = round + w * kWarp + __ffs(int(left)) - 1;
          const AxisEntry<T>* entries = tables.entries + n * all_entries;
          const int* counts = tables.counts + n * (1 + rows) + 1;
          const T* g = grad + (n * channels + c0) * bins;
          for (int p0 = 0; p0 < tables.out_h; p0 += kBins) {
            for (int q0 = 0; q0 < tables.out_w; q0 += kBins) {
              const int ps = tables.out_h - p0 < kBins ? tables.out_h - p0 : kBins;
              const int qs = tables.out_w - q0 < kBins ? tables.out_w - q0 : kBins;
              if (t < ps) {
                const int64_t p = p0 + t;
                spread_row(entries + p * tables.slots_y, counts[p], y0, t, wy);
              } else if (t >= kBins && t - kBins < qs) {
                const int64_t q = q0 + t - kBins;
                spread_row(entries + y_entries + q * tables.slots_x, counts[tables.out_h + q], x0, t - kBins, wx);
              }
              __syncthreads();
              if (t < 2 * kTile) {
                const T* weights = (t < kTile ? wy : wx) + t % kTile * kBins;
                const int size = t < kTile ? ps : qs;
                int from = 0, to = size;
                while (from < to && weights[from] == T(0)) ++from;
                while (to > from && weights[to - 1] == T(0)) --to;
                first[t] = from;
                last[t] = to;
              }
              __syncthreads();
              for (int p = first[ty]; p < last[ty]; ++p) {
                for (int q = first[kTile + tx]; q < last[kTile + tx]; ++q) {
                  const T weight = wy[ty * kBins + p] * wx[tx * kBins + q];
                  const T* gc = g + int64_t(p0 + p) * tables.out_w + (q0 + q);
#pragma unroll
                  for (int c = 0; c < kChannels; ++c) {
                    if (c < count) sum[c] += weight * gc[c * bins];
                  }
                }
              }
              __syncthreads();  // before the weights are overwritten
            }
          }
        }
      }
      __syncthreads();  // before `reach` is overwritten
    }

    const int y = y0 + ty, x = x0 + tx;
    if (y < height && x < width) {
      S* out = grad_map + image * image_stride + (c0 * height + y) * width + x;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (c < count) out[int64_t(c) * height * width] = static_cast<S>(sum[c]);
      }
    }
  }
}

}  // namespace

template <typename S, typename T>
void roi_map_gradient(
    const T* grad, int64_t channels, const BoxList<T>& boxes, const Pooling& pooling, const AxisTables<T>& tables,
    int64_t images, int height, int width, int64_t image_stride, S* grad_map, cudaStream_t stream) {
  const int64_t blocks = images * ceil_div(channels, kChannels) * ceil_div(height, kTile) * ceil_div(width, kTile);
  if (blocks == 0) return;
  CLS2DET_LAUNCH(
      (map_gradient_kernel<S, T>), grid_of(blocks), stream, grad, channels, boxes, pooling, tables, images, height, width,
      image_stride, grad_map);
}

#define INSTANTIATE(S)                                                                                                         \
  template void roi_map_gradient(                                                                                              \
      const Accumulate<S>*, int64_t, const BoxList<Accumulate<S>>&, const Pooling&, const AxisTables<Accumulate<S>>&, int64_t, \
      int, int, int64_t, S*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
