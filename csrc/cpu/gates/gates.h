// The multipliers that a selection stands for, and the sums that become a memory's gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "gates/selection.h"

namespace memmod::cpu {

enum class Gate { kSigmoid, kIdentity, kHard };

Gate parse_gate(std::string_view name);

// Each sample's multipliers from a memory [C, K].
class Gates {
 public:
  // memory: contiguous fp32. Keeps references to the slots.
  Gates(const at::Tensor& memory, const UniqueSelections& unique, Gate gate);

  // K multipliers; null where the sample selects nothing.
  const float* row(int64_t sample) const {
    const int64_t slot = unique_.of(sample);
    return slot < 0 ? nullptr : table_ + slot * width_;
  }
  // The same with ones for nothing.
  const float* row_or_ones(int64_t sample) const {
    const int64_t slot = unique_.of(sample);
    return table_ + (slot < 0 ? unique_.count() : slot) * width_;
  }
  const UniqueSelections& unique() const {
    return unique_;
  }

 private:
  const UniqueSelections& unique_;
  int64_t width_;
  at::Tensor storage_;
  float* table_;
};

// Sums of products for a memory's gradient in two stages whose order only shapes fix: each task adds up its own rows by
// slot, then each class adds up the tasks' sums in ascending order, in fp64.
class ClassSums {
 public:
  // tasks: the first sample of each task and the one after its last; a sample may be in several tasks.
  ClassSums(const UniqueSelections& unique, int64_t width, const std::vector<std::pair<int64_t, int64_t>>& tasks);

  // Where task `task` adds the products of a sample [width]; null where the sample selects nothing. Starts as 0.
  float* row(int64_t task, int64_t sample) {
    const int64_t row = rows_[offsets_[task] + sample - first_samples_[task]];
    return row < 0 ? nullptr : sums_ + row * width_;
  }

  // The gradient [C, width] of a contiguous fp32 memory from sums of dy ⊙ g (sigmoid) or dy ⊙ z (identity); exactly 0
  // for a class that no sample selects.
  at::Tensor gradient(const at::Tensor& memory, Gate gate) const;

 private:
  const UniqueSelections& unique_;
  int64_t width_;
  std::vector<int64_t> first_samples_, offsets_, rows_, slot_of_row_;
  at::Tensor storage_;
  float* sums_;
};

}  // namespace memmod::cpu
