// frozen_stem with a ResNet's kernel: 7 x 7, stride 2, padding 3. Other stems: frozen_stem_kernel.cu.
//
// Both kernels are limited by multiply-adds. So a thread keeps a tile of sums in registers and uses what it reads from shared
// memory many times; all sizes are constants, without which the tile could not be in registers.
//
// Forward: a block owns a strip of up to 15 columns of pools and 32 channels of one image, and walks down 8 rows of the
// convolution at a time. A thread has 4 neighbouring places of 8 channels. Pools are taken along the row in registers, then
// down the rows in shared memory, where the last row of each step stays for the next. Only places between two strips are
// convolved twice, and the convolution's output is never written.
//
// Backward: a block owns a tile of pixels. For a few channels at a time it puts into shared memory the gradient of the
// convolution's output, at the places whose kernels read the tile; a thread then sums for its 4 x 4 pixels. No two blocks
// share a pixel.
#include "cuda/resnet_stem_kernel.h"

#include "cuda/launch.cuh"
#include "cuda/map_walk.cuh"

namespace cls2det {
namespace {

constexpr int kKernel = 7, kStride = 2, kPadding = 3, kTaps = kKernel * kKernel;

using Pair = Run<float, 2>;
using Quad = Run<float, 4>;

namespace forward {

constexpr int kPlaces = 4;                              // along the row, of a thread
constexpr int kLanes = 8;                               // threads along the row
constexpr int kMostPools = (kLanes * kPlaces - 2) / 2;  // whose three columns a strip has
constexpr int kSlots = kLanes * kPlaces / 2;            // pools along the row, with one that is cut off
constexpr int kRows = 8;                                // of the convolution in one step
constexpr int kPools = kRows / 2;                       // rows of pools in one step
constexpr int kChannels = 8, kGroups = 4;               // of a thread; threads for other channels
constexpr int kBlockChannels = kChannels * kGroups;
constexpr int kFilterInputs = 3;  // channels of the images whose filters stay in shared memory
constexpr int kInputRows = (kRows - 1) * kStride + kKernel;
constexpr int kHalf = kLanes * kPlaces + 4;       // even or odd columns of an input row
constexpr int kWeightPitch = kBlockChannels + 4;  // spreads the writes of a filter over the banks
constexpr int kRow = kBlockChannels * kSlots, kRowPitch = kRow + kSlots;
constexpr uint8_t kAbsent = 255;  // outside of the convolution
static_assert(kLanes * kRows * kGroups == kBlock && kInputRows * 2 * kHalf <= kRows * kRowPitch && kRowPitch % 4 == 0);

// Takes `value` for `best` as torch's max-pool does: the first of equal ones, and NaN before all.
__device__ __forceinline__ void take(float& best, int& chosen, float value, int k) {
  if (chosen == kAbsent || value > best || value != value) best = value, chosen = k;
}

template <typename S>
__global__ void __launch_bounds__(kBlock, 2) convolve_kernel(
    StemShape s, int strips, int strip_pools, const S* images, const float* weight, const float* bias, S* out, uint8_t* index) {
  CLS2DET_SHARED(Quad, weight_runs, kFilterInputs * kTaps * kWeightPitch / 4);
  CLS2DET_SHARED(Quad, best_runs, (kRows + 1) * kRowPitch / 4);
  CLS2DET_SHARED(uint8_t, chosen, (kRows + 1) * kRowPitch);
  float* best = best_runs->values;  // of three columns; row 0 is the last one of the step before
  float* input = best + kRowPitch;  // before the other rows are there
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes % kRows, group = threadIdx.x / (kLanes * kRows);
  const int64_t parts = (s.channels + kBlockChannels - 1) / kBlockChannels, total = s.images * strips * parts;
  const int steps = (s.conv_h + kRows - 1) / kRows;
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int64_t strip_of_all = divide(block, parts), image = divide(strip_of_all, strips);
    const int c0 = int(block - strip_of_all * parts) * kBlockChannels;
    const int first_pool = int(strip_of_all - image * strips) * strip_pools;
    const int first_place = 2 * first_pool - 1, first_column = first_place * kStride - kPadding;
    for (int i = threadIdx.x; i < kRow; i += kBlock) chosen[i] = kAbsent;  // above the first row
    for (int step = 0; step < steps; ++step) {
      const int first_row = step * kRows;
      float sums[kChannels][kPlaces];
      for (int c = 0; c < kChannels; ++c) {
        const int channel = c0 + group * kChannels + c;
        const float start = channel < s.channels ? bias[channel] : 0.0f;
        for (int p = 0; p < kPlaces; ++p) sums[c][p] = start;
      }
      for (int i = 0; i < s.inputs; ++i) {
        float* filter = weight_runs->values + i % kFilterInputs * kTaps * kWeightPitch;
        __syncthreads();  // before the last input's values are overwritten
        const S* plane = images + (image * s.inputs + i) * s.height * s.width;
        for (int at = threadIdx.x; at < kInputRows * 2 * kHalf; at += kBlock) {
          const int r = at / (2 * kHalf), column = at % (2 * kHalf);
          const int y = first_row * kStride - kPadding + r, x = first_column + column;
          const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
          const float pixel = inside ? static_cast<float>(plane[int64_t(y) * s.width + x]) : 0.0f;
          input[r * 2 * kHalf + column % 2 * kHalf + column / 2] = pixel;
        }
        const bool keeps_filter = step > 0 && s.inputs <= kFilterInputs;
        for (int at = threadIdx.x; !keeps_filter && at < kTaps * kBlockChannels; at += kBlock) {
          const int c = at / kTaps, tap = at % kTaps;
          const bool inside = c0 + c < s.channels;
          filter[tap * kWeightPitch + c] = inside ? weight[(int64_t(c0 + c) * s.inputs + i) * kTaps + tap] : 0.0f;
        }
        __syncthreads();
#pragma unroll 1
        for (int ky = 0; ky < kKernel; ++ky) {
          const float* from = input + (row * kStride + ky) * 2 * kHalf + lane * kPlaces;
          const Quad even[2] = {load_run<4>(from), load_run<4>(from + 4)};
          const Quad odd[2] = {load_run<4>(from + kHalf), load_run<4>(from + kHalf + 4)};
          const float* row_filter = filter + ky * kKernel * kWeightPitch + group * kChannels;
#pragma unroll
          for (int kx = 0; kx < kKernel; ++kx) {
            const Quad w[2] = {load_run<4>(row_filter + kx * kWeightPitch), load_run<4>(row_filter + kx * kWeightPitch + 4)};
#pragma unroll
            for (int p = 0; p < kPlaces; ++p) {
              const int column = p + kx / 2;
              const float value = (kx % 2 == 0 ? even : odd)[column / 4].values[column % 4];
#pragma unroll
              for (int c = 0; c < kChannels; ++c) sums[c][p] += w[c / 4].values[c % 4] * value;
            }
          }
        }
      }
      __syncthreads();  // before the input is overwritten
      const int place = first_place + lane * kPlaces;
      const bool row_inside = first_row + row < s.conv_h;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float next =
            __shfl_down_sync(kAllLanes, sums[c][0], 1);  // lane 7 gets another row's, and only the slot that is cut off uses it
        const int at = (row + 1) * kRowPitch + (group * kChannels + c) * kSlots + 2 * lane;
#pragma unroll
        for (int pool = 0; pool < 2; ++pool) {
          float most = 0.0f;
          int which = kAbsent;
#pragma unroll
          for (int k = 0; k < kWindow; ++k) {
            const int x = place + 2 * pool + k;
            const float value = 2 * pool + k < kPlaces ? sums[c][(2 * pool + k) % kPlaces] : next;
            if (row_inside && x >= 0 && x < s.conv_w) take(most, which, value, k);
          }
          best[at + pool] = most;
          chosen[at + pool] = uint8_t(which);
        }
      }
      __syncthreads();
      for (int at = threadIdx.x; at < kBlockChannels * kPools * kSlots; at += kBlock) {
        const int slot = at % kSlots, pool = at / kSlots % kPools, c = at / (kSlots * kPools);
        const int ox = first_pool + slot, oy = step * kPools + pool;
        if (slot >= strip_pools || ox >= s.out_w || oy >= s.out_h || c0 + c >= s.channels) continue;
        float most = 0.0f;
        int which = kAbsent;
        for (int k = 0; k < kWindow; ++k) {
          const int from = (2 * pool + k) * kRowPitch + c * kSlots + slot;
          if (chosen[from] != kAbsent) take(most, which, best[from], kWindow * k + chosen[from]);
        }
        const bool dead = most <= 0.0f;
        const int64_t to = ((image * s.channels + c0 + c) * s.out_h + oy) * s.out_w + ox;
        out[to] = static_cast<S>(dead ? 0.0f : most);
        if (index) index[to] = dead ? kDead : uint8_t(which);
      }
      __syncthreads();
      for (int i = threadIdx.x; i < kRow; i += kBlock) {
        best[i] = best[kRows * kRowPitch + i];
        chosen[i] = chosen[kRows * kRowPitch + i];
      }
      __syncthreads();
    }
  }
}

}  // namespace forward

namespace backward {

constexpr int kPixels = 4;                       // of a thread, along each axis
constexpr int kPatch = 5;                        // places of the convolution that read them, along each axis
constexpr int kInputs = 3;                       // channels of the images, in registers at a time
constexpr int kChannels = 8;                     // of the convolution, in shared memory at a time
constexpr int kBatch = 3;                        // squares of four pools that a thread reads at a time
constexpr int kMostAcross = 32, kMostDown = 28;  // threads of a tile

struct Tiles {
  int threads_x, threads_y, across, down;  // of a tile; tiles in an image
};

__host__ __device__ constexpr int places(int threads) { return 2 * threads + 3; }
__host__ __device__ constexpr int pitch(int threads_x) { return places(threads_x) + 1; }  // even: pairs are read
__host__ __device__ constexpr int most_down(int threads_x) {
  return kBlock / threads_x < kMostDown ? kBlock / threads_x : kMostDown;
}

constexpr int most_places() {  // of one channel, in any tile
  int most = 0;
  for (int x = 1; x <= kMostAcross; ++x) {
    const int area = places(most_down(x)) * pitch(x);
    most = area > most ? area : most;
  }
  return most;
}

constexpr int kMostPlaces = most_places();

Tiles tiles_of(const StemShape& s) {
  const auto split = [](int threads, int most, int& tiles) {
    tiles = int(ceil_div(threads, most));
    return int(ceil_div(threads, tiles));
  };
  Tiles t{};
  t.threads_x = split(int(ceil_div(s.width, kPixels)), kMostAcross, t.across);
  t.threads_y = split(int(ceil_div(s.height, kPixels)), most_down(t.threads_x), t.down);
  return t;
}

template <typename S>
__global__ void __launch_bounds__(kBlock, 2)
    gather_kernel(StemShape s, Tiles tiles, const S* grad, const uint8_t* index, const float* weight, S* grad_images) {
  CLS2DET_SHARED(Pair, sent_runs, kChannels * kMostPlaces / 2);
  CLS2DET_SHARED(Quad, filter, kChannels * kTaps);  // the inputs of a tap side by side
  float* sent = sent_runs->values;
  const int line = pitch(tiles.threads_x), rows = places(tiles.threads_y), columns = places(tiles.threads_x),
            area = rows * line;
  const int tx = threadIdx.x % tiles.threads_x, ty = threadIdx.x / tiles.threads_x;
  const int64_t total = s.images * tiles.across * tiles.down, plane = int64_t(s.out_h) * s.out_w;
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int64_t strip = divide(block, tiles.across), image = divide(strip, tiles.down);
    const int top = int(strip - image * tiles.down) * tiles.threads_y * kPixels;
    const int left = int(block - strip * tiles.across) * tiles.threads_x * kPixels;
    const int first_y = top / 2 - 1, first_x = left / 2 - 1;  // places; odd, as 4 divides top and left
    const int pool_y = first_y < 0 ? 0 : (first_y - 1) / 2 & ~1, pool_x = first_x < 0 ? 0 : (first_x - 1) / 2 & ~1;
    const int pairs_y = ((first_y + rows) / 2 - pool_y) / 2 + 1, pairs_x = ((first_x + columns) / 2 - pool_x) / 2 + 1;
    for (int i0 = 0; i0 < s.inputs; i0 += kInputs) {
      float sums[kInputs][kPixels][kPixels] = {};
      for (int c0 = 0; c0 < s.channels; c0 += kChannels) {
        const int channels = s.channels - c0 < kChannels ? s.channels - c0 : kChannels;
        __syncthreads();  // before the last channels' values are overwritten
        for (int i = threadIdx.x; i < channels * area / 2; i += kBlock) sent_runs[i] = Pair{};  // a line is even
        for (int i = threadIdx.x; i < channels * kTaps * 4; i += kBlock) {
          const int c = i / (kTaps * 4), tap = i / 4 % kTaps, input = i0 + i % 4;
          const bool inside = i % 4 < kInputs && input < s.inputs;
          filter->values[i] = inside ? weight[(int64_t(c0 + c) * s.inputs + input) * kTaps + tap] : 0.0f;
        }
        // Pools two apart share no place, so the pools are added in four quarters, and within a quarter no place has two
        // writers. A thread has one pool of each quarter, side by side, and loads all of them first.
        const int squares = channels * pairs_y * pairs_x;
        for (int first = 0; first < squares; first += kBatch * kBlock) {
          float values[kBatch][4];
          int to[kBatch][4];
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            const int i = first + b * kBlock + threadIdx.x, at = i / pairs_x, c = at / pairs_y;
            const int oy = pool_y + 2 * (at - c * pairs_y), ox = pool_x + 2 * (i - at * pairs_x);
            const int64_t pool = (image * s.channels + c0 + c) * plane + int64_t(oy) * s.out_w + ox;
#pragma unroll
            for (int q = 0; q < 4; ++q) {
              const bool inside = i < squares && oy + q / 2 < s.out_h && ox + q % 2 < s.out_w;
              const int k = inside ? index[pool + q / 2 * s.out_w + q % 2] : kDead;
              values[b][q] = inside ? static_cast<float>(grad[pool + q / 2 * s.out_w + q % 2]) : 0.0f;
              const int y = 2 * (oy + q / 2) - 1 + k / kWindow - first_y, x = 2 * (ox + q % 2) - 1 + k % kWindow - first_x;
              to[b][q] = k != kDead && y >= 0 && y < rows && x >= 0 && x < columns ? c * area + y * line + x : -1;
            }
          }
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            __syncthreads();
#pragma unroll
            for (int b = 0; b < kBatch; ++b) {
              if (to[b][q] >= 0) sent[to[b][q]] += values[b][q];
            }
          }
        }
        __syncthreads();
        if (ty >= tiles.threads_y) continue;
#pragma unroll 1
        for (int c = 0; c < channels; ++c) {
          float patch[kPatch][kPatch + 1];
#pragma unroll
          for (int y = 0; y < kPatch; ++y) {
#pragma unroll
            for (int x = 0; x < kPatch + 1; x += 2) {
              const Pair two = load_run<2>(sent + c * area + (2 * ty + y) * line + 2 * tx + x);
              patch[y][x] = two.values[0], patch[y][x + 1] = two.values[1];
            }
          }
#pragma unroll
          for (int tap = 0; tap < kTaps; ++tap) {
            const Quad w = filter[c * kTaps + tap];
            const int ky = tap / kKernel, kx = tap % kKernel;
            // Row ky of the kernel reads pixel p at place (p + padding - ky) / 2, if that is a whole number; `patch` begins at
            // place -1.
#pragma unroll
            for (int y = (ky + kPadding) % 2; y < kPixels; y += 2) {
#pragma unroll
              for (int x = (kx + kPadding) % 2; x < kPixels; x += 2) {
                const float g = patch[(y + kPadding - ky + 2) / 2][(x + kPadding - kx + 2) / 2];
#pragma unroll
                for (int i = 0; i < kInputs; ++i) sums[i][y][x] += g * w.values[i];
              }
            }
          }
        }
      }
      if (ty >= tiles.threads_y) continue;
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
#pragma unroll
        for (int p = 0; p < kPixels * kPixels; ++p) {
          const int y = top + kPixels * ty + p / kPixels, x = left + kPixels * tx + p % kPixels;
          if (i0 + i >= s.inputs || y >= s.height || x >= s.width) continue;
          grad_images[((image * s.inputs + i0 + i) * s.height + y) * s.width + x] =
              static_cast<S>(sums[i][p / kPixels][p % kPixels]);
        }
      }
    }
  }
}

}  // namespace backward
}  // namespace

bool is_resnet_stem(const StemShape& s) {
  return s.kernel_h == kKernel && s.kernel_w == kKernel && s.stride == kStride && s.padding == kPadding;
}

template <typename S>
void resnet_stem(
    const StemShape& s, const S* images, const float* weight, const float* bias, S* out, uint8_t* index, cudaStream_t stream) {
  const int strips = int(ceil_div(s.out_w, forward::kMostPools)), strip_pools = int(ceil_div(s.out_w, strips));
  const int64_t blocks = s.images * strips * ceil_div(s.channels, forward::kBlockChannels);
  CLS2DET_LAUNCH(
      (forward::convolve_kernel<S>), grid_of(blocks), stream, s, strips, strip_pools, images, weight, bias, out, index);
}

template <typename S>
void resnet_stem_backward(
    const StemShape& s, const S* grad, const uint8_t* index, const float* weight, S* grad_images, cudaStream_t stream) {
  const backward::Tiles tiles = backward::tiles_of(s);
  const int64_t blocks = s.images * tiles.across * tiles.down;
  CLS2DET_LAUNCH((backward::gather_kernel<S>), grid_of(blocks), stream, s, tiles, grad, index, weight, grad_images);
}

#define INSTANTIATE(S)                                                                                           \
  template void resnet_stem(const StemShape&, const S*, const float*, const float*, S*, uint8_t*, cudaStream_t); \
  template void resnet_stem_backward(const StemShape&, const S*, const uint8_t*, const float*, S*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(c10::Half)
INSTANTIATE(c10::BFloat16)

}  // namespace cls2det
