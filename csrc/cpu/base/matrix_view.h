// Dense matrices in the kernels' element types, without ownership.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "base/element_type.h"

namespace memmod::cpu {

// Throws TypeError for another than fp32, bf16 and fp16.
Type type_of(at::ScalarType scalar_type);

inline bool has_type(at::ScalarType scalar_type) {
  return scalar_type == at::kFloat || scalar_type == at::kBFloat16 || scalar_type == at::kHalf;
}

inline const void* shifted(const void* p, Type type, int64_t elements) {
  return static_cast<const char*>(p) + elements * (type == Type::kFloat ? 4 : 2);
}

inline void* shifted(void* p, Type type, int64_t elements) {
  return static_cast<char*>(p) + elements * (type == Type::kFloat ? 4 : 2);
}

// A dense matrix [rows, columns].
struct MatrixView {
  void* data = nullptr;
  int64_t rows = 0, columns = 0;
  Type type = Type::kFloat;

  MatrixView() = default;
  // t: dense, seen as [rows, columns] in memory order.
  MatrixView(const at::Tensor& t, int64_t matrix_columns)
      : data(const_cast<void*>(t.const_data_ptr())),
        rows(matrix_columns == 0 ? 0 : t.numel() / matrix_columns),
        columns(matrix_columns),
        type(type_of(t.scalar_type())) {
  }

  void* at(int64_t row, int64_t column = 0) const {
    return static_cast<char*>(data) + (row * columns + column) * (type == Type::kFloat ? 4 : 2);
  }
  explicit operator bool() const {
    return data != nullptr;
  }
};

}  // namespace memmod::cpu
