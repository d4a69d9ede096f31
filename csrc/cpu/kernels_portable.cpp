// The inner loops for any processor, and the choice of a table when the library is loaded.
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <string>

#include "amx.h"
#include "kernels.h"

#ifdef MEMMOD_X86
#include <cpuid.h>
#endif

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

#include "kernels.inc"

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};

Isa best() {
#ifdef MEMMOD_X86
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))) {
    return Isa::kPortable;
  }
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))) {
    return Isa::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512bf16")) {
    return Isa::kAvx512;
  }
  // Leaf 7: AMX-BF16 and AMX-TILE.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool amx = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 22 & 1) && (edx >> 24 & 1);
  return amx && amx_is_permitted() ? Isa::kAmx : Isa::kAvx512Bf16;
#else
  return Isa::kPortable;
#endif
}

Isa parse(const std::string& name) {
  if (name.empty()) {
    return best();
  }
  const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
  TORCH_CHECK_VALUE(
      found != std::end(kNames), "MEMMOD_CPU_ISA is '", name,
      "'; it must be portable, avx2, avx512, avx512_bf16 or amx");
  const auto chosen = static_cast<Isa>(found - std::begin(kNames));
  TORCH_CHECK_VALUE(chosen <= best(), "MEMMOD_CPU_ISA is '", name, "', which this processor does not have: unset it");
  return chosen;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value = [] {
    const char* named = std::getenv("MEMMOD_CPU_ISA");
    return parse(named == nullptr ? "" : named);
  }();
  return value;
}

}  // namespace

constexpr Kernels kPortable = {0, kColumns, Vector::kLanes, 768, {}, {}, MEMMOD_ROW_FUNCTIONS};

Isa isa() {
  return chosen().load(std::memory_order_relaxed);
}

void set_isa(const char* name) {
  chosen() = parse(name);
}

const char* isa_name() {
  return kNames[static_cast<int>(isa())];
}

const Kernels& kernels() {
#ifdef MEMMOD_X86
  if (isa() >= Isa::kAvx512) {
    return isa() == Isa::kAvx512 ? kAvx512 : avx512_bf16();
  }
  if (isa() == Isa::kAvx2) {
    return kAvx2;
  }
#endif
  return kPortable;
}

}  // namespace memmod::cpu
