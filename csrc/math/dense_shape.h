// Dense images as both back ends walk them: `outer` rows of `inner` neighbouring values each. See dense_map.h.
#pragma once

#include <cstdint>

namespace cls2det {

struct DenseShape {
  int64_t images, outer, inner;
};

}  // namespace cls2det
