// The forward and backward of modulated layers on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "conv/conv_shape.h"
#include "gates/modulation.h"

namespace memmod::cpu {

// Which gradients a backward computes: of x, weight, bias, memory, input_memory.
using Needs = std::array<bool, 5>;

// Empty tensors where they are not needed.
struct Gradients {
  at::Tensor x, weight, bias, memory, input_memory;
};

// What a backward reads. `saved` is y or what the forward kept. x, weight and saved may be missing where `needs` does
// not read them.
struct LayerGradCall {
  at::Tensor dy;
  at::IntArrayRef x_shape;
  std::optional<at::Tensor> x, weight;
  Modulation modulation;
  std::optional<at::Tensor> saved;
  Needs needs;
};

// y and, if `keep_gated`, what the memory's gradient needs beside dy: the gated product, or for the identity gate what
// it multiplies. Else an empty tensor.
std::tuple<at::Tensor, at::Tensor> linear_forward(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const Modulation& modulation,
    bool keep_gated);

Gradients linear_backward(const LayerGradCall& call);

std::tuple<at::Tensor, at::Tensor> conv2d_forward(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const Modulation& modulation,
    bool keep_gated, const ConvOptions& options);

Gradients conv2d_backward(const LayerGradCall& call, const ConvOptions& options);

}  // namespace memmod::cpu
