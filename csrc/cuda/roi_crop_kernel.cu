// roi_crop on the GPU: a thread per output position walks the channels; d / d boxes by one block per box. d / d images is
// the transpose that roi_avg_pool has (bins of one sample each): launch_roi_spread.
#include "cuda/kernels.h"
#include "cuda/roi_pool.cuh"

namespace cls2det {
namespace {

// A pixel of a plane, or 0 where it is not read (weight and slope 0): it may be infinite.
template <typename S, typename A = Accumulate<S>>
__device__ A pixel(const S* plane, const RoiSide<S>& side, int y, A weight_y, A slope_y, int x, A weight_x, A slope_x) {
  const bool read = (weight_y != A(0) || slope_y != A(0)) && (weight_x != A(0) || slope_x != A(0));
  return read ? static_cast<A>(plane[y * side.stride_y + x * side.stride_x]) : A(0);
}

// The four pixels of a sample: v[y][x].
template <typename S, typename A = Accumulate<S>>
__device__ void read_pixels(const S* plane, const RoiSide<S>& side, const Tap<A>& y, const Tap<A>& x, A (&v)[2][2]) {
  v[0][0] = pixel(plane, side, y.pixel0, y.weight0, y.slope0, x.pixel0, x.weight0, x.slope0);
  v[0][1] = pixel(plane, side, y.pixel0, y.weight0, y.slope0, x.pixel1, x.weight1, x.slope1);
  v[1][0] = pixel(plane, side, y.pixel1, y.weight1, y.slope1, x.pixel0, x.weight0, x.slope0);
  v[1][1] = pixel(plane, side, y.pixel1, y.weight1, y.slope1, x.pixel1, x.weight1, x.slope1);
}

template <typename S>
__global__ void roi_crop(RoiSide<S> side, RoiPooling pooling, S* out) {
  using A = Accumulate<S>;
  const int64_t area = int64_t(pooling.out_h) * pooling.out_w;
  const int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= side.count * area) return;
  const int64_t box = item / area, place = item % area;
  const MapBox<A> b = map_box(side.boxes + 4 * box, side.scale, side.height, side.width, pooling.clip);
  S* o = out + box * side.channels * area + place;
  if (!has_image(side, box) || !b.finite) {
    const S fill = static_cast<S>(has_image(side, box) ? nan_of<A>() : A(0));
    for (int64_t c = 0; c < side.channels; ++c) o[c * area] = fill;
    return;
  }
  const Tap<A> x = sample_tap(b.x1, b.x2, int(place % pooling.out_w), pooling.out_w, side.width, pooling.border);
  const Tap<A> y = sample_tap(b.y1, b.y2, int(place / pooling.out_w), pooling.out_h, side.height, pooling.border);
  const S* plane = side.data + side.image_index[box] * side.stride_n;
  for (int64_t c = 0; c < side.channels; ++c, plane += side.stride_c) {
    A v[2][2];
    read_pixels(plane, side, y, x, v);
    const A top = x.weight0 * v[0][0] + x.weight1 * v[0][1], low = x.weight0 * v[1][0] + x.weight1 * v[1][1];
    o[c * area] = static_cast<S>(y.weight0 * top + y.weight1 * low);
  }
}

// Block per box: dL/dx1 = sum g D^x (1 - a), dL/dx2 = sum g D^x a, D^x = d crop / d u; the same in y.
template <typename S>
__global__ void roi_crop_boxes(RoiSide<S> side, RoiPooling pooling, const Accumulate<S>* grad, Accumulate<S>* grad_boxes) {
  using A = Accumulate<S>;
  __shared__ A shared[kThreads / kWarp * 4];
  const int64_t box = blockIdx.x, area = int64_t(pooling.out_h) * pooling.out_w;
  const MapBox<A> b = map_box(side.boxes + 4 * box, side.scale, side.height, side.width, pooling.clip);
  A edges[4] = {0, 0, 0, 0};
  if (has_image(side, box) && b.finite) {
    for (int64_t place = threadIdx.x; place < area; place += blockDim.x) {
      const Tap<A> x = sample_tap(b.x1, b.x2, int(place % pooling.out_w), pooling.out_w, side.width, pooling.border);
      const Tap<A> y = sample_tap(b.y1, b.y2, int(place / pooling.out_w), pooling.out_h, side.height, pooling.border);
      const S* plane = side.data + side.image_index[box] * side.stride_n;
      A dx = 0, dy = 0;  // sums over channels of g D^x, g D^y
      for (int64_t c = 0; c < side.channels; ++c, plane += side.stride_c) {
        A v[2][2];
        read_pixels(plane, side, y, x, v);
        const A g = grad[(box * side.channels + c) * area + place];
        dx += g * (y.weight0 * (x.slope0 * v[0][0] + x.slope1 * v[0][1]) + y.weight1 * (x.slope0 * v[1][0] + x.slope1 * v[1][1]));
        dy += g * (y.slope0 * (x.weight0 * v[0][0] + x.weight1 * v[0][1]) + y.slope1 * (x.weight0 * v[1][0] + x.weight1 * v[1][1]));
      }
      edges[0] += dx * (A(1) - x.a);
      edges[1] += dy * (A(1) - y.a);
      edges[2] += dx * x.a;
      edges[3] += dy * y.a;
    }
  }
  block_sum(edges, shared);
  if (threadIdx.x != 0) return;
  if (has_image(side, box)) {
    write_box_gradient(side, pooling.clip, box, edges, grad_boxes);
  } else {
    for (int e = 0; e < 4; ++e) grad_boxes[4 * box + e] = A(0);
  }
}

}  // namespace

template <typename S>
void launch_roi_crop(const RoiSide<S>& side, const RoiPooling& pooling, S* out, cudaStream_t stream) {
  const int64_t items = side.count * pooling.out_h * pooling.out_w;
  CLS2DET_LAUNCH(roi_crop<S>, blocks_for(items, kThreads), kThreads, 0, stream, side, pooling, out);
}

template <typename S>
void launch_roi_crop_boxes(
    const RoiSide<S>& side, const RoiPooling& pooling, const Accumulate<S>* grad, Accumulate<S>* grad_boxes, cudaStream_t stream) {
  if (side.count == 0) return;
  CLS2DET_LAUNCH(roi_crop_boxes<S>, side.count, kThreads, 0, stream, side, pooling, grad, grad_boxes);
}

#define INSTANTIATE(S)                                                                           \
  template void launch_roi_crop<S>(const RoiSide<S>&, const RoiPooling&, S*, cudaStream_t);      \
  template void launch_roi_crop_boxes<S>(                                                        \
      const RoiSide<S>&, const RoiPooling&, const Accumulate<S>*, Accumulate<S>*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace cls2det
