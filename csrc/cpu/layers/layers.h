// The forward and backward of modulated layers on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "gates/gates.h"

namespace memmod::cpu {

// What modulates a layer; the tensors as in the ops' schemas.
struct Modulation {
  std::optional<at::Tensor> memory, input_memory;
  at::Tensor index;
  Gate gate = Gate::kSigmoid;
  bool gate_bias = true;
  // The layer ends with a ReLU: y is behind it, and a backward always gets y as `saved`. Only where y gives the
  // memory's gradient, and there is a memory.
  bool relu = false;
};

struct ConvOptions {
  std::array<int64_t, 2> stride, padding, dilation;
  int64_t groups;
};

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
