// Masked squared differences tile by tile, lanes over the values of a row.
#include "cpu/storage.h"

// Calls visit(offset in the image, values left in the row, mask * scale, difference) for every vector of a tile. A row whose
// mask is 0 is not read; instead it calls skip(offset, number of values).
template <typename S, typename T, typename Visit, typename Skip>
CLS2DET_HD void for_differences(const MaskedArgs<S>& args, const MapTile& tile, T scale, const Visit& visit, const Skip& skip) {
  const DenseShape& shape = args.tiles.shape;
  const int64_t count = tile.inner_end - tile.inner_begin;
  const Vec<T> one = Vec<T>{} + T(1);
  const T* inner_mask = args.inner_mask ? args.inner_mask + tile.image * shape.inner + tile.inner_begin : (const T*)&one;
  const int64_t step = args.inner_mask ? 1 : 0;
  for (int64_t o = tile.outer_begin; o < tile.outer_end; ++o) {
    const int64_t at = o * shape.inner + tile.inner_begin;
    const T row_mask = args.outer_mask ? scale * args.outer_mask[tile.image * shape.outer + o] : scale;
    if (row_mask == T(0)) {
      skip(at, count);
      continue;
    }
    const S *s = args.student + tile.image * args.student_stride + at,
            *t = args.teacher + tile.image * args.teacher_stride + at;
    for_vectors<T>(count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      const Vec<T> mask = load_up_to(inner_mask + i * step, n, T(0)) * row_mask;
      visit(at + i, n, mask, Vec<T>(read_up_to(s + i, n) - read_up_to(t + i, n)));
    });
  }
}

// args.partial of the tiles [begin, end).
template <typename S>
void masked_sums(const MaskedArgs<S>& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  for (int64_t i = begin; i < end; ++i) {
    Vec<T> sum{};
    const auto add = [&](int64_t, int64_t, Vec<T> mask, Vec<T> difference)
                         __attribute__((always_inline)) { sum += masked_square(mask, difference); };
    for_differences(args, args.tiles[i], T(1), add, [](int64_t, int64_t) {});
    args.partial[i] = sum_lanes<T>(sum);
  }
}

// The gradients of the tiles [begin, end).
template <typename S>
void masked_gradients(const MaskedArgs<S>& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  const int64_t area = args.tiles.shape.outer * args.tiles.shape.inner;
  const bool past = args.past_caches;
  for (int64_t i = begin; i < end; ++i) {
    const MapTile tile = args.tiles[i];
    S* student = args.grad_student ? args.grad_student + tile.image * area : nullptr;
    S* teacher = args.grad_teacher ? args.grad_teacher + tile.image * area : nullptr;
    const auto write = [&](int64_t at, int64_t left, Vec<T> mask, Vec<T> difference) __attribute__((always_inline)) {
      const Vec<T> slope = masked_square_slope(mask, difference);
      if (student) write_rounded(student + at, slope, left, past);
      if (teacher) write_rounded(teacher + at, Vec<T>(-slope), left, past);
    };
    for_differences(args, tile, args.grad_rows[tile.image * args.grad_rows_stride], write, [&](int64_t at, int64_t count) {
      if (student) std::memset(student + at, 0, count * sizeof(S));
      if (teacher) std::memset(teacher + at, 0, count * sizeof(S));
    });
  }
  finish_writes();
}
