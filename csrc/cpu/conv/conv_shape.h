// The shapes of a convolution.
#pragma once

#include <array>
#include <cstdint>

namespace memmod::cpu {

struct ConvOptions {
  std::array<int64_t, 2> stride, padding, dilation;
  int64_t groups;
};

// x [N, H, W, I] and y [N, OH, OW, O] in memory order, fp32.
struct ConvShape {
  int64_t images, height, width, inputs, out_height, out_width, units, kernel_height, kernel_width;
  ConvOptions options;

  int64_t taps() const {
    return kernel_height * kernel_width;
  }
  // One input channel for each unit; otherwise all for all.
  bool depthwise() const {
    return options.groups > 1;
  }
  // Of a pixel of y.
  int64_t operations() const {
    return 2 * units * (inputs / options.groups) * taps();
  }
};

}  // namespace memmod::cpu
