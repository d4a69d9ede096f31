// How tasks share rows, columns and other things: by shapes only, so that results do not depend on the number of
// threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace memmod::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// `count` things in `parts` parts of nearly the same size: the first of part `part`.
inline int64_t part_start(int64_t count, int64_t parts, int64_t part) {
  return part * (count / parts) + std::min(part, count % parts);
}

// The same with borders at multiples of `unit`.
inline int64_t part_start(int64_t count, int64_t parts, int64_t part, int64_t unit) {
  return std::min(count, unit * part_start(ceil_div(count, unit), parts, part));
}

// How tasks share the rows and columns of a product: by its shape only.
struct Partition {
  int64_t row_parts, column_parts, row_unit;

  int64_t tasks() const {
    return row_parts * column_parts;
  }
  // The first of `rows` rows that row part `part` has.
  int64_t row_start(int64_t rows, int64_t part) const {
    return part_start(rows, row_parts, part, row_unit);
  }
};

// Rows of a task: about how many, at least how many where there are few, and the unit that borders are multiples of.
struct Grain {
  int64_t usual, fewest, unit;
};

// The rows of tasks that run micro-kernels of `mr` rows; 0 where there are none.
Grain micro_kernel_grain(int64_t mr);

// panels: parts that the columns can be split into, at most.
Partition partition(int64_t rows, int64_t panels, int64_t operations_per_row, const Grain& grain);

// Operations below which a thread costs more than it saves.
constexpr int64_t kSerialOperations = 1 << 18;

}  // namespace memmod::cpu
