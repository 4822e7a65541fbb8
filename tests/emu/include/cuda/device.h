// Stand-in for csrc/cuda/device.h: no device, no stream; a failed launch throws where it happens.
#pragma once

#include <cuda_runtime.h>

#include "compat.h"

namespace cls2det {

class DeviceScope {
 public:
  explicit DeviceScope(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  void check_launches() const {}
};

}  // namespace cls2det
