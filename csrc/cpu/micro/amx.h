// AMX: products of blocks of 32 rows by 32 columns in bf16 planes.
#pragma once

#include <cstdint>

#include "micro/microkernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#define MEMMOD_AMX
#endif

namespace memmod::cpu {

constexpr int64_t kAmxRows = 32, kAmxColumns = 32, kAmxChannels = 32;
// Elements of bf16 that stay in a second-level cache beside others: 1 MiB, half of one.
constexpr int64_t kAmxCachedElements = 1 << 19;

// The epilogue of a block whose sums [32][32] are complete, for rows that are still to come.
struct PendingEpilogue {
  void (*finish)(const MicroTile& tile, const float* sums, int64_t stride, int64_t rows) = nullptr;
  MicroTile tile{};
  const float* sums = nullptr;
  int64_t rows = 0;
};

// Up to `most` of them. Every file has its own: see microkernels.h.
static inline void finish_pending(PendingEpilogue& block, int64_t most) {
  const int64_t count = most < block.rows ? most : block.rows;
  if (count == 0) {
    return;
  }
  block.finish(block.tile, block.sums, kAmxColumns, count);
  block.sums += count * kAmxColumns;
  block.tile.out += count;
  block.tile.gates = block.tile.gates == nullptr ? nullptr : block.tile.gates + count;
  block.rows -= count;
}

// C += A · B for 32 rows of A, found as two tiles of 16 for each tap, and one panel of B.
struct AmxBlock {
  const uint16_t* a[2];               // the first row of each tile: bf16
  int64_t a_stride, a_plane, a_step;  // elements from a row, a plane and 32 channels to the next
  const int64_t* offsets;             // [taps]: added to a
  int64_t taps, chunks;               // a chunk is 32 channels
  const uint16_t* b;                  // [taps][chunks][planes][2 halves of the columns][16 pairs of channels][16][2]
  float* c;                           // [32][32]
  bool add;                           // to what c holds; else c is set
  PendingEpilogue* pending;           // finished on the way: its instructions run while those of AMX do
};

// Whether the system lets this process use the tiles; asks it to.
bool amx_is_permitted();
// A thread's tiles are set up between these.
void start_amx();
void stop_amx();
// planes: 1 or 3. The processor's rounding: to nearest, no exceptions, denormal values are 0.
void multiply_amx(int64_t planes, const AmxBlock& block);

}  // namespace memmod::cpu
