// The fibers, the schedule and the shared memory behind host.h. Compiled without a sanitizer in every build, so that its
// own accesses are not a kernel's; it tells the sanitizers what they cannot see.
#include "host.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef MEMMOD_HOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef MEMMOD_HOST_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace host {
namespace {

constexpr int THREADS = 1024, WARPS = THREADS / WARP, SLOT = 64;
constexpr std::size_t PAGE = 4096, STACK = 64 * PAGE;
// What a block of an H100 can have, of which 48 KiB can be static; more than that between two arrays is never touched.
constexpr std::size_t SHARED = 227 * 1024, STATIC = 48 * 1024, GAP = 256, ARENA = SHARED + STATIC + 64 * GAP;

// Blocks of a launch whose threads the thread sanitizer tells apart: new fibers, which it needs, take .4 ms each.
constexpr std::uint64_t TRACED = 2;

enum class State { ready, at_barrier, with_warp, done };

struct Fiber {
  Thread thread;
  State state;
  Together kind;
  unsigned mask;
  int exchanges, groups;
  unsigned char slots[2][SLOT];
  std::vector<Copy> copies;
  void* stack_pointer;
  unsigned char* stack;
  std::size_t stack_bytes;
  void* tsan;
  void* asan;
};

struct Array {
  const void* site;
  void* memory;
};

struct Block {
  dim3 grid, size, index;
  int threads, alive, waiting;
  unsigned generation;
  unsigned ready[WARPS];
  int order[WARPS], rotation[WARPS], warps;
  std::vector<Array> arrays;
  std::size_t static_bytes, used;
  void* dynamic;
  void (*call)(void*);
  void* context;
  std::string error;
  bool traced;
};

Fiber fibers[THREADS + 1];
Fiber& scheduler = fibers[THREADS];
Fiber* current = &scheduler;
Block block;
unsigned char* arena = nullptr;
std::mt19937 generator;
std::uint64_t launches = 0;
std::mutex one_launch;
// What the sanitizer orders barriers by: a thread can be one barrier ahead of the others.
char barriers[2], warp_syncs[WARPS][2];

extern "C" void memmod_switch(void** from, void* to);
asm(R"(
.text
.type memmod_switch, @function
memmod_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

void switch_to(Fiber& next, bool synchronise = false) {
  Fiber& previous = *current;
  if (&next == &previous) return;
  current = &next;
#ifdef MEMMOD_HOST_TSAN
  if (block.traced) __tsan_switch_to_fiber(next.tsan, synchronise ? 0 : __tsan_switch_to_fiber_no_sync);
#endif
#ifdef MEMMOD_HOST_ASAN
  __sanitizer_start_switch_fiber(&previous.asan, next.stack, next.stack_bytes);
#endif
  memmod_switch(&previous.stack_pointer, next.stack_pointer);
#ifdef MEMMOD_HOST_ASAN
  __sanitizer_finish_switch_fiber(current->asan, nullptr, nullptr);
#endif
}

void order(void* barrier, bool arrives) {
#ifdef MEMMOD_HOST_TSAN
  arrives ? __tsan_release(barrier) : __tsan_acquire(barrier);
#endif
}

int warp_of(const Fiber& fiber) { return static_cast<int>(&fiber - fibers) / WARP; }

void set_ready(Fiber& fiber) {
  fiber.state = State::ready;
  block.ready[warp_of(fiber)] |= 1u << fiber.thread.lane;
}

// The next thread: of the first warp in the order that has one.
Fiber& next() {
  for (int i = 0; i < block.warps; ++i) {
    const int warp = block.order[i];
    const unsigned ready = block.ready[warp];
    if (ready == 0) continue;
    const int by = block.rotation[warp];
    const unsigned turned = by ? ready >> by | ready << (WARP - by) : ready;
    return fibers[warp * WARP + (__builtin_ctz(turned) + by) % WARP];
  }
  return scheduler;
}

// Unfair: the first warp runs as far as it can before the second one starts. Redrawn at every barrier.
void draw_order() {
  for (int warp = 0; warp < block.warps; ++warp) block.rotation[warp] = static_cast<int>(generator() % WARP);
  std::shuffle(block.order, block.order + block.warps, generator);
}

[[noreturn]] void fail(const std::string& what) {
  const dim3 t = current->thread.index, b = block.index;
  block.error = what + " (thread " + std::to_string(t.x) + ", " + std::to_string(t.y) + " of block " +
                std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + ")";
  switch_to(scheduler, true);
  __builtin_unreachable();
}

void wait(State state) {
  current->state = state;
  block.ready[warp_of(*current)] &= ~(1u << current->thread.lane);
}

void open_barrier_if_all_wait() {
  if (block.waiting == 0 || block.waiting < block.alive) return;
  block.waiting = 0;
  ++block.generation;
  for (int i = 0; i < block.threads; ++i)
    if (fibers[i].state == State::at_barrier) set_ready(fibers[i]);
  draw_order();
}

void enter() {
#ifdef MEMMOD_HOST_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  block.call(block.context);
  wait(State::done);
  --block.alive;
  open_barrier_if_all_wait();
  // The end of a block is ordered behind its threads.
  switch_to(scheduler, true);
}

void start(Fiber& fiber, int i) {
  const auto x = static_cast<unsigned>(i);
  fiber.thread = {{x % block.size.x, x / block.size.x % block.size.y, x / block.size.x / block.size.y}, i % WARP};
  fiber.exchanges = fiber.groups = 0;
  fiber.copies.clear();
  if (fiber.stack == nullptr) {
    void* memory = mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE)) throw std::runtime_error("no memory for a stack");
    fiber.stack = static_cast<unsigned char*>(memory) + PAGE;
    fiber.stack_bytes = STACK;
  }
#ifdef MEMMOD_HOST_ASAN
  __asan_unpoison_memory_region(fiber.stack, STACK);
#endif
#ifdef MEMMOD_HOST_TSAN
  if (block.traced) fiber.tsan = __tsan_create_fiber(0);
#endif
  // What memmod_switch pops: six registers, the address it returns to, and one for a stack aligned as after a call.
  auto** top = reinterpret_cast<void**>(fiber.stack + STACK) - 8;
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(&enter);
  fiber.stack_pointer = top;
  set_ready(fiber);
}

std::string stuck() {
  int at_barrier = 0, with_warp = 0;
  for (int i = 0; i < block.threads; ++i) {
    at_barrier += fibers[i].state == State::at_barrier;
    with_warp += fibers[i].state == State::with_warp;
  }
  return "deadlock: " + std::to_string(at_barrier) + " threads wait at __syncthreads, " + std::to_string(with_warp) +
         " for lanes of their warp, " + std::to_string(block.threads - block.alive) + " have returned";
}

void take(std::size_t bytes, void*& memory) {
  memory = arena + block.used;
  block.used += (bytes + GAP) / GAP * GAP + GAP;
#ifdef MEMMOD_HOST_ASAN
  __asan_unpoison_memory_region(memory, bytes);
#endif
}

void run_block(dim3 index, std::size_t shared_bytes) {
  block.index = index;
  block.alive = block.threads;
  block.waiting = 0;
  block.generation = 0;
  block.warps = (block.threads + WARP - 1) / WARP;
  block.arrays.clear();
  block.static_bytes = block.used = 0;
  std::fill(block.ready, block.ready + WARPS, 0u);
  for (int i = 0; i < block.warps; ++i) block.order[i] = i;
  draw_order();
  // NaN in every type that kernels compute in.
  const std::size_t size = shared_bytes + ARENA - SHARED;
#ifdef MEMMOD_HOST_ASAN
  __asan_unpoison_memory_region(arena, size);
#endif
  std::memset(arena, 0xff, size);
#ifdef MEMMOD_HOST_ASAN
  __asan_poison_memory_region(arena, size);
#endif
  take(shared_bytes, block.dynamic);
  for (int i = 0; i < block.threads; ++i) start(fibers[i], i);
  while (block.alive > 0 && block.error.empty()) {
    Fiber& first = next();
    if (&first == &scheduler) {
      block.error = stuck();
    } else {
      switch_to(first);
    }
  }
#ifdef MEMMOD_HOST_TSAN
  for (int i = 0; block.traced && i < block.threads; ++i) __tsan_destroy_fiber(fibers[i].tsan);
#endif
  if (!block.error.empty()) throw std::runtime_error(block.error);
}

}  // namespace

const Thread& thread() { return current->thread; }
const dim3& block_index() { return block.index; }
const dim3& block_size() { return block.size; }
const dim3& grid_size() { return block.grid; }
void* dynamic_shared() { return block.dynamic; }

void* shared(const void* site, std::size_t bytes) {
  for (const Array& array : block.arrays)
    if (array.site == site) return array.memory;
  block.static_bytes += bytes;
  if (block.static_bytes > STATIC) fail("more than 48 KiB of static shared memory");
  block.arrays.push_back({site, nullptr});
  take(bytes, block.arrays.back().memory);
  return block.arrays.back().memory;
}

void barrier() {
  char* gate = &barriers[block.generation % 2];
  order(gate, true);
  ++block.waiting;
  wait(State::at_barrier);
  open_barrier_if_all_wait();
  switch_to(next());
  order(gate, false);
}

void exchange(unsigned mask, Together kind, const void* mine, int bytes) {
  Fiber& self = *current;
  const int warp = warp_of(self), first = warp * WARP;
  if (!(mask >> self.thread.lane & 1))
    fail("lane " + std::to_string(self.thread.lane) + " takes part in an operation whose mask leaves it out");
  auto* slot = self.slots[++self.exchanges % 2];
  for (int i = 0; i < bytes; ++i) slot[i] = static_cast<const unsigned char*>(mine)[i];
  char* gate = &warp_syncs[warp][self.exchanges % 2];
  if (kind == Together::sync) order(gate, true);
  self.mask = mask;
  self.kind = kind;
  wait(State::with_warp);
  bool complete = true;
  for (int lane = 0; lane < WARP; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Fiber& other = fibers[first + lane];
    if (first + lane >= block.threads || other.state == State::done)
      fail("lane " + std::to_string(lane) + " is in a mask but has returned");
    if (other.state != State::with_warp) {
      complete = false;
    } else if (other.mask != mask || other.kind != kind) {
      fail("lanes of a warp wait for each other in different operations or with different masks");
    }
  }
  if (complete)
    for (int lane = 0; lane < WARP; ++lane)
      if (mask >> lane & 1) set_ready(fibers[first + lane]);
  switch_to(next());
  if (kind == Together::sync) order(gate, false);
}

void receive(int lane, void* to, int offset, int bytes) {
  const Fiber& self = *current;
  const Fiber& other = fibers[warp_of(self) * WARP + lane % WARP];
  auto* out = static_cast<unsigned char*>(to);
  const bool given = self.mask >> (lane % WARP) & 1;
  for (int i = 0; i < bytes; ++i) out[i] = given ? other.slots[self.exchanges % 2][offset + i] : 0xff;
}

void copy_async(const Copy& copy) {
  current->copies.push_back(copy);
  current->copies.back().group = current->groups;
}

void commit_copies() { ++current->groups; }

bool next_copy(int groups, Copy& copy) {
  auto& copies = current->copies;
  if (copies.empty() || copies.front().group >= current->groups - groups) return false;
  copy = copies.front();
  copies.erase(copies.begin());
  return true;
}

void run(dim3 grid, dim3 size, std::size_t shared_bytes, void (*call)(void*), void* context) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  const std::uint64_t threads = std::uint64_t{size.x} * size.y * size.z;
  if (blocks == 0 || threads == 0 || threads > THREADS || grid.y > 65535 || grid.z > 65535 || shared_bytes > SHARED)
    throw std::runtime_error("invalid configuration: a GPU refuses this grid, block or shared memory");
  if (arena == nullptr) {
    void* memory = mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory for shared memory");
    arena = static_cast<unsigned char*>(memory);
  }
#ifdef MEMMOD_HOST_TSAN
  scheduler.tsan = __tsan_get_current_fiber();
#endif
#ifdef MEMMOD_HOST_ASAN
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, reinterpret_cast<void**>(&scheduler.stack), &scheduler.stack_bytes);
  pthread_attr_destroy(&attributes);
#endif
  ++launches;
  block.grid = grid;
  block.size = size;
  block.threads = static_cast<int>(threads);
  block.call = call;
  block.context = context;
  block.error.clear();
  // Blocks in any order: each of them must be able to be the first.
  const std::uint64_t first = generator() % blocks;
  const bool backwards = generator() % 2;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t b = (first + (backwards ? blocks - i : i)) % blocks;
    const auto x = static_cast<unsigned>(b % grid.x), rest = static_cast<unsigned>(b / grid.x);
    block.traced = i < TRACED;
    run_block({x, rest % grid.y, rest / grid.y}, shared_bytes);
  }
}

}  // namespace host

extern "C" void memmod_host_seed(unsigned seed) { host::generator.seed(seed); }
extern "C" std::uint64_t memmod_host_launches() { return host::launches; }
