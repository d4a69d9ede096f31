// How kernels are launched and declare shared memory: by nvcc on a GPU, by the tests' host shim on the CPU. Kernels say
// that one block of theirs has to fit: without a number ptxas spills a few registers for one block more.
#pragma once

#ifndef MEMMOD_HOST

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define MEMMOD_SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
#define MEMMOD_GRID_CONSTANT __grid_constant__
#define MEMMOD_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("memmod: CUDA: ") + cudaGetErrorString(error));
}

template <typename... Parameters, typename... Arguments>
void launch(
    void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
    Arguments... arguments) {
  // More has to be asked for.
  if (shared_bytes > 48 * 1024)
    check_cuda(cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shared_bytes)));
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  check_cuda(cudaGetLastError());
}

#else

#include "host.h"

#endif
