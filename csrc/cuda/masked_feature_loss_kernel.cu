// masked_feature_loss:  row[b] = sum over the image of mask (student - teacher)^2,  mask = outer mask * inner mask
//
// Values whose mask is 0 do not count, not even NaN, and a run of them is not read.
#include "cuda/masked_feature_loss_kernel.h"

#include "cuda/launch.cuh"
#include "cuda/map_walk.cuh"
#include "cuda/reduce.cuh"
#include "math/masked_square.h"

namespace cls2det {
namespace {

constexpr int64_t kTile = 16 * kBlock;  // values of one block

template <typename S>
__device__ __forceinline__ Accumulate<S> mask_at(const MaskedLoss<S>& a, const MapPlace& at) {
  using T = Accumulate<S>;
  const T outer = a.outer_mask ? a.outer_mask[at.image * a.shape.outer + at.outer] : T(1);
  return a.inner_mask ? outer * a.inner_mask[at.image * a.shape.inner + at.inner] : outer;
}

// Calls visit(n, factor * mask, student - teacher) for the values of the run that begins at `at`.
template <int kRun, typename S, typename Visit>
__device__ __forceinline__ void for_differences(const MaskedLoss<S>& a, MapPlace at, Accumulate<S> factor, const Visit& visit) {
  using T = Accumulate<S>;
  const S* from_student = a.student + at.image * a.student_stride + at.value;
  const S* from_teacher = a.teacher + at.image * a.teacher_stride + at.value;
  T masks[kRun];
  bool any = false;
#pragma unroll
  for (int n = 0; n < kRun; ++n, advance(a.shape, at)) {
    masks[n] = factor * mask_at(a, at);
    any = any || masks[n] != T(0);
  }
  Run<S, kRun> student{}, teacher{};
  if (any) student = load_run<kRun>(from_student), teacher = load_run<kRun>(from_teacher);
#pragma unroll
  for (int n = 0; n < kRun; ++n) {
    visit(n, masks[n], static_cast<T>(student.values[n]) - static_cast<T>(teacher.values[n]));
  }
}

template <typename S, int kRun>
__global__ void __launch_bounds__(kBlock) masked_sums_kernel(MaskedLoss<S> a, int64_t tiles) {
  using T = Accumulate<S>;
  CLS2DET_SHARED(T, shared, kWarps);
  const int64_t area = a.shape.outer * a.shape.inner, total = a.shape.images * tiles;
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int64_t image = divide(block, tiles), first = (block - image * tiles) * kTile;
    const int64_t end = first + kTile < area ? first + kTile : area;
    T sum = T(0);
    for (int64_t value = first + threadIdx.x * kRun; value < end; value += kBlock * kRun) {
      for_differences<kRun>(a, place_of(a.shape, image, value), T(1), [&](int, T mask, T difference) {
        if (mask != T(0)) sum += masked_square(mask, difference);
      });
    }
    block_sum<1>(&sum, shared);
    if (threadIdx.x == 0) a.partial[block] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) sum_tiles_kernel(const T* partial, int64_t images, int64_t tiles, T* rows) {
  CLS2DET_SHARED(T, shared, kWarps);
  for (int64_t image = blockIdx.x; image < images; image += gridDim.x) {
    T sum = T(0);
    for (int64_t i = threadIdx.x; i < tiles; i += kBlock) sum += partial[image * tiles + i];
    block_sum<1>(&sum, shared);
    if (threadIdx.x == 0) rows[image] = sum;
  }
}

template <typename S, int kRun>
__global__ void __launch_bounds__(kBlock) masked_gradients_kernel(MaskedLoss<S> a) {
  using T = Accumulate<S>;
  for_runs<kRun>(a.shape, [&](int64_t i, const MapPlace& at) {
    Run<S, kRun> grad_student, grad_teacher;
    for_differences<kRun>(a, at, a.grad_rows[at.image], [&](int n, T mask, T difference) {
      const T slope = mask != T(0) ? masked_square_slope(mask, difference) : T(0);
      grad_student.values[n] = static_cast<S>(slope);
      grad_teacher.values[n] = static_cast<S>(-slope);
    });
    if (a.grad_student) store_run(a.grad_student + i, grad_student);
    if (a.grad_teacher) store_run(a.grad_teacher + i, grad_teacher);
  });
}

template <typename S>
bool is_wide(const MaskedLoss<S>& a) {
  const int64_t area = a.shape.outer * a.shape.inner;  // between images of a gradient
  return is_wide(a.shape, a.student, a.student_stride) && is_wide(a.shape, a.teacher, a.teacher_stride) &&
         is_wide(a.shape, a.grad_student, area) && is_wide(a.shape, a.grad_teacher, area);
}

}  // namespace

int64_t masked_tiles(const DenseShape& shape) { return ceil_div(shape.outer * shape.inner, kTile); }

template <typename S>
void masked_sums(const MaskedLoss<S>& args, Accumulate<S>* rows, cudaStream_t stream) {
  const int64_t images = args.shape.images, tiles = masked_tiles(args.shape);
  if (images == 0) return;
  if (tiles > 0) {
    const unsigned grid = grid_of(images * tiles);
    if (is_wide(args)) {
      CLS2DET_LAUNCH((masked_sums_kernel<S, kWide<S>>), grid, stream, args, tiles);
    } else {
      CLS2DET_LAUNCH((masked_sums_kernel<S, 1>), grid, stream, args, tiles);
    }
  }
  CLS2DET_LAUNCH((sum_tiles_kernel<Accumulate<S>>), grid_of(images), stream, args.partial, images, tiles, rows);
}

template <typename S>
void masked_gradients(const MaskedLoss<S>& args, cudaStream_t stream) {
  const int64_t total = args.shape.images * args.shape.outer * args.shape.inner;
  if (total == 0) return;
  if (is_wide(args)) {
    CLS2DET_LAUNCH((masked_gradients_kernel<S, kWide<S>>), grid_of(ceil_div(total, kBlock * kWide<S>)), stream, args);
  } else {
    CLS2DET_LAUNCH((masked_gradients_kernel<S, 1>), grid_of(ceil_div(total, kBlock)), stream, args);
  }
}

#define INSTANTIATE(S)                                                           \
  template void masked_sums(const MaskedLoss<S>&, Accumulate<S>*, cudaStream_t); \
  template void masked_gradients(const MaskedLoss<S>&, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
