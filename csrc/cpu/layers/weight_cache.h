// Packed weights, kept while a weight does not change.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "gemm/pack.h"

namespace memmod::cpu {

// Has `freed` called when the weight is freed, from any thread; false, and no call, where nothing can tell.
using CallWhenFreed = bool (*)(const at::Tensor& weight, std::function<void()> freed);

// From now on packed weights are kept, and forgotten as this function says. Until then every call packs.
void keep_weights_until_freed(CallWhenFreed call_when_freed);

// pack(…), again only if the weight's storage or version has changed since the last call; kept until then, or until the
// weight is freed.
PackedWeight packed_weight(const at::Tensor& weight, Direction direction, WeightLayout layout = WeightLayout::kPanels);

// Bytes that are kept for all weights.
int64_t packed_bytes();

}  // namespace memmod::cpu
