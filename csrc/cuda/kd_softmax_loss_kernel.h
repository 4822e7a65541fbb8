// The kernel of kd_softmax_loss.
#pragma once

#include "cuda/storage.h"

namespace cls2det {

template <typename S>
void kd_softmax_rows(const LogitsView<S>& args, cudaStream_t stream);

}  // namespace cls2det
