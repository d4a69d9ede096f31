// The PTX of sm_90a that linear_fused.cu needs: barriers in shared memory, copies of tiles by the tensor memory
// accelerator, and products of a warpgroup (PTX ISA 8.0, "Asynchronous Warpgroup Level Matrix Instructions"); each with
// what it does on the CPU under the tests' host shim.
#pragma once

#ifndef MEMMOD_HOST
#include <cuda.h>
#endif

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels.h"
#include "ptx.cuh"

namespace memmod::hopper {

// A barrier that `count` arrivals and the bytes that are expected complete; its phases alternate between 0 and 1.
using Barrier = uint64_t;
// Numbers of 16 bits of a tile's row: 128 bytes, the widest swizzle.
constexpr int ROW = 64;

// Where the accelerator puts the 16 bytes at `offset` of a tile in rows of 128 bytes: of 8 rows no two start in the
// same bank.
__host__ __device__ constexpr unsigned swizzled(unsigned offset) {
  return offset ^ (offset >> 7 & 7) << 4;
}

#ifndef MEMMOD_HOST

using Map = CUtensorMap;

__device__ __forceinline__ void initialise(Barrier* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ptx::shared_address(barrier)), "r"(count));
}

// What was initialised is seen by the accelerator too.
__device__ __forceinline__ void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ptx::shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void arrive_expecting(Barrier* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ptx::shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity is over.
__device__ __forceinline__ void wait(Barrier* barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra done;\n"
      "bra again;\n"
      "done:\n}" ::"r"(ptx::shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// The tile of a matrix whose first number is in this column and row; zeros where it ends before.
__device__ __forceinline__ void load_tile(void* to, const Map* map, int column, int row, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          ptx::shared_address(to)),
      "l"(map), "r"(ptx::shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

// What is outside of the matrix is not written.
__device__ __forceinline__ void store_tile(const Map* map, const void* from, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(ptx::shared_address(from)), "r"(column), "r"(row)
               : "memory");
}

__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until this thread's stores have read shared memory.
__device__ __forceinline__ void wait_stores() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// What this thread wrote to shared memory is seen by the accelerator.
__device__ __forceinline__ void fence_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void prefetch(const Map* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// A barrier of the 128 threads of a warpgroup.
__device__ __forceinline__ void sync_warpgroup(int id) {
  asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory");
}

template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

__device__ __forceinline__ void start_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most GROUPS groups of products are under way.
template <int GROUPS>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}

// No instruction that uses these moves past here.
template <int N>
__device__ __forceinline__ void hold(float (&sum)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

// Of a tile in rows of 128 bytes, 64 numbers of 16 bits, as the accelerator swizzles them; groups of 8 rows follow each
// other ("Matrix Descriptor Format").
__device__ __forceinline__ uint64_t descriptor(const void* tile) {
  constexpr uint64_t SWIZZLE_128 = 1, GROUP = 8 * 128;
  return (ptx::shared_address(tile) & 0x3ffff) >> 4 | uint64_t{1} << 16 | GROUP >> 4 << 32 | SWIZZLE_128 << 62;
}

#define MEMMOD_8(f, i) f(i), f(i + 1), f(i + 2), f(i + 3), f(i + 4), f(i + 5), f(i + 6), f(i + 7)
#define MEMMOD_32(f, i) MEMMOD_8(f, i), MEMMOD_8(f, i + 8), MEMMOD_8(f, i + 16), MEMMOD_8(f, i + 24)
#define MEMMOD_SUM(i) "+f"(sum[i])

// sum [64, N] += a [64, 16] b [N, 16]^T, of a warpgroup; instead of adding, writes it where `first`. Thread t holds, in
// sum[4 j + 2 h + i], column 8 j + t % 4 * 2 + i of row t / 32 * 16 + t % 32 / 4 + 8 h.
template <typename T, int SUMS>
__device__ __forceinline__ void multiply(float (&sum)[SUMS], uint64_t a, uint64_t b, bool first);

#define MEMMOD_NUMBERS_64                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MEMMOD_NUMBERS_96                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MEMMOD_NUMBERS_128                                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define MEMMOD_WGMMA(T, TYPE, N, SUMS, A, B, FIRST, ...)                                                      \
  template <>                                                                                                 \
  __device__ __forceinline__ void multiply<T, SUMS>(float (&sum)[SUMS], uint64_t a, uint64_t b, bool first) { \
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, " FIRST                                                    \
                 ", 0;\n"                                                                                     \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" MEMMOD_NUMBERS_##SUMS   \
                 "}, " A ", " B ", p, 1, 1, 0, 0;\n}"                                                         \
                 : __VA_ARGS__                                                                                \
                 : "l"(a), "l"(b), "r"(static_cast<int>(first)));                                             \
  }

#define MEMMOD_WGMMAS(T, TYPE)                                                                             \
  MEMMOD_WGMMA(T, TYPE, 128, 64, "%64", "%65", "%66", MEMMOD_32(MEMMOD_SUM, 0), MEMMOD_32(MEMMOD_SUM, 32)) \
  MEMMOD_WGMMA(                                                                                            \
      T, TYPE, 192, 96, "%96", "%97", "%98", MEMMOD_32(MEMMOD_SUM, 0), MEMMOD_32(MEMMOD_SUM, 32),          \
      MEMMOD_32(MEMMOD_SUM, 64))                                                                           \
  MEMMOD_WGMMA(                                                                                            \
      T, TYPE, 256, 128, "%128", "%129", "%130", MEMMOD_32(MEMMOD_SUM, 0), MEMMOD_32(MEMMOD_SUM, 32),      \
      MEMMOD_32(MEMMOD_SUM, 64), MEMMOD_32(MEMMOD_SUM, 96))

MEMMOD_WGMMAS(c10::BFloat16, "bf16")
MEMMOD_WGMMAS(c10::Half, "f16")

#undef MEMMOD_WGMMAS
#undef MEMMOD_WGMMA
#undef MEMMOD_NUMBERS_64
#undef MEMMOD_NUMBERS_96
#undef MEMMOD_NUMBERS_128
#undef MEMMOD_SUM
#undef MEMMOD_32
#undef MEMMOD_8

// Two numbers in a word, `low` in its lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without a link to its library.
inline Encode encoder() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    check_cuda(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess)
      throw std::runtime_error("memmod: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

// A matrix [rows, columns] of 16 bits, of which tiles of height x ROW are copied.
inline Map map_of(Type type, const void* data, int rows, int columns, unsigned height) {
  Map map;
  const cuuint64_t size[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride[] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t box[] = {ROW, height}, by[] = {1, 1};
  const CUresult result = encoder()(
      &map, type == Type::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
      const_cast<void*>(data), size, stride, box, by, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw std::runtime_error("memmod: cuTensorMapEncodeTiled: " + std::to_string(result));
  return map;
}

#else

using Map = host::Matrix;

inline Map map_of(Type, const void* data, int rows, int columns, unsigned height) {
  return {const_cast<void*>(data), rows, columns, static_cast<int>(height)};
}

inline void initialise(Barrier* barrier, unsigned count) {
  host::initialise(barrier, count);
}

inline void fence_barriers() {
}

inline void arrive(Barrier* barrier) {
  host::arrive(barrier, 0);
}

inline void arrive_expecting(Barrier* barrier, unsigned bytes) {
  host::arrive(barrier, bytes);
}

inline void wait(Barrier* barrier, unsigned parity) {
  host::wait_phase(barrier, parity);
}

inline void load_tile(void* to, const Map* map, int column, int row, Barrier* barrier) {
  host::load_tile(to, *map, column, row, barrier);
}

inline void store_tile(const Map* map, const void* from, int column, int row) {
  host::store_tile(*map, from, column, row);
}

inline void commit_stores() {
}

inline void wait_stores() {
  host::wait_stores();
}

inline void fence_shared() {
}

inline void prefetch(const Map*) {
}

inline void sync_warpgroup(int id) {
  host::named_barrier(id, 128);
}

template <int REGISTERS>
void give_registers() {
}

template <int REGISTERS>
void take_registers() {
}

inline void start_products() {
}

inline void commit_products() {
  host::commit_products();
}

template <int GROUPS>
void wait_products() {
  host::wait_products(GROUPS);
}

template <int N>
void hold(float (&)[N]) {
}

// In units of 16 bytes, as on a GPU.
inline uint64_t descriptor(const void* tile) {
  return reinterpret_cast<uintptr_t>(tile) >> 4;
}

template <typename T>
double number_at(uintptr_t tile, int row, int column) {
  const auto at = tile + row * 128 + column * 2;
  const uint16_t bits = *reinterpret_cast<const volatile uint16_t*>(at ^ (at >> 7 & 7) << 4);
  T number;
  for (int i = 0; i < 2; ++i) reinterpret_cast<unsigned char*>(&number)[i] = static_cast<unsigned char>(bits >> 8 * i);
  return static_cast<float>(number);
}

// Computed when it is waited for.
template <typename T, int SUMS>
void multiply(float (&sum)[SUMS], uint64_t a, uint64_t b, bool first) {
  host::later([a, b, first, to = sum] {
    const int thread = host::now.thread->index.x % 128, lane = thread % 32;
    double numbers_a[2][16];
    for (int h = 0; h < 2; ++h)
      for (int k = 0; k < 16; ++k) numbers_a[h][k] = number_at<T>(a << 4, thread / 32 * 16 + lane / 4 + 8 * h, k);
    for (int j = 0; j < SUMS / 4; ++j)
      for (int i = 0; i < 2; ++i) {
        double products[2][16];
        for (int k = 0; k < 16; ++k) {
          const double number = number_at<T>(b << 4, 8 * j + lane % 4 * 2 + i, k);
          for (int h = 0; h < 2; ++h) products[h][k] = numbers_a[h][k] * number;
        }
        for (int h = 0; h < 2; ++h) {
          float& at = to[4 * j + 2 * h + i];
          at = ptx::add_towards_zero(first ? 0.0f : at, products[h]);
        }
      }
  });
}

template <typename T>
uint32_t pack(float low, float high) {
  const T numbers[] = {static_cast<T>(low), static_cast<T>(high)};
  uint32_t word;
  std::memcpy(&word, numbers, sizeof(word));
  return word;
}

#endif

}  // namespace memmod::hopper
