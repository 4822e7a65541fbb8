// The axis tables: what each bin of each box reads along y and along x. They depend on no channel, so they are built once per
// call, and every kernel that pools boxes or spreads their gradients reads them.
#pragma once

#include "cuda/storage.h"

namespace cls2det {

// One pixel that a bin reads along one axis: W, dW / d lo and dW / d hi of the separable form.
template <typename T>
struct alignas(16) AxisEntry {
  int pixel;
  T weight, lo, hi;
};

enum BoxState { kIgnored = 0, kPooled = 1, kNotFinite = 2 };

// The sparse rows of Wy and Wx of every box:
//     pooled[c, p, q] = sum over e in row p of Wy, f in row q of Wx:  e.weight f.weight I[c, e.pixel, f.pixel]
template <typename T>
struct AxisTables {
  AxisEntry<T>* entries;  // (count, out_h slots_y + out_w slots_x), the rows of Wy, then those of Wx
  int* counts;            // (count, 1 + out_h + out_w): BoxState, then the entries used in each row
  int64_t count;
  bool shared;  // one table serves all boxes
  int out_h, out_w, slots_y, slots_x;

  int64_t entries_per_box() const { return int64_t(out_h) * slots_y + int64_t(out_w) * slots_x; }
  int64_t counts_per_box() const { return 1 + int64_t(out_h) + out_w; }
};

// The slots that a row of W needs: every sample reads two pixels.
int slots_per_bin(int samples, int bins);

// Where boxes lie on the images of their matches: those images, to fill in with the tables.
struct ImagesOfMatches {
  const int64_t *matched, *target_images;  // (count,), (targets,)
  int64_t targets;
  int64_t* images;  // (count,), -1 without a match; null: the boxes name their images
};

// The boxes of one map, and the tables to fill for them.
template <typename T>
struct AxisTablesTask {
  BoxList<T> boxes;
  ImagesOfMatches of_matches;
  int64_t images;
  int height, width;
  AxisTables<T> tables;
};

// Fills the tables of both, in one launch; of `first` alone if `second` has no boxes.
template <typename T>
void build_axis_tables(
    const AxisTablesTask<T>& first, const AxisTablesTask<T>& second, const Pooling& pooling, cudaStream_t stream);

// Fills the one shared table of plain adaptive average pooling of a whole (height, width) map.
template <typename T>
void build_window_tables(int height, int width, const AxisTables<T>& tables, cudaStream_t stream);

}  // namespace cls2det
