// The device, the stream and the launch check of one operator call.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "compat.h"

namespace cls2det {

// While it lives, the device of `tensor` is the current one.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor& tensor) : guard_(tensor.get_device_index()), stream_(nullptr) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // Reports a launch that failed at once; nothing waits for the kernels.
  void check_launch() const { STD_CUDA_KERNEL_LAUNCH_CHECK(); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace cls2det
