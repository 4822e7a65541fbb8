// Stands in for csrc/cuda/current_device.h: tensors are on the CPU, there is no device to choose and no stream.
#pragma once

#include <cuda_runtime.h>

#include "compat.h"

namespace cls2det {

class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  void check_launch() const {}
};

}  // namespace cls2det
