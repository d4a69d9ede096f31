#include "gates/selection.h"

#include <algorithm>

namespace memmod::cpu {

bool in_range(const at::Tensor& index, int64_t num_classes) {
  const at::Tensor dense = index.contiguous();
  const int64_t* values = dense.const_data_ptr<int64_t>();
  return std::all_of(values, values + dense.numel(), [&](int64_t c) { return c >= -1 && c < num_classes; });
}

Selection read_selection(const at::Tensor& index, int64_t num_classes) {
  TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "memmod: index is ", index.scalar_type(), ", it must be int64");
  TORCH_CHECK_VALUE(
      index.dim() == 1 || index.dim() == 2, "memmod: index has shape ", index.sizes(), ", it must be [B] or [B, S]");
  const at::Tensor dense = index.contiguous();
  const int64_t* values = dense.const_data_ptr<int64_t>();
  const int64_t samples = dense.size(0);
  const int64_t width = dense.dim() == 2 ? dense.size(1) : 1;
  Selection selection;
  selection.offsets.reserve(samples + 1);
  selection.classes.reserve(dense.numel());
  selection.offsets.push_back(0);
  for (int64_t b = 0; b < samples; ++b) {
    const auto first = static_cast<std::ptrdiff_t>(selection.classes.size());
    for (int64_t i = 0; i < width; ++i) {
      const int64_t c = values[b * width + i];
      TORCH_CHECK_INDEX(
          c >= -1 && c < num_classes, "memmod: class ", c, " was selected, the memory has ", num_classes, " classes");
      auto& chosen = selection.classes;
      if (c >= 0 && std::find(chosen.begin() + first, chosen.end(), c) == chosen.end()) {
        chosen.push_back(c);
      }
    }
    selection.offsets.push_back(static_cast<int64_t>(selection.classes.size()));
  }
  return selection;
}

UniqueSelections::UniqueSelections(const Selection& selection, int64_t num_classes)
    : selection_(selection), of_(selection.samples()) {
  std::vector<int64_t> single(num_classes, -1);
  for (int64_t b = 0; b < selection.samples(); ++b) {
    const int64_t chosen = selection.count(b);
    if (chosen == 0) {
      of_[b] = -1;
      continue;
    }
    int64_t* known = chosen == 1 ? &single[selection.classes[selection.offsets[b]]] : nullptr;
    if (known == nullptr || *known < 0) {
      first_.push_back(b);
      of_[b] = count() - 1;
      if (known != nullptr) {
        *known = of_[b];
      }
    } else {
      of_[b] = *known;
    }
  }
}

}  // namespace memmod::cpu
