// The kernel of kd_sigmoid_loss.
#pragma once

#include "cuda/storage.h"

namespace cls2det {

template <typename S>
void kd_sigmoid_rows(const LogitsView<S>& args, cudaStream_t stream);

}  // namespace cls2det
