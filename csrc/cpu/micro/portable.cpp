// The micro-kernels for any processor.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>

#include "micro/microkernels.h"

#define MEMMOD_UNROLL
#define MEMMOD_UNROLL_LANES
#define MEMMOD_RARE
// Into its callers whatever its size: sums stay in registers.
#define MEMMOD_INLINE inline

namespace memmod::cpu {
namespace {

using Bf16 = c10::BFloat16;
using Fp16 = c10::Half;

// Four lanes that the compiler may make one vector.
struct Vector {
  struct Register {
    float lanes[4];
  };
  static constexpr int64_t kLanes = 4;

  template <typename Lane>
  static Register each(const Lane& lane) {
    return {{lane(0), lane(1), lane(2), lane(3)}};
  }
  static Register zero() {
    return {};
  }
  static Register broadcast(const float* p) {
    return each([&](int) { return *p; });
  }
  template <typename T>
  static Register load(const T* p) {
    return each([&](int i) { return static_cast<float>(p[i]); });
  }
  template <typename T>
  static void store(T* p, Register x) {
    for (int i = 0; i < kLanes; ++i) {
      p[i] = static_cast<T>(x.lanes[i]);
    }
  }
  static Register add(Register a, Register b) {
    return each([&](int i) { return a.lanes[i] + b.lanes[i]; });
  }
  static Register multiply(Register a, Register b) {
    return each([&](int i) { return a.lanes[i] * b.lanes[i]; });
  }
  // NaN stays NaN.
  static Register at_least(Register floor, Register a) {
    return each([&](int i) { return a.lanes[i] < floor.lanes[i] ? floor.lanes[i] : a.lanes[i]; });
  }
  static Register at_most(Register ceiling, Register a) {
    return each([&](int i) { return a.lanes[i] > ceiling.lanes[i] ? ceiling.lanes[i] : a.lanes[i]; });
  }
  // a where b > 0 or b is NaN, else 0.
  static Register where_positive(Register a, Register b) {
    return each([&](int i) { return b.lanes[i] <= 0.0f ? 0.0f : a.lanes[i]; });
  }
  static Register divide(Register a, Register b) {
    return each([&](int i) { return a.lanes[i] / b.lanes[i]; });
  }
  // To the nearest whole number.
  static Register round(Register x) {
    return each([&](int i) { return std::nearbyint(x.lanes[i]); });
  }
  // x · 2ⁿ for whole numbers n.
  static Register scale(Register x, Register n) {
    return each([&](int i) { return std::ldexp(x.lanes[i], static_cast<int>(n.lanes[i])); });
  }
  static Register fma(Register a, Register b, Register c) {
    return each([&](int i) { return fma_one(a.lanes[i], b.lanes[i], c.lanes[i]); });
  }
  // Two roundings: a fused one is a slow library call where the processor has none.
  static float fma_one(float a, float b, float c) {
    return a * b + c;
  }
};

#include "micro/microkernels.inc"

}  // namespace

constexpr MicroKernels kPortable = {0, kColumns, Vector::kLanes, 768, {}, {}, MEMMOD_ROW_FUNCTIONS};

}  // namespace memmod::cpu
