// C = A · B in tiles, for the rows of one task: the loop that linear layers and convolutions share.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/FunctionRef.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "layers/weight_cache.h"
#include "micro/microkernels.h"

namespace memmod::cpu {

// Channels times taps that are summed one after the other, at most, before the sum joins the rest: long chains round
// more. 64 channels of 3 × 3 taps are one chain. Largest error of 1,024 inputs in 256² sums: 5.6e-6 in one chain,
// 3.7e-6 in two, 2.2e-6 in four (library 1.6e-6). Time of layers with 768 and 1,024 inputs on AVX2: 1.02 to 1.04 of one
// chain's; of ResNet-18's convolutions 1.00 to 1.01.
constexpr int64_t kChain = 576;

// The rows of one task. Reused from task to task by a thread: buffers keep their size.
class Rows {
 public:
  // Splits `count` rows into tiles of nearly the same size.
  void reset(int64_t count);

  int64_t count() const {
    return count_;
  }
  int64_t tiles() const {
    return tiles_;
  }
  // tiles() is behind the last tile.
  int64_t tile_start(int64_t tile) const {
    return starts_[tile];
  }

  // Memory that the thread's next task will read: fetched into the cache while this one multiplies.
  void fetch_ahead(const void* first, const void* last) {
    ahead_.emplace_back(static_cast<const char*>(first), static_cast<const char*>(last));
  }
  std::vector<std::pair<const char*, const char*>>& ahead() {
    return ahead_;
  }

  // One entry per row: where A has it, and where its results go. `kept` and `gates` are used if the call of multiply
  // says so.
  std::vector<const float*> a;
  std::vector<void*> out, kept;
  std::vector<const float*> gates;

 private:
  int64_t count_ = 0, tiles_ = 0;
  std::vector<std::pair<const char*, const char*>> ahead_;
  std::vector<int64_t> starts_;
};

// Where the channels of a tap are: elements from a row's pointer into A, and its index in B.
struct Tap {
  int64_t a, b;
};

struct Epilogue {
  Type type = Type::kFloat;     // of out and kept
  const float* bias = nullptr;  // [columns]
  bool gate_bias = true;        // the bias is gated
  bool gated = false;           // rows.gates hold multipliers [columns]
  bool kept = false;            // rows.kept takes a second output
  bool save_ungated = false;    // ... of what the gate multiplies, not of the result
  bool relu = false;            // out takes the result where it is positive, else 0
};

// A thread's copy of the rows of A that a task multiplies, in the order in which a tile reads them: the rows of a tile
// side by side, a vector of channels of each. It holds the channels of one pass.
class RowCopy {
 public:
  // Has `rows` point to a copy of `channels` channels.
  RowCopy(Rows& rows, int64_t channels);

  int64_t step() const;

  // fn(first row, count, where the first row goes): rows from `first` to `last`, tile by tile. The rows of one call are
  // row_stride() apart.
  template <typename Fn>
  void each_tile(int64_t first, int64_t last, const Fn& fn) const {
    int64_t tile = first_tile(first);
    while (first < last) {
      const int64_t start = rows_.tile_start(tile), count = std::min(last, rows_.tile_start(tile + 1)) - first;
      fn(first, count, buffer_ + tile * tile_size_ + (first - start) * row_stride());
      first += count;
      ++tile;
    }
  }
  int64_t row_stride() const;

 private:
  int64_t first_tile(int64_t row) const;

  const Rows& rows_;
  int64_t tile_size_;
  float* buffer_;
};

// A tile with what the epilogue asks of every one; it stands for no rows or columns yet.
MicroTile micro_tile(const Epilogue& epilogue);

// Fills a copy of A's rows with some channels before they are read.
using Prepare = c10::function_ref<void(int64_t channel, int64_t channels)>;

// Channels of A that one pass over a task's rows reads, at most.
int64_t channels_per_pass(int64_t channels);

// rows.out = epilogue(A · B) for panels [first_panel, last_panel) of B, summed over the given taps of B. With
// `prepare`, A's rows are a RowCopy; else they hold all channels.
void multiply(
    Rows& rows, const Packed& b, c10::ArrayRef<Tap> taps, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue, const Prepare* prepare = nullptr);

// The same for a depthwise convolution in fp32: A's rows have B's columns, B (kTiles, kForward) has one channel. The
// columns are a multiple of a vector, and all taps one chain.
void multiply_depthwise(
    Rows& rows, const Packed& b, c10::ArrayRef<Tap> taps, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue);

// How tasks share the rows and columns of a product: by its shape only.
struct Partition {
  int64_t row_parts, column_parts, row_unit;

  int64_t tasks() const {
    return row_parts * column_parts;
  }
  // The first of `rows` rows that row part `part` has.
  int64_t row_start(int64_t rows, int64_t part) const {
    return part_start(rows, row_parts, part, row_unit);
  }
};

// Rows of a task: about how many, at least how many where there are few, and the unit that borders are multiples of.
struct Grain {
  int64_t usual, fewest, unit;
};

// Whole tiles.
Grain tile_grain();

Partition partition(int64_t rows, int64_t panels, int64_t operations_per_row, const Grain& grain = tile_grain());

// Operations below which a thread costs more than it saves.
constexpr int64_t kSerialOperations = 1 << 18;

}  // namespace memmod::cpu
