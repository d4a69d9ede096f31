// Memory that is fetched into the second-level cache while something else is computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace memmod::cpu {

constexpr int64_t kLine = 64;

// Fetches [first, last), as far as `lines` go, and returns where it stopped.
inline const char* prefetch_lines(const char* first, const char* last, int64_t lines) {
  for (; lines > 0 && first < last; first += kLine, --lines) {
    __builtin_prefetch(first, 0, 2);
  }
  return first;
}

// A few lines with every call of step(), so that `calls` of them fetch all regions.
class Prefetcher {
 public:
  Prefetcher(std::vector<std::pair<const char*, const char*>>& regions, int64_t calls) : regions_(regions) {
    int64_t bytes = 0;
    for (const auto& [first, last] : regions) {
      bytes += last - first;
    }
    const int64_t lines = (bytes + kLine - 1) / kLine;
    lines_ = (lines + calls - 1) / std::max<int64_t>(1, calls);
  }
  void step() {
    for (int64_t left = lines_; left > 0 && !regions_.empty();) {
      auto& [at, last] = regions_.back();
      const char* reached = prefetch_lines(at, last, left);
      left -= (reached - at) / kLine;
      at = reached;
      if (at >= last) {
        regions_.pop_back();
      }
    }
  }

 private:
  std::vector<std::pair<const char*, const char*>>& regions_;
  int64_t lines_;
};

}  // namespace memmod::cpu
