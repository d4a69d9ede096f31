#include "micro/cpu_features.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <string>

#include "micro/amx.h"
#include "micro/microkernels.h"

#ifdef MEMMOD_X86
#include <cpuid.h>
#endif

namespace memmod::cpu {
namespace {

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

Isa isa() {
  return chosen().load(std::memory_order_relaxed);
}

void set_isa(const char* name) {
  chosen() = parse(name);
}

const char* isa_name() {
  return kNames[static_cast<int>(isa())];
}

}  // namespace memmod::cpu
