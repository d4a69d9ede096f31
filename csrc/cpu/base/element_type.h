// The element types of the kernels.
//
// Without functions, as every file that is compiled for its own instruction set includes it: see micro/microkernels.h.
#pragma once

namespace memmod::cpu {

// In the order of the micro-kernels' tables.
enum class Type : int { kFloat, kBFloat16, kHalf };
constexpr int kTypes = 3;

}  // namespace memmod::cpu
