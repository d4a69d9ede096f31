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
#include <tuple>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// As a plain qualifier it would vanish, and each thread have a variable of its own.
#define __shared__ static_assert(false, "shared memory is declared by MEMMOD_SHARED or MEMMOD_DYNAMIC_SHARED");
#define MEMMOD_SHARED(type, name, ...)   \
  static const char memmod_site_##name{}; \
  auto& name = *static_cast<type(*) __VA_ARGS__>(host::shared(&memmod_site_##name, sizeof(type __VA_ARGS__)))
#define MEMMOD_DYNAMIC_SHARED(name) auto* const name = static_cast<unsigned char*>(host::dynamic_shared())

#define threadIdx (host::thread().index)
#define blockIdx (host::block_index())
#define blockDim (host::block_size())
#define gridDim (host::grid_size())

namespace host {

constexpr int WARP = 32;
constexpr unsigned FULL = 0xffffffff;

// An asynchronous copy of a thread that has not arrived: src is read when it is waited for.
struct Copy {
  void* dst;
  const void* src;
  unsigned bytes;
  int group;
};

struct Thread {
  dim3 index;
  int lane;
};

// What a warp does together: lanes that wait for each other must do the same.
enum class Together { sync = 1, shuffle, vote, matrix, product };

const Thread& thread();
const dim3& block_index();
const dim3& block_size();
const dim3& grid_size();
void* shared(const void* site, std::size_t bytes);
void* dynamic_shared();
void barrier();
// Waits for the lanes of `mask`, each of which gives `bytes` bytes; `receive` then reads another lane's.
void exchange(unsigned mask, Together kind, const void* mine, int bytes);
void receive(int lane, void* to, int offset, int bytes);

void copy_async(const Copy& copy);
void commit_copies();
// The oldest copy that is not among the last `groups` committed groups and those that are not committed; false: none.
bool next_copy(int groups, Copy& copy);

// Runs call(context) once for each thread of each block; throws std::runtime_error for what a GPU would not survive.
void run(dim3 grid, dim3 block, std::size_t shared_bytes, void (*call)(void*), void* context);

template <typename T>
T shuffle(unsigned mask, T value, int from) {
  exchange(mask, Together::shuffle, &value, sizeof(T));
  T result;
  receive(from, &result, 0, sizeof(T));
  return result;
}

}  // namespace host

inline void __syncthreads() { host::barrier(); }
inline void __syncwarp(unsigned mask = host::FULL) { host::exchange(mask, host::Together::sync, nullptr, 0); }
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return host::shuffle(mask, value, host::thread().lane ^ lanes);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return host::shuffle(mask, value, lane);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  unsigned votes = 0;
  host::exchange(mask, host::Together::vote, &vote, sizeof(vote));
  for (int lane = 0; lane < host::WARP; ++lane) {
    bool other = false;
    if (mask >> lane & 1) host::receive(lane, &other, 0, sizeof(other));
    votes |= unsigned{other} << lane;
  }
  return votes;
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) == mask; }
template <typename T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t,
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
