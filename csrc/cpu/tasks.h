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

// fn(task) for tasks 0 to count - 1. Each thread begins with the tasks of its own share, in ascending order, and helps
// the others when it is done: so one that had some rows of a tensor in its cache has them again in the next layer, and
// in the library's operations between, which share rows likewise. ViT-T, a step on two cores: 0.95 of the time in which
// each thread takes the next free task.
template <typename Fn>
void for_each_task(int64_t count, bool parallel, const Fn& fn) {
  const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  if (!parallel || threads <= 1 || at::in_parallel_region()) {
    for (int64_t task = 0; task < count; ++task) {
      fn(task);
    }
    return;
  }
  struct alignas(64) Next {
    std::atomic<int64_t> task;
  };
  std::vector<Next> next(threads);
  for (int64_t thread = 0; thread < threads; ++thread) {
    next[thread].task = part_start(count, threads, thread);
  }
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t turn = first; turn < last + threads - 1; ++turn) {
      const int64_t thread = turn % threads, end = part_start(count, threads, thread + 1);
      for (int64_t task = next[thread].task++; task < end; task = next[thread].task++) {
        fn(task);
      }
    }
  });
}

// The same with borders at multiples of `unit`.
inline int64_t part_start(int64_t count, int64_t parts, int64_t part, int64_t unit) {
  return std::min(count, unit * part_start(ceil_div(count, unit), parts, part));
}

}  // namespace memmod::cpu
