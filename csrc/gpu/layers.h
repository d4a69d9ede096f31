// The forward and backward of modulated layers on a GPU, by the library's products and the kernels of csrc/cuda around
// them: what memmod/ops/backends/gpu does from Python, step for step and bit for bit, for eager calls. Called as
// csrc/cpu/layers is.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "conv/conv_shape.h"
#include "gates/modulation.h"
#include "layers/layers.h"

namespace memmod::gpu {

// One selection of the whole batch, of which no backward needs the product, goes into the weight where that has fewer
// numbers than the output, and no ReLU follows; of a convolution with a bias only where gates of its inputs do too.
std::tuple<at::Tensor, at::Tensor> linear_forward(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const cpu::Modulation& modulation, bool keep_gated);

cpu::Gradients linear_backward(const cpu::LayerGradCall& call);

std::tuple<at::Tensor, at::Tensor> conv2d_forward(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const cpu::Modulation& modulation, bool keep_gated, const cpu::ConvOptions& options);

cpu::Gradients conv2d_backward(const cpu::LayerGradCall& call, const cpu::ConvOptions& options);

// As cpu::output_forward and cpu::output_backward, for tensors of any strides.
std::tuple<at::Tensor, at::Tensor> output_forward(
    const at::Tensor& x, const at::Tensor& memory, const at::Tensor& index, int64_t dim, cpu::Gate gate,
    bool keep_gated);

std::array<at::Tensor, 2> output_backward(
    const at::Tensor& dy, const std::optional<at::Tensor>& saved, const at::Tensor& memory, const at::Tensor& index,
    int64_t dim, cpu::Gate gate, std::array<bool, 2> needs);

}  // namespace memmod::gpu
