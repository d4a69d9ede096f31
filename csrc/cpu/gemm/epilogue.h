// What a product does with its sums: bias, gates and ReLU, for sums that lie beside the output.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm/indirect_gemm.h"
#include "micro/amx.h"
#include "micro/microkernels.h"

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

  // The same for one panel's columns, to be done later; false if that cannot be. `unfinished` is always the same one:
  // its fields are written one by one, as a copy of all would wait for the stores before it.
  bool later(const float* sums, int64_t first, int64_t count, int64_t column, int64_t columns, Unfinished& unfinished) {
    const Kernels& kernel = kernels();
    if (columns != kernel.columns || epilogue_.kept) {
      return false;
    }
    if (unfinished.finish == nullptr) {
      unfinished.finish = kernel.finish_rows[static_cast<int>(epilogue_.type)];
      unfinished.tile = tile_;
      unfinished.tile.columns = columns;
    }
    unfinished.tile.column = column;
    unfinished.tile.out = rows_.out.data() + first;
    unfinished.tile.gates = epilogue_.gated ? rows_.gates.data() + first : nullptr;
    unfinished.sums = sums;
    unfinished.rows = count;
    return true;
  }

 private:
  // Rows that are finished at once.
  static constexpr int64_t kFinishedRows = 8;

  // Tiles without taps: the product is in their partial sums.
  void with_tiles(const float* sums, int64_t stride, int64_t first, int64_t count) {
    tile_.partial_stride = stride;
    for (int64_t some = 0; some < count; some += kFinishedRows) {
      const int64_t together = std::min(kFinishedRows, count - some), row = first + some;
      tile_.partial_in = sums + some * stride;
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

// Blocks of AMX are finished one later: beside the next one's product, a few rows between any two steps of it, as the
// instructions that finish run while those of AMX do, which are few and long. One core, bf16, 1,568 rows, 384 → 1,536
// features: the product alone 720 µs, with blocks finished one later as a whole 1,150, row by row on the way 930.
class FinishLater {
 public:
  FinishLater(Rows& rows, const Packed& b, const Epilogue& epilogue) : rows_(rows), b_(b), finish_(rows, epilogue) {
  }

  // What the next product has to finish on the way, or null.
  Unfinished* beside() {
    return unfinished_.rows > 0 ? &unfinished_ : nullptr;
  }
  // The sums of a block and a panel are complete; they stay where they are until the next call is over.
  void add(const float* sums, int64_t block, int64_t panel) {
    finish();
    const int64_t first = block * kAmxRows, count = std::min(kAmxRows, rows_.count() - first);
    const int64_t column = panel * b_.width, columns = std::min(b_.width, b_.columns - column);
    if (!finish_.later(sums, first, count, column, columns, unfinished_)) {
      finish_(sums, kAmxColumns, first, count, column, columns);
    }
  }
  // The last one.
  void finish() {
    finish_beside(unfinished_, kAmxRows);
  }

 private:
  Rows& rows_;
  const Packed& b_;
  Finish finish_;
  Unfinished unfinished_;
};

}  // namespace memmod::cpu
