// What a product does with its sums: bias, gates and ReLU, for sums that lie beside the output.
#pragma once

#include <algorithm>
#include <cstdint>

#include "amx.h"
#include "fetch.h"
#include "kernels.h"
#include "multiply.h"

namespace memmod::cpu {

// Gives rows [first, first + count) of columns [column, column + columns) their results, from sums [count][stride].
class Finish {
 public:
  Finish(Rows& rows, const Epilogue& epilogue)
      : rows_(rows),
        epilogue_(epilogue),
        tile_(tile_of(epilogue)),
        tiles_(kernels().tile[static_cast<int>(epilogue.type)]) {
  }

  void operator()(const float* sums, int64_t stride, int64_t first, int64_t count, int64_t column, int64_t columns) {
    const Kernels& kernel = kernels();
    for (int64_t done = 0; done < columns; done += kernel.columns) {
      tile_.column = column + done;
      tile_.columns = std::min(kernel.columns, columns - done);
      if (tile_.columns == kernel.columns && !epilogue_.kept) {
        tile_.out = rows_.out.data() + first;
        tile_.gates = epilogue_.gated ? rows_.gates.data() + first : nullptr;
        kernel.finish_rows[static_cast<int>(epilogue_.type)](tile_, sums + done, stride, count);
      } else {
        with_tiles(sums + done, stride, first, count);
      }
    }
  }

 private:
  // Rows that are finished at once.
  static constexpr int64_t kFinishedRows = 8;

  // Tiles without taps: the product is in their partial sums.
  void with_tiles(const float* sums, int64_t stride, int64_t first, int64_t count) {
    tile_.partial_column = tile_.column;
    for (int64_t some = 0; some < count; some += kFinishedRows) {
      const int64_t together = std::min(kFinishedRows, count - some), row = first + some;
      const float* partial[kFinishedRows];
      for (int64_t r = 0; r < together; ++r) {
        partial[r] = sums + (some + r) * stride;
      }
      tile_.partial_in = partial;
      tile_.out = rows_.out.data() + row;
      tile_.kept = epilogue_.kept ? rows_.kept.data() + row : nullptr;
      tile_.gates = epilogue_.gated ? rows_.gates.data() + row : nullptr;
      tiles_[together - 1](tile_);
    }
  }

  Rows& rows_;
  const Epilogue& epilogue_;
  Tile tile_;
  void (*const (&tiles_)[kMaxRows])(const Tile&);
};

// Blocks of AMX are finished one later: while the next one is multiplied, as the instructions that finish run beside
// those of AMX, which are few and long. 768 → 3,072 features, one core, in bf16 and fp32: 0.88 and 0.89 of the time of
// finishing each block first.
class FinishLater {
 public:
  FinishLater(Rows& rows, const Packed& b, const Epilogue& epilogue)
      : rows_(rows), b_(b), finish_(rows, epilogue), size_(epilogue.type == Type::kFloat ? 4 : 2) {
  }

  // The sums of a block and a panel are under way; they stay where they are until the next call is over.
  void add(const float* sums, int64_t block, int64_t panel) {
    finish();
    sums_ = sums;
    block_ = block;
    panel_ = panel;
    fetch();
  }
  // The last one.
  void finish() {
    if (sums_ != nullptr) {
      const int64_t first = block_ * kAmxRows, column = panel_ * b_.width;
      finish_(
          sums_, kAmxColumns, first, std::min(kAmxRows, rows_.count() - first), column,
          std::min(b_.width, b_.columns - column));
    }
    sums_ = nullptr;
  }

 private:
  // The lines that the block will be written to. ViT linear layers in fp32, forward and backward, on two cores: 0.96 of
  // the time without.
  void fetch() const {
    const int64_t first = block_ * kAmxRows, last = std::min(rows_.count(), first + kAmxRows);
    const int64_t offset = panel_ * b_.width * size_;
    for (int64_t row = first; row < last; ++row) {
      const char* to = static_cast<const char*>(rows_.out[row]) + offset;
      fetch_to_write(to);
      fetch_to_write(to + kAmxColumns * size_ - 1);
    }
  }

  Rows& rows_;
  const Packed& b_;
  Finish finish_;
  int64_t size_;  // bytes of an element of the output
  const float* sums_ = nullptr;
  int64_t block_ = 0, panel_ = 0;
};

}  // namespace memmod::cpu
