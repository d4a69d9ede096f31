// memmod::modulated_conv2d on the CPU: by the linear kernel (1×1), by the direct one, or by the library and the tail.
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "base/matrix_view.h"
#include "conv/conv_shape.h"
#include "conv/implicit_gemm.h"
#include "conv/implicit_gemm_amx.h"
#include "gates/elementwise.h"
#include "gates/gated_rows.h"
#include "gates/gates.h"
#include "gates/modulation.h"
#include "gemm/bf16_gemm.h"
#include "gemm/indirect_gemm.h"
#include "gemm/pack.h"
#include "layers/layers.h"
#include "layers/linear_gemm.h"
#include "layers/weight_cache.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

// Inputs and units below which tiles are mostly padding.
constexpr int64_t kFewestChannels = 8;

enum class Path { kLinear, kImplicitGemm, kUnfused };

// From shapes, dtype and layout only. channels_last: of the images on both sides of the layer.
Path path_of(const at::Tensor& images, at::IntArrayRef weight, const ConvOptions& options, bool channels_last) {
  if (micro_kernels().mr == 0 || !channels_last) {
    return Path::kUnfused;
  }
  if (options.groups != 1) {
    const bool depthwise = weight[0] == options.groups && weight[1] == 1 && weight[0] % micro_kernels().lanes == 0 &&
                           weight[2] * weight[3] <= kKBlock;
    return images.scalar_type() == at::kFloat && depthwise ? Path::kImplicitGemm : Path::kUnfused;
  }
  const bool pointwise = weight[2] == 1 && weight[3] == 1 && options.stride == std::array<int64_t, 2>{1, 1} &&
                         options.padding == std::array<int64_t, 2>{0, 0};
  if (pointwise) {
    return Path::kLinear;
  }
  const bool wide = weight[0] >= kFewestChannels && weight[1] >= kFewestChannels;
  return images.scalar_type() == at::kFloat && wide ? Path::kImplicitGemm : Path::kUnfused;
}

at::MemoryFormat format_of(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

bool suggests_channels_last(const at::Tensor& t) {
  return t.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

int64_t out_size(int64_t size, int64_t kernel, const ConvOptions& options, int64_t d) {
  return (size + 2 * options.padding[d] - options.dilation[d] * (kernel - 1) - 1) / options.stride[d] + 1;
}

ConvShape shape_of(at::IntArrayRef x, at::IntArrayRef y, at::IntArrayRef weight, const ConvOptions& options) {
  return {
      .images = x[0],
      .height = x[2],
      .width = x[3],
      .inputs = x[1],
      .out_height = y[2],
      .out_width = y[3],
      .units = y[1],
      .kernel_height = weight[2],
      .kernel_width = weight[3],
      .options = options};
}

at::Tensor empty_result(const at::Tensor& like) {
  return at::empty({0}, like.options());
}

// x gated by input channels, in its own layout.
at::Tensor gated_input(const at::Tensor& x, const Gates* gates, int64_t samples) {
  if (gates == nullptr) {
    return x;
  }
  const at::Tensor gated = at::empty_like(x);
  Elementwise(channels_of(x, 1), samples).run(x, gated, {}, gates, nullptr);
  return gated;
}

// One row of gates [K] as a tensor [K, 1, 1, 1] or, for inputs, [1, K, 1, 1].
at::Tensor gate_row(const Gates& gates, int64_t width, bool inputs) {
  const at::Tensor row = at::empty({width}, at::kFloat);
  std::copy_n(gates.row_or_ones(0), width, row.mutable_data_ptr<float>());
  return inputs ? row.view({1, width, 1, 1}) : row.view({width, 1, 1, 1});
}

// The weight with the gates of the whole batch's one selection.
at::Tensor folded_weight(const at::Tensor& weight, const SelectedGates& selected) {
  at::Tensor folded = weight;
  if (const Gates* gates = selected.output_gates()) {
    folded = at::mul(folded, gate_row(*gates, weight.size(0), false));
  }
  if (const Gates* gates = selected.input_gates()) {
    folded = at::mul(folded, gate_row(*gates, weight.size(1), true));
  }
  return folded.to(weight.scalar_type()).contiguous(weight.suggest_memory_format());
}

at::Tensor library_conv(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const ConvOptions& o,
    at::MemoryFormat format) {
  return at::conv2d(x, weight, bias, o.stride, o.padding, o.dilation, o.groups).contiguous(format);
}

void forward_unfused(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const Modulation& modulation,
    const ConvOptions& options, bool channels_last, const SelectedGates& selected, bool keeps, at::Tensor& y,
    at::Tensor& kept) {
  const int64_t samples = selected.selection.samples();
  const auto format = format_of(channels_last);
  // Rounded weights times rounded gates lose precision that the tail keeps; groups take other rows of the input gates.
  if (samples == 1 && !keeps && x.scalar_type() == at::kFloat &&
      (options.groups == 1 || selected.input_gates() == nullptr)) {
    std::optional<at::Tensor> folded_bias = bias;
    if (bias.has_value() && modulation.gate_bias && selected.output_gates() != nullptr) {
      folded_bias = at::mul(*bias, gate_row(*selected.output_gates(), bias->size(0), false).view({-1}));
    }
    y = library_conv(x, folded_weight(weight, selected), folded_bias, options, format);
    if (modulation.relu) {
      y.relu_();
    }
    return;
  }
  const std::optional<at::Tensor> inner = modulation.gate_bias ? bias : std::nullopt;
  y = library_conv(gated_input(x, selected.input_gates(), samples), weight, inner, options, format);
  const Elementwise elementwise(channels_of(y, 1), samples);
  if (keeps && modulation.gate == Gate::kIdentity) {
    kept = y.clone();
  }
  elementwise.run(y, y, {}, selected.output_gates(), nullptr);
  if (keeps && modulation.gate != Gate::kIdentity) {
    kept = y.clone();
  }
  if (bias.has_value() && !modulation.gate_bias) {
    y.add_(bias->view({1, -1, 1, 1}));
  }
  if (modulation.relu) {
    y.relu_();
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> conv2d_forward(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, const Modulation& modulation,
    bool keep_gated, const ConvOptions& options) {
  const bool channels_last = suggests_channels_last(x) || suggests_channels_last(weight);
  const auto format = format_of(channels_last);
  const std::array<int64_t, 4> size{
      x.size(0), weight.size(0), out_size(x.size(2), weight.size(2), options, 0),
      out_size(x.size(3), weight.size(3), options, 1)};
  const bool keeps = keep_gated && modulation.memory.has_value();
  at::Tensor kept = empty_result(x);
  const at::Tensor images = x.contiguous(format);
  Path path = path_of(x, weight.sizes(), options, channels_last);
  if (x.numel() == 0 || weight.numel() == 0 || size[2] <= 0 || size[3] <= 0) {
    at::Tensor y = library_conv(images, weight, bias, options, format);
    return {y, keeps ? y.clone() : kept};
  }
  const SelectedGates selected(modulation, true, true);
  const int64_t samples = selected.selection.samples();
  TORCH_CHECK_VALUE(
      samples > 0 && x.size(0) % samples == 0, "memmod: ", x.size(0), " rows do not belong to ", samples, " samples");
  at::Tensor y;
  if (path == Path::kUnfused) {
    forward_unfused(images, weight, bias, modulation, options, channels_last, selected, keeps, y, kept);
    return {y, kept};
  }
  const auto contents = x.options().memory_format(format);
  y = at::empty(size, contents);
  kept = keeps ? at::empty(size, contents) : kept;
  const at::Tensor wide_bias = bias.has_value() ? bias->to(at::kFloat).contiguous() : at::Tensor();
  const float* bias_data = bias.has_value() ? wide_bias.const_data_ptr<float>() : nullptr;
  const bool save_ungated = modulation.gate == Gate::kIdentity;
  const ConvShape shape = shape_of(x.sizes(), y.sizes(), weight.sizes(), options);
  const bool amx = path == Path::kImplicitGemm && amx_supports(shape);
  const WeightLayout layout = path == Path::kLinear
                                  ? weight_layout(weight.scalar_type(), weight.size(0), Direction::kForward)
                              : amx ? WeightLayout::kAmxBf16x3
                                    : WeightLayout::kPanels;
  const PackedWeight packed = packed_weight(weight, Direction::kForward, layout);
  if (path == Path::kLinear) {
    LinearForward layer;
    layer.x = MatrixView(images, x.size(1));
    layer.y = MatrixView(y, y.size(1));
    layer.kept = keeps ? MatrixView(kept, y.size(1)) : MatrixView();
    layer.bias = bias_data;
    layer.gate_bias = modulation.gate_bias;
    layer.save_ungated = save_ungated;
    layer.relu = modulation.relu;
    layer.out = selected.output_gates();
    layer.in = selected.input_gates();
    layer.per_sample = layer.x.rows / samples;
    linear_gemm(layer, packed);
    return {y, kept};
  }
  const ConvForward layer{
      .x = images.const_data_ptr<float>(),
      .y = y.mutable_data_ptr<float>(),
      .kept = keeps ? kept.mutable_data_ptr<float>() : nullptr,
      .bias = bias_data,
      .gate_bias = modulation.gate_bias,
      .save_ungated = save_ungated,
      .relu = modulation.relu,
      .gates = selected.output_gates(),
      .in = selected.input_gates(),
      .images_per_sample = x.size(0) / samples};
  amx ? implicit_gemm_amx(layer, shape, packed) : implicit_gemm(layer, shape, packed);
  return {y, kept};
}

Gradients conv2d_backward(
    const at::Tensor& dy, at::IntArrayRef x_shape, const std::optional<at::Tensor>& x,
    const std::optional<at::Tensor>& weight, const Modulation& modulation, const std::optional<at::Tensor>& saved,
    const Needs& needs, const ConvOptions& options) {
  const auto [need_dx, need_dweight, need_dbias, need_dmemory, need_dinput] = needs;
  const bool weight_last = weight.has_value() && suggests_channels_last(*weight);
  const bool channels_last = suggests_channels_last(dy) || weight_last;
  const auto format = format_of(channels_last);
  const auto contents = dy.options().memory_format(format);
  Gradients gradients;
  for (at::Tensor& gradient : gradients) {
    gradient = empty_result(dy);
  }
  const bool product = need_dx || need_dinput;
  if (dy.numel() == 0) {
    gradients[0] = need_dx ? at::zeros(x_shape, dy.options()).contiguous(format) : gradients[0];
    gradients[1] = need_dweight ? at::zeros_like(*weight) : gradients[1];
    gradients[2] = need_dbias ? at::zeros({dy.size(1)}, dy.options()) : gradients[2];
    gradients[3] = need_dmemory ? at::zeros_like(*modulation.memory) : gradients[3];
    gradients[4] = need_dinput ? at::zeros_like(*modulation.input_memory) : gradients[4];
    return gradients;
  }
  const SelectedGates selected(modulation, true, true);
  const int64_t samples = selected.selection.samples();
  const bool inner_bias = need_dbias && modulation.gate_bias;
  Path path =
      product && !need_dweight && !inner_bias ? path_of(dy, weight->sizes(), options, channels_last) : Path::kUnfused;
  const bool masks = modulation.relu && (path == Path::kUnfused || need_dbias);
  const at::Tensor rows = (masks ? at::threshold_backward(dy, *saved, 0) : dy).contiguous(format);
  const at::Tensor factors = need_dmemory || modulation.relu ? saved->contiguous(format) : at::Tensor();
  const bool ungated = need_dinput && modulation.gate == Gate::kIdentity;
  at::Tensor dx;
  std::optional<ClassSums> sums;
  if (path == Path::kLinear) {
    dx = at::empty(x_shape, contents);
    const WeightLayout layout = weight_layout(weight->scalar_type(), x_shape[1], Direction::kBackward);
    LinearBackward layer;
    layer.dy = MatrixView(rows, dy.size(1));
    layer.dx = MatrixView(dx, x_shape[1]);
    layer.tasks =
        row_tasks(layer.dy.rows, layer.dy.rows / samples, 2 * x_shape[1] * dy.size(1), grain_of(layout, dy.size(1)));
    layer.out = selected.output_gates();
    layer.relu = modulation.relu;
    layer.saved = factors.defined() ? MatrixView(factors, dy.size(1)) : MatrixView();
    if (need_dmemory) {
      sums.emplace(selected.unique, dy.size(1), layer.tasks.samples());
      layer.output_sums = &*sums;
    }
    linear_gemm_backward(layer, packed_weight(*weight, Direction::kBackward, layout));
  } else if (path == Path::kImplicitGemm) {
    dx = at::empty(x_shape, contents);
    const ConvShape shape = shape_of(x_shape, dy.sizes(), weight->sizes(), options);
    const bool amx = amx_supports_backward(shape);
    if (need_dmemory) {
      const int64_t per_sample = x_shape[0] / samples;
      sums.emplace(
          selected.unique, dy.size(1),
          amx ? amx_backward_samples(shape, per_sample) : ImageTiling(shape).samples(per_sample));
    }
    const ConvBackward layer{
        .dy = rows.const_data_ptr<float>(),
        .dx = dx.mutable_data_ptr<float>(),
        .saved = factors.defined() ? factors.const_data_ptr<float>() : nullptr,
        .relu = modulation.relu,
        .gates = selected.output_gates(),
        .sums = need_dmemory ? &*sums : nullptr,
        .images_per_sample = x_shape[0] / samples};
    if (amx) {
      implicit_gemm_amx_backward(layer, shape, packed_weight(*weight, Direction::kBackward, WeightLayout::kAmxBf16x3));
    } else {
      implicit_gemm_backward(
          layer, shape, packed_weight(*weight, shape.depthwise() ? Direction::kForward : Direction::kBackward));
    }
  } else {
    const Elementwise elementwise(channels_of(rows, 1), samples);
    if (need_dmemory) {
      sums.emplace(selected.unique, dy.size(1), elementwise.samples());
    }
    // One selection for all: the weight takes the gates, and dy is only read.
    const bool folds = samples == 1 && product && !need_dweight && !inner_bias && !ungated &&
                       dy.scalar_type() == at::kFloat && selected.input_gates() == nullptr;
    const bool gates = !folds && selected.output_gates() != nullptr && (product || need_dweight || inner_bias);
    const at::Tensor dz = gates ? at::empty_like(rows) : rows;
    elementwise.run(rows, gates ? dz : at::Tensor(), factors, selected.output_gates(), need_dmemory ? &*sums : nullptr);
    if (product || need_dweight) {
      const at::Tensor input = need_dweight ? gated_input(
                                                  x->contiguous(channels_last ? format : x->suggest_memory_format()),
                                                  selected.input_gates(), samples)
                                            : at::empty(x_shape, contents);
      auto [grad_input, grad_weight, grad_bias] = at::convolution_backward(
          dz, input, folds ? folded_weight(*weight, selected) : *weight, dy.size(1), options.stride, options.padding,
          options.dilation, false, {0, 0}, options.groups, {product, need_dweight, inner_bias});
      dx = product ? grad_input.contiguous(format) : dx;
      gradients[1] = need_dweight ? grad_weight.contiguous(weight->suggest_memory_format()) : gradients[1];
      gradients[2] = inner_bias ? grad_bias : gradients[2];
    } else if (inner_bias) {
      gradients[2] = at::sum(dz, {0, 2, 3});
    }
  }
  if (need_dbias && !modulation.gate_bias) {
    gradients[2] = at::sum(rows, {0, 2, 3});
  }
  if (product && (selected.input_gates() != nullptr || need_dinput)) {
    const Elementwise elementwise(channels_of(dx, 1), samples);
    std::optional<ClassSums> input_sums;
    const at::Tensor images = need_dinput ? x->contiguous(format) : at::Tensor();
    if (need_dinput) {
      input_sums.emplace(selected.unique, x_shape[1], elementwise.samples());
    }
    if (ungated) {
      elementwise.run(dx, {}, images, nullptr, &*input_sums);
    }
    elementwise.run(dx, dx, {}, selected.input_gates(), nullptr);
    if (need_dinput && !ungated) {
      elementwise.run(dx, {}, images, nullptr, &*input_sums);
    }
    if (need_dinput) {
      gradients[4] = input_sums->gradient(selected.input_memory, modulation.gate);
    }
  }
  gradients[0] = need_dx ? dx : gradients[0];
  if (need_dmemory) {
    gradients[3] = sums->gradient(selected.memory, modulation.gate);
  }
  return gradients;
}

}  // namespace memmod::cpu
