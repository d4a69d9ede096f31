// The micro-kernels for AVX2 with FMA and F16C. The first line that is not a comment switches the whole file to them.
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include <immintrin.h>

#include "micro/microkernels.h"

// Out of line: the registers of the common path are its own.
#define MEMMOD_RARE __attribute__((noinline))
// Into its callers whatever its size: sums stay in registers.
#define MEMMOD_INLINE inline __attribute__((always_inline))
#define MEMMOD_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define MEMMOD_UNROLL MEMMOD_PRAGMA(clang loop unroll(full))
#define MEMMOD_UNROLL_LANES MEMMOD_PRAGMA(clang loop unroll(full))
#else
#define MEMMOD_UNROLL MEMMOD_PRAGMA(GCC unroll 8)
#define MEMMOD_UNROLL_LANES MEMMOD_PRAGMA(GCC unroll 8)
#endif

namespace memmod::cpu {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

struct Vector {
  using Register = __m256;
  static constexpr int64_t kLanes = 8;

  static Register zero() {
    return _mm256_setzero_ps();
  }
  static Register broadcast(const float* p) {
    return _mm256_broadcast_ss(p);
  }
  static Register load(const float* p) {
    return _mm256_loadu_ps(p);
  }
  static Register load(const Bf16* p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
  static Register load(const Fp16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(float* p, Register x) {
    _mm256_storeu_ps(p, x);
  }
  // Round to nearest, ties to even; a NaN stays one.
  static void store(Bf16* p, Register x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x88);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store(Fp16* p, Register x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static Register add(Register a, Register b) {
    return _mm256_add_ps(a, b);
  }
  static Register multiply(Register a, Register b) {
    return _mm256_mul_ps(a, b);
  }
  // NaN stays NaN.
  static Register at_least(Register floor, Register a) {
    return _mm256_max_ps(floor, a);
  }
  static Register at_most(Register ceiling, Register a) {
    return _mm256_min_ps(ceiling, a);
  }
  // a where b > 0 or b is NaN, else 0.
  static Register where_positive(Register a, Register b) {
    return _mm256_and_ps(a, _mm256_cmp_ps(b, _mm256_setzero_ps(), _CMP_NLE_UQ));
  }
  static Register divide(Register a, Register b) {
    return _mm256_div_ps(a, b);
  }
  // To the nearest whole number.
  static Register round(Register x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // x · 2ⁿ for whole numbers n of at most 252, in two steps: 2ⁿ itself may be out of range.
  static Register scale(Register x, Register n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(whole, half)));
  }
  static Register power(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static Register fma(Register a, Register b, Register c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static float fma_one(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
  }
};

#include "micro/microkernels.inc"

#define MEMMOD_GEMM(type) {gemm<type, 1>, gemm<type, 2>, gemm<type, 3>, gemm<type, 4>, gemm<type, 5>, gemm<type, 6>}
#define MEMMOD_DEPTHWISE {depthwise<1>, depthwise<2>, depthwise<3>, depthwise<4>, depthwise<5>, depthwise<6>}

}  // namespace

// 6 × 16: 12 sums, 2 vectors of B and one of A in 16 registers. With a depth of 1,024 a panel of B takes 64 KiB of a
// second-level cache. 1,024 → 1,024 features, 1,024 and 4,096 rows, forward and backward, two threads of a Zen 3: 0.99
// and 0.99 of plain with it, 1.01 and 1.05 with 768; ViT-B's layers differ by less than the noise. ViT layers took 1.05
// with 768, 1.09 with 384, 1.12 with 256.
constexpr MicroKernels kAvx2 = {
    6,
    kColumns,
    Vector::kLanes,
    1024,
    {MEMMOD_GEMM(float), MEMMOD_GEMM(Bf16), MEMMOD_GEMM(Fp16)},
    MEMMOD_DEPTHWISE,
    MEMMOD_ROW_FUNCTIONS};

}  // namespace memmod::cpu

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
