// A convolution of channels_last images, with one group or depthwise, as products over the pixels of a copy with zeros
// around the images.
#pragma once

#include "base/partition.h"
#include "conv/conv_shape.h"
#include "gates/gates.h"
#include "gemm/epilogue.h"
#include "gemm/indirect_gemm.h"
#include "gemm/pack.h"

namespace memmod::cpu {

// y = s ⊙ (conv(x, W) + b), or the bias after the gate, with x gated by `in` before. gates: null for none; image n
// belongs to sample n / images_per_sample. kept: null, or takes the gated part (save_ungated: what the gate
// multiplies).
struct ConvForward {
  const float* x;
  float* y;
  float* kept;
  const float* bias;
  bool gate_bias, save_ungated, relu;
  const Gates *gates, *in;
  int64_t images_per_sample;
};

Epilogue epilogue_of(const ConvForward& layer);

// weight: kForward; so it is for the backward of a depthwise convolution.
void implicit_gemm(const ConvForward& layer, const ConvShape& shape, const PackedWeight& weight);

// dx = convᵀ(s ⊙ dy, W), with sums of dy ⊙ saved for the classes in the same pass.
struct ConvBackward {
  const float* dy;
  float* dx;
  const float* saved;
  bool relu;  // dy counts where `saved` is positive; with gates only
  const Gates* gates;
  ClassSums* sums;
  int64_t images_per_sample;
};

// How the tasks of a backward share the images: whole images, or bands of their rows.
class ImageTiling {
 public:
  explicit ImageTiling(const ConvShape& shape);
  ImageTiling(int64_t images, int64_t groups, int64_t bands) : images_(images), groups_(groups), bands_(bands) {
  }

  int64_t tasks() const {
    return groups_ * bands_;
  }
  int64_t first_image(int64_t task) const {
    return part_start(images_, groups_, task / bands_);
  }
  int64_t last_image(int64_t task) const {
    return part_start(images_, groups_, task / bands_ + 1);
  }
  // The task's part of `rows` rows of every one of its images.
  std::pair<int64_t, int64_t> band(int64_t task, int64_t rows) const {
    return {part_start(rows, bands_, task % bands_), part_start(rows, bands_, task % bands_ + 1)};
  }
  // The samples of each task, for ClassSums.
  std::vector<std::pair<int64_t, int64_t>> samples(int64_t images_per_sample) const;

 private:
  int64_t images_, groups_, bands_;
};

void implicit_gemm_backward(const ConvBackward& layer, const ConvShape& shape, const PackedWeight& weight);

}  // namespace memmod::cpu
