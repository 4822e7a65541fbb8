// Row sums and column sums of dense images in one pass, lanes over the values of a row.
#include "cpu/storage.h"

template <typename T>
CLS2DET_HD Vec<T> attended(Vec<T> value, bool absolute) {
  return absolute ? magnitude(value) : value;
}

// The rows [o, o + kRows) of a tile: their sums, and what they add to the columns.
template <int kRows, typename S, typename T>
CLS2DET_HD void add_rows(const MeansArgs<S>& args, const MapTile& tile, int64_t o, T* columns, T* sums) {
  const int64_t inner = args.tiles.shape.inner;
  const S* rows = args.features + tile.image * args.stride + o * inner + tile.inner_begin;
  columns += tile.inner_begin;
  const bool absolute = args.absolute;
  Vec<T> sum[kRows] = {};
  for_vectors<T>(tile.inner_end - tile.inner_begin, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    Vec<T> column = load_up_to(columns + i, left, T(0));
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> value = attended<T>(read_up_to(rows + r * inner + i, left), absolute);
      sum[r] += value;
      column += value;
    }
    store_up_to(columns + i, column, left);
  });
  for (int r = 0; r < kRows; ++r) sums[o + r] = sum_lanes<T>(sum[r]);
}

// The partial sums of the tiles [begin, end).
template <typename S>
void attention_sums(const MeansArgs<S>& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const MapTiles& tiles = args.tiles;
  for (int64_t i = begin; i < end; ++i) {
    const MapTile tile = tiles[i];
    T* columns = args.inner_partial + (tile.image * tiles.down + tile.down) * tiles.shape.inner;
    T* sums = args.outer_partial + (tile.image * tiles.across + tile.across) * tiles.shape.outer;
    std::memset(columns + tile.inner_begin, 0, (tile.inner_end - tile.inner_begin) * sizeof(T));
    int64_t o = tile.outer_begin;
    for (; o + 4 <= tile.outer_end; o += 4) add_rows<4>(args, tile, o, columns, sums);
    for (; o < tile.outer_end; ++o) add_rows<1>(args, tile, o, columns, sums);
  }
}

// The gradient of the tiles [begin, end).
template <typename S>
void attention_gradients(const MeansArgs<S>& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const DenseShape& shape = args.tiles.shape;
  for (int64_t i = begin; i < end; ++i) {
    const MapTile tile = args.tiles[i];
    const T* columns = args.inner_grad + tile.image * shape.inner + tile.inner_begin;
    const T share = args.inner_share;
    const bool past = args.past_caches, absolute = args.absolute;
    for (int64_t o = tile.outer_begin; o < tile.outer_end; ++o) {
      const T row = args.outer_grad[tile.image * shape.outer + o] * args.outer_share;
      const S* features = args.features + tile.image * args.stride + o * shape.inner + tile.inner_begin;
      S* grad = args.grad + (tile.image * shape.outer + o) * shape.inner + tile.inner_begin;
      for_vectors<T>(tile.inner_end - tile.inner_begin, [&](int64_t x, int64_t left) __attribute__((always_inline)) {
        const Vec<T> upstream = load_up_to(columns + x, left, T(0)) * share + row;
        const Vec<T> slope = absolute ? sign(read_up_to(features + x, left)) * upstream : upstream;
        write_rounded(grad + x, slope, left, past);
      });
    }
  }
  finish_writes();
}
