// The CPU kernels as operators memmod_cpu::…, which memmod's own ops dispatch to.
#include <torch/library.h>

#include <string_view>

#include "conv/conv_shape.h"
#include "gates/gates.h"
#include "layers/layers.h"
#include "layers/modulate_output.h"

namespace memmod::cpu {
namespace {

using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

Tensors as_tuple(const Gradients& gradients) {
  return {gradients.x, gradients.weight, gradients.bias, gradients.memory, gradients.input_memory};
}

ConvOptions conv_options(at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  TORCH_CHECK_VALUE(
      stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
      "memmod: stride, padding and dilation must have two numbers each");
  return {{stride[0], stride[1]}, {padding[0], padding[1]}, {dilation[0], dilation[1]}, groups};
}

std::tuple<at::Tensor, at::Tensor> modulated_linear(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& memory,
    const OptionalTensor& input_memory, const at::Tensor& index, std::string_view gate, bool gate_bias,
    bool keep_gated) {
  return linear_forward(x, weight, bias, {memory, input_memory, index, parse_gate(gate), gate_bias}, keep_gated);
}

Tensors modulated_linear_backward(
    const at::Tensor& dy, at::IntArrayRef x_shape, const OptionalTensor& x, const OptionalTensor& weight,
    const OptionalTensor& memory, const OptionalTensor& input_memory, const at::Tensor& index,
    const OptionalTensor& saved, std::string_view gate, bool gate_bias, std::array<bool, 5> needs) {
  return as_tuple(linear_backward(
      {dy, x_shape, x, weight, {memory, input_memory, index, parse_gate(gate), gate_bias}, saved, needs}));
}

std::tuple<at::Tensor, at::Tensor> modulated_conv2d(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& memory,
    const OptionalTensor& input_memory, const at::Tensor& index, std::string_view gate, bool gate_bias, bool keep_gated,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  return conv2d_forward(
      x, weight, bias, {memory, input_memory, index, parse_gate(gate), gate_bias}, keep_gated,
      conv_options(stride, padding, dilation, groups));
}

Tensors modulated_conv2d_backward(
    const at::Tensor& dy, at::IntArrayRef x_shape, const OptionalTensor& x, const OptionalTensor& weight,
    const OptionalTensor& memory, const OptionalTensor& input_memory, const at::Tensor& index,
    const OptionalTensor& saved, std::string_view gate, bool gate_bias, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, std::array<bool, 5> needs) {
  return as_tuple(conv2d_backward(
      {dy, x_shape, x, weight, {memory, input_memory, index, parse_gate(gate), gate_bias}, saved, needs},
      conv_options(stride, padding, dilation, groups)));
}

std::tuple<at::Tensor, at::Tensor> modulate_output(
    const at::Tensor& x, const at::Tensor& memory, const at::Tensor& index, int64_t dim, std::string_view gate,
    bool keep_gated) {
  return output_forward(x, memory, index, dim, parse_gate(gate), keep_gated);
}

std::tuple<at::Tensor, at::Tensor> modulate_output_backward(
    const at::Tensor& dy, const OptionalTensor& saved, const at::Tensor& memory, const at::Tensor& index, int64_t dim,
    std::string_view gate, std::array<bool, 2> needs) {
  const auto gradients = output_backward(dy, saved, memory, index, dim, parse_gate(gate), needs);
  return {gradients[0], gradients[1]};
}

}  // namespace
}  // namespace memmod::cpu

TORCH_LIBRARY(memmod_cpu, library) {
  library.def(
      "modulated_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? memory, Tensor? input_memory, Tensor index, "
      "str gate, bool gate_bias, bool keep_gated) -> (Tensor, Tensor)");
  library.def(
      "modulated_linear_backward(Tensor dy, int[] x_shape, Tensor? x, Tensor? weight, Tensor? memory, "
      "Tensor? input_memory, Tensor index, Tensor? saved, str gate, bool gate_bias, bool[5] needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "modulated_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? memory, Tensor? input_memory, Tensor index, "
      "str gate, bool gate_bias, bool keep_gated, int[] stride, int[] padding, int[] dilation, int groups) "
      "-> (Tensor, Tensor)");
  library.def(
      "modulated_conv2d_backward(Tensor dy, int[] x_shape, Tensor? x, Tensor? weight, Tensor? memory, "
      "Tensor? input_memory, Tensor index, Tensor? saved, str gate, bool gate_bias, int[] stride, int[] padding, "
      "int[] dilation, int groups, bool[5] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "modulate_output(Tensor x, Tensor memory, Tensor index, int dim, str gate, bool keep_gated) -> (Tensor, Tensor)");
  library.def(
      "modulate_output_backward(Tensor dy, Tensor? saved, Tensor memory, Tensor index, int dim, str gate, "
      "bool[2] needs) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(memmod_cpu, CPU, library) {
  library.impl("modulated_linear", memmod::cpu::modulated_linear);
  library.impl("modulated_linear_backward", memmod::cpu::modulated_linear_backward);
  library.impl("modulated_conv2d", memmod::cpu::modulated_conv2d);
  library.impl("modulated_conv2d_backward", memmod::cpu::modulated_conv2d_backward);
  library.impl("modulate_output", memmod::cpu::modulate_output);
  library.impl("modulate_output_backward", memmod::cpu::modulate_output_backward);
}
