// memmod::modulated_linear on the CPU.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <c10/util/accumulate.h>

#include <algorithm>

#include "base/matrix_view.h"
#include "base/parallel.h"
#include "gates/gated_rows.h"
#include "gates/gates.h"
#include "gates/modulation.h"
#include "gemm/bf16_gemm.h"
#include "gemm/pack.h"
#include "layers/backward.h"
#include "layers/layers.h"
#include "layers/linear_gemm.h"
#include "layers/weight_cache.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

// Rows that the library multiplies at once where there are no tiles.
constexpr int64_t kLibraryRows = 512;

at::Tensor as_rows(const at::Tensor& t) {
  return t.contiguous().view({c10::multiply_integers(t.sizes().slice(0, t.dim() - 1)), t.size(-1)});
}

// y from the library, a cache-sized block of rows at a time.
void forward_unfused(
    const LinearForward& layer, const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const at::Tensor& y, const at::Tensor& kept) {
  const int64_t step = std::max<int64_t>(1, kLibraryRows / layer.per_sample) * layer.per_sample;
  const at::Tensor transposed = weight.t();
  for (int64_t first = 0; first < x.size(0); first += step) {
    const int64_t count = std::min(step, x.size(0) - first);
    at::Tensor rows = x.narrow(0, first, count), out = y.narrow(0, first, count);
    const RowTasks tasks{count, layer.per_sample, std::min<int64_t>(count, 8)};
    const auto gate = [&](const MatrixView& from, const MatrixView& to, const Gates& gates) {
      for_each_task(tasks.parts, true, [&](int64_t task) {
        tasks.each_sample(tasks.start(task), tasks.start(task + 1), [&](int64_t sample, int64_t row, int64_t n) {
          micro_kernels().scale_rows[static_cast<int>(from.type)](
              from.at(row), from.columns, gates.row(sample + first / layer.per_sample), to.at(row), from.columns, n,
              from.columns);
        });
      });
    };
    if (layer.in != nullptr) {
      const at::Tensor gated = at::empty_like(rows);
      gate(MatrixView(rows, rows.size(1)), MatrixView(gated, rows.size(1)), *layer.in);
      rows = gated;
    }
    at::mm_out(out, rows, transposed);
    if (bias.has_value() && layer.gate_bias) {
      out.add_(*bias);
    }
    if (kept.numel() > 0 && layer.save_ungated) {
      kept.narrow(0, first, count).copy_(out);
    }
    if (layer.out != nullptr) {
      gate(MatrixView(out, out.size(1)), MatrixView(out, out.size(1)), *layer.out);
    }
    if (kept.numel() > 0 && !layer.save_ungated) {
      kept.narrow(0, first, count).copy_(out);
    }
    if (bias.has_value() && !layer.gate_bias) {
      out.add_(*bias);
    }
    if (layer.relu) {
      out.relu_();
    }
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> linear_forward(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const Modulation& modulation,
    bool keep_gated) {
  const int64_t units = weight.size(0), inputs = weight.size(1);
  auto shape = x.sizes().vec();
  shape.back() = units;
  const at::Tensor y = at::empty(shape, x.options());
  const bool keeps = keep_gated && modulation.memory.has_value();
  const at::Tensor kept = keeps ? at::empty_like(y) : empty_result(x);
  if (y.numel() == 0) {
    return {y, kept};
  }
  const at::Tensor rows = as_rows(x);
  const SelectedGates selected(modulation, true, true);
  const int64_t samples = selected.selection.samples();
  TORCH_CHECK_VALUE(
      samples > 0 && x.size(0) % samples == 0, "memmod: ", x.size(0), " rows do not belong to ", samples, " samples");
  LinearForward layer;
  layer.gate_bias = modulation.gate_bias;
  layer.save_ungated = modulation.gate == Gate::kIdentity;
  layer.relu = modulation.relu;
  layer.out = selected.output_gates();
  layer.in = selected.input_gates();
  layer.per_sample = rows.size(0) / samples;
  if (micro_kernels().mr == 0 || inputs == 0) {
    forward_unfused(layer, rows, weight, bias, as_rows(y), keeps ? as_rows(kept) : kept);
    return {y, kept};
  }
  const at::Tensor wide_bias = bias.has_value() ? bias->to(at::kFloat).contiguous() : at::Tensor();
  layer.bias = bias.has_value() ? wide_bias.const_data_ptr<float>() : nullptr;
  layer.x = MatrixView(rows, inputs);
  layer.y = MatrixView(y, units);
  if (keeps) {
    layer.kept = MatrixView(kept, units);
  }
  linear_gemm(
      layer,
      packed_weight(weight, Direction::kForward, weight_layout(weight.scalar_type(), units, Direction::kForward)));
  return {y, kept};
}

namespace {

// A backward's tensors as rows, and what its steps share.
struct Backward {
  explicit Backward(const LayerGradCall& grad_call)
      : call(grad_call),
        needs(call),
        units(call.dy.size(-1)),
        inputs(call.x_shape.back()),
        fused(micro_kernels().mr != 0),
        separate(needs.dz || !needs.product || !fused),
        dy(as_rows(
            call.modulation.relu && (separate || needs.dbias) ? at::threshold_backward(call.dy, *call.saved, 0)
                                                              : call.dy)),
        saved(needs.dmemory || call.modulation.relu ? as_rows(*call.saved) : at::Tensor()),
        selected(call.modulation, needs.product || needs.dz || needs.dmemory, true),
        tasks(row_tasks(
            dy.size(0), dy.size(0) / selected.selection.samples(), 2 * inputs * units,
            grain_of(fused ? layout(dy) : WeightLayout::kPanels, units))) {
    const auto samples = tasks.samples();
    if (needs.dmemory) {
      output_sums.emplace(selected.unique, units, samples);
    }
    if (needs.dinput_memory) {
      input_sums.emplace(selected.unique, inputs, samples);
    }
  }

  WeightLayout layout(const at::Tensor& like) const {
    return weight_layout(like.scalar_type(), inputs, Direction::kBackward);
  }
  ClassSums* sums_of_outputs() {
    return output_sums.has_value() ? &*output_sums : nullptr;
  }
  ClassSums* sums_of_inputs() {
    return input_sums.has_value() ? &*input_sums : nullptr;
  }

  const LayerGradCall& call;
  BackwardNeeds needs;
  int64_t units, inputs;
  bool fused;
  // The gated gradient as a whole, where more than one product reads it or the library does.
  bool separate;
  at::Tensor dy, saved;
  SelectedGates selected;
  RowTasks tasks;
  std::optional<ClassSums> output_sums, input_sums;
};

// s ⊙ dy, and the output memory's sums on the way; undefined where nothing reads it.
at::Tensor gate_gradient(Backward& b) {
  const bool writes = b.needs.dz || b.needs.product;
  const Gates* gates = b.selected.output_gates();
  const at::Tensor dz = !writes ? at::Tensor() : gates == nullptr ? b.dy : at::empty_like(b.dy);
  const MatrixView out = writes && gates != nullptr ? MatrixView(dz, b.units) : MatrixView();
  if (out || b.needs.dmemory) {
    const MatrixView factors = b.needs.dmemory ? MatrixView(b.saved, b.units) : MatrixView();
    gate_rows(MatrixView(b.dy, b.units), out, factors, gates, b.tasks, b.sums_of_outputs());
  }
  return dz;
}

// dx by micro-kernels, which gate dy and make the output memory's sums where `dz` is undefined.
at::Tensor fused_dx(Backward& b, const at::Tensor& dz) {
  const at::Tensor dx = at::empty(b.call.x_shape, b.dy.options());
  const at::Tensor ungated = b.needs.ungated_dx ? at::empty_like(dx) : at::Tensor();
  const at::Tensor x = b.needs.dinput_memory ? as_rows(*b.call.x) : at::Tensor();
  LinearBackward layer{
      .dy = MatrixView(dz.defined() ? dz : b.dy, b.units),
      .dx = MatrixView(dx, b.inputs),
      .x = b.needs.dinput_memory ? MatrixView(x, b.inputs) : MatrixView(),
      .ungated = b.needs.ungated_dx ? MatrixView(ungated, b.inputs) : MatrixView(),
      .in = b.selected.input_gates(),
      .input_sums = b.sums_of_inputs(),
      .tasks = b.tasks};
  if (!dz.defined()) {
    layer.saved = b.saved.defined() ? MatrixView(b.saved, b.units) : MatrixView();
    layer.relu = b.call.modulation.relu;
    layer.out = b.selected.output_gates();
    layer.output_sums = b.sums_of_outputs();
  }
  linear_gemm_backward(layer, packed_weight(*b.call.weight, Direction::kBackward, b.layout(*b.call.weight)));
  return dx;
}

at::Tensor unfused_dx(Backward& b, const at::Tensor& dz) {
  const at::Tensor dx = at::empty(b.call.x_shape, b.dy.options());
  const at::Tensor x = b.needs.dinput_memory ? as_rows(*b.call.x) : at::Tensor();
  at::Tensor rows = dx.view({-1, b.inputs});
  at::mm_out(rows, dz, *b.call.weight);
  const MatrixView matrix(dx, b.inputs), factors = b.needs.dinput_memory ? MatrixView(x, b.inputs) : MatrixView();
  sum_and_gate(
      b.needs, [&] { gate_rows(matrix, MatrixView(), factors, nullptr, b.tasks, b.sums_of_inputs()); },
      [&] {
        if (b.selected.input_gates() != nullptr) {
          gate_rows(matrix, matrix, MatrixView(), b.selected.input_gates(), b.tasks, nullptr);
        }
      });
  return dx;
}

at::Tensor weight_gradient(const Backward& b, const at::Tensor& dz) {
  at::Tensor x = as_rows(*b.call.x);
  if (const Gates* gates = b.selected.input_gates()) {
    const at::Tensor gated = at::empty_like(x);
    gate_rows(MatrixView(x, b.inputs), MatrixView(gated, b.inputs), MatrixView(), gates, b.tasks, nullptr);
    x = gated;
  }
  return at::mm(dz.t(), x);
}

// The gradients of a layer without inputs, or of no rows.
Gradients gradients_of_nothing(const LayerGradCall& call) {
  const BackwardNeeds needs(call);
  const at::Tensor& dy = call.dy;
  TORCH_CHECK_VALUE(dy.numel() == 0 || !needs.dmemory, "memmod: the CPU kernel has no layer without inputs");
  Gradients gradients = empty_gradients(dy);
  gradients.x = needs.dx ? at::zeros(call.x_shape, dy.options()) : gradients.x;
  gradients.weight = needs.dweight ? at::zeros({dy.size(-1), call.x_shape.back()}, dy.options()) : gradients.weight;
  gradients.bias = needs.dbias ? at::sum(as_rows(dy), {0}) : gradients.bias;
  gradients.memory = needs.dmemory ? at::zeros_like(*call.modulation.memory) : gradients.memory;
  gradients.input_memory = needs.dinput_memory ? at::zeros_like(*call.modulation.input_memory) : gradients.input_memory;
  return gradients;
}

}  // namespace

Gradients linear_backward(const LayerGradCall& call) {
  if (call.dy.numel() == 0 || call.x_shape.back() == 0) {
    return gradients_of_nothing(call);
  }
  Backward b(call);
  Gradients gradients = empty_gradients(call.dy);
  const at::Tensor dz = b.separate ? gate_gradient(b) : at::Tensor();
  if (b.needs.product) {
    const at::Tensor dx = b.fused ? fused_dx(b, dz) : unfused_dx(b, dz);
    gradients.x = b.needs.dx ? dx : gradients.x;
  }
  if (b.needs.dweight) {
    gradients.weight = weight_gradient(b, dz);
  }
  if (b.needs.dbias) {
    gradients.bias = at::sum(b.needs.gated_dbias ? dz : b.dy, {0});
  }
  if (b.needs.dmemory) {
    gradients.memory = b.output_sums->gradient(b.selected.memory, call.modulation.gate);
  }
  if (b.needs.dinput_memory) {
    gradients.input_memory = b.input_sums->gradient(b.selected.input_memory, call.modulation.gate);
  }
  return gradients;
}

}  // namespace memmod::cpu
