// When a weight is freed, as Python sees it.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace memmod::cpu {

// Has `freed` called when Python frees the weight; false, and no call, if Python does not know it.
bool call_when_freed(const at::Tensor& weight, std::function<void()> freed);

}  // namespace memmod::cpu
