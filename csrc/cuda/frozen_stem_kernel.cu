// frozen_stem with any kernel: convolution, ReLU and max-pool in one pass, and the gradient of the images in another. A
// ResNet's kernel has faster ones, in resnet_stem_kernel.cu.
//
// A block of the backward owns a tile of pixels of one image. For a few channels at a time it puts into shared memory the
// gradient of the convolution's output, at the places whose kernels read the tile; each thread then sums for its pixel. The
// gradient of full resolution is never written to global memory, and no two blocks share a pixel.
#include "cuda/frozen_stem_kernel.h"

#include "cuda/launch.cuh"
#include "cuda/resnet_stem_kernel.h"

namespace cls2det {
namespace {

constexpr int kTile = 16;                        // pixels along each side of a tile; kTile * kTile threads
constexpr int kChannels = 8;                     // of the convolution, in shared memory at a time
constexpr int kInputs = 4;                       // channels of the images, in registers at a time
constexpr int kReach = kTile + kMostKernel - 1;  // places of a convolution of stride 1 that read a tile, along each side
static_assert(kTile * kTile == kBlock);

// A thread computes the nine places that its pool covers.
template <typename S>
__global__ void __launch_bounds__(kBlock)
    stem_kernel(StemShape s, const S* images, const Accumulate<S>* weight, const Accumulate<S>* bias, S* out, uint8_t* index) {
  using T = Accumulate<S>;
  const int64_t plane = int64_t(s.out_h) * s.out_w, pixels = int64_t(s.height) * s.width;
  const int taps = s.kernel_h * s.kernel_w;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < s.images * s.channels * plane;
       i += int64_t(gridDim.x) * kBlock) {
    const int64_t map = divide(i, plane), image = divide(map, s.channels), at = i - map * plane;
    const int c = int(map - image * s.channels), oy = int(divide(at, s.out_w)), ox = int(at - int64_t(oy) * s.out_w);
    T best(0);
    int chosen = -1;
    for (int k = 0; k < kWindow * kWindow; ++k) {
      const int y = 2 * oy - 1 + k / kWindow, x = 2 * ox - 1 + k % kWindow;
      if (y < 0 || y >= s.conv_h || x < 0 || x >= s.conv_w) continue;
      T value = bias[c];
      for (int input = 0; input < s.inputs; ++input) {
        const S* from = images + (image * s.inputs + input) * pixels;
        const T* filter = weight + (int64_t(c) * s.inputs + input) * taps;
        for (int ky = 0; ky < s.kernel_h; ++ky) {
          for (int kx = 0; kx < s.kernel_w; ++kx) {
            const int py = y * s.stride - s.padding + ky, px = x * s.stride - s.padding + kx;
            if (py < 0 || py >= s.height || px < 0 || px >= s.width) continue;
            value += filter[ky * s.kernel_w + kx] * static_cast<T>(from[int64_t(py) * s.width + px]);
          }
        }
      }
      if (chosen < 0 || value > best || value != value) best = value, chosen = k;  // NaN wins, as in torch's max-pool
    }
    const bool dead = best <= T(0);
    out[i] = static_cast<S>(dead ? T(0) : best);
    if (index) index[i] = dead ? kDead : uint8_t(chosen);
  }
}

__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }

// The first place of a convolution that reads pixel `pixel` >= 0; the last one is pixel / stride.
__device__ __forceinline__ int first_place(int pixel, int kernel, int stride) {
  return pixel < kernel ? 0 : (pixel - kernel) / stride + 1;
}

template <typename S>
__global__ void __launch_bounds__(kBlock)
    stem_backward_kernel(StemShape s, const S* grad, const uint8_t* index, const Accumulate<S>* weight, S* grad_images) {
  using T = Accumulate<S>;
  CLS2DET_SHARED(T, places, kChannels * kReach * kReach);
  const int64_t across = (s.width + kTile - 1) / kTile, down = (s.height + kTile - 1) / kTile;
  const int64_t total = s.images * down * across, plane = int64_t(s.out_h) * s.out_w;
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int64_t strip = divide(block, across), image = divide(strip, down);
    const int top = int(strip - image * down) * kTile, left = int(block - strip * across) * kTile;
    const int y = top + int(threadIdx.x) / kTile, x = left + int(threadIdx.x) % kTile;
    const int first_y = first_place(top + s.padding, s.kernel_h, s.stride);
    const int first_x = first_place(left + s.padding, s.kernel_w, s.stride);
    const int past_y = least((top + kTile - 1 + s.padding) / s.stride + 1, s.conv_h);
    const int past_x = least((left + kTile - 1 + s.padding) / s.stride + 1, s.conv_w);
    const int rows = past_y > first_y ? past_y - first_y : 0, columns = past_x > first_x ? past_x - first_x : 0;
    const int from_y = first_place(y + s.padding, s.kernel_h, s.stride), to_y = least((y + s.padding) / s.stride + 1, s.conv_h);
    const int from_x = first_place(x + s.padding, s.kernel_w, s.stride), to_x = least((x + s.padding) / s.stride + 1, s.conv_w);
    for (int i0 = 0; i0 < s.inputs; i0 += kInputs) {
      T sums[kInputs] = {};
      for (int c0 = 0; c0 < s.channels; c0 += kChannels) {
        const int channels = least(kChannels, s.channels - c0);
        for (int i = threadIdx.x; i < channels * rows * columns; i += kBlock) {
          const int c = i / (rows * columns), at = i - c * rows * columns;
          const int place_y = first_y + at / columns, place_x = first_x + at % columns;
          const int64_t map = (image * s.channels + c0 + c) * plane;
          T sum = T(0);
          for (int k = 0; k < kWindow * kWindow; ++k) {
            int oy, ox;
            if (!pool_of(place_y, k / kWindow, s.out_h, oy) || !pool_of(place_x, k % kWindow, s.out_w, ox)) continue;
            const int64_t pool = map + int64_t(oy) * s.out_w + ox;
            if (index[pool] == k) sum += static_cast<T>(grad[pool]);
          }
          places[i] = sum;
        }
        __syncthreads();
        if (y < s.height && x < s.width) {
          for (int c = 0; c < channels; ++c) {
            const int64_t filter = (int64_t(c0 + c) * s.inputs + i0) * s.kernel_h * s.kernel_w;
            for (int place_y = from_y; place_y < to_y; ++place_y) {
              const int ky = y + s.padding - place_y * s.stride;
              for (int place_x = from_x; place_x < to_x; ++place_x) {
                const T g = places[(c * rows + place_y - first_y) * columns + place_x - first_x];
                const T* w = weight + filter + ky * s.kernel_w + x + s.padding - place_x * s.stride;
                for (int i = 0; i < kInputs; ++i) {
                  if (i0 + i < s.inputs) sums[i] += g * w[i * s.kernel_h * s.kernel_w];
                }
              }
            }
          }
        }
        __syncthreads();
      }
      if (y < s.height && x < s.width) {
        for (int i = 0; i < kInputs; ++i) {
          if (i0 + i >= s.inputs) continue;
          grad_images[((image * s.inputs + i0 + i) * s.height + y) * s.width + x] = static_cast<S>(sums[i]);
        }
      }
    }
  }
}

}  // namespace

template <typename S>
void stem(
    const StemShape& shape, const S* images, const Accumulate<S>* weight, const Accumulate<S>* bias, S* out, uint8_t* index,
    cudaStream_t stream) {
  const int64_t total = shape.images * shape.channels * shape.out_h * shape.out_w;
  if (total == 0) return;
  if constexpr (!std::is_same_v<S, double>) {
    if (is_resnet_stem(shape)) return resnet_stem(shape, images, weight, bias, out, index, stream);
  }
  CLS2DET_LAUNCH((stem_kernel<S>), grid_of(ceil_div(total, kBlock)), stream, shape, images, weight, bias, out, index);
}

template <typename S>
void stem_backward(
    const StemShape& shape, const S* grad, const uint8_t* index, const Accumulate<S>* weight, S* grad_images,
    cudaStream_t stream) {
  const int64_t blocks = shape.images * ceil_div(shape.height, kTile) * ceil_div(shape.width, kTile);
  if (blocks == 0) return;
  if constexpr (!std::is_same_v<S, double>) {
    if (is_resnet_stem(shape)) return resnet_stem_backward(shape, grad, index, weight, grad_images, stream);
  }
  CLS2DET_LAUNCH((stem_backward_kernel<S>), grid_of(blocks), stream, shape, grad, index, weight, grad_images);
}

#define INSTANTIATE(S)                                                                                                    \
  template void stem(const StemShape&, const S*, const Accumulate<S>*, const Accumulate<S>*, S*, uint8_t*, cudaStream_t); \
  template void stem_backward(const StemShape&, const S*, const uint8_t*, const Accumulate<S>*, S*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
