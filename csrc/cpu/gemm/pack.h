// Weights in the order in which the products read them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace memmod::cpu {

// How the tasks of a product read its right operand B.
enum class WeightLayout {
  kPanels,     // fp32 [panels][taps][channels][width], zeros after the last column
  kPairs,      // one tap of bf16 [panels][channels / 2][width][2]
  kAmx,        // bf16 [panels][taps][channels / 32][2][16][16][2]: tiles of 16 pairs of channels by 16 columns
  kAmxBf16x3,  // fp32 in three planes of bf16: [panels][taps][channels / 32][3][2][16][16][2]
};

// All but panels are padded with zeros to whole pairs or tiles, and have one plane of bf16 or three: see bf16_gemm.h.
struct PackedWeight {
  at::Tensor storage;
  int64_t taps = 0, channels = 0, columns = 0, width = 0;
  WeightLayout layout = WeightLayout::kPanels;

  int64_t panels() const {
    return (columns + width - 1) / width;
  }
  const float* panel(int64_t index) const {
    return storage.const_data_ptr<float>() + index * taps * channels * width;
  }
  const uint16_t* bf16_panel(int64_t index) const {
    const auto* data = static_cast<const uint16_t*>(storage.const_data_ptr());
    return data + index * (storage.numel() / panels());
  }
};

inline int64_t planes_of(WeightLayout layout) {
  return layout == WeightLayout::kAmxBf16x3 ? 3 : 1;
}

// kForward: channels are the layer's inputs, columns its units; kBackward: the other way round, and the taps in reverse
// order, in which a convolution's gradient reads the images forwards.
enum class Direction { kForward, kBackward };

// weight: [O, I] or [O, I, kh, kw], fp32, bf16 or fp16. layout: kPanels, or the weight_layout of the product.
PackedWeight pack(const at::Tensor& weight, Direction direction, WeightLayout layout);

}  // namespace memmod::cpu
