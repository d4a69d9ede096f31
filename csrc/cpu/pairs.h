// Products of bf16 rows by the library's block product (AMX, or AVX-512 BF16), which reads the weight in pairs of
// channels: what multiply.h is for the tiles.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

#include "multiply.h"
#include "packed.h"

namespace memmod::cpu {

// Rows of a task: AMX has tiles of 16 rows and the library takes two at once; a task's rows share one reading of B.
// One thread of a processor with AMX, 1,576 rows, GF/s with 64, 128 and 256 rows: 768 → 3,072 features 1,000, 1,320 and
// 1,540; 384 → 1,536 the same with each; with 197 rows instead of 192 or 256 a quarter less.
constexpr Grain kPairGrain{256, 32, 32};

inline Grain grain_of(bool pairs) {
  return pairs ? kPairGrain : tile_grain();
}

// A task's rows of A, `stride` elements apart; channels behind the last, up to an even number, are 0.
struct PairRows {
  const c10::BFloat16* data;
  int64_t stride;
};

// Channels with the one that makes them even.
inline int64_t even(int64_t channels) {
  return channels + channels % 2;
}

// A thread's copy of `count` rows: fill(first row) writes `channels` elements of each, the row stride apart.
class PairCopy {
 public:
  PairCopy(int64_t count, int64_t channels);

  c10::BFloat16* row(int64_t row) const {
    return data_ + row * stride_;
  }
  int64_t stride() const {
    return stride_;
  }
  PairRows rows() const {
    return {data_, stride_};
  }

 private:
  c10::BFloat16* data_;
  int64_t stride_;
};

// rows.out = epilogue(A · B) for panels [first_panel, last_panel) of B; b.pairs.
void multiply_pairs(
    Rows& rows, const Packed& b, const PairRows& a, int64_t first_panel, int64_t last_panel, const Epilogue& epilogue);

}  // namespace memmod::cpu
