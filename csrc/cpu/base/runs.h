// Long sums in fp32 as sums of short runs: shorter chains of sums round less.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace memmod::cpu {

// Rows whose products are added up in fp32 before they join a task's sums.
constexpr int64_t kRowsPerSum = 64;

// reduce(first, count, sums) for runs of rows short enough to be added up in fp32, then the runs' sums.
template <typename Reduce>
void in_runs(float* sums, int64_t rows, int64_t count, const Reduce& reduce) {
  if (rows <= kRowsPerSum) {
    reduce(0, rows, sums);
    return;
  }
  thread_local std::vector<float> run;
  run.resize(count);
  for (int64_t first = 0; first < rows; first += kRowsPerSum) {
    std::fill(run.begin(), run.end(), 0.0f);
    reduce(first, std::min(kRowsPerSum, rows - first), run.data());
    for (int64_t i = 0; i < count; ++i) {
      sums[i] += run[i];
    }
  }
}

}  // namespace memmod::cpu
