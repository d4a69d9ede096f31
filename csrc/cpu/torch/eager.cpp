// The Python module memmod._cpu: the ops as autograd functions in C++, without the dispatcher's and Python's cost per
// call; of CUDA tensors too, by csrc/gpu.
//
// A call that is out of the ordinary in any way (another device or dtype, a subclass, a mode, a transform, a wrong
// shape, a class out of range) gives None, and the caller takes the op of torch.ops.memmod.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/custom_class.h>

#include <string>

#include "base/matrix_view.h"
#include "conv/conv_shape.h"
#include "gates/elementwise.h"
#include "gates/gates.h"
#include "gates/modulation.h"
#include "gates/selection.h"
#include "gpu/layers.h"
#include "layers/layers.h"
#include "layers/modulate_output.h"
#include "layers/weight_cache.h"
#include "micro/cpu_features.h"
#include "torch/weight_lifetime.h"

namespace memmod::cpu {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Keys of plain tensors, and of a thread that runs no mode and no transform.
const c10::DispatchKeySet kOrdinary(
    {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutogradCPU,
     c10::DispatchKey::AutogradCUDA, c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA,
     c10::DispatchKey::BackendSelect});

// Tests run the layers of a GPU on the CPU.
bool gpu_layers_on_cpu = false;

bool on_gpu(const at::Tensor& x) {
  return x.is_cuda() || gpu_layers_on_cpu;
}

// Not operator-, which leaves the bit of the backend.
bool only_ordinary(c10::DispatchKeySet keys) {
  return (keys.raw_repr() & ~kOrdinary.raw_repr()) == 0;
}

bool ordinary(const at::Tensor& t) {
  return only_ordinary(t.key_set()) && t.layout() == at::kStrided;
}

bool ordinary_thread() {
  return only_ordinary(c10::impl::tls_local_dispatch_key_set().included_) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

bool is_memory(const OptionalTensor& memory, const at::Tensor& x, int64_t width) {
  return !memory.has_value() ||
         (ordinary(*memory) && memory->device() == x.device() && memory->dim() == 2 &&
          memory->scalar_type() == at::kFloat && memory->size(1) == width && memory->size(0) > 0);
}

bool is_index(const at::Tensor& index, const at::Tensor& x, int64_t classes) {
  if (!ordinary(index) || index.scalar_type() != at::kLong || (index.dim() != 1 && index.dim() != 2)) {
    return false;
  }
  // On a GPU a class out of range gives NaN: its value is not waited for.
  return index.device() == x.device() && index.size(0) > 0 && x.size(0) % index.size(0) == 0 &&
         (index.is_cuda() || in_range(index, classes));
}

bool learns(const OptionalTensor& memory) {
  return memory.has_value() && memory->requires_grad() && at::GradMode::is_enabled();
}

// The ops' own rule, see memmod/ops/autograd.py.
bool output_is_enough(Gate gate, bool gate_bias, bool has_bias) {
  return gate == Gate::kHard || (gate != Gate::kIdentity && (gate_bias || !has_bias));
}

// What autograd saved; an in-place change of it is reported with the way out.
variable_list saved_tensors(AutogradContext* ctx, const char* name) {
  try {
    return ctx->get_saved_variables();
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    if (message.find("inplace operation") == std::string::npos) {
      throw;
    }
    TORCH_CHECK(
        false, "the backward of memmod::", name,
        " needs a tensor that was changed in place after the forward. If that is the layer's own output (`out += "
        "identity`, an activation with inplace=True), build the layer with keep=\"gated\" or write the operation out "
        "of place. PyTorch says: ",
        message);
  }
}

OptionalTensor optional(const at::Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

c10::IValue as_value(const at::Tensor& t) {
  return t.defined() ? c10::IValue(t) : c10::IValue();
}

// The gradients by the op, which autograd records (and refuses to differentiate again).
std::vector<at::Tensor> by_op(const char* name, std::vector<c10::IValue> arguments) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  op.callBoxed(&arguments);
  std::vector<at::Tensor> results;
  for (const c10::IValue& value : arguments) {
    results.push_back(value.toTensor());
  }
  return results;
}

struct Saved {
  explicit Saved(AutogradContext* ctx, const char* name) {
    const variable_list saved = saved_tensors(ctx, name);
    x = saved[0], weight = saved[1], memory = saved[2], input_memory = saved[3], index = saved[4], y = saved[5];
  }
  at::Tensor x, weight, memory, input_memory, index, y;
};

struct Call {
  Needs needs;
  std::string gate_name;
  Gate gate;
  bool gate_bias, keep_gated, relu;
  std::optional<ConvOptions> conv;

  const char* name() const {
    return conv.has_value() ? "modulated_conv2d" : "modulated_linear";
  }
};

// Holds a Call between forward and backward.
struct CallHolder : torch::CustomClassHolder {
  explicit CallHolder(Call call, std::vector<int64_t> x_shape) : call(std::move(call)), x_shape(std::move(x_shape)) {
  }
  Call call;
  std::vector<int64_t> x_shape;
};

std::tuple<at::Tensor, at::Tensor> forward_of(
    const Call& call, const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& memory, const OptionalTensor& input_memory, const at::Tensor& index) {
  const Modulation modulation{memory, input_memory, index, call.gate, call.gate_bias, call.relu};
  if (on_gpu(x)) {
    return call.conv.has_value() ? gpu::conv2d_forward(x, weight, bias, modulation, call.keep_gated, *call.conv)
                                 : gpu::linear_forward(x, weight, bias, modulation, call.keep_gated);
  }
  return call.conv.has_value() ? conv2d_forward(x, weight, bias, modulation, call.keep_gated, *call.conv)
                               : linear_forward(x, weight, bias, modulation, call.keep_gated);
}

struct LayerFunction : torch::autograd::Function<LayerFunction> {
  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
      const OptionalTensor& memory, const OptionalTensor& input_memory, const at::Tensor& index, const Call& call) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [y, kept] = forward_of(call, x, weight, bias, memory, input_memory, index);
    const auto [need_dx, need_dweight, need_dbias, need_dmemory, need_dinput] = call.needs;
    const bool reads_gates = need_dx || need_dinput || need_dweight || (need_dbias && call.gate_bias);
    const bool reads_weight = need_dx || need_dinput || (need_dweight && call.conv.has_value());
    const at::Tensor none;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(
        {need_dweight || need_dinput ? x : none, reads_weight ? weight : none,
         need_dmemory || reads_gates ? memory.value_or(none) : none,
         need_dinput || reads_gates ? input_memory.value_or(none) : none,
         index.is_inference() && !c10::InferenceMode::is_enabled() ? index.clone() : index,
         call.relu                                   ? y
         : !need_dmemory || call.gate == Gate::kHard ? none
         : call.keep_gated                           ? kept
                                                     : y});
    ctx->saved_data["call"] = c10::IValue::make_capsule(c10::make_intrusive<CallHolder>(call, x.sizes().vec()));
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients_of_outputs) {
    variable_list results(7);
    const at::Tensor& dy = gradients_of_outputs[0];
    const auto capsule = ctx->saved_data["call"].toCapsule();
    const auto& holder = static_cast<const CallHolder&>(*capsule);
    const Call& call = holder.call;
    const std::vector<int64_t>& x_shape = holder.x_shape;
    if (!dy.defined()) {
      return results;
    }
    const Saved saved(ctx, call.name());
    if (at::GradMode::is_enabled()) {
      return recorded(call, x_shape, dy, saved);
    }
    RECORD_FUNCTION(
        call.conv.has_value() ? "memmod::modulated_conv2d_backward" : "memmod::modulated_linear_backward",
        std::vector<c10::IValue>({dy}));
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const LayerGradCall grad_call{
        .dy = dy,
        .x_shape = x_shape,
        .x = optional(saved.x),
        .weight = optional(saved.weight),
        .modulation =
            {optional(saved.memory), optional(saved.input_memory), saved.index, call.gate, call.gate_bias, call.relu},
        .saved = optional(saved.y),
        .needs = call.needs};
    const Gradients gradients = on_gpu(dy) ? call.conv.has_value() ? gpu::conv2d_backward(grad_call, *call.conv)
                                                                   : gpu::linear_backward(grad_call)
                                : call.conv.has_value() ? conv2d_backward(grad_call, *call.conv)
                                                        : linear_backward(grad_call);
    size_t place = 0;
    for (const at::Tensor* gradient :
         {&gradients.x, &gradients.weight, &gradients.bias, &gradients.memory, &gradients.input_memory}) {
      if (call.needs[place]) {
        results[place] = *gradient;
      }
      ++place;
    }
    return results;
  }

  static variable_list recorded(
      const Call& call, const std::vector<int64_t>& x_shape, const at::Tensor& dy, const Saved& saved) {
    std::vector<c10::IValue> arguments{
        call.relu ? at::threshold_backward(dy, saved.y, 0) : dy,
        x_shape,
        as_value(saved.x),
        as_value(saved.weight),
        as_value(saved.memory),
        as_value(saved.input_memory),
        saved.index,
        as_value(saved.y),
        call.gate_name,
        call.gate_bias};
    if (call.conv.has_value()) {
      for (const auto& pair : {call.conv->stride, call.conv->padding, call.conv->dilation}) {
        arguments.emplace_back(std::vector<int64_t>(pair.begin(), pair.end()));
      }
      arguments.emplace_back(call.conv->groups);
    }
    c10::List<bool> needs;
    for (const bool need : call.needs) {
      needs.push_back(need);
    }
    arguments.emplace_back(needs);
    const auto gradients = by_op(
        call.conv.has_value() ? "memmod::modulated_conv2d_backward" : "memmod::modulated_linear_backward",
        std::move(arguments));
    variable_list results(7);
    for (size_t i = 0; i < call.needs.size(); ++i) {
      if (call.needs[i]) {
        results[i] = gradients[i];
      }
    }
    return results;
  }
};

struct OutputCall {
  std::array<bool, 2> needs;
  std::string gate_name;
  Gate gate;
  int64_t dim;
  bool keep_gated;
};

struct OutputHolder : torch::CustomClassHolder {
  explicit OutputHolder(OutputCall call) : call(std::move(call)) {
  }
  OutputCall call;
};

std::tuple<at::Tensor, at::Tensor> output_of(
    const OutputCall& call, const at::Tensor& x, const at::Tensor& memory, const at::Tensor& index) {
  return on_gpu(x) ? gpu::output_forward(x, memory, index, call.dim, call.gate, call.keep_gated)
                   : output_forward(x, memory, index, call.dim, call.gate, call.keep_gated);
}

struct OutputFunction : torch::autograd::Function<OutputFunction> {
  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& memory, const at::Tensor& index,
      const OutputCall& call) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [y, kept] = output_of(call, x, memory, index);
    const at::Tensor none;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(
        {!call.needs[1] || call.gate == Gate::kHard ? none
         : call.gate == Gate::kIdentity             ? x
         : call.keep_gated                          ? kept
                                                    : y,
         memory, index.is_inference() && !c10::InferenceMode::is_enabled() ? index.clone() : index});
    ctx->saved_data["call"] = c10::IValue::make_capsule(c10::make_intrusive<OutputHolder>(call));
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients_of_outputs) {
    variable_list results(4);
    at::Tensor dy = gradients_of_outputs[0];
    if (!dy.defined()) {
      return results;
    }
    const variable_list saved = saved_tensors(ctx, "modulate_output");
    const auto capsule = ctx->saved_data["call"].toCapsule();
    const OutputCall& call = static_cast<const OutputHolder&>(*capsule).call;
    const at::Tensor &y = saved[0], &memory = saved[1], &index = saved[2];
    if (at::GradMode::is_enabled()) {
      c10::List<bool> needs;
      needs.push_back(call.needs[0]);
      needs.push_back(call.needs[1]);
      const auto gradients =
          by_op("memmod::modulate_output_backward", {dy, as_value(y), memory, index, call.dim, call.gate_name, needs});
      results[0] = call.needs[0] ? gradients[0] : at::Tensor();
      results[1] = call.needs[1] ? gradients[1] : at::Tensor();
      return results;
    }
    RECORD_FUNCTION("memmod::modulate_output_backward", std::vector<c10::IValue>({dy}));
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    if (on_gpu(dy)) {
      const auto gradients = gpu::output_backward(dy, optional(y), memory, index, call.dim, call.gate, call.needs);
      results[0] = gradients[0];
      results[1] = gradients[1];
      return results;
    }
    const at::Tensor& like = y.defined() ? y : dy;
    const int64_t dim = call.dim < 0 ? call.dim + dy.dim() : call.dim;
    const bool last = has_channels(like, dim) && !like.is_contiguous();
    const auto format = last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    dy = y.defined() || !has_channels(dy, dim) ? dy.contiguous(format) : dy;
    const auto gradients = output_backward(
        dy, y.defined() ? OptionalTensor(y.contiguous(format)) : std::nullopt, memory, index, call.dim, call.gate,
        call.needs);
    results[0] = call.needs[0] ? gradients[0] : at::Tensor();
    results[1] = call.needs[1] ? gradients[1] : at::Tensor();
    return results;
  }
};

// Fields of dtype, device and layout that the kernels serve.
bool serves(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, int64_t dims) {
  return ordinary(x) && ordinary(weight) && has_type(x.scalar_type()) && weight.scalar_type() == x.scalar_type() &&
         weight.device() == x.device() && weight.dim() == dims &&
         (!bias.has_value() || (ordinary(*bias) && bias->scalar_type() == x.scalar_type() &&
                                bias->device() == x.device() && bias->dim() == 1 && bias->size(0) == weight.size(0)));
}

OptionalTensor layer(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& memory,
    const OptionalTensor& input_memory, const at::Tensor& index, const std::string& gate, bool gate_bias,
    bool keep_gated, bool relu, int64_t inputs, std::optional<ConvOptions> conv) {
  const int64_t classes = memory.has_value() ? memory->size(0) : input_memory->size(0);
  if (!is_memory(memory, x, weight.size(0)) || !is_memory(input_memory, x, inputs) || !is_index(index, x, classes) ||
      (input_memory.has_value() && input_memory->size(0) != classes) ||
      (gate != "sigmoid" && gate != "identity" && gate != "hard") ||
      (gate == "hard" && (learns(memory) || learns(input_memory)))) {
    return std::nullopt;
  }
  Call call{{}, gate, parse_gate(gate), gate_bias, false, false, conv};
  call.keep_gated = learns(memory) && (keep_gated || !output_is_enough(call.gate, gate_bias, bias.has_value()));
  call.relu = relu && memory.has_value() && !call.keep_gated;
  const bool relu_is_left = relu && !call.relu;
  const pybind11::gil_scoped_release no_gil;
  RECORD_FUNCTION(
      conv.has_value() ? "memmod::modulated_conv2d" : "memmod::modulated_linear", std::vector<c10::IValue>({x}));
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  if (at::GradMode::is_enabled()) {
    call.needs = {
        x.requires_grad(), weight.requires_grad(), bias.has_value() && bias->requires_grad(), learns(memory),
        learns(input_memory)};
    for (const bool need : call.needs) {
      if (need) {
        const at::Tensor y = LayerFunction::apply(x, weight, bias, memory, input_memory, index, call);
        return relu_is_left ? at::relu(y) : y;
      }
    }
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  at::Tensor y = std::get<0>(forward_of(call, x, weight, bias, memory, input_memory, index));
  return relu_is_left ? y.relu_() : y;
}

OptionalTensor linear(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& memory,
    const OptionalTensor& input_memory, const at::Tensor& index, const std::string& gate, bool gate_bias,
    bool keep_gated, bool relu) {
  if (!ordinary_thread() || !serves(x, weight, bias, 2) || x.dim() < 2 || x.size(-1) != weight.size(1) ||
      x.numel() == 0 || weight.numel() == 0) {
    return std::nullopt;
  }
  return layer(
      x, weight, bias, memory, input_memory, index, gate, gate_bias, keep_gated, relu, weight.size(1), std::nullopt);
}

OptionalTensor conv2d(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& memory,
    const OptionalTensor& input_memory, const at::Tensor& index, const std::string& gate, bool gate_bias,
    bool keep_gated, bool relu, std::array<int64_t, 2> stride, std::array<int64_t, 2> padding,
    std::array<int64_t, 2> dilation, int64_t groups) {
  if (!ordinary_thread() || !serves(x, weight, bias, 4) || x.dim() != 4 || groups < 1 ||
      x.size(1) != weight.size(1) * groups || weight.size(0) % groups != 0 || x.numel() == 0 || weight.numel() == 0) {
    return std::nullopt;
  }
  for (size_t d = 0; d < 2; ++d) {
    const auto axis = static_cast<int64_t>(d) + 2;
    if (stride[d] < 1 || dilation[d] < 1 || padding[d] < 0 ||
        x.size(axis) + 2 * padding[d] < dilation[d] * (weight.size(axis) - 1) + 1) {
      return std::nullopt;
    }
  }
  return layer(
      x, weight, bias, memory, input_memory, index, gate, gate_bias, keep_gated, relu, x.size(1),
      ConvOptions{stride, padding, dilation, groups});
}

OptionalTensor output(
    const at::Tensor& x, const at::Tensor& memory, const at::Tensor& index, int64_t dim, const std::string& gate,
    bool keep_gated) {
  const int64_t dims = x.dim(), axis = dim < 0 ? dim + dims : dim;
  if (!ordinary_thread() || !ordinary(x) || !has_type(x.scalar_type()) || dims < 2 || axis < 1 || axis >= dims ||
      x.numel() == 0 || (!on_gpu(x) && !has_channels(x, axis)) || !is_memory(memory, x, x.size(axis)) ||
      !is_index(index, x, memory.size(0)) || (gate != "sigmoid" && gate != "identity" && gate != "hard") ||
      (gate == "hard" && learns(memory))) {
    return std::nullopt;
  }
  OutputCall call{{}, gate, parse_gate(gate), dim, false};
  call.keep_gated = keep_gated && gate != "identity" && learns(memory);
  const pybind11::gil_scoped_release no_gil;
  RECORD_FUNCTION("memmod::modulate_output", std::vector<c10::IValue>({x}));
  call.needs = {x.requires_grad() && at::GradMode::is_enabled(), learns(memory)};
  if (call.needs[0] || call.needs[1]) {
    return OutputFunction::apply(x, memory, index, call);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return std::get<0>(output_of(call, x, memory, index));
}

}  // namespace
}  // namespace memmod::cpu

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  memmod::cpu::keep_weights_until_freed(memmod::cpu::call_when_freed);
  module.def("linear", memmod::cpu::linear, "modulated_linear, or None");
  module.def("conv2d", memmod::cpu::conv2d, "modulated_conv2d, or None");
  module.def("output", memmod::cpu::output, "modulate_output, or None");
  module.def(
      "gpu_layers_on_cpu", [](bool on) { memmod::cpu::gpu_layers_on_cpu = on; },
      "for tests: CPU tensors go to csrc/gpu");
  module.def("packed_bytes", memmod::cpu::packed_bytes, "bytes of packed weights that are kept");
  module.def("isa", [] { return memmod::cpu::isa_name(); }, "instruction set of the kernels in use");
  module.def("set_isa", memmod::cpu::set_isa, "for tests: the kernels of another instruction set");
}
