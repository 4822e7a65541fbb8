// What the host code of every operator needs, in <op>.cpp beside <op>_kernel.cu: the current device, and the device that the
// operators are registered for.
#pragma once

#include "compat.h"
#include "cuda/current_device.h"
#include "views.h"

// The emulation in tests/emu registers the kernels for the CPU.
#if !defined(CLS2DET_KEY)
#define CLS2DET_KEY CUDA
#endif
