// What modulates a layer: a call's selection with the gates of its memories.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "gates/gates.h"
#include "gates/selection.h"

namespace memmod::cpu {

// What modulates a layer; the tensors as in the ops' schemas.
struct Modulation {
  std::optional<at::Tensor> memory, input_memory;
  at::Tensor index;
  Gate gate = Gate::kSigmoid;
  bool gate_bias = true;
  // The layer ends with a ReLU: y is its result, and a backward always gets y as `saved`. Only where y gives the
  // memory's gradient, and there is a memory.
  bool relu = false;
};

inline int64_t num_classes(const Modulation& modulation) {
  return modulation.memory.has_value()         ? modulation.memory->size(0)
         : modulation.input_memory.has_value() ? modulation.input_memory->size(0)
                                               : 0;
}

// The gates of a call. Refers to itself: neither copied nor moved.
struct SelectedGates {
  SelectedGates(const Modulation& modulation, bool with_output_gates, bool with_input_gates)
      : selection(
            num_classes(modulation) > 0 ? read_selection(modulation.index, num_classes(modulation))
                                        : Selection{std::vector<int64_t>(modulation.index.size(0) + 1, 0), {}}),
        unique(selection, num_classes(modulation)) {
    if (modulation.memory.has_value()) {
      memory = modulation.memory->contiguous();
      if (with_output_gates) {
        out.emplace(memory, unique, modulation.gate);
      }
    }
    if (modulation.input_memory.has_value()) {
      input_memory = modulation.input_memory->contiguous();
      if (with_input_gates) {
        in.emplace(input_memory, unique, modulation.gate);
      }
    }
  }
  SelectedGates(const SelectedGates&) = delete;
  SelectedGates& operator=(const SelectedGates&) = delete;

  const Gates* output_gates() const {
    return out.has_value() ? &*out : nullptr;
  }
  const Gates* input_gates() const {
    return in.has_value() ? &*in : nullptr;
  }

  Selection selection;
  UniqueSelections unique;
  at::Tensor memory, input_memory;
  std::optional<Gates> out, in;
};

}  // namespace memmod::cpu
