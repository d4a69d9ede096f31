// Products in bf16 planes: what indirect_gemm.h is for tiles, with the processor's instructions for products of bf16.
//
// A bf16 matrix is one plane. With AMX, fp32 is multiplied too: as the sum of three planes a = a₁ + a₂ + a₃, exactly,
// of 8 bits each. a·b = a₁b₃ + a₂b₂ + a₃b₁ + a₁b₂ + a₂b₁ + a₁b₁, where each product is exact in fp32; a₂b₃, a₃b₂ and
// a₃b₃ are left out, together at most 2⁻²³ of |a·b|. One core of a processor with AMX, 768 → 768 features: 400 to 420
// GF/s for the six products, 210 for fp32's own instructions. An infinity becomes NaN.
#pragma once

#include <cstdint>

#include "base/partition.h"
#include "gemm/epilogue.h"
#include "gemm/indirect_gemm.h"
#include "gemm/indirect_rows.h"
#include "gemm/pack.h"

namespace memmod::cpu {

// The layout for products of this type with so many columns of one tap: from the processor and torch's settings.
WeightLayout weight_layout(at::ScalarType type, int64_t columns, Direction direction);

// Rows of a task where B is in `layout`.
Grain grain_of(WeightLayout layout, int64_t channels);

// A thread's copy of the rows of A that a task multiplies, in bf16 planes: the channels of one pass.
class Bf16Rows {
 public:
  // Of `count` rows, for the weight b.
  Bf16Rows(const PackedWeight& b, int64_t count);

  // Whether a task's rows of bf16 can be read where they are.
  static bool can_read(const PackedWeight& b);
  // Reads them there: rows of `channels` elements. Copies those after the last whole block.
  Bf16Rows(const void* x, int64_t count, int64_t channels);

  // The pass's channels from `channel` on; clears what lies after them. Before the rows of a pass.
  void start(int64_t channel, int64_t channels);
  // `rows` rows of x, `stride` elements apart, from the pass's first channel on, times s (null: 1), as rows `to` and
  // on.
  void scale(Type type, const void* x, int64_t stride, const float* s, int64_t to, int64_t rows) const;
  // The same, and sums[i] += Σ_r x[r, i] · other[r, i]. relu: every x[r, i] that has other[r, i] <= 0 is taken as 0.
  void scale_and_reduce(
      Type type, bool relu, const void* x, const void* other, int64_t stride, const float* s, float* sums, int64_t to,
      int64_t rows) const;

 private:
  friend void bf16_gemm(IndirectRows&, const PackedWeight&, Bf16Rows&, int64_t, int64_t, const Epilogue&, const PackA&);

  // The pass's channels of a block's first row.
  const uint16_t* block(int64_t number) const;

  // fn(first row, rows, first channel, channels, where they go) for the parts of rows that lie together.
  template <typename Fn>
  void each_part(int64_t first, int64_t rows, const Fn& fn) const;

  int64_t planes_, count_, channels_ = 0;
  // Rows come in blocks, channels in chunks; strides in elements.
  int64_t block_rows_, chunk_, row_stride_, plane_stride_, chunk_stride_, block_stride_;
  uint16_t* data_;
  uint16_t* first_ = nullptr;
  uint16_t* last_ = nullptr;
  bool copies_ = true;
};

// Channels of A that one pass reads, at most.
int64_t bf16_channels_per_pass(WeightLayout layout, int64_t channels);

// rows.out = epilogue(A · B) for panels [first_panel, last_panel) of B. pack_a(channel, channels) fills the rows.
void bf16_gemm(
    IndirectRows& rows, const PackedWeight& b, Bf16Rows& a, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue, const PackA& pack_a);

}  // namespace memmod::cpu
