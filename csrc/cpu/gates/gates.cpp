#include "gates/gates.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <array>
#include <functional>

#include "base/parallel.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

// Columns that one task of the second stage adds up.
constexpr int64_t kColumnBlock = 256;
// Multipliers below which a thread costs more than it saves: with 8 classes of 3,072 units a backward takes 0.92 of the
// time that it takes with threads from 4,096 on, with 6,144 units 0.96, and forwards the same.
constexpr int64_t kSerialMultipliers = 32768;

// The multipliers of a class's row: an element's bits depend neither on its position nor on the number of threads.
void multipliers(const float* alpha, Gate gate, float* row, int64_t count) {
  if (gate == Gate::kSigmoid) {
    micro_kernels().sigmoid_row(alpha, 1.0f, row, count);
  } else {
    std::transform(alpha, alpha + count, row, [&](float a) {
      return gate == Gate::kIdentity ? a : a > 0 ? 1.0f : 0.0f;
    });
  }
}

}  // namespace

Gate parse_gate(std::string_view name) {
  if (name == "sigmoid") {
    return Gate::kSigmoid;
  }
  if (name == "identity") {
    return Gate::kIdentity;
  }
  TORCH_CHECK_VALUE(name == "hard", "memmod: unknown gate '", name, "'; it must be sigmoid, identity or hard");
  return Gate::kHard;
}

Gates::Gates(const at::Tensor& memory, const UniqueSelections& unique, Gate gate)
    : unique_(unique), width_(memory.size(1)), storage_(at::empty({unique.count() + 1, width_}, memory.options())) {
  table_ = storage_.mutable_data_ptr<float>();
  const float* alpha = memory.const_data_ptr<float>();
  const auto fill = [&](int64_t slot) {
    float* row = table_ + slot * width_;
    const auto [first, last] = unique.classes(slot);
    multipliers(alpha + *first * width_, gate, row, width_);
    for (const int64_t* c = first + 1; c < last; ++c) {
      thread_local std::vector<float> other;
      other.resize(width_);
      multipliers(alpha + *c * width_, gate, other.data(), width_);
      std::transform(row, row + width_, other.data(), row, std::multiplies<>());
    }
  };
  for_each_task(unique.count(), unique.count() * width_ > kSerialMultipliers, fill);
  std::fill_n(table_ + unique.count() * width_, width_, 1.0f);
}

ClassSums::ClassSums(
    const UniqueSelections& unique, int64_t width, const std::vector<std::pair<int64_t, int64_t>>& tasks)
    : unique_(unique), width_(width) {
  std::vector<int64_t> task_of_slot(unique.count(), -1), row_of_slot(unique.count());
  first_samples_.reserve(tasks.size());
  offsets_.reserve(tasks.size());
  for (int64_t task = 0; task < static_cast<int64_t>(tasks.size()); ++task) {
    const auto [first, last] = tasks[task];
    first_samples_.push_back(first);
    offsets_.push_back(static_cast<int64_t>(rows_.size()));
    for (int64_t sample = first; sample < last; ++sample) {
      const int64_t slot = unique.of(sample);
      if (slot < 0) {
        rows_.push_back(-1);
        continue;
      }
      if (task_of_slot[slot] != task) {
        task_of_slot[slot] = task;
        row_of_slot[slot] = static_cast<int64_t>(slot_of_row_.size());
        slot_of_row_.push_back(slot);
      }
      rows_.push_back(row_of_slot[slot]);
    }
  }
  storage_ = at::zeros({static_cast<int64_t>(slot_of_row_.size()), width}, at::kFloat);
  sums_ = storage_.mutable_data_ptr<float>();
}

at::Tensor ClassSums::gradient(const at::Tensor& memory, Gate gate) const {
  const int64_t num_classes = memory.size(0);
  std::vector<std::vector<int64_t>> rows_of(num_classes);
  for (int64_t row = 0; row < static_cast<int64_t>(slot_of_row_.size()); ++row) {
    const auto [first, last] = unique_.classes(slot_of_row_[row]);
    for (const int64_t* c = first; c < last; ++c) {
      rows_of[*c].push_back(row);
    }
  }
  at::Tensor gradient = at::zeros_like(memory);
  float* out = gradient.mutable_data_ptr<float>();
  const float* alpha = memory.const_data_ptr<float>();
  const int64_t blocks = (width_ + kColumnBlock - 1) / kColumnBlock;
  std::vector<int64_t> used;
  for (int64_t c = 0; c < num_classes; ++c) {
    if (!rows_of[c].empty()) {
      used.push_back(c);
    }
  }
  const auto add = [&](int64_t task) {
    const int64_t c = used[task / blocks], column = task % blocks * kColumnBlock;
    const int64_t count = std::min(kColumnBlock, width_ - column);
    std::array<double, kColumnBlock> total{};
    for (const int64_t row : rows_of[c]) {
      const float* sums = sums_ + row * width_ + column;
      const auto [first, last] = unique_.classes(slot_of_row_[row]);
      if (gate != Gate::kIdentity || last - first == 1) {
        for (int64_t k = 0; k < count; ++k) {
          total[k] += sums[k];
        }
        continue;
      }
      for (int64_t k = 0; k < count; ++k) {
        double share = sums[k];
        for (const int64_t* other = first; other < last; ++other) {
          share *= *other == c ? 1.0f : alpha[*other * width_ + column + k];
        }
        total[k] += share;
      }
    }
    const int64_t at = c * width_ + column;
    std::array<float, kColumnBlock> slope;
    slope.fill(1.0f);
    if (gate == Gate::kSigmoid) {
      micro_kernels().sigmoid_row(alpha + at, -1.0f, slope.data(), count);
    }
    for (int64_t k = 0; k < count; ++k) {
      out[at + k] = static_cast<float>(total[k]) * slope[k];
    }
  };
  const auto work = static_cast<int64_t>(slot_of_row_.size()) * width_;
  for_each_task(static_cast<int64_t>(used.size()) * blocks, work > 4 * kSerialMultipliers, add);
  return gradient;
}

}  // namespace memmod::cpu
