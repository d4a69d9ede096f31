// A call's selection with the gates of its memories.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "gates/gates.h"
#include "layers/layers.h"

namespace memmod::cpu {

inline int64_t num_classes(const Modulation& modulation) {
  return modulation.memory.has_value()         ? modulation.memory->size(0)
         : modulation.input_memory.has_value() ? modulation.input_memory->size(0)
                                               : 0;
}

// Refers to itself: neither copied nor moved.
struct Selected {
  Selected(const Modulation& modulation, bool with_output_gates, bool with_input_gates)
      : selection(
            num_classes(modulation) > 0 ? read_selection(modulation.index, num_classes(modulation))
                                        : Selection{std::vector<int64_t>(modulation.index.size(0) + 1, 0), {}}),
        slots(selection, num_classes(modulation)) {
    if (modulation.memory.has_value()) {
      memory = modulation.memory->contiguous();
      if (with_output_gates) {
        out.emplace(memory, slots, modulation.gate);
      }
    }
    if (modulation.input_memory.has_value()) {
      input_memory = modulation.input_memory->contiguous();
      if (with_input_gates) {
        in.emplace(input_memory, slots, modulation.gate);
      }
    }
  }
  Selected(const Selected&) = delete;
  Selected& operator=(const Selected&) = delete;

  const Gates* output_gates() const {
    return out.has_value() ? &*out : nullptr;
  }
  const Gates* input_gates() const {
    return in.has_value() ? &*in : nullptr;
  }

  Selection selection;
  Slots slots;
  at::Tensor memory, input_memory;
  std::optional<Gates> out, in;
};

}  // namespace memmod::cpu
