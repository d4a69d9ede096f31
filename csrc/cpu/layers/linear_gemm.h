// The products of a modulated linear layer over rows: what linear layers and 1×1 convolutions in channels_last share.
#pragma once

#include "base/matrix_view.h"
#include "gates/gated_rows.h"
#include "gates/gates.h"
#include "gemm/pack.h"

namespace memmod::cpu {

// y = out ⊙ ((in ⊙ x) Wᵀ + b), or the bias after the gate.
struct LinearForward {
  MatrixView x, y, kept;  // kept: empty, or what the memory's gradient needs
  const float* bias = nullptr;
  bool gate_bias = true, save_ungated = false, relu = false;
  const Gates* out = nullptr;
  const Gates* in = nullptr;
  int64_t per_sample = 1;
};

// weight: packed forward.
void linear_gemm(const LinearForward& layer, const PackedWeight& weight);

// dx = in ⊙ ((out ⊙ dy) W), with the memories' sums in the same pass.
struct LinearBackward {
  MatrixView dy, dx;
  MatrixView saved;    // read if output_sums or relu
  bool relu = false;   // dy counts where `saved` is positive; with `out` only
  MatrixView x;        // read if input_sums
  MatrixView ungated;  // empty, or takes (out ⊙ dy) W, whose products with x the identity gate's memory needs
  const Gates* out = nullptr;
  const Gates* in = nullptr;
  ClassSums* output_sums = nullptr;
  ClassSums* input_sums = nullptr;
  RowTasks tasks{};  // the sums' tasks
};

// weight: packed backward.
void linear_gemm_backward(const LinearBackward& layer, const PackedWeight& weight);

}  // namespace memmod::cpu
