// The gates of a selection on the CPU: one row of multipliers per sample, and the samples that selected each class.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace memmod::cpu {

// Elements per task below which a thread costs more than it saves.
constexpr int64_t kGrain = 16384;

// Scalar on purpose: an element's bits depend neither on its position nor on the number of threads.
inline float sigmoid(float alpha) {
  return 1.0f / (1.0f + std::exp(-alpha));
}

// A selection as lists: sample b selects classes[offsets[b]] to classes[offsets[b + 1] - 1], each once, never -1.
struct Selection {
  std::vector<int64_t> offsets;
  std::vector<int64_t> classes;

  int64_t samples() const {
    return static_cast<int64_t>(offsets.size()) - 1;
  }
};

// index: int64 [B] or [B, S], on the CPU.
inline Selection read_selection(const at::Tensor& index, int64_t num_classes) {
  TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "memmod: index is ", index.scalar_type(), ", it must be int64");
  TORCH_CHECK_VALUE(
      index.dim() == 1 || index.dim() == 2, "memmod: index has shape ", index.sizes(), ", it must be [B] or [B, S]");
  const at::Tensor dense = index.contiguous();
  const int64_t* values = dense.const_data_ptr<int64_t>();
  const int64_t samples = dense.size(0);
  const int64_t width = dense.dim() == 2 ? dense.size(1) : 1;
  Selection selection;
  selection.offsets.reserve(samples + 1);
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

// Sigmoid gates. row(b) has K multipliers; samples that select the same single class share one row.
class Gates {
 public:
  // memory: contiguous fp32 [C, K].
  Gates(const at::Tensor& memory, const Selection& selection) : rows_(selection.samples()) {
    const int64_t width = memory.size(1);
    std::vector<int64_t> slot(memory.size(0), -1);
    std::vector<int64_t> used;
    for (const int64_t c : selection.classes) {
      if (slot[c] < 0) {
        slot[c] = static_cast<int64_t>(used.size());
        used.push_back(c);
      }
    }
    std::vector<int64_t> sets;
    for (int64_t b = 0; b < selection.samples(); ++b) {
      if (selection.offsets[b + 1] - selection.offsets[b] > 1) {
        sets.push_back(b);
      }
    }
    const auto singles = static_cast<int64_t>(used.size());
    const auto products = static_cast<int64_t>(sets.size());
    // Behind the classes a row of ones, then one row per set.
    storage_ = at::empty({singles + 1 + products, width}, memory.options());
    float* table = storage_.mutable_data_ptr<float>();
    const float* alpha = memory.const_data_ptr<float>();
    const int64_t grain = std::max<int64_t>(1, kGrain / 16 / std::max<int64_t>(1, width));
    at::parallel_for(0, singles, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t k = 0; k < width; ++k) {
          table[i * width + k] = sigmoid(alpha[used[i] * width + k]);
        }
      }
    });
    float* ones = table + singles * width;
    std::fill_n(ones, width, 1.0f);
    at::parallel_for(0, products, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* product = ones + (i + 1) * width;
        const int64_t first = selection.offsets[sets[i]];
        std::copy_n(table + slot[selection.classes[first]] * width, width, product);
        for (int64_t j = first + 1; j < selection.offsets[sets[i] + 1]; ++j) {
          const float* factor = table + slot[selection.classes[j]] * width;
          for (int64_t k = 0; k < width; ++k) {
            product[k] *= factor[k];
          }
        }
      }
    });
    int64_t set = 0;
    for (int64_t b = 0; b < selection.samples(); ++b) {
      const int64_t count = selection.offsets[b + 1] - selection.offsets[b];
      rows_[b] = count == 0   ? ones
                 : count == 1 ? table + slot[selection.classes[selection.offsets[b]]] * width
                              : ones + ++set * width;
    }
  }

  const float* row(int64_t sample) const {
    return rows_[sample];
  }

 private:
  at::Tensor storage_;
  std::vector<const float*> rows_;
};

// The memory's gradient [C, K] from per-sample sums of dy ⊙ y: for each class the sums of its samples in ascending
// order, times σ(−α). A class that no sample selects gets 0. sums: [B, K].
inline at::Tensor memory_gradient(const at::Tensor& memory, const Selection& selection, const float* sums) {
  constexpr int64_t kBlock = 256;
  const int64_t num_classes = memory.size(0), width = memory.size(1);
  std::vector<std::vector<int64_t>> members(num_classes);
  for (int64_t b = 0; b < selection.samples(); ++b) {
    for (int64_t i = selection.offsets[b]; i < selection.offsets[b + 1]; ++i) {
      members[selection.classes[i]].push_back(b);
    }
  }
  at::Tensor gradient = at::zeros_like(memory);
  float* out = gradient.mutable_data_ptr<float>();
  const float* alpha = memory.const_data_ptr<float>();
  const int64_t blocks = (width + kBlock - 1) / kBlock;
  at::parallel_for(0, num_classes * blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t c = task / blocks, first = task % blocks * kBlock;
      const int64_t count = std::min(kBlock, width - first);
      if (members[c].empty()) {
        continue;
      }
      double total[kBlock] = {};
      for (const int64_t b : members[c]) {
        for (int64_t k = 0; k < count; ++k) {
          total[k] += sums[b * width + first + k];
        }
      }
      for (int64_t k = 0; k < count; ++k) {
        const int64_t at = c * width + first + k;
        out[at] = static_cast<float>(total[k]) * sigmoid(-alpha[at]);
      }
    }
  });
  return gradient;
}

}  // namespace memmod::cpu
