// Loops over tasks that the threads share. What a task does depends on its number only, so results do not depend on the
// number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

namespace memmod::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// `count` things in `parts` parts of nearly the same size: the first of part `part`.
inline int64_t part_start(int64_t count, int64_t parts, int64_t part) {
  return part * (count / parts) + std::min(part, count % parts);
}

// The same with borders at multiples of `unit`.
inline int64_t part_start(int64_t count, int64_t parts, int64_t part, int64_t unit) {
  return std::min(count, unit * part_start(ceil_div(count, unit), parts, part));
}

// fn(task) for tasks 0 to count - 1, each taken by the next free thread.
template <typename Fn>
void for_each_task(int64_t count, bool parallel, const Fn& fn) {
  const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  if (!parallel || threads <= 1 || at::in_parallel_region()) {
    for (int64_t task = 0; task < count; ++task) {
      fn(task);
    }
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < count; task = next++) {
      fn(task);
    }
  });
}

}  // namespace memmod::cpu
