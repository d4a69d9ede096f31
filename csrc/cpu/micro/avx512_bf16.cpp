// The micro-kernels for AVX-512 with BF16. The first line that is not a comment switches the whole file to it.
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
// False alarms about the intrinsics' own undefined operands (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "micro/microkernels.h"

#define MEMMOD_BF16
#include "micro/simd_avx512.inc"

#include "micro/microkernels.inc"

// What converts to bf16; all else is kAvx512's.
MicroKernels with_bf16() {
  constexpr auto kType = static_cast<int>(Type::kBFloat16);
  MicroKernels table = kAvx512;
  table.finish_rows[kType] = finish_rows<Bf16>;
  table.scale_rows[kType] = scale_rows<Bf16>;
  table.reduce_rows[kType] = reduce_rows<Bf16>;
  table.reduce_relu_rows[kType] = reduce_relu_rows<Bf16>;
  table.scale_line[kType] = scale_line<Bf16>;
  table.reduce_line[kType] = reduce_line<Bf16>;
  return table;
}

}  // namespace

const MicroKernels& avx512_bf16() {
  static const MicroKernels table = with_bf16();
  return table;
}

}  // namespace memmod::cpu

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
