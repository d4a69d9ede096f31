// memmod::modulate_output on the CPU: y = s ⊙ x along a channel dim, and its gradients in one pass.
#include "layers/modulate_output.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <cstring>

#include "gates/elementwise.h"
#include "gates/modulation.h"

namespace memmod::cpu {
namespace {

Elementwise elementwise_of(const at::Tensor& t, int64_t dim, int64_t samples, int64_t width) {
  TORCH_CHECK_VALUE(
      dim > 0 && dim < t.dim() && t.size(dim) == width, "memmod: x of shape ", t.sizes(), " cannot be gated along dim ",
      dim, " by a memory of width ", width);
  TORCH_CHECK_VALUE(
      samples > 0 && t.size(0) % samples == 0, "memmod: ", t.size(0), " rows do not belong to ", samples, " samples");
  TORCH_CHECK_VALUE(
      has_channels(t, dim), "memmod: the kernel needs contiguous or channels_last tensors, not strides ", t.strides());
  return Elementwise(channels_of(t, dim), samples);
}

Modulation modulation_of(const at::Tensor& memory, const at::Tensor& index, Gate gate) {
  TORCH_CHECK_TYPE(
      memory.dim() == 2 && memory.scalar_type() == at::kFloat, "memmod: memory is ", memory.scalar_type(), " of shape ",
      memory.sizes(), ", it must be fp32 [C, K]");
  return {memory, std::nullopt, index, gate, true};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> output_forward(
    const at::Tensor& x, const at::Tensor& memory, const at::Tensor& index, int64_t dim, Gate gate, bool keep_gated) {
  const Modulation modulation = modulation_of(memory, index, gate);
  const at::Tensor y = at::empty_like(x);
  const at::Tensor kept = keep_gated ? at::empty_like(x) : at::empty({0}, x.options());
  if (x.numel() == 0) {
    return {y, kept};
  }
  const Elementwise elementwise = elementwise_of(x, dim < 0 ? dim + x.dim() : dim, index.size(0), memory.size(1));
  const SelectedGates selected(modulation, true, false);
  elementwise.run(x, y, {}, selected.output_gates(), nullptr);
  if (keep_gated) {
    std::memcpy(kept.mutable_data_ptr(), y.const_data_ptr(), y.nbytes());
  }
  return {y, kept};
}

std::array<at::Tensor, 2> output_backward(
    const at::Tensor& dy, const std::optional<at::Tensor>& saved, const at::Tensor& memory, const at::Tensor& index,
    int64_t dim, Gate gate, std::array<bool, 2> needs) {
  const Modulation modulation = modulation_of(memory, index, gate);
  const auto [need_dx, need_dmemory] = needs;
  const at::Tensor dx = need_dx ? at::empty_like(dy) : at::empty({0}, dy.options());
  const at::Tensor none = at::empty({0}, memory.options());
  if (dy.numel() == 0 || !(need_dx || need_dmemory)) {
    return {dx, need_dmemory ? at::zeros_like(memory) : none};
  }
  TORCH_CHECK_VALUE(
      !need_dmemory || (saved.has_value() && saved->scalar_type() == dy.scalar_type() && saved->sizes() == dy.sizes() &&
                        saved->is_contiguous() == dy.is_contiguous()),
      "memmod: the memory's gradient needs the saved output in the shape, dtype and layout of dy");
  const Elementwise elementwise = elementwise_of(dy, dim < 0 ? dim + dy.dim() : dim, index.size(0), memory.size(1));
  const SelectedGates selected(modulation, true, false);
  const at::Tensor target = need_dx ? dx : at::Tensor();
  if (!need_dmemory) {
    elementwise.run(dy, target, {}, selected.output_gates(), nullptr);
    return {dx, none};
  }
  ClassSums sums(selected.unique, memory.size(1), elementwise.samples());
  elementwise.run(dy, target, *saved, selected.output_gates(), &sums);
  return {dx, sums.gradient(selected.memory, gate)};
}

}  // namespace memmod::cpu
