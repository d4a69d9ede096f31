// 16 bytes at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launch.cuh"

namespace memmod {

// N numbers, read and written by one access.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

// As many numbers as 16 bytes hold.
template <typename T>
constexpr int WIDE = 16 / static_cast<int>(sizeof(T));

template <int N, typename T>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <int N, typename T>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& v) {
  *reinterpret_cast<Vector<T, N>*>(to) = v;
}

// Numbers until they are used: words, where they are 16 bytes. Numbers themselves would be taken apart, and so waited
// for, as soon as they are asked for, which leaves one load under way.
template <typename T, int N>
using Loaded = std::conditional_t<sizeof(T) * N == 16, Vector<uint32_t, 4>, Vector<T, N>>;

template <int N, typename T>
__device__ __forceinline__ Loaded<T, N> load_early(const T* from) {
  return *reinterpret_cast<const Loaded<T, N>*>(from);
}

template <typename T, int N>
__device__ __forceinline__ Vector<T, N> numbers(const Loaded<T, N>& loaded) {
  Vector<T, N> result;
  memcpy(&result, &loaded, sizeof(result));
  return result;
}

// Whether every pointer, null ones too, is at a multiple of 16 bytes.
template <typename... Pointers>
bool aligned(Pointers... p) {
  return ((reinterpret_cast<std::uintptr_t>(p) | ... | 0) % 16) == 0;
}

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace memmod
