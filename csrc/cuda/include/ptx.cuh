// Every PTX instruction that the kernels use, each with what it does on the CPU under the tests' host shim.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "launch.cuh"

namespace memmod::ptx {

#ifndef MEMMOD_HOST

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Starts a copy of 16 bytes to shared memory, of which only the first `bytes` are read; the others become 0.
__device__ __forceinline__ void cp_async(void* dst, const void* src, unsigned bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most GROUPS of this thread's groups of copies are under way.
template <int GROUPS>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers (8 x 4 of 32-bit ones), whose rows of 16 bytes are at the addresses of lanes 0
// to 7, 8 to 15, 16 to 23 and 24 to 31: lane l gets 32-bit word l % 4 of row l / 4 of each.
__device__ __forceinline__ void ldmatrix(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes that nothing writes while the kernel runs, past L1: it keeps what is read more than once.
__device__ __forceinline__ void load_once(uint32_t (&to)[4], const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from));
}

#define MEMMOD_MMA(name, shape)                                                                               \
  __device__ __forceinline__ void name(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {       \
    asm volatile("mma.sync.aligned." shape " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                         \
  }

// c [16, 8] += a [16, K] b [K, 8]: K = 16 numbers of 16 bits, 8 TF32 numbers.
MEMMOD_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MEMMOD_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MEMMOD_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")

#undef MEMMOD_MMA

// The nearest number with TF32's 10 bits, halves away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

#else

inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(reinterpret_cast<uintptr_t>(p));
}

// A copy's bytes are NaN from its start to its end, so that a kernel that does not wait computes with NaN.
inline void cp_async(void* dst, const void* src, unsigned bytes) {
  for (int i = 0; i < 4; ++i) static_cast<volatile uint32_t*>(dst)[i] = 0xffffffff;
  host::copy_async(dst, src, bytes);
}

inline void cp_async_commit() {
  host::commit_copies();
}

template <int GROUPS>
void cp_async_wait() {
  host::Copy copy;
  while (host::next_copy(GROUPS, copy))
    for (unsigned i = 0; i < 16; ++i)
      static_cast<volatile uint8_t*>(copy.dst)[i] = i < copy.bytes ? static_cast<const uint8_t*>(copy.src)[i] : 0;
}

inline void ldmatrix(uint32_t (&to)[4], const void* row) {
  uint32_t mine[4];
  for (int i = 0; i < 4; ++i) mine[i] = static_cast<const volatile uint32_t*>(row)[i];
  host::exchange(host::FULL, mine, sizeof(mine));
  const int lane = host::now.thread->lane;
  for (int i = 0; i < 4; ++i) host::receive(8 * i + lane / 4, &to[i], lane % 4 * 4, 4);
}

inline void load_once(uint32_t (&to)[4], const void* from) {
  for (int i = 0; i < 4; ++i) to[i] = static_cast<const volatile uint32_t*>(from)[i];
}

// c plus the products as a tensor core adds them: each cut off two bits below the last place of the largest, then their
// sum, exact, towards zero.
template <int N>
float add_towards_zero(float c, const double (&products)[N]) {
  double largest = std::abs(static_cast<double>(c)), plain = c;
  for (const double product : products) {
    largest = std::max(largest, std::abs(product));
    plain += product;
  }
  if (!std::isfinite(plain) || largest == 0.0) return static_cast<float>(plain);
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 25);
  double units = std::trunc(c / unit);
  for (const double product : products) units += std::trunc(product / unit);
  const double sum = units * unit;
  const float nearest = static_cast<float>(sum);
  return std::abs(static_cast<double>(nearest)) > std::abs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

// Lane l holds, with g = l / 4 and t = l % 4 and E numbers to a word: of a the words t of row g, t of row g + 8, t + 4
// of row g, t + 4 of row g + 8; of b the words t and t + 4 of column g; of c columns 2t, 2t + 1 of rows g and g + 8.
template <typename Element, int E>
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element element) {
  uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  host::exchange(host::FULL, mine, sizeof(mine));
  const int g = host::now.thread->lane / 4, t = host::now.thread->lane % 4;
  double products[4][8 * E];
  for (int word = 0; word < 8; ++word) {
    const int from = word % 4, half = word / 4;
    uint32_t rows[2], columns[2];
    for (int i = 0; i < 2; ++i) {
      host::receive(4 * g + from, &rows[i], (2 * half + i) * 4, 4);
      host::receive(4 * (2 * t + i) + from, &columns[i], (4 + half) * 4, 4);
    }
    for (int i = 0; i < 4; ++i)
      for (int e = 0; e < E; ++e)
        products[i][word * E + e] = static_cast<double>(element(rows[i / 2], e)) * element(columns[i % 2], e);
  }
  for (int i = 0; i < 4; ++i) c[i] = add_towards_zero(c[i], products[i]);
}

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto element = [](uint32_t word, int e) {
    return static_cast<float>(c10::BFloat16(static_cast<uint16_t>(word >> 16 * e), c10::BFloat16::from_bits()));
  };
  multiply<decltype(element), 2>(c, a, b, element);
}

inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto element = [](uint32_t word, int e) {
    return static_cast<float>(c10::Half(static_cast<uint16_t>(word >> 16 * e), c10::Half::from_bits()));
  };
  multiply<decltype(element), 2>(c, a, b, element);
}

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto element = [](uint32_t word, int) {
    // The unit ignores the bits that TF32 has not.
    const uint32_t kept = word & 0xffffe000;
    float x;
    std::memcpy(&x, &kept, sizeof(x));
    return x;
  };
  multiply<decltype(element), 1>(c, a, b, element);
}

inline uint32_t to_tf32(float x) {
  uint32_t y;
  std::memcpy(&y, &x, sizeof(y));
  // Infinity and NaN stay.
  return (y & 0x7f800000) == 0x7f800000 ? y : (y + 0x1000) & 0xffffe000;
}

#endif

}  // namespace memmod::ptx
