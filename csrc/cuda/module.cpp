// The kernels as torch ops by PyTorch's stable ABI, for memmod/ops/backends/cuda/register.py: they write into tensors
// that exist, and take every tensor as contiguous in the order that kernels.h gives. Shapes and options are checked in
// Python.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels.h"

namespace memmod {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

Type type_of(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  if (type == ScalarType::Float) return Type::fp32;
  if (type == ScalarType::BFloat16) return Type::bf16;
  STD_TORCH_CHECK(type == ScalarType::Half, "memmod's CUDA kernels serve fp32, bf16 and fp16");
  return Type::fp16;
}

const void* read(const Optional& t) {
  return t ? t->const_data_ptr() : nullptr;
}
void* write(const Optional& t) {
  return t ? t->mutable_data_ptr() : nullptr;
}

Selection selection(const Optional& memory, const Optional& index, int64_t gate) {
  if (!memory || !index) return {};
  STD_TORCH_CHECK(
      memory->scalar_type() == ScalarType::Float && index->scalar_type() == ScalarType::Long,
      "a memory is fp32, an index int64");
  const int64_t sets = index->dim() == 1 ? 1 : index->size(1);
  return {
      static_cast<const float*>(memory->const_data_ptr()),
      static_cast<const int64_t*>(index->const_data_ptr()),
      memory->size(0),
      memory->size(1),
      sets,
      static_cast<Gate>(gate)};
}

// The current stream of x's device, which is the current device while this lives.
class Place {
 public:
#ifdef MEMMOD_HOST
  explicit Place(const Tensor&) {
  }
#else
  explicit Place(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
#endif
  cudaStream_t stream() const {
    return stream_;
  }

 private:
#ifndef MEMMOD_HOST
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_{};
};

// sizes: samples, rows, width, inner, chunk
void modulate_op(
    Tensor x, Optional other, Optional bias, Optional y, Optional sums, Optional memory, Optional index, int64_t gate,
    bool bias_inside, bool relu, Sizes sizes) {
  STD_TORCH_CHECK(!(other && bias_inside), "modulate multiplies by another tensor without a bias inside of the gate");
  const Place place(x);
  modulate(
      type_of(x),
      {x.const_data_ptr(), read(other), read(bias), write(y), static_cast<float*>(write(sums)),
       selection(memory, index, gate), sizes[0], sizes[2], sizes[3], static_cast<int>(sizes[1]),
       static_cast<int>(sizes[4]), bias_inside, relu},
      place.stream());
}

void class_sums_op(Tensor a, Optional b, Tensor dmemory, Tensor memory, Tensor index, int64_t gate, int64_t parts) {
  const Place place(a);
  class_sums(
      type_of(a),
      {a.const_data_ptr(), read(b), static_cast<float*>(dmemory.mutable_data_ptr()), selection(memory, index, gate),
       index.size(0), parts},
      place.stream());
}

void linear_small_op(
    Tensor x, Tensor weight, Optional bias, Tensor y, Optional saved, Optional memory, Optional input_memory,
    Tensor index, int64_t gate, bool gate_bias, bool save_ungated) {
  const int64_t rows = y.numel() / y.size(-1);
  STD_TORCH_CHECK(rows <= SMALL_ROWS, "linear_small takes ", SMALL_ROWS, " rows at most, not ", rows);
  const Place place(x);
  linear_small(
      type_of(x),
      {x.const_data_ptr(), weight.const_data_ptr(), read(bias), y.mutable_data_ptr(), write(saved),
       selection(memory, index, gate), selection(input_memory, index, gate), weight.size(0), weight.size(1),
       static_cast<int>(rows), static_cast<int>(rows / index.size(0)), gate_bias, save_ungated},
      place.stream());
}

bool has_linear_fused_op(Tensor x) {
#ifdef MEMMOD_HOST
  return has_linear_fused(0);
#else
  const Place place(x);
  return has_linear_fused(x.get_device_index());
#endif
}

// x [.., inputs] and y [.., units], contiguous, as many rows of each
void linear_fused_op(
    Tensor x, Tensor weight, Optional bias, Tensor y, Tensor memory, Tensor index, int64_t gate, bool gate_bias,
    bool relu, int64_t columns) {
  const int64_t units = weight.size(0), inputs = weight.numel() / units, rows = y.numel() / units;
  STD_TORCH_CHECK(
      inputs % 8 == 0 && units % 8 == 0 && rows / index.size(0) >= FUSED_ROWS, "linear_fused takes multiples of 8 and ",
      FUSED_ROWS, " rows of a sample or more, not ", rows / index.size(0), " rows of ", inputs, " inputs for ", units,
      " units");
  STD_TORCH_CHECK(type_of(x) != Type::fp32, "linear_fused multiplies numbers of 16 bits");
  STD_TORCH_CHECK(x.numel() == rows * inputs, "linear_fused takes as many rows of x as of y");
  STD_TORCH_CHECK(
      columns == 0 || columns == 128 || columns == 192 || columns == 256,
      "linear_fused has tiles of 128, 192 and 256 columns, not ", columns);
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  STD_TORCH_CHECK(
      aligned(x.const_data_ptr()) && aligned(weight.const_data_ptr()) && aligned(read(bias)),
      "linear_fused reads multiples of 16 bytes");
  const Place place(x);
  linear_fused(
      type_of(x),
      {x.const_data_ptr(), weight.const_data_ptr(), read(bias), y.mutable_data_ptr(), selection(memory, index, gate),
       static_cast<int>(units), static_cast<int>(inputs), static_cast<int>(rows),
       static_cast<int>(rows / index.size(0)), gate_bias, relu, static_cast<int>(columns)},
      place.stream());
}

// x, weight, y and saved as [.., height, width, channels]; geometry: strides, paddings, dilations
void conv2d_op(
    Tensor x, Tensor weight, Optional bias, Tensor y, Optional saved, Optional memory, Tensor index, int64_t gate,
    bool gate_bias, bool save_ungated, bool relu, bool transposed, bool tf32, Sizes geometry) {
  const int64_t pixels = y.numel() / y.size(3);
  STD_TORCH_CHECK(
      pixels < (1LL << 31) - (1 << 16), "conv2d counts pixels in 32 bits, and there are ", pixels, ": split the batch");
  const Place place(x);
  const auto size = [](const Tensor& t, int64_t dim) { return static_cast<int>(t.size(dim)); };
  const auto option = [&](int i) { return static_cast<int>(geometry[i]); };
  Conv2d call{};
  call.x = x.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = read(bias);
  call.y = y.mutable_data_ptr();
  call.saved = write(saved);
  call.out = selection(memory, index, gate);
  call.images_per_sample = static_cast<int>(x.size(0) / index.size(0));
  call.images = size(x, 0), call.height = size(x, 1), call.width = size(x, 2), call.inputs = size(x, 3);
  call.units = size(weight, 0), call.kernel_h = size(weight, 1), call.kernel_w = size(weight, 2);
  call.out_height = size(y, 1), call.out_width = size(y, 2);
  call.stride_h = option(0), call.stride_w = option(1), call.padding_h = option(2), call.padding_w = option(3);
  call.dilation_h = option(4), call.dilation_w = option(5);
  call.gate_bias = gate_bias, call.save_ungated = save_ungated, call.relu = relu;
  call.transposed = transposed, call.tf32 = tf32;
  conv2d(type_of(x), call, place.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY(memmod_cuda, m) {
  m.def(
      "modulate(Tensor x, Tensor? other, Tensor? bias, Tensor(a!)? y, Tensor(b!)? sums, Tensor? memory, Tensor? index, "
      "int gate, bool bias_inside, bool relu, int[] sizes) -> ()");
  m.def("class_sums(Tensor a, Tensor? b, Tensor(a!) dmemory, Tensor memory, Tensor index, int gate, int parts) -> ()");
  m.def(
      "linear_small(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) y, Tensor(b!)? saved, Tensor? memory, "
      "Tensor? input_memory, Tensor index, int gate, bool gate_bias, bool save_ungated) -> ()");
  m.def("has_linear_fused(Tensor x) -> bool");
  m.def(
      "linear_fused(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) y, Tensor memory, Tensor index, int gate, "
      "bool gate_bias, bool relu, int columns) -> ()");
  m.def(
      "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) y, Tensor(b!)? saved, Tensor? memory, Tensor index, "
      "int gate, bool gate_bias, bool save_ungated, bool relu, bool transposed, bool tf32, int[] geometry) -> ()");
}

#ifdef MEMMOD_HOST
STABLE_TORCH_LIBRARY_IMPL(memmod_cuda, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(memmod_cuda, CUDA, m) {
#endif
  m.impl("modulate", TORCH_BOX(&modulate_op));
  m.impl("class_sums", TORCH_BOX(&class_sums_op));
  m.impl("linear_small", TORCH_BOX(&linear_small_op));
  m.impl("has_linear_fused", TORCH_BOX(&has_linear_fused_op));
  m.impl("linear_fused", TORCH_BOX(&linear_fused_op));
  m.impl("conv2d", TORCH_BOX(&conv2d_op));
}

}  // namespace memmod
