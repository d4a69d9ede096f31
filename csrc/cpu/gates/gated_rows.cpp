#include "gates/gated_rows.h"

#include "base/parallel.h"
#include "base/runs.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

// Elements below which a thread costs more than it saves.
constexpr int64_t kSerialElements = 1 << 15;

}  // namespace

std::vector<std::pair<int64_t, int64_t>> RowTasks::samples() const {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  ranges.reserve(parts);
  for (int64_t task = 0; task < parts; ++task) {
    const int64_t first = start(task), last = start(task + 1);
    ranges.emplace_back(first / per_sample, last > first ? (last - 1) / per_sample + 1 : first / per_sample);
  }
  return ranges;
}

RowTasks row_tasks(int64_t rows, int64_t per_sample, int64_t operations_per_row, const Grain& grain) {
  return {rows, per_sample, partition(rows, 1, operations_per_row, grain).row_parts, grain.unit};
}

void add_products(Type type, const void* a, const void* b, int64_t stride, float* sums, int64_t rows, int64_t count) {
  add_products_and_scale(type, false, a, b, stride, nullptr, nullptr, 0, sums, rows, count);
}

void add_products_and_scale(
    Type type, bool relu, const void* a, const void* b, int64_t stride, const float* s, void* y, int64_t y_stride,
    float* sums, int64_t rows, int64_t count) {
  const auto& table = relu ? micro_kernels().reduce_relu_rows : micro_kernels().reduce_rows;
  const auto reduce = table[static_cast<int>(type)];
  in_runs(sums, rows, count, [&](int64_t first, int64_t run, float* to) {
    reduce(
        shifted(a, type, first * stride), shifted(b, type, first * stride), stride, s,
        y == nullptr ? nullptr : shifted(y, type, first * y_stride), y_stride, to, run, count);
  });
}

void add_products_and_widen(
    Type type, bool relu, const void* a, const void* b, int64_t stride, const float* s, float* y, int64_t y_stride,
    int64_t y_step, float* sums, int64_t rows, int64_t count) {
  const auto& table = relu ? micro_kernels().reduce_widen_relu_rows : micro_kernels().reduce_widen_rows;
  const auto reduce = table[static_cast<int>(type)];
  in_runs(sums, rows, count, [&](int64_t first, int64_t run, float* to) {
    reduce(
        shifted(a, type, first * stride), shifted(b, type, first * stride), stride, s, y + first * y_stride, y_stride,
        y_step, to, run, count);
  });
}

float* unread_sums(int64_t count) {
  thread_local std::vector<float> sums;
  if (static_cast<int64_t>(sums.size()) < count) {
    sums.resize(count);
  }
  return sums.data();
}

void gate_rows(
    const MatrixView& x, const MatrixView& y, const MatrixView& other, const Gates* gates, const RowTasks& tasks,
    ClassSums* sums) {
  const MicroKernels& kernel = micro_kernels();
  const auto type = static_cast<int>(x.type);
  const int64_t width = x.columns;
  for_each_task(tasks.parts, x.rows * width > kSerialElements, [&](int64_t task) {
    tasks.each_sample(tasks.start(task), tasks.start(task + 1), [&](int64_t sample, int64_t row, int64_t count) {
      const float* s = gates != nullptr ? gates->row(sample) : nullptr;
      float* sum = sums != nullptr ? sums->row(task, sample) : nullptr;
      if (sum == nullptr) {
        if (y && !(s == nullptr && y.data == x.data)) {
          kernel.scale_rows[type](x.at(row), width, s, y.at(row), width, count, width);
        }
        return;
      }
      add_products_and_scale(
          x.type, false, x.at(row), other.at(row), width, s, y ? y.at(row) : nullptr, width, sum, count, width);
    });
  });
}

}  // namespace memmod::cpu
