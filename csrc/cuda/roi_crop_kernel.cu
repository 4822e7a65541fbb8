// roi_crop: bilinear crops of indexed boxes. A block makes some rows of one crop, for all channels. A thread keeps its column,
// whose two taps in x it computes once, and walks down the rows, whose taps in y are in shared memory.
//
//     out[n, c, i, j] = sum of wy wx I[c, y, x] over the two pixels of sample i in y and of sample j in x
#include "cuda/roi_crop_kernel.h"

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "math/sampling.h"

namespace cls2det {
namespace {

constexpr int kMostRows = 128;  // of a tile

// Equal tiles of about 3072 pixels: enough rows to be worth a column's taps, enough blocks to fill the device.
int rows_per_tile(const Pooling& size) {
  const int64_t fit = size.out_w < 3072 ? 3072 / size.out_w : 1, most = fit < kMostRows ? fit : kMostRows;
  return int(ceil_div(size.out_h, ceil_div(size.out_h, most)));
}

// A tap, with all that depends on its own axis alone: where its pixels lie, and whether they are read at all. A pixel of
// weight 0 is not read, since it may be infinite.
template <typename T>
struct alignas(16) Line {
  using Flag = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;  // of T's size: the struct has no padding and
                                                                                 // can be copied whole
  int64_t offset, next;                                                          // of pixel 0, and from there to pixel 1
  T weight0, weight1, slope0, slope1, a;
  Flag read0, read1, both;

  Line() = default;
  __device__ __forceinline__ Line(const Tap<T>& tap, int64_t stride)
      : offset(tap.pixel0 * stride),
        next((tap.pixel1 - tap.pixel0) * stride),
        weight0(tap.weight0),
        weight1(tap.weight1),
        slope0(tap.slope0),
        slope1(tap.slope1),
        a(tap.a),
        read0(weight0 != T(0) || slope0 != T(0)),
        read1(weight1 != T(0) || slope1 != T(0)),
        both(read0 && read1) {}
};

template <typename T>
struct Pixels {
  T value[2][2];
};

// The 2 x 2 pixels of one sample, channel after channel.
template <typename S, typename T>
struct PixelReader {
  const S* pixels;
  const Line<T>&y, &x;

  __device__ __forceinline__ PixelReader(const S* column, const Line<T>& y, const Line<T>& x)
      : pixels(column + y.offset), y(y), x(x) {}

  __device__ __forceinline__ Pixels<T> at(int64_t channel_offset, bool side_by_side) const {
    const S *upper = pixels + channel_offset, *lower = upper + y.next;
    if (side_by_side) {
      return {{{static_cast<T>(upper[0]), static_cast<T>(upper[1])}, {static_cast<T>(lower[0]), static_cast<T>(lower[1])}}};
    }
    return {
        {{y.read0 && x.read0 ? static_cast<T>(upper[0]) : T(0), y.read0 && x.read1 ? static_cast<T>(upper[x.next]) : T(0)},
         {y.read1 && x.read0 ? static_cast<T>(lower[0]) : T(0), y.read1 && x.read1 ? static_cast<T>(lower[x.next]) : T(0)}}};
  }

  // Calls visit(channel, pixels). kChannels > 0: for that many channels, whose loads all start before the first result is
  // used.
  template <int kChannels, typename Visit>
  __device__ __forceinline__ void for_channels(const MapView<S>& map, const Visit& visit) const {
    if (y.both && x.both && x.next == 1) {  // no conditions, and one address per row
      channels<kChannels>(map, true, visit);
    } else {
      channels<kChannels>(map, false, visit);
    }
  }

 private:
  template <int kChannels, typename Visit>
  __device__ __forceinline__ void channels(const MapView<S>& map, bool side_by_side, const Visit& visit) const {
    if constexpr (kChannels > 0) {
      Pixels<T> samples[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) samples[c] = at(c * map.stride_c, side_by_side);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) visit(c, samples[c]);
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

  __device__ __forceinline__
  CropTile(const MapView<S>& map, const BoxList<T>& boxes, const Pooling& size, int64_t block, int tile_rows, int64_t tiles)
      : n(divide(block, tiles)),
        image(boxes.image_index[n]),
        first_row(int(block - n * tiles) * tile_rows),
        rows(size.out_h - first_row < tile_rows ? size.out_h - first_row : tile_rows),
        ignored(image < 0 || image >= map.images),
        box(map_box(boxes.xyxy + 4 * n, boxes.scale, map.height, map.width, size.clip)) {}

  __device__ __forceinline__ bool sampled() const { return !ignored && box.finite; }

  // Computes the lines of the tile's rows; a barrier must follow before they are read.
  __device__ __forceinline__ void row_lines(const MapView<S>& map, const Pooling& size, Line<T>* lines) const {
    if (!sampled()) return;
    for (int i = threadIdx.x; i < rows; i += kBlock) {
      lines[i] = Line<T>(sample_tap(box.y1, box.y2, first_row + i, size.out_h, map.height, size.border), map.stride_y);
    }
  }

  __device__ __forceinline__ Line<T> column_line(const MapView<S>& map, const Pooling& size, int j) const {
    return Line<T>(sample_tap(box.x1, box.x2, j, size.out_w, map.width, size.border), map.stride_x);
  }

  // visit(column, begin, end): this thread's columns, and which rows of the tile it does there. Neighbouring threads have
  // neighbouring columns of one row; threads that are left over begin one row further down, and all step by `step` rows.
  template <typename Visit>
  __device__ __forceinline__ void for_columns(const Pooling& size, const Visit& visit) const {
    const int across = size.out_w < kBlock ? size.out_w : kBlock, step = kBlock / across;
    const int begin = int(threadIdx.x) / across;
    if (begin >= step) return;
    for (int j = int(threadIdx.x) - begin * across; j < size.out_w; j += across) visit(j, begin, step);
  }
};

template <typename S, typename T, int kChannels>
__global__ void __launch_bounds__(kBlock)
    crop_kernel(MapView<S> map, BoxList<T> boxes, Pooling size, int tile_rows, int64_t tiles, S* out) {
  CLS2DET_SHARED(Line<T>, lines, kMostRows);
  const int64_t area = int64_t(size.out_h) * size.out_w;
  for (int64_t block = blockIdx.x; block < boxes.count * tiles; block += gridDim.x) {
    const CropTile<S, T> tile(map, boxes, size, block, tile_rows, tiles);
    S* crop = out + tile.n * map.channels * area + int64_t(tile.first_row) * size.out_w;
    tile.row_lines(map, size, lines);
    __syncthreads();
    tile.for_columns(size, [&](int j, int begin, int step) {
      if (!tile.sampled()) {
        const S fill = static_cast<S>(tile.ignored ? T(0) : T(NAN));
        for (int i = begin; i < tile.rows; i += step) {
          for (int64_t c = 0; c < map.channels; ++c) crop[c * area + int64_t(i) * size.out_w + j] = fill;
        }
        return;
      }
      const Line<T> x = tile.column_line(map, size, j);
      const S* column = map.data + tile.image * map.stride_n + x.offset;
      S* o = crop + int64_t(begin) * size.out_w + j;
      for (int i = begin; i < tile.rows; i += step, o += int64_t(step) * size.out_w) {
        const Line<T> y = lines[i];
        PixelReader<S, T>(column, y, x).template for_channels<kChannels>(map, [&](int64_t c, const Pixels<T>& sample) {
          const T top = x.weight0 * sample.value[0][0] + x.weight1 * sample.value[0][1];
          const T bottom = x.weight0 * sample.value[1][0] + x.weight1 * sample.value[1][1];
          o[c * area] = static_cast<S>(y.weight0 * top + y.weight1 * bottom);
        });
      }
    });
    __syncthreads();  // before the next tile's lines
  }
}

// dL/dx1 = sum g D^x (1 - a_j), dL/dx2 = sum g D^x a_j with D^x = d crop / d u; the same in y. All of it is linear in the
// pixels, so g times each of the four is summed over the channels first.
template <typename S, typename T, int kChannels>
__global__ void __launch_bounds__(kBlock, 4)
    crop_edges_kernel(MapView<S> map, BoxList<T> boxes, Pooling size, int tile_rows, int64_t tiles, const T* grad, T* partial) {
  CLS2DET_SHARED(Line<T>, lines, kMostRows);
  CLS2DET_SHARED(T, shared, 4 * kWarps);
  const int64_t area = int64_t(size.out_h) * size.out_w;
  for (int64_t block = blockIdx.x; block < boxes.count * tiles; block += gridDim.x) {
    const CropTile<S, T> tile(map, boxes, size, block, tile_rows, tiles);
    const T* crop = grad + tile.n * map.channels * area + int64_t(tile.first_row) * size.out_w;
    tile.row_lines(map, size, lines);
    __syncthreads();
    T sums[4] = {};
    tile.for_columns(size, [&](int j, int begin, int step) {
      if (!tile.sampled()) return;
      const Line<T> x = tile.column_line(map, size, j);
      const S* column = map.data + tile.image * map.stride_n + x.offset;
      T column_dx = T(0);
      const T* g = crop + int64_t(begin) * size.out_w + j;
      for (int i = begin; i < tile.rows; i += step, g += int64_t(step) * size.out_w) {
        const Line<T> y = lines[i];
        Pixels<T> all{};
        PixelReader<S, T>(column, y, x).template for_channels<kChannels>(map, [&](int64_t c, const Pixels<T>& sample) {
          const T upstream = g[c * area];
          for (int r = 0; r < 2; ++r) {
            for (int s = 0; s < 2; ++s) all.value[r][s] += upstream * sample.value[r][s];
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
    block_sum<4>(sums, shared);  // its barriers: the lines may be written again
    if (threadIdx.x == 0) {
      const bool not_finite = !tile.ignored && !tile.box.finite && map.channels > 0;
      partial[block * kPooledParts + kValue] = not_finite ? T(NAN) : T(0);
      for (int e = 0; e < 4; ++e) partial[block * kPooledParts + kX1 + e] = not_finite ? T(NAN) : sums[e];
    }
  }
}

}  // namespace

int64_t roi_crop_tiles(const Pooling& size) { return ceil_div(size.out_h, rows_per_tile(size)); }

// kernel<S, T, kChannels>: images have 3.
#define CLS2DET_LAUNCH_CROP(kernel, S, map, boxes, size, stream, ...)                                                         \
  do {                                                                                                                        \
    const int64_t tiles = roi_crop_tiles(size);                                                                               \
    const unsigned grid = grid_of((boxes).count * tiles);                                                                     \
    if ((map).channels == 3) {                                                                                                \
      CLS2DET_LAUNCH((kernel<S, Accumulate<S>, 3>), grid, stream, map, boxes, size, rows_per_tile(size), tiles, __VA_ARGS__); \
    } else {                                                                                                                  \
      CLS2DET_LAUNCH((kernel<S, Accumulate<S>, 0>), grid, stream, map, boxes, size, rows_per_tile(size), tiles, __VA_ARGS__); \
    }                                                                                                                         \
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

#define INSTANTIATE(S)                                                                                                \
  template void roi_crop_forward(const MapView<S>&, const BoxList<Accumulate<S>>&, const Pooling&, S*, cudaStream_t); \
  template void roi_crop_edges(                                                                                       \
      const MapView<S>&, const BoxList<Accumulate<S>>&, const Pooling&, const Accumulate<S>*, Accumulate<S>*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
