// Packed weights, kept while a weight does not change.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "gemm/pack.h"

namespace memmod::cpu {

// pack(…), again only if the weight's storage or version has changed since the last call; kept until then, or until the
// weight is freed.
PackedWeight packed_weight(const at::Tensor& weight, Direction direction, WeightLayout layout = WeightLayout::kPanels);

// Bytes that are kept for all weights.
int64_t packed_bytes();

}  // namespace memmod::cpu
