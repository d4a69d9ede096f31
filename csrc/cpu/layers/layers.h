// The forward and backward of modulated layers on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "conv/conv_shape.h"
#include "gates/modulation.h"

namespace memmod::cpu {

// What a backward computes: gradients of x, weight, bias, memory, input_memory.
using Needs = std::array<bool, 5>;
using Gradients = std::array<at::Tensor, 5>;

// y and, if `keep_gated`, what the memory's gradient needs beside dy: the gated product, or for the identity gate what
// it multiplies. Else an empty tensor.
std::tuple<at::Tensor, at::Tensor> linear_forward(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const Modulation& modulation,
    bool keep_gated);

// `saved` is y or what the forward kept. x, weight and saved may be missing where `needs` does not read them; gradients
// that are not needed are empty.
Gradients linear_backward(
    const at::Tensor& dy, at::IntArrayRef x_shape, const std::optional<at::Tensor>& x,
    const std::optional<at::Tensor>& weight, const Modulation& modulation, const std::optional<at::Tensor>& saved,
    const Needs& needs);

std::tuple<at::Tensor, at::Tensor> conv2d_forward(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const Modulation& modulation,
    bool keep_gated, const ConvOptions& options);

Gradients conv2d_backward(
    const at::Tensor& dy, at::IntArrayRef x_shape, const std::optional<at::Tensor>& x,
    const std::optional<at::Tensor>& weight, const Modulation& modulation, const std::optional<at::Tensor>& saved,
    const Needs& needs, const ConvOptions& options);

}  // namespace memmod::cpu
