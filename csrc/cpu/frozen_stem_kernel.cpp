// frozen_stem on the CPU: ReLU and max-pool in one pass over the channels-last output of the convolution, whose place in its
// window each value keeps as a byte. The backward walks over the places that the pools chose and adds weights times gradient:
// a quarter of the places at most, fewer where ReLU stopped them, and no map of full resolution.
#include "frozen_stem.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "dense_map.h"

namespace cls2det {
namespace {

constexpr int64_t kChunkBytes = int64_t(8) << 20;  // of a convolution's output: what follows finds it in the caches

template <typename T>
struct StemPool {
  StemShape shape;
  const T* conv;   // (images, conv_h, conv_w, channels)
  T* out;          // (images, channels, out_h, out_w)
  uint8_t* index;  // like out, or null
};

template <typename T>
struct StemBackward {
  StemShape shape;
  const T* grad;         // (images, channels, out_h, out_w)
  const uint8_t* index;  // like grad
  const T* weight;       // (inputs, channels, kernel_size): rows of kMostKernel, zeros behind each
  int kernel_size;       // a multiple of every vector
  T* out;                // (images, inputs, height, width)
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/frozen_stem_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

Tensor convolution(const Tensor& images, const Tensor& weight, const Tensor& bias, int64_t stride, int64_t padding) {
  using torch::stable::detail::from;
  const Shape strides{stride, stride}, paddings{padding, padding}, dilation{1, 1}, none{0, 0};
  std::array<StableIValue, 9> stack{from(images),  from(weight),   from(std::optional<Tensor>(bias)),
                                    from(strides), from(paddings), from(dilation),
                                    from(false),   from(none),     from(int64_t(1))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

template <typename T>
std::tuple<Tensor, Tensor> forward(
    const StemShape& shape, const Tensor& images, const Tensor& weight, const Tensor& bias, bool need_grad) {
  const ScalarType acc = accumulate_dtype(images.scalar_type());
  const Tensor kernel = DenseMap(to_dtype(weight, acc), true).map;  // its order is the convolution's
  const Tensor offset = to_dtype(bias, acc);
  Tensor from = DenseMap(to_dtype(images, acc), true).map;
  const Shape sizes{shape.images, shape.channels, shape.out_h, shape.out_w};
  Tensor out = make(images, sizes, acc), index = make(images, need_grad ? sizes : Shape{0}, ScalarType::Byte);
  const int64_t one = int64_t(shape.channels) * shape.conv_h * shape.conv_w * int64_t(sizeof(T));
  const int64_t fit = kChunkBytes / std::max<int64_t>(one, 1), step = std::max<int64_t>(fit, 1);
  for (int64_t first = 0; first < shape.images && out.numel() > 0; first += step) {
    const int64_t count = std::min(shape.images - first, step);
    const Tensor part = torch::stable::narrow(from, 0, first, count);
    const DenseMap conv(convolution(part, kernel, offset, shape.stride, shape.padding), true);
    const int64_t values = first * shape.channels * shape.out_h * shape.out_w;
    StemPool<T> args{shape, data<const T>(conv.map), data<T>(out) + values, nullptr};
    if (need_grad) args.index = data<uint8_t>(index) + values;
    torch::stable::parallel_for(
        0, count * shape.out_h, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(stem_pool_rows<T>, args, begin, end); });
  }
  return {to_dtype(out, images.scalar_type()), index};
}

template <typename T>
Tensor backward(const StemShape& shape, const Tensor& grad, const Tensor& index, const Tensor& weight) {
  const ScalarType acc = accumulate_dtype(grad.scalar_type());
  const Tensor upstream = packed(grad, acc), chosen = packed(index), kernel = packed(weight, acc);
  const T* weights = data<const T>(kernel);
  const int kernel_size = (shape.kernel_h + 1) / 2 * 2 * kMostKernel;
  std::vector<T> packed(int64_t(shape.inputs) * shape.channels * kernel_size, T(0));
  for (int64_t c = 0; c < shape.channels; ++c) {
    for (int64_t i = 0; i < shape.inputs; ++i) {
      for (int64_t r = 0; r < shape.kernel_h; ++r) {
        std::memcpy(
            &packed[(i * shape.channels + c) * kernel_size + r * kMostKernel],
            weights + ((c * shape.inputs + i) * shape.kernel_h + r) * shape.kernel_w, shape.kernel_w * sizeof(T));
      }
    }
  }
  Tensor out = make(grad, {shape.images, shape.inputs, shape.height, shape.width}, acc);
  const StemBackward<T> args{shape,       data<const T>(upstream), data<const uint8_t>(chosen), packed.data(), kernel_size,
                             data<T>(out)};
  torch::stable::parallel_for(
      0, shape.images, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(stem_images_backward<T>, args, begin, end); });
  return to_dtype(out, grad.scalar_type());
}

std::tuple<Tensor, Tensor> stem(
    const StemShape& shape, const Tensor& images, const Tensor& weight, const Tensor& bias, bool need_grad) {
  const bool wide = images.scalar_type() == ScalarType::Double;
  return (wide ? forward<double> : forward<float>)(shape, images, weight, bias, need_grad);
}

Tensor stem_backward(const StemShape& shape, const Tensor& grad, const Tensor& index, const Tensor& weight) {
  return (grad.scalar_type() == ScalarType::Double ? backward<double> : backward<float>)(shape, grad, index, weight);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def("frozen_stem(Tensor images, Tensor weight, Tensor bias, int stride, int padding, bool need_grad) -> (Tensor, Tensor)");
  m.def(
      "frozen_stem_backward(Tensor grad, Tensor index, Tensor weight, int height, int width, int stride, int padding) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("frozen_stem", TORCH_BOX(&cls2det::frozen_stem<cls2det::stem>));
  m.impl("frozen_stem_backward", TORCH_BOX(&cls2det::frozen_stem_backward<cls2det::stem_backward>));
}
