// roi_crop: bilinear crops of indexed boxes. A block makes some rows of one crop: a thread keeps its column, whose two taps in x
// it computes once, and walks down the rows, whose taps in y wait in shared memory; for all channels.
//
//     out[n, c, i, j] = sum of wy wx I[c, y, x] over the two pixels of sample i in y and of sample j in x
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "math/sampling.h"

namespace cls2det {
namespace {

constexpr int kMostRows = 128;  // of a tile

// Equal tiles of about 2048 pixels: enough rows to be worth a column's taps, enough blocks to fill the device.
int rows_per_tile(const Pooling& size) {
  const int64_t fit = size.out_w < 2048 ? 2048 / size.out_w : 1, most = fit < kMostRows ? fit : kMostRows;
  return int(ceil_div(size.out_h, ceil_div(size.out_h, most)));
}

// Whether a tap's pixels are read at all: not even an infinite pixel counts outside the map.
template <typename T>
struct Read {
  bool pixel0, pixel1;
  __device__ __forceinline__ explicit Read(const Tap<T>& tap)
      : pixel0(tap.weight0 != T(0) || tap.slope0 != T(0)), pixel1(tap.weight1 != T(0) || tap.slope1 != T(0)) {}
  __device__ __forceinline__ bool both() const { return pixel0 && pixel1; }
};

template <typename T>
struct Corners {
  T value[2][2];
};

// The 2 x 2 pixels of one sample, channel after channel.
template <typename S, typename T>
struct CornerReader {
  const S* pixels;
  int64_t below, right;
  Read<T> rows, columns;
  bool neighbours;  // all four are read and lie side by side: no question and one address per row

  __device__ __forceinline__ CornerReader(const MapView<S>& map, const S* plane, const Tap<T>& y, const Tap<T>& x)
      : pixels(plane + y.pixel0 * map.stride_y + x.pixel0 * map.stride_x),
        below((y.pixel1 - y.pixel0) * map.stride_y),
        right((x.pixel1 - x.pixel0) * map.stride_x),
        rows(y),
        columns(x),
        neighbours(rows.both() && columns.both() && map.stride_x == 1) {}

  __device__ __forceinline__ Corners<T> at(int64_t channel_offset, bool side_by_side) const {
    const S *upper = pixels + channel_offset, *lower = upper + below;
    if (side_by_side) {
      return {{{static_cast<T>(upper[0]), static_cast<T>(upper[1])}, {static_cast<T>(lower[0]), static_cast<T>(lower[1])}}};
    }
    return {{{rows.pixel0 && columns.pixel0 ? static_cast<T>(upper[0]) : T(0),
              rows.pixel0 && columns.pixel1 ? static_cast<T>(upper[right]) : T(0)},
             {rows.pixel1 && columns.pixel0 ? static_cast<T>(lower[0]) : T(0),
              rows.pixel1 && columns.pixel1 ? static_cast<T>(lower[right]) : T(0)}}};
  }

  // visit(channel, corners); kChannels > 0: that many, their loads all on their way before the first is waited for
  template <int kChannels, typename Visit>
  __device__ __forceinline__ void each_channel(const MapView<S>& map, const Visit& visit) const {
    if (neighbours) {
      channels<kChannels>(map, true, visit);
    } else {
      channels<kChannels>(map, false, visit);
    }
  }

 private:
  template <int kChannels, typename Visit>
  __device__ __forceinline__ void channels(const MapView<S>& map, bool side_by_side, const Visit& visit) const {
    if constexpr (kChannels > 0) {
      Corners<T> corners[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) corners[c] = at(c * map.stride_c, side_by_side);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) visit(c, corners[c]);
    } else {
      for (int64_t c = 0; c < map.channels; ++c) visit(c, at(c * map.stride_c, side_by_side));
    }
  }
};

// The rows of one crop that a block makes.
template <typename S, typename T>
struct CropTile {
  int64_t n, image;
  int first_row, rows;
  bool ignored;
  MapBox<T> box;

  __device__ __forceinline__ CropTile(
      const MapView<S>& map, const BoxList<T>& boxes, const Pooling& size, int64_t block, int tile_rows, int64_t tiles)
      : n(divide(block, tiles)),
        image(boxes.image_index[n]),
        first_row(int(block - n * tiles) * tile_rows),
        rows(size.out_h - first_row < tile_rows ? size.out_h - first_row : tile_rows),
        ignored(image < 0 || image >= map.images),
        box(map_box(boxes.boxes + 4 * n, boxes.scale, map.height, map.width, size.clip)) {}

  __device__ __forceinline__ bool sampled() const { return !ignored && box.finite; }

  // The taps of its rows, to be read after a barrier.
  __device__ __forceinline__ void row_taps(const MapView<S>& map, const Pooling& size, Tap<T>* taps) const {
    if (!sampled()) return;
    for (int i = threadIdx.x; i < rows; i += kBlock) {
      taps[i] = sample_tap(box.y1, box.y2, first_row + i, size.out_h, map.height, size.border);
    }
  }

  // visit(column, begin, end): this thread's columns, and which rows of the tile it does there. Neighbouring threads have
  // neighbouring columns of one row; threads that are left over begin one row further down, and all step by `step` rows.
  template <typename Visit>
  __device__ __forceinline__ void each_column(const Pooling& size, const Visit& visit) const {
    const int across = size.out_w < kBlock ? size.out_w : kBlock, step = kBlock / across;
    const int begin = int(threadIdx.x) / across;
    if (begin >= step) return;
    for (int j = int(threadIdx.x) - begin * across; j < size.out_w; j += across) visit(j, begin, step);
  }
};

template <typename S, typename T, int kChannels>
__global__ void __launch_bounds__(kBlock) crop_kernel(
    MapView<S> map, BoxList<T> boxes, Pooling size, int tile_rows, int64_t tiles, S* out) {
  CLS2DET_SHARED(Tap<T>, taps, kMostRows);
  const int64_t area = int64_t(size.out_h) * size.out_w;
  for (int64_t block = blockIdx.x; block < boxes.count * tiles; block += gridDim.x) {
    const CropTile<S, T> tile(map, boxes, size, block, tile_rows, tiles);
    S* crop = out + tile.n * map.channels * area + int64_t(tile.first_row) * size.out_w;
    tile.row_taps(map, size, taps);
    __syncthreads();
    tile.each_column(size, [&](int j, int begin, int step) {
      if (!tile.sampled()) {
        const S fill = static_cast<S>(tile.ignored ? T(0) : T(NAN));
        for (int i = begin; i < tile.rows; i += step) {
          for (int64_t c = 0; c < map.channels; ++c) crop[c * area + int64_t(i) * size.out_w + j] = fill;
        }
        return;
      }
      const Tap<T> x = sample_tap(tile.box.x1, tile.box.x2, j, size.out_w, map.width, size.border);
      const S* plane = map.data + tile.image * map.stride_n;
      for (int i = begin; i < tile.rows; i += step) {
        const Tap<T> y = taps[i];
        S* o = crop + int64_t(i) * size.out_w + j;
        CornerReader<S, T>(map, plane, y, x).template each_channel<kChannels>(map, [&](int64_t c, const Corners<T>& corners) {
          const T top = x.weight0 * corners.value[0][0] + x.weight1 * corners.value[0][1];
          const T bottom = x.weight0 * corners.value[1][0] + x.weight1 * corners.value[1][1];
          o[c * area] = static_cast<S>(y.weight0 * top + y.weight1 * bottom);
        });
      }
    });
    __syncthreads();  // before the next tile's taps
  }
}

// dL/dx1 = sum g D^x (1 - a_j), dL/dx2 = sum g D^x a_j with D^x = d crop / d u; the same in y. All of it is linear in the
// pixels, so g times each of the four is summed over the channels first.
template <typename S, typename T, int kChannels>
__global__ void __launch_bounds__(kBlock) crop_edges_kernel(
    MapView<S> map, BoxList<T> boxes, Pooling size, int tile_rows, int64_t tiles, const T* grad, T* partial) {
  CLS2DET_SHARED(Tap<T>, taps, kMostRows);
  CLS2DET_SHARED(T, shared, 4 * kWarps);
  const int64_t area = int64_t(size.out_h) * size.out_w;
  for (int64_t block = blockIdx.x; block < boxes.count * tiles; block += gridDim.x) {
    const CropTile<S, T> tile(map, boxes, size, block, tile_rows, tiles);
    const T* crop = grad + tile.n * map.channels * area + int64_t(tile.first_row) * size.out_w;
    tile.row_taps(map, size, taps);
    __syncthreads();
    T sums[4] = {};
    tile.each_column(size, [&](int j, int begin, int step) {
      if (!tile.sampled()) return;
      const Tap<T> x = sample_tap(tile.box.x1, tile.box.x2, j, size.out_w, map.width, size.border);
      const S* plane = map.data + tile.image * map.stride_n;
      T column_dx = T(0);
      for (int i = begin; i < tile.rows; i += step) {
        const Tap<T> y = taps[i];
        const T* g = crop + int64_t(i) * size.out_w + j;
        Corners<T> all{};
        CornerReader<S, T>(map, plane, y, x).template each_channel<kChannels>(map, [&](int64_t c, const Corners<T>& corners) {
          const T upstream = g[c * area];
          for (int r = 0; r < 2; ++r) {
            for (int s = 0; s < 2; ++s) all.value[r][s] += upstream * corners.value[r][s];
          }
        });
        const T dx_top = x.slope0 * all.value[0][0] + x.slope1 * all.value[0][1];
        const T dx_bottom = x.slope0 * all.value[1][0] + x.slope1 * all.value[1][1];
        const T top = x.weight0 * all.value[0][0] + x.weight1 * all.value[0][1];
        const T bottom = x.weight0 * all.value[1][0] + x.weight1 * all.value[1][1];
        const T dy = y.slope0 * top + y.slope1 * bottom;
        column_dx += y.weight0 * dx_top + y.weight1 * dx_bottom;
        sums[1] += dy * (T(1) - y.a);
        sums[3] += dy * y.a;
      }
      sums[0] += column_dx * (T(1) - x.a);
      sums[2] += column_dx * x.a;
    });
    block_sum<4>(sums, shared);  // its barriers: the taps may be written again
    if (threadIdx.x == 0) {
      const bool lost = !tile.ignored && !tile.box.finite && map.channels > 0;
      partial[block * 5] = lost ? T(NAN) : T(0);
      for (int e = 0; e < 4; ++e) partial[block * 5 + 1 + e] = lost ? T(NAN) : sums[e];
    }
  }
}

}  // namespace

int64_t roi_crop_tiles(const Pooling& size) { return ceil_div(size.out_h, rows_per_tile(size)); }

// kernel<S, T, kChannels>: images have 3.
#define CLS2DET_LAUNCH_CROP(kernel, S, map, boxes, size, stream, ...)                                                      \
  do {                                                                                                                     \
    const int64_t tiles = roi_crop_tiles(size);                                                                            \
    const unsigned grid = grid_of((boxes).count * tiles);                                                                  \
    if ((map).channels == 3) {                                                                                             \
      CLS2DET_LAUNCH((kernel<S, Accumulate<S>, 3>), grid, stream, map, boxes, size, rows_per_tile(size), tiles, __VA_ARGS__); \
    } else {                                                                                                               \
      CLS2DET_LAUNCH((kernel<S, Accumulate<S>, 0>), grid, stream, map, boxes, size, rows_per_tile(size), tiles, __VA_ARGS__); \
    }                                                                                                                      \
  } while (0)

template <typename S>
void roi_crop_forward(
    const MapView<S>& map, const BoxList<Accumulate<S>>& boxes, const Pooling& size, S* out, cudaStream_t stream) {
  if (boxes.count == 0 || map.channels == 0) return;
  CLS2DET_LAUNCH_CROP(crop_kernel, S, map, boxes, size, stream, out);
}

template <typename S>
void roi_crop_edges(
    const MapView<S>& map, const BoxList<Accumulate<S>>& boxes, const Pooling& size, const Accumulate<S>* grad,
    Accumulate<S>* partial, cudaStream_t stream) {
  if (boxes.count == 0) return;
  CLS2DET_LAUNCH_CROP(crop_edges_kernel, S, map, boxes, size, stream, grad, partial);
}

#define INSTANTIATE(S)                                                                                                     \
  template void roi_crop_forward(const MapView<S>&, const BoxList<Accumulate<S>>&, const Pooling&, S*, cudaStream_t);      \
  template void roi_crop_edges(                                                                                            \
      const MapView<S>&, const BoxList<Accumulate<S>>&, const Pooling&, const Accumulate<S>*, Accumulate<S>*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
