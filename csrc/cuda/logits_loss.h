// The host code of a logits loss on CUDA.
#pragma once

#include "cuda/tensors.h"
#include "logits.h"

namespace cls2det {

// launch(LogitsView<S>, stream) for the storage type of the logits; returns (rows, grad).
template <typename Launch>
std::tuple<Tensor, Tensor> logits_loss(LogitsCall call, const Launch& launch) {
  const CurrentDevice device(call.student);
  const ScalarType dtype = call.student.scalar_type();
  call.matched = packed(call.matched);
  Tensor rows = make(call.student, {call.count()}, accumulate_dtype(dtype));
  Tensor grad = make(call.student, call.need_grad ? Shape{call.count(), call.columns()} : Shape{0}, dtype);
  for_storage(dtype, [&](auto storage) { launch(logits_view<decltype(storage)>(call, rows, grad), device.stream()); });
  device.check_launch();
  return {rows, grad};
}

}  // namespace cls2det
