// memmod::modulated_conv2d on the CPU: by linear_gemm (1×1), by implicit_gemm, or by the library and Elementwise.
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
#include "layers/backward.h"
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
  // Rounded weights times rounded gates lose precision that gating y keeps; groups take other rows of the input gates.
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
    const MatrixView rows(images, x.size(1));
    const LinearForward layer{
        .x = rows,
        .y = MatrixView(y, y.size(1)),
        .kept = keeps ? MatrixView(kept, y.size(1)) : MatrixView(),
        .bias = bias_data,
        .gate_bias = modulation.gate_bias,
        .save_ungated = save_ungated,
        .relu = modulation.relu,
        .out = selected.output_gates(),
        .in = selected.input_gates(),
        .per_sample = rows.rows / samples};
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

namespace {

bool has_channels_last_images(const LayerGradCall& call) {
  return suggests_channels_last(call.dy) || (call.weight.has_value() && suggests_channels_last(*call.weight));
}

// A backward's tensors in the layout of its images, and what its steps share.
struct Backward {
  Backward(const LayerGradCall& grad_call, const ConvOptions& conv_options)
      : call(grad_call),
        options(conv_options),
        needs(call),
        channels_last(has_channels_last_images(call)),
        format(format_of(channels_last)),
        path(
            needs.product && !needs.dz ? path_of(call.dy, call.weight->sizes(), options, channels_last)
                                       : Path::kUnfused),
        selected(call.modulation, true, true),
        samples(selected.selection.samples()) {
    const bool masks = call.modulation.relu && (path == Path::kUnfused || needs.dbias);
    dy = (masks ? at::threshold_backward(call.dy, *call.saved, 0) : call.dy).contiguous(format);
    saved = needs.dmemory || call.modulation.relu ? call.saved->contiguous(format) : at::Tensor();
  }

  at::Tensor empty_dx() const {
    return at::empty(call.x_shape, dy.options().memory_format(format));
  }
  // The output memory's sums, for tasks that have these samples; null where they are not needed.
  ClassSums* make_sums(const std::vector<std::pair<int64_t, int64_t>>& task_samples) {
    return needs.dmemory ? &sums.emplace(selected.unique, dy.size(1), task_samples) : nullptr;
  }

  const LayerGradCall& call;
  const ConvOptions& options;
  BackwardNeeds needs;
  bool channels_last;
  at::MemoryFormat format;
  Path path;
  SelectedGates selected;
  int64_t samples;
  at::Tensor dy, saved;  // dy: past the ReLU where it is read as a whole
  std::optional<ClassSums> sums;
};

at::Tensor dx_by_linear_gemm(Backward& b) {
  const int64_t units = b.dy.size(1), inputs = b.call.x_shape[1];
  const at::Tensor dx = b.empty_dx();
  const MatrixView dy(b.dy, units);
  const WeightLayout layout = weight_layout(b.call.weight->scalar_type(), inputs, Direction::kBackward);
  const RowTasks tasks = row_tasks(dy.rows, dy.rows / b.samples, 2 * inputs * units, grain_of(layout, units));
  const LinearBackward layer{
      .dy = dy,
      .dx = MatrixView(dx, inputs),
      .saved = b.saved.defined() ? MatrixView(b.saved, units) : MatrixView(),
      .relu = b.call.modulation.relu,
      .out = b.selected.output_gates(),
      .output_sums = b.make_sums(tasks.samples()),
      .tasks = tasks};
  linear_gemm_backward(layer, packed_weight(*b.call.weight, Direction::kBackward, layout));
  return dx;
}

at::Tensor dx_by_implicit_gemm(Backward& b) {
  const at::Tensor dx = b.empty_dx();
  const at::Tensor& weight = *b.call.weight;
  const ConvShape shape = shape_of(b.call.x_shape, b.dy.sizes(), weight.sizes(), b.options);
  const bool amx = amx_supports_backward(shape);
  const int64_t images_per_sample = shape.images / b.samples;
  const ConvBackward layer{
      .dy = b.dy.const_data_ptr<float>(),
      .dx = dx.mutable_data_ptr<float>(),
      .saved = b.saved.defined() ? b.saved.const_data_ptr<float>() : nullptr,
      .relu = b.call.modulation.relu,
      .gates = b.selected.output_gates(),
      .sums = b.make_sums(
          amx ? amx_backward_samples(shape, images_per_sample) : ImageTiling(shape).samples(images_per_sample)),
      .images_per_sample = images_per_sample};
  if (amx) {
    implicit_gemm_amx_backward(layer, shape, packed_weight(weight, Direction::kBackward, WeightLayout::kAmxBf16x3));
  } else {
    const Direction direction = shape.depthwise() ? Direction::kForward : Direction::kBackward;
    implicit_gemm_backward(layer, shape, packed_weight(weight, direction));
  }
  return dx;
}

// x as the weight's gradient reads it: with the input memory's gates.
at::Tensor weight_factor(const Backward& b) {
  const at::Tensor& x = *b.call.x;
  const at::MemoryFormat format = b.channels_last ? b.format : x.suggest_memory_format();
  return gated_input(x.contiguous(format), b.selected.input_gates(), b.samples);
}

// The library's gradients of the weight and the gated bias, and dx, which is undefined where it is not needed.
at::Tensor unfused_dx(Backward& b, Gradients& gradients) {
  const BackwardNeeds& needs = b.needs;
  const Gates* gates = b.selected.output_gates();
  const Elementwise elementwise(channels_of(b.dy, 1), b.samples);
  // One selection for all: the weight takes the gates, and dy is only read.
  const bool folds = b.samples == 1 && needs.product && !needs.dz && !needs.ungated_dx &&
                     b.dy.scalar_type() == at::kFloat && b.selected.input_gates() == nullptr;
  const bool writes = !folds && gates != nullptr && (needs.product || needs.dz);
  const at::Tensor dz = writes ? at::empty_like(b.dy) : b.dy;
  elementwise.run(b.dy, writes ? dz : at::Tensor(), b.saved, gates, b.make_sums(elementwise.samples()));
  if (!needs.product && !needs.dweight) {
    gradients.bias = needs.gated_dbias ? at::sum(dz, {0, 2, 3}) : gradients.bias;
    return {};
  }
  const at::Tensor& weight = *b.call.weight;
  const at::Tensor input = needs.dweight ? weight_factor(b) : b.empty_dx();
  const auto& o = b.options;
  auto [dx, dweight, dbias] = at::convolution_backward(
      dz, input, folds ? folded_weight(weight, b.selected) : weight, b.dy.size(1), o.stride, o.padding, o.dilation,
      false, {0, 0}, o.groups, {needs.product, needs.dweight, needs.gated_dbias});
  gradients.weight = needs.dweight ? dweight.contiguous(weight.suggest_memory_format()) : gradients.weight;
  gradients.bias = needs.gated_dbias ? dbias : gradients.bias;
  return needs.product ? dx.contiguous(b.format) : at::Tensor();
}

// Gates dx by the input memory, and gives that memory its gradient.
void gate_input_gradient(const Backward& b, const at::Tensor& dx, Gradients& gradients) {
  const Elementwise elementwise(channels_of(dx, 1), b.samples);
  const at::Tensor x = b.needs.dinput_memory ? b.call.x->contiguous(b.format) : at::Tensor();
  std::optional<ClassSums> sums;
  if (b.needs.dinput_memory) {
    sums.emplace(b.selected.unique, dx.size(1), elementwise.samples());
  }
  sum_and_gate(
      b.needs, [&] { elementwise.run(dx, {}, x, nullptr, &*sums); },
      [&] { elementwise.run(dx, dx, {}, b.selected.input_gates(), nullptr); });
  if (b.needs.dinput_memory) {
    gradients.input_memory = sums->gradient(b.selected.input_memory, b.call.modulation.gate);
  }
}

Gradients gradients_of_nothing(const LayerGradCall& call, at::MemoryFormat format) {
  const BackwardNeeds needs(call);
  const at::Tensor& dy = call.dy;
  Gradients gradients = empty_gradients(dy);
  gradients.x = needs.dx ? at::zeros(call.x_shape, dy.options()).contiguous(format) : gradients.x;
  gradients.weight = needs.dweight ? at::zeros_like(*call.weight) : gradients.weight;
  gradients.bias = needs.dbias ? at::zeros({dy.size(1)}, dy.options()) : gradients.bias;
  gradients.memory = needs.dmemory ? at::zeros_like(*call.modulation.memory) : gradients.memory;
  gradients.input_memory = needs.dinput_memory ? at::zeros_like(*call.modulation.input_memory) : gradients.input_memory;
  return gradients;
}

}  // namespace

Gradients conv2d_backward(const LayerGradCall& call, const ConvOptions& options) {
  if (call.dy.numel() == 0) {
    return gradients_of_nothing(call, format_of(has_channels_last_images(call)));
  }
  Backward b(call, options);
  Gradients gradients = empty_gradients(call.dy);
  const at::Tensor dx = b.path == Path::kLinear         ? dx_by_linear_gemm(b)
                        : b.path == Path::kImplicitGemm ? dx_by_implicit_gemm(b)
                                                        : unfused_dx(b, gradients);
  if (b.needs.dbias && !b.needs.gated_dbias) {
    gradients.bias = at::sum(b.dy, {0, 2, 3});
  }
  if (b.needs.product && (b.selected.input_gates() != nullptr || b.needs.dinput_memory)) {
    gate_input_gradient(b, dx, gradients);
  }
  gradients.x = b.needs.dx ? dx : gradients.x;
  if (b.needs.dmemory) {
    gradients.memory = b.sums->gradient(b.selected.memory, call.modulation.gate);
  }
  return gradients;
}

}  // namespace memmod::cpu
