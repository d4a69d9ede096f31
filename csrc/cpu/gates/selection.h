// Which classes each sample of a call selects.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace memmod::cpu {

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
class UniqueSelections {
 public:
  UniqueSelections(const Selection& selection, int64_t num_classes);

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

}  // namespace memmod::cpu
