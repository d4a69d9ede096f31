// Weights in the order in which the tiles read them, kept while a weight does not change.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace memmod::cpu {

// The right operand B of a product as fp32 [panels][taps][channels][width], zeros behind the last column. In pairs: one
// tap of bf16 [panels][channels / 2][width][2], and zeros behind an odd last channel.
struct Packed {
  at::Tensor storage;
  int64_t taps = 0, channels = 0, columns = 0, width = 0;
  bool pairs = false;

  int64_t panels() const {
    return (columns + width - 1) / width;
  }
  const float* panel(int64_t index) const {
    return storage.const_data_ptr<float>() + index * taps * channels * width;
  }
  const at::BFloat16* pair_panel(int64_t index) const {
    return storage.const_data_ptr<at::BFloat16>() + index * (channels + channels % 2) * width;
  }
};

// Whether products of this type are by pairs (see pairs.h): from the processor and torch's settings. Only of weights
// with one tap.
bool in_pairs(at::ScalarType type);

// kForward: channels are the layer's inputs, columns its units; kBackward: the other way round, and the taps in reverse
// order, in which a convolution's gradient reads the images forwards.
enum class Direction { kForward, kBackward };

// weight: [O, I] or [O, I, kh, kw], fp32, bf16 or fp16. Packed anew if the weight's storage or version has changed
// since the last call; kept until then, or until the weight is freed. A weight with one tap is in pairs where its type
// is.
Packed packed(const at::Tensor& weight, Direction direction);

// Bytes that are kept for all weights.
int64_t packed_bytes();

}  // namespace memmod::cpu
