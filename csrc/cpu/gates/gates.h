// The selection of a call on the CPU, the multipliers that it stands for, and the sums that become a memory's gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace memmod::cpu {

enum class Gate { kSigmoid, kIdentity, kHard };

Gate parse_gate(std::string_view name);

// A selection as lists: sample b selects classes[offsets[b]] to classes[offsets[b + 1] - 1], each once, never -1.
struct Selection {
  std::vector<int64_t> offsets;
  std::vector<int64_t> classes;

  int64_t samples() const {
    return static_cast<int64_t>(offsets.size()) - 1;
  }
  int64_t count(int64_t sample) const {
    return offsets[sample + 1] - offsets[sample];
  }
};

// Whether every entry of an int64 index is in -1 to num_classes - 1.
bool in_range(const at::Tensor& index, int64_t num_classes);

// index: int64 [B] or [B, S], on the CPU. Throws IndexError for a class out of range.
Selection read_selection(const at::Tensor& index, int64_t num_classes);

// The distinct combinations of classes in a selection: samples that select the same single class share a slot, every
// set has one of its own.
class Slots {
 public:
  Slots(const Selection& selection, int64_t num_classes);

  // -1 where the sample selects nothing.
  int64_t of(int64_t sample) const {
    return of_[sample];
  }
  int64_t count() const {
    return static_cast<int64_t>(first_.size());
  }
  // The classes of a slot, as a range of the selection's.
  std::pair<const int64_t*, const int64_t*> classes(int64_t slot) const {
    const int64_t sample = first_[slot];
    return {
        selection_.classes.data() + selection_.offsets[sample],
        selection_.classes.data() + selection_.offsets[sample + 1]};
  }

 private:
  const Selection& selection_;
  std::vector<int64_t> of_;
  std::vector<int64_t> first_;  // a sample that has the slot
};

// Each sample's multipliers from a memory [C, K].
class Gates {
 public:
  // memory: contiguous fp32. Keeps references to the slots.
  Gates(const at::Tensor& memory, const Slots& slots, Gate gate);

  // K multipliers; null where the sample selects nothing.
  const float* row(int64_t sample) const {
    const int64_t slot = slots_.of(sample);
    return slot < 0 ? nullptr : table_ + slot * width_;
  }
  // The same with ones for nothing.
  const float* row_or_ones(int64_t sample) const {
    const int64_t slot = slots_.of(sample);
    return table_ + (slot < 0 ? slots_.count() : slot) * width_;
  }
  const Slots& slots() const {
    return slots_;
  }

 private:
  const Slots& slots_;
  int64_t width_;
  at::Tensor storage_;
  float* table_;
};

// Sums of products for a memory's gradient in two stages whose order only shapes fix: each task adds up its own rows by
// slot, then each class adds up the tasks' sums in ascending order, in fp64.
class ClassSums {
 public:
  // tasks: the first sample of each task and the one behind its last; a sample may be in several tasks.
  ClassSums(const Slots& slots, int64_t width, const std::vector<std::pair<int64_t, int64_t>>& tasks);

  // Where task `task` adds the products of a sample [width]; null where the sample selects nothing. Starts as 0.
  float* row(int64_t task, int64_t sample) {
    const int64_t row = rows_[offsets_[task] + sample - first_samples_[task]];
    return row < 0 ? nullptr : sums_ + row * width_;
  }

  // The gradient [C, width] of a contiguous fp32 memory from sums of dy ⊙ g (sigmoid) or dy ⊙ z (identity); exactly 0
  // for a class that no sample selects.
  at::Tensor gradient(const at::Tensor& memory, Gate gate) const;

 private:
  const Slots& slots_;
  int64_t width_;
  std::vector<int64_t> first_samples_, offsets_, rows_, slot_of_row_;
  at::Tensor storage_;
  float* sums_;
};

}  // namespace memmod::cpu
