// Gates over any dense tensor in one pass: after a layer of the library, and memmod::modulate_output itself.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "gates/gated_rows.h"
#include "gates/gates.h"

namespace memmod::cpu {

// A dense tensor as [outer, channels, inner], in memory order; `outer / samples` of them belong to one sample.
struct Channels {
  int64_t outer, channels, inner;
};

// Whether `channels_of` serves the tensor: contiguous, or channels_last along its channels.
bool has_channels(const at::Tensor& t, int64_t dim);

// dim: not negative, not 0.
Channels channels_of(const at::Tensor& t, int64_t dim);

// How tasks share a tensor, and which sums they make.
class Elementwise {
 public:
  Elementwise(const Channels& shape, int64_t samples);

  // The samples of each task, for ClassSums.
  std::vector<std::pair<int64_t, int64_t>> samples() const;

  // In one pass over x: y = s ⊙ x unless y is undefined, and sums of x ⊙ other for each class unless sums is null. All
  // tensors have one layout; x and y may be the same. Without gates y is not written.
  void run(
      const at::Tensor& x, const at::Tensor& y, const at::Tensor& other, const Gates* gates, ClassSums* sums) const;

 private:
  void run_lines(
      const at::Tensor& x, const at::Tensor& y, const at::Tensor& other, const Gates* gates, ClassSums* sums) const;

  Channels shape_;
  int64_t per_sample_;
  RowTasks rows_;
};

}  // namespace memmod::cpu
