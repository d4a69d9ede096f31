// The products of blocks for AMX (TILE, BF16). Only this file is compiled for it.
#include "micro/amx.h"

#ifdef MEMMOD_AMX
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16")
#endif
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace memmod::cpu {
namespace {

// The state of the tiles: all eight hold 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t reserved[15] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
constexpr TileConfig kTileConfig;

constexpr int64_t kTile = 512;  // elements of a tile of A or B
// Rows that are finished at a time, at least: a call has its own cost.
constexpr int64_t kFinishedRows = 4;

// Two row tiles by two column tiles; sums 0 and 1 are of the first row tile. Loads go between the products, so that one
// runs while the other's operands arrive.
#define MEMMOD_A0(plane) _tile_loadd(4, a0 + (plane) * a_plane, a_stride)
#define MEMMOD_A1(plane) _tile_loadd(5, a1 + (plane) * a_plane, a_stride)
#define MEMMOD_B0(plane) _tile_loadd(6, b + (plane) * 2 * kTile, 64)
#define MEMMOD_B1(plane) _tile_loadd(7, b + (plane) * 2 * kTile + kTile, 64)
#define MEMMOD_00 _tile_dpbf16ps(0, 4, 6)
#define MEMMOD_01 _tile_dpbf16ps(1, 4, 7)
#define MEMMOD_10 _tile_dpbf16ps(2, 5, 6)
#define MEMMOD_11 _tile_dpbf16ps(3, 5, 7)
#define MEMMOD_FIRST(a_plane_, b_plane_) \
  MEMMOD_B0(b_plane_);                   \
  MEMMOD_A0(a_plane_);                   \
  MEMMOD_00;                             \
  MEMMOD_B1(b_plane_);                   \
  MEMMOD_01;                             \
  MEMMOD_A1(a_plane_);                   \
  MEMMOD_10;                             \
  MEMMOD_11
#define MEMMOD_NEXT_A(plane) \
  MEMMOD_A0(plane);          \
  MEMMOD_00;                 \
  MEMMOD_01;                 \
  MEMMOD_A1(plane);          \
  MEMMOD_10;                 \
  MEMMOD_11
#define MEMMOD_NEXT_B(plane) \
  MEMMOD_B0(plane);          \
  MEMMOD_00;                 \
  MEMMOD_10;                 \
  MEMMOD_B1(plane);          \
  MEMMOD_01;                 \
  MEMMOD_11

template <int kPlanes>
void multiply_block(const AmxBlock& block) {
  const int64_t a_stride = block.a_stride * 2, a_plane = block.a_plane;
  const uint16_t* b = block.b;
  const int64_t steps = block.taps * block.chunks, shared = (kAmxRows + steps - 1) / steps;
  const int64_t finished = shared > kFinishedRows ? shared : kFinishedRows;
  float* c = block.c;
  if (block.add) {
    _tile_loadd(0, c, 128);
    _tile_loadd(1, c + 16, 128);
    _tile_loadd(2, c + 16 * 32, 128);
    _tile_loadd(3, c + 16 * 32 + 16, 128);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t tap = 0; tap < block.taps; ++tap) {
    const uint16_t* a0 = block.a[0] + block.offsets[tap];
    const uint16_t* a1 = block.a[1] + block.offsets[tap];
    for (int64_t chunk = 0; chunk < block.chunks; ++chunk) {
      if constexpr (kPlanes == 1) {
        MEMMOD_FIRST(0, 0);
      } else {
        // a₁b₃ a₁b₂ a₂b₂ a₂b₁ a₃b₁ a₁b₁: one operand changes at a time, and the largest comes last.
        MEMMOD_FIRST(0, 2);
        MEMMOD_NEXT_B(1);
        MEMMOD_NEXT_A(1);
        MEMMOD_NEXT_B(0);
        MEMMOD_NEXT_A(2);
        MEMMOD_NEXT_A(0);
      }
      if (block.pending != nullptr) {
        finish_pending(*block.pending, finished);
      }
      a0 += block.a_step;
      a1 += block.a_step;
      b += kPlanes * 2 * kTile;
    }
  }
  _tile_stored(0, c, 128);
  _tile_stored(1, c + 16, 128);
  _tile_stored(2, c + 16 * 32, 128);
  _tile_stored(3, c + 16 * 32 + 16, 128);
}

}  // namespace

bool amx_is_permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

void start_amx() {
  _tile_loadconfig(&kTileConfig);
}

void stop_amx() {
  _tile_release();
}

void multiply_amx(int64_t planes, const AmxBlock& block) {
  planes == 1 ? multiply_block<1>(block) : multiply_block<3>(block);
}

}  // namespace memmod::cpu

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
