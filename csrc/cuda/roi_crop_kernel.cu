// roi_crop: bilinear crops of indexed boxes. A thread computes the two taps of one output pixel once, for all channels.
//
//     out[n, c, i, j] = sum of wy wx I[c, y, x] over the two pixels of sample i in y and of sample j in x
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "math/sampling.h"

namespace cls2det {
namespace {

int rows_per_tile(int out_w) { return out_w < 1024 ? 1024 / out_w : 1; }

// The 2 x 2 pixels of one sample. A tap outside the map is not read at all: not even an infinite pixel counts.
template <typename S, typename T>
struct Corners {
  int64_t offset[2][2];
  bool read[2][2];

  __device__ Corners(const MapView<S>& map, const Tap<T>& y, const Tap<T>& x) {
    const int rows[2] = {y.pixel0, y.pixel1}, columns[2] = {x.pixel0, x.pixel1};
    const bool row_read[2] = {y.weight0 != T(0) || y.slope0 != T(0), y.weight1 != T(0) || y.slope1 != T(0)};
    const bool column_read[2] = {x.weight0 != T(0) || x.slope0 != T(0), x.weight1 != T(0) || x.slope1 != T(0)};
    for (int r = 0; r < 2; ++r) {
      for (int s = 0; s < 2; ++s) {
        offset[r][s] = rows[r] * map.stride_y + columns[s] * map.stride_x;
        read[r][s] = row_read[r] && column_read[s];
      }
    }
  }

  __device__ T operator()(const S* plane, int r, int s) const {
    return read[r][s] ? static_cast<T>(plane[offset[r][s]]) : T(0);
  }
};

template <typename S, typename T>
__global__ void __launch_bounds__(kBlock) crop_kernel(
    MapView<S> map, BoxList<T> boxes, Pooling size, int tile_rows, int64_t tiles, S* out) {
  const int64_t area = int64_t(size.out_h) * size.out_w;
  for (int64_t block = blockIdx.x; block < boxes.count * tiles; block += gridDim.x) {
    const int64_t n = divide(block, tiles);
    const int first_row = int(block - n * tiles) * tile_rows;
    const int rows = size.out_h - first_row < tile_rows ? size.out_h - first_row : tile_rows;
    const int64_t image = boxes.image_index[n];
    const bool ignored = image < 0 || image >= map.images;
    const MapBox<T> b = map_box(boxes.boxes + 4 * n, boxes.scale, map.height, map.width, size.clip);
    S* o = out + n * map.channels * area + int64_t(first_row) * size.out_w;
    for (int pixel = threadIdx.x; pixel < rows * size.out_w; pixel += kBlock) {
      if (ignored || !b.finite) {
        for (int64_t c = 0; c < map.channels; ++c) o[c * area + pixel] = static_cast<S>(ignored ? T(0) : T(NAN));
        continue;
      }
      const int i = first_row + pixel / size.out_w, j = pixel % size.out_w;
      const Tap<T> y = sample_tap(b.y1, b.y2, i, size.out_h, map.height, size.border);
      const Tap<T> x = sample_tap(b.x1, b.x2, j, size.out_w, map.width, size.border);
      const Corners<S, T> corners(map, y, x);
      const S* plane = map.data + image * map.stride_n;
      for (int64_t c = 0; c < map.channels; ++c, plane += map.stride_c) {
        const T top = x.weight0 * corners(plane, 0, 0) + x.weight1 * corners(plane, 0, 1);
        const T bottom = x.weight0 * corners(plane, 1, 0) + x.weight1 * corners(plane, 1, 1);
        o[c * area + pixel] = static_cast<S>(y.weight0 * top + y.weight1 * bottom);
      }
    }
  }
}

// dL/dx1 = sum g D^x (1 - a_j), dL/dx2 = sum g D^x a_j with D^x = d crop / d u; the same in y.
template <typename S, typename T>
__global__ void __launch_bounds__(kBlock) crop_edges_kernel(
    MapView<S> map, BoxList<T> boxes, Pooling size, int tile_rows, int64_t tiles, const T* grad, T* partial) {
  CLS2DET_SHARED(T, shared, 5 * kWarps);
  const int64_t area = int64_t(size.out_h) * size.out_w;
  for (int64_t block = blockIdx.x; block < boxes.count * tiles; block += gridDim.x) {
    const int64_t n = divide(block, tiles);
    const int first_row = int(block - n * tiles) * tile_rows;
    const int rows = size.out_h - first_row < tile_rows ? size.out_h - first_row : tile_rows;
    const int64_t image = boxes.image_index[n];
    const bool ignored = image < 0 || image >= map.images;
    const MapBox<T> b = map_box(boxes.boxes + 4 * n, boxes.scale, map.height, map.width, size.clip);
    const T* g = grad + n * map.channels * area + int64_t(first_row) * size.out_w;
    T sums[5] = {};
    for (int pixel = threadIdx.x; !ignored && b.finite && pixel < rows * size.out_w; pixel += kBlock) {
      const int i = first_row + pixel / size.out_w, j = pixel % size.out_w;
      const Tap<T> y = sample_tap(b.y1, b.y2, i, size.out_h, map.height, size.border);
      const Tap<T> x = sample_tap(b.x1, b.x2, j, size.out_w, map.width, size.border);
      const Corners<S, T> corners(map, y, x);
      const S* plane = map.data + image * map.stride_n;
      T g_dx = T(0), g_dy = T(0);
      for (int64_t c = 0; c < map.channels; ++c, plane += map.stride_c) {
        const T i00 = corners(plane, 0, 0), i01 = corners(plane, 0, 1), i10 = corners(plane, 1, 0), i11 = corners(plane, 1, 1);
        const T dx = y.weight0 * (x.slope0 * i00 + x.slope1 * i01) + y.weight1 * (x.slope0 * i10 + x.slope1 * i11);
        const T dy = y.slope0 * (x.weight0 * i00 + x.weight1 * i01) + y.slope1 * (x.weight0 * i10 + x.weight1 * i11);
        g_dx += g[c * area + pixel] * dx;
        g_dy += g[c * area + pixel] * dy;
      }
      sums[1] += g_dx * (T(1) - x.a);
      sums[2] += g_dy * (T(1) - y.a);
      sums[3] += g_dx * x.a;
      sums[4] += g_dy * y.a;
    }
    block_sum<5>(sums, shared);
    if (threadIdx.x == 0) {
      const bool lost = !ignored && !b.finite && map.channels > 0;
      for (int e = 0; e < 5; ++e) partial[block * 5 + e] = lost ? T(NAN) : sums[e];
    }
  }
}

}  // namespace

int64_t roi_crop_tiles(const Pooling& size) { return ceil_div(size.out_h, rows_per_tile(size.out_w)); }

template <typename S>
void roi_crop_forward(
    const MapView<S>& map, const BoxList<Accumulate<S>>& boxes, const Pooling& size, S* out, cudaStream_t stream) {
  const int64_t tiles = roi_crop_tiles(size);
  if (boxes.count == 0 || map.channels == 0) return;
  CLS2DET_LAUNCH(
      (crop_kernel<S, Accumulate<S>>), grid_of(boxes.count * tiles), stream, map, boxes, size, rows_per_tile(size.out_w), tiles,
      out);
}

template <typename S>
void roi_crop_edges(
    const MapView<S>& map, const BoxList<Accumulate<S>>& boxes, const Pooling& size, const Accumulate<S>* grad,
    Accumulate<S>* partial, cudaStream_t stream) {
  const int64_t tiles = roi_crop_tiles(size);
  if (boxes.count == 0) return;
  CLS2DET_LAUNCH(
      (crop_edges_kernel<S, Accumulate<S>>), grid_of(boxes.count * tiles), stream, map, boxes, size, rows_per_tile(size.out_w),
      tiles, grad, partial);
}

#define INSTANTIATE(S)                                                                                                     \
  template void roi_crop_forward(const MapView<S>&, const BoxList<Accumulate<S>>&, const Pooling&, S*, cudaStream_t);      \
  template void roi_crop_edges(                                                                                            \
      const MapView<S>&, const BoxList<Accumulate<S>>&, const Pooling&, const Accumulate<S>*, Accumulate<S>*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
