// Runs CUDA kernels on the CPU, for tests: a block's threads are fibers, which a random and unfair schedule switches
// between where they wait for each other. What a kernel of csrc/cuda may use of CUDA is what is declared here.
#pragma once

#ifndef __x86_64__
#error "the host shim switches between threads by x86-64 assembly"
#endif

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {
  }
};
using cudaStream_t = void*;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// As a plain qualifier it would vanish, and each thread have a variable of its own.
#define __shared__ static_assert(false, "shared memory is declared by MEMMOD_SHARED or MEMMOD_DYNAMIC_SHARED");
#define MEMMOD_SHARED(type, name, ...)    \
  static const char memmod_site_##name{}; \
  auto& name = *static_cast<type(*) __VA_ARGS__>(host::shared(&memmod_site_##name, sizeof(type __VA_ARGS__)))
#define MEMMOD_GRID_CONSTANT
#define MEMMOD_DYNAMIC_SHARED(name) auto* const name = static_cast<unsigned char*>(host::now.dynamic_shared)

#define threadIdx (host::now.thread->index)
#define blockIdx (host::now.block)
#define blockDim (host::now.size)
#define gridDim (host::now.grid)

namespace host {

constexpr int WARP = 32;
constexpr unsigned FULL = 0xffffffff;

struct Thread { dim3 index; int lane; };

extern struct Now { const Thread* thread; dim3 block, size, grid; void* dynamic_shared; } now;

// An asynchronous copy of a thread that has not arrived: src is read when it is waited for.
struct Copy { void* dst; const void* src; unsigned bytes; int group; };

void* shared(const void* site, std::size_t bytes);
void barrier();
// Waits for the lanes of `mask`, each of which gives as many bytes; `receive` then reads another lane's.
void exchange(unsigned mask, const void* mine, int bytes, bool orders_memory = false);
void receive(int lane, void* to, int offset, int bytes);
void copy_async(void* dst, const void* src, unsigned bytes);
void commit_copies();
// The oldest copy that is not among the last `groups` committed groups and those that are not committed; false: none.
bool next_copy(int groups, Copy& copy);

// What sm_90 does by itself, for csrc/cuda/include/hopper.cuh. A barrier's phase is over when all have arrived and all
// bytes that they announced are there.
void initialise(std::uint64_t* barrier, unsigned count);
void arrive(std::uint64_t* barrier, unsigned bytes);
void wait_phase(std::uint64_t* barrier, unsigned parity);
// Of so many of a block's threads, whichever come to it.
void named_barrier(int id, int threads);
// A matrix of 16-bit numbers, of which tiles of `height` rows of 64 are copied, in the swizzle of 128 bytes.
struct Matrix { void* data; int rows, columns, height; };
// A tile is NaN until its barrier is waited for.
void load_tile(void* to, const Matrix& from, int column, int row, std::uint64_t* barrier);
// A tile is read when this thread waits for its stores.
void store_tile(const Matrix& to, const void* from, int column, int row);
void wait_stores();
// Work of this thread that is done when it waits until no more than `groups` committed groups are under way.
void later(std::function<void()> work);
void commit_products();
void wait_products(int groups);

// Runs call(context) once for each thread of each block; throws std::runtime_error for what a GPU would not survive.
void run(dim3 grid, dim3 block, std::size_t shared_bytes, void (*call)(void*), void* context);

}  // namespace host

inline void __syncthreads() { host::barrier(); }
inline void __syncwarp(unsigned mask = host::FULL) { host::exchange(mask, nullptr, 0, true); }
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  host::exchange(mask, &value, sizeof(T));
  T result;
  host::receive(lane, &result, 0, sizeof(T));
  return result;
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, host::now.thread->lane ^ lanes);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  unsigned votes = 0;
  for (int lane = 0; lane < host::WARP; ++lane) {
    if (__shfl_sync(mask, int{vote}, lane) == 1) votes |= 1u << lane;
  }
  return votes;
}
template <typename T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}

template <typename... Parameters, typename... Arguments>
void launch(
    void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t,
    Arguments... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call{kernel, {arguments...}};
  host::run(
      grid, block, shared_bytes,
      [](void* context) {
        const auto& call = *static_cast<Call*>(context);
        std::apply(call.kernel, call.arguments);
      },
      &call);
}
