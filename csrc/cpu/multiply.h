// C = A · B in tiles, for the rows of one task: the loop that linear layers and convolutions share.
#pragma once

#include <c10/util/FunctionRef.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"
#include "packed.h"
#include "tasks.h"

namespace memmod::cpu {

// The rows of one task. Reused from task to task by a thread: buffers keep their size.
class Rows {
 public:
  // Splits `count` rows into tiles of nearly the same size, for `taps` pointers into A per row. Taps come in runs of
  // `run` that follow each other in B; in A they do in the tiles that say so.
  void reset(int64_t count, int64_t taps, int64_t run = 1);

  int64_t count() const {
    return count_;
  }
  int64_t taps() const {
    return taps_;
  }
  int64_t tiles() const {
    return tiles_;
  }
  // tiles() is behind the last tile.
  int64_t tile_start(int64_t tile) const {
    return starts_[tile];
  }
  const float* const* a(int64_t tile, int64_t tap) const {
    return a_.data() + (tile * taps_ + tap) * kMaxRows;
  }
  const float** a(int64_t tile) {
    return a_.data() + tile * taps_ * kMaxRows;
  }
  int64_t run() const {
    return run_;
  }
  // Whether the channels of a run of taps follow each other in A, for all rows of the tile.
  bool joined(int64_t tile) const {
    return joined_[tile];
  }
  void set_joined(int64_t tile, bool joined) {
    joined_[tile] = joined;
  }
  // fn(row, places) for every row: places[tap * kMaxRows] takes the row's pointer at a tap.
  template <typename Fn>
  void place(const Fn& fn) {
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      const int64_t first = tile_start(tile), last = tile_start(tile + 1);
      const float** places = a_.data() + tile * taps_ * kMaxRows;
      for (int64_t row = first; row < last; ++row) {
        fn(row, places + (row - first));
      }
    }
  }

  // Memory that the thread's next task will read: fetched into the cache while this one multiplies.
  void fetch_ahead(const void* first, const void* last) {
    ahead_.emplace_back(static_cast<const char*>(first), static_cast<const char*>(last));
  }
  std::vector<std::pair<const char*, const char*>>& ahead() {
    return ahead_;
  }

  // One entry per row. `kept` and `gates` are used if the call of multiply says so.
  std::vector<void*> out, kept;
  std::vector<const float*> gates;

 private:
  int64_t count_ = 0, taps_ = 0, tiles_ = 0, run_ = 1;
  std::vector<std::pair<const char*, const char*>> ahead_;
  std::vector<char> joined_;
  std::vector<int64_t> starts_;
  std::vector<const float*> a_;
};

struct Epilogue {
  Type type = Type::kFloat;     // of out and kept
  const float* bias = nullptr;  // [columns]
  bool bias_first = true;       // the bias is gated
  bool gated = false;           // rows.gates hold multipliers [columns]
  bool kept = false;            // rows.kept takes a second output
  bool keep_product = false;    // ... of what the gate multiplies, not of the result
  bool relu = false;            // out takes the result where it is positive, else 0
};

// A thread's copy of the rows of A that a task multiplies, in the order in which a tile reads them: the rows of a tile
// side by side, a vector of channels of each. It holds the channels of one pass.
class RowCopy {
 public:
  // Has `rows` (of one tap) point to a copy of `channels` channels.
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
Tile tile_of(const Epilogue& epilogue);

// Fills a copy of A's rows with some channels before they are read.
using Prepare = c10::function_ref<void(int64_t channel, int64_t channels)>;

// Channels of A that one pass over a task's rows reads, at most.
int64_t channels_per_pass(int64_t channels);

// rows.out = epilogue(A · B) for panels [first_panel, last_panel) of B, summed over the given taps of B. With
// `prepare`, A's rows are a RowCopy; else they hold all channels.
void multiply(
    Rows& rows, const Packed& b, const int64_t* taps, int64_t first_panel, int64_t last_panel, const Epilogue& epilogue,
    const Prepare* prepare = nullptr);

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
