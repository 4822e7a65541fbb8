// imitation_mask: a block per box and level finds the largest IoU, a thread per box the thresholds, a thread per image and
// anchor looks for a box of its image that exceeds them.
#include "cuda/imitation_mask_kernel.h"

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

namespace cls2det {
namespace {

template <typename T>
__device__ __forceinline__ Corners<T> corners(const T* box) {
  return {box[0], box[1], box[2], box[3]};
}

template <typename T>
__global__ void __launch_bounds__(kBlock) imitation_maxima_kernel(ImitationMask<T> a) {
  CLS2DET_SHARED(T, shared, kWarps);
  const int64_t total = a.boxes_count * a.levels;
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int64_t g = divide(block, a.levels);
    const int level = int(block - g * a.levels);
    const Corners<T> box = corners(a.boxes + g * 4);
    T most = T(0);
    for (int64_t n = a.level_begin[level] + threadIdx.x; n < a.level_begin[level + 1]; n += kBlock) {
      const T ratio = iou(corners(a.anchors + n * 4), box);
      most = ratio > most ? ratio : most;
    }
    most = lanes_max(most);
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = most;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kWarps; ++w) most = shared[w] > most ? shared[w] : most;
      a.thresholds[block] = most;
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) imitation_thresholds_kernel(ImitationMask<T> a) {
  for (int64_t g = int64_t(blockIdx.x) * kBlock + threadIdx.x; g < a.boxes_count; g += int64_t(gridDim.x) * kBlock) {
    imitation_thresholds(a.thresholds + g * a.levels, a.levels, a.factor, a.assignment);
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) imitation_marks_kernel(ImitationMask<T> a) {
  const int64_t count = a.level_begin[a.levels], total = a.images * count;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < total; i += int64_t(gridDim.x) * kBlock) {
    const int64_t image = divide(i, count), n = i - image * count;
    const Corners<T> anchor = corners(a.anchors + n * 4);
    int level = 0;
    while (n >= a.level_begin[level + 1]) ++level;
    bool marked = false;
    for (int64_t g = 0; g < a.boxes_count && !marked; ++g) {
      marked = a.image_index[g] == image && iou(anchor, corners(a.boxes + g * 4)) > a.thresholds[g * a.levels + level];
    }
    a.mask[i] = marked;
  }
}

}  // namespace

template <typename T>
void imitation_marks(const ImitationMask<T>& args, cudaStream_t stream) {
  const int64_t boxes = args.boxes_count, total = args.images * args.level_begin[args.levels];
  if (total == 0) return;
  if (boxes > 0) {
    CLS2DET_LAUNCH((imitation_maxima_kernel<T>), grid_of(boxes * args.levels), stream, args);
    CLS2DET_LAUNCH((imitation_thresholds_kernel<T>), grid_of(ceil_div(boxes, kBlock)), stream, args);
  }
  CLS2DET_LAUNCH((imitation_marks_kernel<T>), grid_of(ceil_div(total, kBlock)), stream, args);
}

template void imitation_marks(const ImitationMask<float>&, cudaStream_t);
template void imitation_marks(const ImitationMask<double>&, cudaStream_t);

}  // namespace cls2det
