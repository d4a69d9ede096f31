// The rows of A of one task, found through pointers, and their copies in the order in which micro-kernels read them.
#pragma once

#include <c10/util/FunctionRef.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace memmod::cpu {

// The rows of one task. Reused from task to task by a thread: buffers keep their size.
class IndirectRows {
 public:
  // Splits `count` rows into tiles of nearly the same size.
  void reset(int64_t count);

  int64_t count() const {
    return count_;
  }
  int64_t tiles() const {
    return tiles_;
  }
  // tiles() is after the last tile.
  int64_t tile_start(int64_t tile) const {
    return starts_[tile];
  }

  // Memory that the thread's next task will read: fetched into the cache while this one multiplies.
  void prefetch(const void* first, const void* last) {
    to_prefetch_.emplace_back(static_cast<const char*>(first), static_cast<const char*>(last));
  }
  std::vector<std::pair<const char*, const char*>>& to_prefetch() {
    return to_prefetch_;
  }

  // One entry per row: where A has it, and where its results go. `kept` and `gates` are used if the product
  // says so.
  std::vector<const float*> a;
  std::vector<void*> out, kept;
  std::vector<const float*> gates;

 private:
  int64_t count_ = 0, tiles_ = 0;
  std::vector<std::pair<const char*, const char*>> to_prefetch_;
  std::vector<int64_t> starts_;
};

// Channels of A that one pass over a task's rows reads, at most.
int64_t channels_per_pass(int64_t channels);

// A thread's copy of the rows of A that a task multiplies, in the order in which a micro-kernel reads them: the rows of
// a tile side by side, a vector of channels of each. It holds the channels of one pass.
class PackedRows {
 public:
  // Has `rows` point to a copy of `channels` channels.
  PackedRows(IndirectRows& rows, int64_t channels);

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

  const IndirectRows& rows_;
  int64_t tile_size_;
  float* buffer_;
};

// Fills a copy of A's rows with some channels before they are read.
using PackA = c10::function_ref<void(int64_t channel, int64_t channels)>;

}  // namespace memmod::cpu
