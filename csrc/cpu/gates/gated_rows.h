// Matrices whose rows belong to samples: how tasks share the rows, and gates over them in one pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/matrix_view.h"
#include "base/partition.h"
#include "gates/gates.h"

namespace memmod::cpu {

// `rows` rows in `parts` parts with borders at multiples of `unit`; row r belongs to sample r / per_sample.
struct RowTasks {
  int64_t rows, per_sample, parts, unit = 1;

  int64_t start(int64_t task) const {
    return part_start(rows, parts, task, unit);
  }
  // The samples of each task, for ClassSums.
  std::vector<std::pair<int64_t, int64_t>> samples() const;

  // fn(sample, first row, count) for the rows [first, last), sample by sample.
  template <typename Fn>
  void each_sample(int64_t first, int64_t last, const Fn& fn) const {
    for (int64_t row = first; row < last;) {
      const int64_t sample = row / per_sample;
      const int64_t count = std::min(last, (sample + 1) * per_sample) - row;
      fn(sample, row, count);
      row += count;
    }
  }
};

// The tasks that sums of `rows` rows are made in.
RowTasks row_tasks(int64_t rows, int64_t per_sample, int64_t operations_per_row, const Grain& grain);

// sums[i] += Σ_r a[r, i] * b[r, i] over `rows` rows of `count` elements `stride` apart.
void add_products(Type type, const void* a, const void* b, int64_t stride, float* sums, int64_t rows, int64_t count);

// The same, and y[r, i] = a[r, i] * s[i] in fp32, groups of a vector's elements y_step apart. relu: every a[r, i] with
// b[r, i] <= 0 is taken as 0.
void add_products_and_widen(
    Type type, bool relu, const void* a, const void* b, int64_t stride, const float* s, float* y, int64_t y_stride,
    int64_t y_step, float* sums, int64_t rows, int64_t count);

// The same with y in the type of a, or null, and without steps.
void add_products_and_scale(
    Type type, bool relu, const void* a, const void* b, int64_t stride, const float* s, void* y, int64_t y_stride,
    float* sums, int64_t rows, int64_t count);

// A place for sums that nobody reads, `count` of them.
float* unread_sums(int64_t count);

// In one pass over x: y = s ⊙ x unless y is empty, and sums of x ⊙ other for each class unless sums is null. Without
// gates y is a copy. x and y may be the same.
void gate_rows(
    const MatrixView& x, const MatrixView& y, const MatrixView& other, const Gates* gates, const RowTasks& tasks,
    ClassSums* sums);

}  // namespace memmod::cpu
