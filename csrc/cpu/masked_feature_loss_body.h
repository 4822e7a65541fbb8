// Masked squared differences tile by tile, lanes over the values of a row.

// visit(offset in the image, values left in the row, mask * scale, difference) for every vector of a tile. A row whose own mask
// is 0 is not read.
template <typename T, typename Visit>
CLS2DET_HD void each_difference(const MaskedArgs<T>& args, const MapTile& tile, T scale, const Visit& visit) {
  const DenseShape& shape = args.tiles.shape;
  const T *s = args.student + tile.image * args.student_stride, *t = args.teacher + tile.image * args.teacher_stride;
  const T* inner_mask = args.inner_mask ? args.inner_mask + tile.image * shape.inner : nullptr;
  for (int64_t o = tile.outer_begin; o < tile.outer_end; ++o) {
    const T row_mask = args.outer_mask ? scale * args.outer_mask[tile.image * shape.outer + o] : scale;
    for (int64_t i = tile.inner_begin; i < tile.inner_end; i += kLanes<T>) {
      const int64_t at = o * shape.inner + i, left = tile.inner_end - i;
      Vec<T> mask = Vec<T>{} + row_mask, difference{};
      if (inner_mask) mask *= load_up_to(inner_mask + i, left, T(0));
      if (row_mask != T(0)) difference = load_up_to(s + at, left, T(0)) - load_up_to(t + at, left, T(0));
      visit(at, left, mask, difference);
    }
  }
}

// args.partial of the tiles [begin, end).
template <typename T>
void masked_sums(const MaskedArgs<T>& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    Vec<T> sum{};
    each_difference(args, args.tiles[i], T(1), [&](int64_t, int64_t, Vec<T> mask, Vec<T> difference) __attribute__((always_inline)) {
      sum += masked_square(mask, difference);
    });
    args.partial[i] = sum_lanes<T>(sum);
  }
}

// The gradients of the tiles [begin, end).
template <typename T>
void masked_gradients(const MaskedArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t area = args.tiles.shape.outer * args.tiles.shape.inner;
  for (int64_t i = begin; i < end; ++i) {
    const MapTile tile = args.tiles[i];
    T* student = args.grad_student ? args.grad_student + tile.image * area : nullptr;
    T* teacher = args.grad_teacher ? args.grad_teacher + tile.image * area : nullptr;
    const auto write = [&](int64_t at, int64_t left, Vec<T> mask, Vec<T> difference) __attribute__((always_inline)) {
      const Vec<T> slope = masked_square_slope(mask, difference);
      if (student) store_up_to(student + at, slope, left);
      if (teacher) store_up_to(teacher + at, Vec<T>(-slope), left);
    };
    each_difference(args, tile, args.grad_rows[tile.image], write);
  }
}
