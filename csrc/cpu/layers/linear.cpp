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

at::Tensor empty_result(const at::Tensor& like) {
  return at::empty({0}, like.options());
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

Gradients linear_backward(
    const at::Tensor& dy, at::IntArrayRef x_shape, const std::optional<at::Tensor>& x,
    const std::optional<at::Tensor>& weight, const Modulation& modulation, const std::optional<at::Tensor>& saved,
    const Needs& needs) {
  const auto [need_dx, need_dweight, need_dbias, need_dmemory, need_dinput] = needs;
  const int64_t units = dy.size(-1), inputs = x_shape.back();
  Gradients gradients;
  for (at::Tensor& gradient : gradients) {
    gradient = empty_result(dy);
  }
  if (dy.numel() == 0 || inputs == 0) {
    gradients[0] = need_dx ? at::zeros(x_shape, dy.options()) : gradients[0];
    gradients[1] = need_dweight ? at::zeros({units, inputs}, dy.options()) : gradients[1];
    gradients[2] = need_dbias ? at::sum(as_rows(dy), {0}) : gradients[2];
    TORCH_CHECK_VALUE(dy.numel() == 0 || !need_dmemory, "memmod: the CPU kernel has no layer without inputs");
    gradients[3] = need_dmemory ? at::zeros_like(*modulation.memory) : gradients[3];
    gradients[4] = need_dinput ? at::zeros_like(*modulation.input_memory) : gradients[4];
    return gradients;
  }
  const bool product = need_dx || need_dinput;
  const bool needs_dz = need_dweight || (need_dbias && modulation.gate_bias);
  const bool tiles = micro_kernels().mr != 0;
  // The gated gradient as a whole, where more than one product reads it or the library does.
  const bool separate = needs_dz || !product || !tiles;
  const at::Tensor rows =
      as_rows(modulation.relu && (separate || need_dbias) ? at::threshold_backward(dy, *saved, 0) : dy);
  const SelectedGates selected(modulation, product || needs_dz || need_dmemory, true);
  const RowTasks tasks = row_tasks(
      rows.size(0), rows.size(0) / selected.selection.samples(), 2 * inputs * units,
      grain_of(tiles ? weight_layout(dy.scalar_type(), inputs, Direction::kBackward) : WeightLayout::kPanels, units));
  const auto ranges = tasks.samples();
  std::optional<ClassSums> output_sums, input_sums;
  const at::Tensor saved_rows = need_dmemory || modulation.relu ? as_rows(*saved) : at::Tensor();
  if (need_dmemory) {
    output_sums.emplace(selected.unique, units, ranges);
  }
  if (need_dinput) {
    input_sums.emplace(selected.unique, inputs, ranges);
  }
  at::Tensor dz;
  if (separate && (needs_dz || need_dmemory || product)) {
    const bool writes = needs_dz || product;
    dz = writes && selected.output_gates() == nullptr ? rows : writes ? at::empty_like(rows) : at::Tensor();
    const MatrixView out = writes && selected.output_gates() != nullptr ? MatrixView(dz, units) : MatrixView();
    if (out || need_dmemory) {
      gate_rows(
          MatrixView(rows, units), out, need_dmemory ? MatrixView(saved_rows, units) : MatrixView(),
          selected.output_gates(), tasks, need_dmemory ? &*output_sums : nullptr);
    }
  }
  at::Tensor dx, ungated;
  if (product) {
    dx = at::empty(x_shape, dy.options());
    const bool keeps = need_dinput && modulation.gate == Gate::kIdentity;
    ungated = keeps ? at::empty_like(dx) : at::Tensor();
    const at::Tensor x_rows = need_dinput ? as_rows(*x) : at::Tensor();
    if (tiles) {
      LinearBackward layer;
      layer.dy = MatrixView(separate ? dz : rows, units);
      layer.dx = MatrixView(dx, inputs);
      layer.ungated = keeps ? MatrixView(ungated, inputs) : MatrixView();
      layer.out = separate ? nullptr : selected.output_gates();
      layer.in = selected.input_gates();
      if (!separate) {
        layer.relu = modulation.relu;
        layer.saved = saved_rows.defined() ? MatrixView(saved_rows, units) : MatrixView();
        layer.output_sums = need_dmemory ? &*output_sums : nullptr;
      }
      if (need_dinput) {
        layer.x = MatrixView(x_rows, inputs);
        layer.input_sums = &*input_sums;
      }
      layer.tasks = tasks;
      linear_gemm_backward(
          layer,
          packed_weight(
              *weight, Direction::kBackward, weight_layout(weight->scalar_type(), inputs, Direction::kBackward)));
    } else {
      at::Tensor dx_rows = dx.view({-1, inputs});
      at::mm_out(dx_rows, dz, *weight);
      const MatrixView matrix(dx, inputs), factors = need_dinput ? MatrixView(x_rows, inputs) : MatrixView();
      ClassSums* sums = need_dinput ? &*input_sums : nullptr;
      if (keeps) {
        gate_rows(matrix, MatrixView(), factors, nullptr, tasks, sums);
      }
      if (selected.input_gates() != nullptr) {
        gate_rows(matrix, matrix, MatrixView(), selected.input_gates(), tasks, nullptr);
      }
      if (need_dinput && !keeps) {
        gate_rows(matrix, MatrixView(), factors, nullptr, tasks, sums);
      }
    }
    if (need_dx) {
      gradients[0] = dx;
    }
  }
  if (need_dweight) {
    at::Tensor x_rows = as_rows(*x);
    if (selected.input_gates() != nullptr) {
      const at::Tensor gated = at::empty_like(x_rows);
      gate_rows(
          MatrixView(x_rows, inputs), MatrixView(gated, inputs), MatrixView(), selected.input_gates(), tasks, nullptr);
      x_rows = gated;
    }
    gradients[1] = at::mm(dz.t(), x_rows);
  }
  if (need_dbias) {
    gradients[2] = at::sum(modulation.gate_bias ? dz : rows, {0});
  }
  if (need_dmemory) {
    gradients[3] = output_sums->gradient(selected.memory, modulation.gate);
  }
  if (need_dinput) {
    gradients[4] = input_sums->gradient(selected.input_memory, modulation.gate);
  }
  return gradients;
}

}  // namespace memmod::cpu
