// What every launcher's header needs: the storage types of maps and logits, views and streams. Launchers know no torch: they
// get pointers, sizes, strides and a stream. All are asynchronous, allocate nothing and take counts of 0.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "views.h"

// Instantiates a launcher for every storage type.
#define CLS2DET_FOR_STORAGE(INSTANTIATE) \
  INSTANTIATE(float)                     \
  INSTANTIATE(double)                    \
  INSTANTIATE(c10::Half)                 \
  INSTANTIATE(c10::BFloat16)
