#include "gpu/layers.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace memmod::gpu {
namespace {

using cpu::ConvOptions;
using cpu::Gate;
using cpu::Gradients;
using cpu::LayerGradCall;
using cpu::Modulation;
using Optional = std::optional<at::Tensor>;

// As in memmod/ops/backends: cuda/primitives.py, cuda/policy.py and gpu/output.py say why.
constexpr int64_t kRowChunk = 64, kLineChunk = 4096;
constexpr int64_t kSmallRows = 16, kSummedFrom = 8;
constexpr int64_t kFusedRows = 43, kFusedFrom = 256, kFusedMost = (int64_t{1} << 31) - 1024;

// A memory and what each sample selects of it.
struct Gates {
  at::Tensor memory, index;
  Gate gate;

  int64_t samples() const {
    return index.size(0);
  }
};
using OptionalGates = std::optional<Gates>;

OptionalGates gates_of(const Optional& memory, const Modulation& modulation) {
  if (!memory.has_value()) return std::nullopt;
  return Gates{memory->contiguous(), modulation.index.contiguous(), modulation.gate};
}

void modulate_kernel(
    const at::Tensor& x, const Optional& other, const Optional& bias, const Optional& y, const Optional& sums,
    const OptionalGates& gates, bool bias_inside, bool relu, at::IntArrayRef sizes) {
  using Kernel = void(
      const at::Tensor&, const Optional&, const Optional&, const Optional&, const Optional&, const Optional&,
      const Optional&, int64_t, bool, bool, at::IntArrayRef);
  static const auto kernel =
      c10::Dispatcher::singleton().findSchemaOrThrow("memmod_cuda::modulate", "").typed<Kernel>();
  const Optional none;
  kernel.call(
      x, other, bias, y, sums, gates.has_value() ? Optional(gates->memory) : none,
      gates.has_value() ? Optional(gates->index) : none, gates.has_value() ? static_cast<int64_t>(gates->gate) : 0,
      bias_inside, relu, sizes);
}

void linear_small_kernel(
    const at::Tensor& x, const at::Tensor& weight, const Optional& bias, const at::Tensor& y, const Optional& saved,
    const Modulation& modulation, bool save_ungated) {
  using Kernel = void(
      const at::Tensor&, const at::Tensor&, const Optional&, const at::Tensor&, const Optional&, const Optional&,
      const Optional&, const at::Tensor&, int64_t, bool, bool);
  static const auto kernel =
      c10::Dispatcher::singleton().findSchemaOrThrow("memmod_cuda::linear_small", "").typed<Kernel>();
  const auto contiguous = [](const Optional& t) { return t.has_value() ? Optional(t->contiguous()) : Optional(); };
  kernel.call(
      x.contiguous(), weight.contiguous(), contiguous(bias), y, saved, contiguous(modulation.memory),
      contiguous(modulation.input_memory), modulation.index.contiguous(), static_cast<int64_t>(modulation.gate),
      modulation.gate_bias, save_ungated);
}

bool has_linear_fused(const at::Tensor& x) {
  using Has = bool(const at::Tensor&);
  static const auto has =
      c10::Dispatcher::singleton().findSchemaOrThrow("memmod_cuda::has_linear_fused", "").typed<Has>();
  return has.call(x);
}

// Whether the kernel with the gates in its epilogue takes a product of so many rows with this weight.
bool takes_fused(
    const at::Tensor& x, const at::Tensor& weight, int64_t rows, const Modulation& modulation, bool keep_gated) {
  const int64_t units = weight.size(0), inputs = weight.size(1);
  return !keep_gated && modulation.memory.has_value() && !modulation.input_memory.has_value() &&
         x.scalar_type() != at::kFloat && inputs % 8 == 0 && units % 8 == 0 && rows >= kFusedFrom &&
         rows / modulation.index.size(0) >= kFusedRows && std::max({rows, units, inputs}) <= kFusedMost &&
         has_linear_fused(x);
}

// y [.., O] of any shape in the order of [rows, O] = gates of x [.., I], contiguous, times weight [O, I, ..].
void linear_fused_kernel(
    const at::Tensor& x, const at::Tensor& given_weight, const Optional& bias, const at::Tensor& y,
    const Modulation& modulation) {
  using Kernel = void(
      const at::Tensor&, const at::Tensor&, const Optional&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
      int64_t, bool, bool, int64_t);
  static const auto kernel =
      c10::Dispatcher::singleton().findSchemaOrThrow("memmod_cuda::linear_fused", "").typed<Kernel>();
  const auto aligned = [](const at::Tensor& t) {
    return reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : t.clone();
  };
  kernel.call(
      aligned(x), aligned(given_weight.contiguous()), bias.has_value() ? Optional(aligned(bias->contiguous())) : bias,
      y, modulation.memory->contiguous(), modulation.index.contiguous(), static_cast<int64_t>(modulation.gate),
      modulation.gate_bias, modulation.relu, 0);
}

// dα [C, K] from each sample's terms a ⊙ b (a alone without b).
at::Tensor class_sums(const at::Tensor& a, const Optional& b, const Gates& gates) {
  using Kernel = void(
      const at::Tensor&, const Optional&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, int64_t);
  static const auto kernel =
      c10::Dispatcher::singleton().findSchemaOrThrow("memmod_cuda::class_sums", "").typed<Kernel>();
  const at::Tensor dmemory = at::empty_like(gates.memory);
  const int64_t parts = a.numel() / (gates.samples() * gates.memory.size(1));
  kernel.call(a, b, dmemory, gates.memory, gates.index, static_cast<int64_t>(gates.gate), parts);
  return dmemory;
}

// A tensor as [rows, width, inner], in the order of its storage.
struct Channels {
  int64_t rows, width, inner;
  at::MemoryFormat format;
};

Channels channels(const at::Tensor& x, int64_t dim) {
  dim = dim < 0 ? dim + x.dim() : dim;
  if (dim < 2 && x.dim() == 4 && !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    if (dim == 0) return {1, x.size(0), x.numel() / x.size(0), at::MemoryFormat::ChannelsLast};
    return {x.size(0) * x.size(2) * x.size(3), x.size(1), 1, at::MemoryFormat::ChannelsLast};
  }
  int64_t rows = 1, inner = 1;
  for (int64_t d = 0; d < x.dim(); ++d) (d < dim ? rows : inner) *= d == dim ? 1 : x.size(d);
  return {rows, x.size(dim), inner, at::MemoryFormat::Contiguous};
}

// out = s ⊙ x (+ bias), or s ⊙ (x + bias) where it is inside, and the sums [B, P, K] of x ⊙ other (of s ⊙ x without
// other). relu: behind out, or where other, its result, is not positive x counts as 0.
Optional one_pass(
    const at::Tensor& x, const Channels& view, const OptionalGates& gates, int64_t samples, const Optional& other,
    const Optional& bias, const Optional& out, bool with_sums, bool relu = false, bool bias_inside = false) {
  const int64_t rows = view.rows / samples;
  int64_t chunk, parts;
  if (view.inner > 1) {
    chunk = kLineChunk;
    parts = rows * ((view.inner + kLineChunk - 1) / kLineChunk);
  } else {
    chunk = kRowChunk;
    parts = (rows + chunk - 1) / chunk;
  }
  Optional sums;
  if (with_sums) sums = at::empty({samples, parts, view.width}, x.options().dtype(at::kFloat));
  const std::array<int64_t, 5> sizes{samples, rows, view.width, view.inner, chunk};
  const Optional added = bias.has_value() ? Optional(bias->contiguous()) : bias;
  modulate_kernel(x, other, added, out, sums, gates, bias_inside, relu, sizes);
  return sums;
}

// s ⊙ x (+ bias) along `dim`, or s ⊙ (x + bias), with an optional ReLU behind; `out` may be x itself.
at::Tensor modulate(
    const at::Tensor& given, const OptionalGates& gates, int64_t dim, const Optional& bias = {}, Optional out = {},
    bool relu = false, bool bias_inside = false) {
  const Channels view = channels(given, dim);
  const at::Tensor x = given.contiguous(view.format);
  if (!out.has_value()) out = at::empty_like(x);
  const int64_t samples = gates.has_value() ? gates->samples() : 1;
  if (x.numel() > 0) one_pass(x, view, gates, samples, {}, bias, out, false, relu, bias_inside);
  return *out;
}

// [K]: the sums of s ⊙ x over every dim but `dim`, in x's dtype.
at::Tensor sums_along(const at::Tensor& x, const OptionalGates& gates, int64_t dim) {
  const Channels view = channels(x, dim);
  if (x.numel() == 0) return at::zeros({view.width}, x.options());
  const int64_t samples = gates.has_value() ? gates->samples() : 1;
  const Optional sums = one_pass(x.contiguous(view.format), view, gates, samples, {}, {}, {}, true);
  return at::sum(*sums, at::IntArrayRef({0, 1})).to(x.scalar_type());
}

// Whether the products of a memory's gradient are summed by sample, in one pass over its many rows.
bool summed_by_sample(const Channels& view, const Gates& gates) {
  return view.inner > 1 || view.rows / gates.samples() >= kSummedFrom;
}

// (s ⊙ dy if with_dz, dα), reading dy and y once where a sample has many rows. relu, there only: y is the result of
// one.
std::pair<Optional, at::Tensor> memory_gradient(
    const at::Tensor& given_dy, const at::Tensor& given_y, const Gates& gates, int64_t dim, bool with_dz,
    bool relu = false) {
  if (given_dy.numel() == 0 || gates.memory.numel() == 0) {
    return {with_dz ? Optional(modulate(given_dy, gates, dim)) : Optional(), at::zeros_like(gates.memory)};
  }
  const Channels view = channels(given_dy, dim);
  const at::Tensor dy = given_dy.contiguous(view.format), y = given_y.contiguous(view.format);
  const Optional dz = with_dz ? Optional(at::empty_like(dy)) : Optional();
  const int64_t samples = gates.samples();
  if (!summed_by_sample(view, gates)) {
    if (with_dz) one_pass(dy, view, gates, samples, {}, {}, dz, false);
    return {dz, class_sums(dy, y, gates)};
  }
  const OptionalGates passed = with_dz ? OptionalGates(gates) : OptionalGates();
  const Optional sums = one_pass(dy, view, passed, samples, y, {}, dz, true, relu);
  return {dz, class_sums(*sums, {}, gates)};
}

// s ⊙ dy in front of a ReLU whose result is y.
at::Tensor gated_past_relu(const at::Tensor& given_dy, const at::Tensor& y, const Gates& gates, int64_t dim) {
  const Channels view = channels(given_dy, dim);
  const at::Tensor dy = given_dy.contiguous(view.format), dz = at::empty_like(dy);
  if (dy.numel() > 0) one_pass(dy, view, gates, gates.samples(), y.contiguous(view.format), {}, dz, false, true);
  return dz;
}

// weight [O, I, …] with the gates of its inputs for a whole batch, in that type.
at::Tensor inputs_gated(const at::Tensor& weight, const Gates& in, at::ScalarType type) {
  const Channels view = channels(weight, 1);
  if (view.inner == 1) return modulate(weight, in, 1).to(type);
  // The tail takes a warp for a line, and these have as many numbers as a kernel has taps.
  const at::Tensor ones = at::ones({1, view.width}, in.memory.options());
  at::Tensor gated = at::empty_like(weight, weight.options().dtype(type));
  return at::mul_out(gated, weight, modulate(ones, in, -1).view({view.width, 1, 1}));
}

// weight [O, I, …] with the gates of a whole batch in it, in its own dtype.
at::Tensor folded(const at::Tensor& weight, const OptionalGates& in, const OptionalGates& out) {
  if (!in.has_value()) return modulate(weight, out, 0);
  if (!out.has_value()) return inputs_gated(weight, *in, weight.scalar_type());
  // Rounded once.
  return inputs_gated(modulate(weight.to(at::kFloat), out, 0), *in, weight.scalar_type());
}

// Whether gates go into the weight, of `inputs` numbers for each unit, for so many rows of the output: where that has
// fewer numbers. With a ReLU the tail is a pass anyway.
bool folds(const Modulation& modulation, int64_t rows, int64_t inputs, bool need_product) {
  return modulation.index.size(0) == 1 && rows >= inputs && !need_product && !modulation.relu;
}

// (y, saved) by the library's layer(x, weight, bias). bias_in_tail: the pass of the gates adds the bias.
template <typename Layer>
std::tuple<at::Tensor, at::Tensor> by_library(
    const Layer& layer, at::Tensor x, const at::Tensor& weight, const Optional& given_bias,
    const Modulation& modulation, bool keep_gated, bool fold, int64_t dim, bool bias_in_tail) {
  // With other strides the library takes another kernel, and gives other bits.
  const Optional bias = given_bias.has_value() ? Optional(given_bias->contiguous()) : given_bias;
  const OptionalGates in = gates_of(modulation.input_memory, modulation), out = gates_of(modulation.memory, modulation);
  const at::Tensor nothing = at::empty({0}, x.options());
  if (fold) {
    Optional scaled = bias;
    if (bias.has_value() && out.has_value() && modulation.gate_bias) scaled = modulate(*bias, out, 0);
    return {layer(x, folded(weight, in, out), scaled), nothing};
  }
  if (in.has_value()) x = modulate(x, in, dim);
  const Optional inner = modulation.gate_bias ? bias : Optional(), outer = modulation.gate_bias ? Optional() : bias;
  const bool keep_ungated = keep_gated && out.has_value() && modulation.gate == Gate::kIdentity;
  const bool inside = bias_in_tail && inner.has_value() && out.has_value() && !keep_ungated;
  const at::Tensor z = layer(x, weight, inside ? Optional() : inner);
  if (keep_ungated) return {modulate(z, out, dim, outer), z};
  if (keep_gated && out.has_value()) {
    const at::Tensor gated = modulate(z, out, dim, inside ? inner : Optional(), z, false, inside);
    return {outer.has_value() ? modulate(gated, {}, dim, outer) : gated.clone(), gated};
  }
  if (!out.has_value() && !outer.has_value()) return {z, nothing};
  return {modulate(z, out, dim, inside ? inner : outer, z, modulation.relu, inside), nothing};
}

// library(dz, x, weight, with_dx, with_dweight) gives (dx, dweight) of a layer without gates.
template <typename Library>
Gradients backward(
    const Library& library, const LayerGradCall& call, at::Tensor dy, const Optional& x, const Optional& saved,
    bool fold, int64_t dim) {
  const auto [need_dx, need_dweight, need_dbias, need_dmemory, need_dinput] = call.needs;
  const Modulation& modulation = call.modulation;
  const OptionalGates in = gates_of(modulation.input_memory, modulation), out = gates_of(modulation.memory, modulation);
  const bool around = (need_dx || need_dinput) && !fold;
  // The identity gate's memory needs the product before its own gate.
  const OptionalGates early = need_dinput && modulation.gate == Gate::kIdentity ? OptionalGates() : in;
  // Past the ReLU: dy itself where it is read without y.
  bool relu = modulation.relu;
  if (relu && (need_dbias || (need_dmemory && !summed_by_sample(channels(dy, dim), *out)))) {
    dy = at::threshold_backward(dy, *saved, 0);
    relu = false;
  }
  Gradients gradients;
  Optional dz;
  if (need_dmemory) {
    std::tie(dz, gradients.memory) = memory_gradient(dy, *saved, *out, dim, around || need_dweight, relu);
  } else if (relu && (around || need_dweight)) {
    dz = gated_past_relu(dy, *saved, *out, dim);
  } else if (around || need_dweight) {
    dz = out.has_value() ? modulate(dy, out, dim) : dy;
  }
  at::Tensor dx;
  if (fold && (need_dx || need_dinput)) {
    dx = library(dy, Optional(), folded(*call.weight, in, out), true, false).first;
  }
  if (around || need_dweight) {
    const Optional gated_x = need_dweight && in.has_value() ? Optional(modulate(*x, in, dim)) : x;
    const at::Tensor weight = call.weight.value_or(at::Tensor());
    auto [of_x, of_weight] = library(*dz, gated_x, weight, around, need_dweight);
    if (around) dx = of_x;
    gradients.weight = of_weight;
  }
  if (around && early.has_value()) modulate(dx, early, dim, {}, dx);
  if (need_dinput) {
    const auto [gated, dinput] = memory_gradient(dx, *x, *in, dim, need_dx && !early.has_value());
    gradients.input_memory = dinput;
    if (gated.has_value()) dx = *gated;
  }
  if (need_dbias) gradients.bias = sums_along(dy, modulation.gate_bias ? out : OptionalGates(), dim);
  gradients.x = dx;
  return gradients;
}

// Whether a convolution is a product of each pixel.
bool pointwise(const at::Tensor& weight, const ConvOptions& options) {
  const std::array<int64_t, 2> ones{1, 1}, zeros{0, 0};
  return weight.size(2) == 1 && weight.size(3) == 1 && options.groups == 1 && options.stride == ones &&
         options.padding == zeros;
}

// As the library's convolutions choose.
at::MemoryFormat format_of(const at::Tensor& a, const at::Tensor& b) {
  const auto last = at::MemoryFormat::ChannelsLast;
  return a.suggest_memory_format() == last || b.suggest_memory_format() == last ? last : at::MemoryFormat::Contiguous;
}

// Of a convolution's output, over all images.
int64_t pixels(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options) {
  int64_t count = x.size(0);
  for (int d = 0; d < 2; ++d) {
    const int64_t kernel = options.dilation[d] * (weight.size(2 + d) - 1) + 1;
    count *= (x.size(2 + d) + 2 * options.padding[d] - kernel) / options.stride[d] + 1;
  }
  return count;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> linear_forward(
    const at::Tensor& x, const at::Tensor& weight, const Optional& bias, const Modulation& modulation,
    bool keep_gated) {
  const c10::OptionalDeviceGuard device(x.device());
  keep_gated = keep_gated && modulation.memory.has_value();
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0);
  const int64_t rows = x.numel() / x.size(-1);
  if (rows <= kSmallRows) {
    const at::Tensor y = at::empty(shape, x.options());
    const Optional saved = keep_gated ? Optional(at::empty_like(y)) : Optional();
    linear_small_kernel(x, weight, bias, y, saved, modulation, modulation.gate == Gate::kIdentity);
    if (modulation.relu) y.relu_();
    return {y, saved.value_or(at::Tensor())};
  }
  if (takes_fused(x, weight, rows, modulation, keep_gated)) {
    const at::Tensor y = at::empty(shape, x.options());
    linear_fused_kernel(x.contiguous(), weight, bias, y, modulation);
    return {y, at::Tensor()};
  }
  const auto [y, saved] = by_library(
      [](const at::Tensor& x, const at::Tensor& weight, const Optional& bias) { return at::linear(x, weight, bias); },
      x.flatten(0, -2), weight, bias, modulation, keep_gated, folds(modulation, rows, x.size(-1), keep_gated), -1,
      false);
  return {at::_unsafe_view(y, shape), keep_gated ? at::_unsafe_view(saved, shape) : saved};
}

Gradients linear_backward(const LayerGradCall& call) {
  const c10::OptionalDeviceGuard device(call.dy.device());
  const at::Tensor dy = call.dy.flatten(0, -2).contiguous();
  const auto rows = [](const Optional& t) { return t.has_value() ? Optional(t->flatten(0, -2)) : Optional(); };
  const auto library = [](const at::Tensor& dz, const Optional& x, const at::Tensor& weight, bool with_dx,
                          bool with_dw) {
    return std::pair<at::Tensor, at::Tensor>(
        with_dx ? at::mm(dz, weight) : at::Tensor(), with_dw ? at::mm(dz.t(), *x) : at::Tensor());
  };
  // With dweight the gated gradient is there.
  const bool need_product = call.needs[1] || call.needs[4];
  const bool fold = folds(call.modulation, dy.size(0), call.x_shape.back(), need_product);
  Gradients gradients = backward(library, call, dy, rows(call.x), rows(call.saved), fold, -1);
  if (call.needs[0]) gradients.x = at::_unsafe_view(gradients.x, call.x_shape);
  return gradients;
}

std::tuple<at::Tensor, at::Tensor> conv2d_forward(
    const at::Tensor& x, const at::Tensor& weight, const Optional& bias, const Modulation& modulation, bool keep_gated,
    const ConvOptions& options) {
  const c10::OptionalDeviceGuard device(x.device());
  keep_gated = keep_gated && modulation.memory.has_value();
  const at::MemoryFormat format = format_of(x, weight);
  if (pointwise(weight, options) && format == at::MemoryFormat::ChannelsLast &&
      takes_fused(x, weight, x.size(0) * x.size(2) * x.size(3), modulation, keep_gated)) {
    const at::Tensor y = at::empty({x.size(0), weight.size(0), x.size(2), x.size(3)}, x.options(), format);
    linear_fused_kernel(x.contiguous(format), weight.flatten(1), bias, y, modulation);
    return {y, at::Tensor()};
  }
  const auto layer = [&](const at::Tensor& x, const at::Tensor& weight, const Optional& bias) {
    return at::conv2d(x, weight, bias, options.stride, options.padding, options.dilation, options.groups)
        .contiguous(format);
  };
  // The library adds a bias by a pass behind the product, which reads and writes what the tail does.
  const bool pass_anyway = bias.has_value() && !modulation.input_memory.has_value();
  const bool fold = options.groups == 1 && !pass_anyway &&
                    folds(modulation, pixels(x, weight, options), weight.numel() / weight.size(0), keep_gated);
  return by_library(layer, x.contiguous(format), weight, bias, modulation, keep_gated, fold, 1, true);
}

Gradients conv2d_backward(const LayerGradCall& call, const ConvOptions& options) {
  const c10::OptionalDeviceGuard device(call.dy.device());
  const bool need_product = call.needs[1] || call.needs[4];
  const at::MemoryFormat format =
      call.weight.has_value() ? format_of(call.dy, *call.weight) : call.dy.suggest_memory_format();
  const auto library = [&](const at::Tensor& dz, Optional x, const at::Tensor& weight, bool with_dx, bool with_dw) {
    // Only its shape and layout are read.
    if (!x.has_value()) x = at::empty(call.x_shape, dz.options(), format);
    auto [dx, dweight, dbias] = at::convolution_backward(
        dz, *x, weight, at::OptionalIntArrayRef(), options.stride, options.padding, options.dilation, false, {0, 0},
        options.groups, {with_dx, with_dw, false});
    return std::pair<at::Tensor, at::Tensor>(
        with_dx ? dx.contiguous(format) : dx, with_dw ? dweight.contiguous(weight.suggest_memory_format()) : dweight);
  };
  const int64_t rows = call.dy.numel() / call.dy.size(1);
  const bool fold = options.groups == 1 && call.weight.has_value() &&
                    folds(call.modulation, rows, call.weight->numel() / call.weight->size(0), need_product);
  return backward(library, call, call.dy.contiguous(format), call.x, call.saved, fold, 1);
}

namespace {

// y in the strides that a new tensor like x has; a copy only where x is neither contiguous nor channels last.
at::Tensor like(const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor empty = at::empty_like(x, x.options().device(at::kMeta));
  return y.strides() == empty.strides() ? y : at::empty_like(x).copy_(y);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> output_forward(
    const at::Tensor& x, const at::Tensor& memory, const at::Tensor& index, int64_t dim, Gate gate, bool keep_gated) {
  const c10::OptionalDeviceGuard device(x.device());
  const at::Tensor y = like(x, modulate(x, Gates{memory.contiguous(), index.contiguous(), gate}, dim));
  return {y, keep_gated ? y.clone() : at::Tensor()};
}

std::array<at::Tensor, 2> output_backward(
    const at::Tensor& dy, const Optional& saved, const at::Tensor& memory, const at::Tensor& index, int64_t dim,
    Gate gate, std::array<bool, 2> needs) {
  const c10::OptionalDeviceGuard device(dy.device());
  const Gates gates{memory.contiguous(), index.contiguous(), gate};
  if (!needs[1]) return {needs[0] ? like(dy, modulate(dy, gates, dim)) : at::Tensor(), at::Tensor()};
  const auto [dx, dmemory] = memory_gradient(dy, *saved, gates, dim, needs[0]);
  return {dx.has_value() ? like(dy, *dx) : at::Tensor(), dmemory};
}

}  // namespace memmod::gpu
