// Every wrapper of csrc/cuda/include/ptx.cuh, so that each is assembled for every architecture; its PTX is kept in
// touch.ptx.
#include "ptx.cuh"

extern "C" __global__ void touch_kernel(const float* x, float* y) {
  MEMMOD_SHARED(float, tile, [32][4]);
  using namespace memmod::ptx;
  cp_async(tile[threadIdx.x], x + threadIdx.x * 4, 16);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  uint32_t a[4], once[4];
  ldmatrix(a, tile[threadIdx.x]);
  load_once(once, x);
  const uint32_t b[2] = {to_tf32(x[0]), to_tf32(x[1])};
  float c[4] = {};
  mma_bf16(c, a, b);
  mma_f16(c, a, b);
  mma_tf32(c, a, b);
  for (int i = 0; i < 4; ++i) y[threadIdx.x * 4 + i] = c[i] + static_cast<float>(once[i]);
}
