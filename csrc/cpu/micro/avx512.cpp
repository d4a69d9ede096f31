// The micro-kernels for AVX-512 (F, BW, DQ, VL). The first line that is not a comment switches the whole file to it.
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
// False alarms about the intrinsics' own undefined operands (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "micro/microkernels.h"

#include "micro/simd_avx512.inc"

#include "micro/microkernels.inc"

#define MEMMOD_GEMM(type)                                                                      \
  {gemm<type, 1>, gemm<type, 2>, gemm<type, 3>, gemm<type, 4>,  gemm<type, 5>,  gemm<type, 6>, \
   gemm<type, 7>, gemm<type, 8>, gemm<type, 9>, gemm<type, 10>, gemm<type, 11>, gemm<type, 12>}
#define MEMMOD_DEPTHWISE                                                                 \
  {depthwise<1>, depthwise<2>, depthwise<3>, depthwise<4>,  depthwise<5>,  depthwise<6>, \
   depthwise<7>, depthwise<8>, depthwise<9>, depthwise<10>, depthwise<11>, depthwise<12>}

}  // namespace

// 12 × 32: 24 sums and 2 vectors of B; the pointers of 12 rows still fit in the general registers. GF/s of one core,
// 768 → 768 and 768 → 3,072 features: 8 rows 199 and 180, 12 rows 214 and 203, 14 rows 217 and 203.
// With a depth of 768 a panel of B takes 96 KiB; other depths were not timed with it.
constexpr MicroKernels kAvx512 = {
    12,
    kColumns,
    Vector::kLanes,
    768,
    {MEMMOD_GEMM(float), MEMMOD_GEMM(Bf16), MEMMOD_GEMM(Fp16)},
    MEMMOD_DEPTHWISE,
    MEMMOD_ROW_FUNCTIONS,
    split_bf16x3,
    reduce_split_bf16x3<false>,
    reduce_split_bf16x3<true>};

}  // namespace memmod::cpu

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
