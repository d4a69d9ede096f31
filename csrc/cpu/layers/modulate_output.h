// The forward and backward of memmod::modulate_output on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "gates/gates.h"

namespace memmod::cpu {

// y = s ⊙ x along `dim`, and a copy of it if `keep_gated` (else empty). x: dense, see has_channels.
std::tuple<at::Tensor, at::Tensor> output_forward(
    const at::Tensor& x, const at::Tensor& memory, const at::Tensor& index, int64_t dim, Gate gate, bool keep_gated);

// (dx, dmemory), empty where not needed. saved: y, or x for the identity gate; in the layout of dy.
std::array<at::Tensor, 2> output_backward(
    const at::Tensor& dy, const std::optional<at::Tensor>& saved, const at::Tensor& memory, const at::Tensor& index,
    int64_t dim, Gate gate, std::array<bool, 2> needs);

}  // namespace memmod::cpu
