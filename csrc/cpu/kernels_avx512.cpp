// The inner loops for AVX-512 (F, BW, DQ, VL). The first line that is not a comment switches the whole file to it.
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

#include "kernels.h"

// Out of line: the registers of the common path are its own.
#define MEMMOD_RARE __attribute__((noinline))
#define MEMMOD_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define MEMMOD_UNROLL MEMMOD_PRAGMA(clang loop unroll(full))
#define MEMMOD_UNROLL_LANES MEMMOD_PRAGMA(clang loop unroll(full))
#else
#define MEMMOD_UNROLL MEMMOD_PRAGMA(GCC unroll 12)
#define MEMMOD_UNROLL_LANES MEMMOD_PRAGMA(GCC unroll 16)
#endif

namespace memmod::cpu {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

// Where floats go as three bf16 planes whose sum they are.
struct Split {
  uint16_t* first;
  int64_t plane;

  Split operator+(int64_t count) const {
    return {first + count, plane};
  }
  Split& operator+=(int64_t count) {
    first += count;
    return *this;
  }
  Split& operator++() {
    return *this += 1;
  }
};
#define MEMMOD_SPLITS

struct Vector {
  using Register = __m512;
  static constexpr int64_t kLanes = 16;

  static Register zero() {
    return _mm512_setzero_ps();
  }
  static Register broadcast(const float* p) {
    return _mm512_set1_ps(*p);
  }
  static Register load(const float* p) {
    return _mm512_loadu_ps(p);
  }
  static Register load(const Bf16* p) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
  static Register load(const Fp16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, Register x) {
    _mm512_storeu_ps(p, x);
  }
  // Round to nearest, ties to even; a NaN stays one.
  static void store(Bf16* p, Register x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i high = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000)), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
  }
  static void store(Fp16* p, Register x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  // What is not finite is in the first plane alone.
  static void store(Split p, Register x) {
    constexpr int kNanOrInfinity = 0x99;
    const __mmask16 special = _mm512_fpclass_ps_mask(x, kNanOrInfinity);
    const Register first = leading(x);
    const Register rest = _mm512_maskz_sub_ps(_knot_mask16(special), x, first);
    const Register second = leading(rest);
    store_leading(p.first, first);
    store_leading(p.first + p.plane, second);
    store_leading(p.first + 2 * p.plane, _mm512_sub_ps(rest, second));
  }
  // x as a bf16: rounded to nearest, ties to even; cut where it would round to an infinity, and a NaN stays one.
  static Register leading(Register x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i magnitude = _mm512_and_si512(rounded, _mm512_set1_epi32(0x7fffffff));
    const __mmask16 over = _mm512_cmpge_epu32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    __m512i result = _mm512_mask_mov_epi32(rounded, over, bits);
    result = _mm512_mask_or_epi32(result, nan, bits, _mm512_set1_epi32(0x00400000));
    return _mm512_castsi512_ps(_mm512_and_si512(result, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static void store_leading(uint16_t* p, Register x) {
    const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(x), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bits));
  }
  static Register add(Register a, Register b) {
    return _mm512_add_ps(a, b);
  }
  static Register multiply(Register a, Register b) {
    return _mm512_mul_ps(a, b);
  }
  // NaN stays NaN.
  static Register at_least(Register floor, Register a) {
    return _mm512_max_ps(floor, a);
  }
  // a where b > 0 or b is NaN, else 0.
  static Register where_positive(Register a, Register b) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(b, _mm512_setzero_ps(), _CMP_NLE_UQ), a);
  }
  static Register fma(Register a, Register b, Register c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static float fma_one(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
  }
};

#include "kernels.inc"

#define MEMMOD_TILES(type)                                                                                     \
  {tile<type, 1>, tile<type, 2>, tile<type, 3>, tile<type, 4>,  tile<type, 5>,  tile<type, 6>,                 \
   tile<type, 7>, tile<type, 8>, tile<type, 9>, tile<type, 10>, tile<type, 11>, tile<type, 12>}

}  // namespace

// 12 × 32: 24 sums and 2 vectors of B; the pointers of 12 rows still fit in the general registers. GF/s of one core,
// 768 → 768 and 768 → 3,072 features: 8 rows 199 and 180, 12 rows 214 and 203, 14 rows 217 and 203.
const Kernels kAvx512 = {
    12,
    kColumns,
    Vector::kLanes,
    {MEMMOD_TILES(float), MEMMOD_TILES(Bf16), MEMMOD_TILES(Fp16)},
    MEMMOD_ROW_FUNCTIONS,
    split_rows,
    reduce_split_rows<false>,
    reduce_split_rows<true>};

}  // namespace memmod::cpu

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
