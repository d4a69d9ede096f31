// Weights in the order in which the tiles read them, kept while a weight does not change.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace memmod::cpu {

// The right operand B of a product as fp32 [panels][taps][channels][width], zeros behind the last column.
struct Packed {
  at::Tensor storage;
  int64_t taps = 0, channels = 0, columns = 0, width = 0;

  int64_t panels() const {
    return (columns + width - 1) / width;
  }
  const float* panel(int64_t index) const {
    return storage.const_data_ptr<float>() + index * taps * channels * width;
  }
};

// kForward: channels are the layer's inputs, columns its units; kBackward: the other way round, and the taps in reverse
// order, in which a convolution's gradient reads the images forwards.
enum class Direction { kForward, kBackward };

// weight: [O, I] or [O, I, kh, kw], fp32, bf16 or fp16. Packed anew if the weight's storage or version has changed
// since the last call; kept until then, or until the weight is freed.
Packed packed(const at::Tensor& weight, Direction direction);

// Bytes that are kept for all weights.
int64_t packed_bytes();

}  // namespace memmod::cpu
