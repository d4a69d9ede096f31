// What the wrappers of csrc/cuda/include/ptx.cuh and the shim's own functions do, for tests/cuda/test_ptx.py.
#include <stdexcept>
#include <string>
#include "ptx.cuh"

#include "vectors.cuh"

namespace memmod {
namespace {

// Rows of 16 bytes, given by the lanes in order, as the lanes get them.
__global__ void ldmatrix_kernel(const uint32_t* rows, uint32_t* out) {
  MEMMOD_SHARED(uint32_t, tile, [32][4]);
  const int lane = threadIdx.x;
  for (int i = 0; i < 4; ++i) tile[lane][i] = rows[lane * 4 + i];
  __syncwarp();
  uint32_t got[4];
  ptx::ldmatrix(got, tile[lane]);
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = got[i];
}

// Each lane's words of a, b and c; c is written over.
template <void (*MMA)(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2])>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, float* c) {
  const int lane = threadIdx.x;
  uint32_t words_a[4], words_b[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) words_a[i] = a[lane * 4 + i], sum[i] = c[lane * 4 + i];
  for (int i = 0; i < 2; ++i) words_b[i] = b[lane * 2 + i];
  MMA(sum, words_a, words_b);
  for (int i = 0; i < 4; ++i) c[lane * 4 + i] = sum[i];
}

// out: the first `bytes` bytes of x by a copy that is waited for, and, before the wait, what was there.
__global__ void cp_async_kernel(const uint32_t* x, uint32_t* early, uint32_t* out, unsigned bytes) {
  MEMMOD_SHARED(uint32_t, tile, [2][4]);
  ptx::cp_async(tile[0], x, bytes);
  ptx::cp_async_commit();
  ptx::cp_async(tile[1], x, bytes);
  ptx::cp_async_commit();
  ptx::cp_async_wait<1>();
  for (int i = 0; i < 4; ++i) out[i] = tile[0][i], early[i] = tile[1][i];
  ptx::cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) out[4 + i] = tile[1][i];
}

__global__ void to_tf32_kernel(const float* x, uint32_t* out) {
  out[threadIdx.x] = ptx::to_tf32(x[threadIdx.x]);
}

// out [32]: a neighbour's number through shared memory; votes: of the odd lanes; sum: of all lanes' numbers.
__global__ void warp_kernel(const float* x, float* out, uint32_t* votes, float* sum) {
  MEMMOD_SHARED(float, numbers, [32]);
  MEMMOD_SHARED(float, total, [1]);
  const int lane = threadIdx.x;
  numbers[lane] = x[lane];
  if (lane == 0) total[0] = 0.0f;
  __syncwarp();
  out[lane] = numbers[lane ^ 1];
  votes[lane] = __ballot_sync(0xffffffff, lane % 2 == 1);
  out[lane] += __shfl_sync(0xffffffff, x[lane], 7);
  atomicAdd(&total[0], x[lane]);
  __syncthreads();
  if (lane == 0) sum[0] = total[0];
}

}  // namespace
}  // namespace memmod

extern "C" {
const char* memmod_test_run(const char* name, void* a, void* b, void* c, void* d, unsigned number) {
  using namespace memmod;
  static std::string error;
  const std::string kernel = name;
  const dim3 one(1), warp(32);
  const auto words = static_cast<uint32_t*>(b);
  try {
    if (kernel == "ldmatrix") launch(ldmatrix_kernel, one, warp, 0, nullptr, static_cast<uint32_t*>(a), words);
    if (kernel == "mma_bf16")
      launch(
          mma_kernel<ptx::mma_bf16>, one, warp, 0, nullptr, static_cast<uint32_t*>(a), words, static_cast<float*>(c));
    if (kernel == "mma_f16")
      launch(mma_kernel<ptx::mma_f16>, one, warp, 0, nullptr, static_cast<uint32_t*>(a), words, static_cast<float*>(c));
    if (kernel == "mma_tf32")
      launch(
          mma_kernel<ptx::mma_tf32>, one, warp, 0, nullptr, static_cast<uint32_t*>(a), words, static_cast<float*>(c));
    if (kernel == "cp_async")
      launch(
          cp_async_kernel, one, one, 0, nullptr, static_cast<uint32_t*>(a), words, static_cast<uint32_t*>(c), number);
    if (kernel == "to_tf32") launch(to_tf32_kernel, one, dim3(number), 0, nullptr, static_cast<float*>(a), words);
    if (kernel == "warp")
      launch(
          warp_kernel, one, warp, 0, nullptr, static_cast<float*>(a), static_cast<float*>(b), static_cast<uint32_t*>(c),
          static_cast<float*>(d));
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}
}
