#include "base/matrix_view.h"

#include <c10/util/Exception.h>

namespace memmod::cpu {

Type type_of(at::ScalarType scalar_type) {
  TORCH_CHECK_TYPE(
      has_type(scalar_type), "memmod: the CPU kernel has no ", scalar_type, ", it serves fp32, bf16 and fp16");
  return scalar_type == at::kFloat ? Type::kFloat : scalar_type == at::kBFloat16 ? Type::kBFloat16 : Type::kHalf;
}

}  // namespace memmod::cpu
