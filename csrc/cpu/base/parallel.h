// Loops over tasks that the threads share. What a task does depends on its number only, so results do not depend on the
// number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace memmod::cpu {

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
