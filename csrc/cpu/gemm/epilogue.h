// What a product does with its sums: bias, gates and ReLU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gemm/indirect_rows.h"
#include "gemm/pack.h"
#include "micro/amx.h"
#include "micro/microkernels.h"

namespace memmod::cpu {

struct Epilogue {
  Type type = Type::kFloat;     // of out and kept
  const float* bias = nullptr;  // [columns]
  bool gate_bias = true;        // the bias is gated
  bool gated = false;           // rows.gates hold multipliers [columns]
  bool kept = false;            // rows.kept takes a second output
  bool save_ungated = false;    // ... of what the gate multiplies, not of the result
  bool relu = false;            // out takes the result where it is positive, else 0
};

// A tile with what the epilogue asks of every one; it stands for no rows or columns yet.
inline MicroTile micro_tile(const Epilogue& epilogue) {
  MicroTile t{};
  t.bias = epilogue.bias;
  t.gate_bias = epilogue.gate_bias;
  t.save_ungated = epilogue.save_ungated;
  t.floor = epilogue.relu ? 0.0f : -std::numeric_limits<float>::infinity();
  return t;
}

// For sums that lie beside the output. Gives rows [first, first + count) of columns [column, column + columns) their
// results, from sums [count][stride].
class ApplyEpilogue {
 public:
  ApplyEpilogue(IndirectRows& rows, const Epilogue& epilogue)
      : rows_(rows),
        epilogue_(epilogue),
        tile_(micro_tile(epilogue)),
        kernels_(micro_kernels().gemm[static_cast<int>(epilogue.type)]) {
  }

  void operator()(const float* sums, int64_t stride, int64_t first, int64_t count, int64_t column, int64_t columns) {
    const MicroKernels& kernel = micro_kernels();
    for (int64_t done = 0; done < columns; done += kernel.nr) {
      tile_.column = column + done;
      tile_.columns = std::min(kernel.nr, columns - done);
      if (tile_.columns == kernel.nr && !epilogue_.kept) {
        tile_.out = rows_.out.data() + first;
        tile_.gates = epilogue_.gated ? rows_.gates.data() + first : nullptr;
        kernel.finish_rows[static_cast<int>(epilogue_.type)](tile_, sums + done, stride, count);
      } else {
        with_tiles(sums + done, stride, first, count);
      }
    }
  }

  // The same for one panel's columns, to be done later; false if that cannot be. `pending` is always the same one:
  // its fields are written one by one, as a copy of all would wait for the stores before it.
  bool later(
      const float* sums, int64_t first, int64_t count, int64_t column, int64_t columns, PendingEpilogue& pending) {
    const MicroKernels& kernel = micro_kernels();
    if (columns != kernel.nr || epilogue_.kept) {
      return false;
    }
    if (pending.finish == nullptr) {
      pending.finish = kernel.finish_rows[static_cast<int>(epilogue_.type)];
      pending.tile = tile_;
      pending.tile.columns = columns;
    }
    pending.tile.column = column;
    pending.tile.out = rows_.out.data() + first;
    pending.tile.gates = epilogue_.gated ? rows_.gates.data() + first : nullptr;
    pending.sums = sums;
    pending.rows = count;
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
      kernels_[together - 1](tile_);
    }
  }

  IndirectRows& rows_;
  const Epilogue& epilogue_;
  MicroTile tile_;
  void (*const (&kernels_)[kMaxMr])(const MicroTile&);
};

// Blocks of AMX are finished one later: beside the next one's product, a few rows between any two steps of it, as the
// instructions that finish run while those of AMX do, which are few and long. One core, bf16, 1,568 rows, 384 → 1,536
// features: the product alone 720 µs, with blocks finished one later as a whole 1,150, row by row on the way 930.
class DeferredEpilogue {
 public:
  DeferredEpilogue(IndirectRows& rows, const PackedWeight& b, const Epilogue& epilogue)
      : rows_(rows), b_(b), finish_(rows, epilogue) {
  }

  // What the next product has to finish on the way, or null.
  PendingEpilogue* pending() {
    return pending_.rows > 0 ? &pending_ : nullptr;
  }
  // The sums of a block and a panel are complete; they stay where they are until the next call is over.
  void add(const float* sums, int64_t block, int64_t panel) {
    finish();
    const int64_t first = block * kAmxRows, count = std::min(kAmxRows, rows_.count() - first);
    const int64_t column = panel * b_.width, columns = std::min(b_.width, b_.columns - column);
    if (!finish_.later(sums, first, count, column, columns, pending_)) {
      finish_(sums, kAmxColumns, first, count, column, columns);
    }
  }
  // The last one.
  void finish() {
    finish_pending(pending_, kAmxRows);
  }

 private:
  IndirectRows& rows_;
  const PackedWeight& b_;
  ApplyEpilogue finish_;
  PendingEpilogue pending_;
};

}  // namespace memmod::cpu
