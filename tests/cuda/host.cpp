// The fibers, the schedule and the shared memory behind host.h. Compiled without a sanitizer in every build, so that its
// own accesses are not a kernel's; what ON_ASAN and ON_TSAN hold tells those builds' sanitizers what they cannot see.
#include "host.h"

#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/tsan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace host {
Now now;
namespace {

constexpr std::size_t THREADS = 1024, WARPS = THREADS / WARP, SLOT = 32, PAGE = 4096, STACK = 64 * PAGE;
// What a block of an H100 can have, and how much of it without asking; between two arrays there is a gap.
constexpr std::size_t SHARED = 227 * 1024, STATIC = 48 * 1024, GAP = 256, ARENA = SHARED + STATIC + 64 * GAP;
// Blocks of a launch whose threads the thread sanitizer tells apart: new fibers, which it needs, take .4 ms each.
constexpr std::uint64_t TRACED = 2;
// Named barriers of a block, and the numbers of a tile's row.
constexpr int NAMED = 16, ROW = 64;

enum class State { ready, at_barrier, at_named, at_phase, with_warp, done };

// What a 64-bit barrier in shared memory holds.
struct Phase { std::uint8_t count, pending, parity, unused; std::int32_t bytes; };
static_assert(sizeof(Phase) == sizeof(std::uint64_t));
struct Load { void* to; Matrix from; int column, row; std::uint64_t* barrier; };
struct Store { Matrix to; const void* from; int column, row; };
struct Work { std::function<void()> run; int group; };

struct Fiber {
  Thread thread;
  State state;
  unsigned mask;
  int bytes, exchanges, groups;
  unsigned char slots[2][SLOT];
  std::vector<Copy> copies;
  std::vector<Store> stores;
  std::vector<Work> works;
  int work_groups, named;
  std::uint64_t* phase;
  unsigned parity;
  void *stack_pointer, *tsan, *asan;
  unsigned char* stack;
  std::size_t stack_bytes;
};

struct Block {
  int threads, alive, waiting, warps;
  unsigned generation, ready[WARPS];
  int order[WARPS], rotation[WARPS];
  std::vector<std::pair<const void*, void*>> arrays;
  std::vector<Load> loads;
  int arrived[NAMED];
  std::size_t static_bytes, used;
  void (*call)(void*);
  void* context;
  std::string error;
  bool traced;
};

Fiber fibers[THREADS + 1], &scheduler = fibers[THREADS], *current = &scheduler;
Block block;
unsigned char* arena = nullptr;
std::mt19937 generator;
std::uint64_t launches = 0;
// What the sanitizer orders barriers by: a thread can be one barrier ahead of the others.
char barriers[2], warp_syncs[WARPS][2];
[[maybe_unused]] char named_syncs[NAMED];

extern "C" void memmod_switch(void** from, void* to);
asm(R"(
.type memmod_switch, @function
memmod_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

void switch_to(Fiber& next, bool synchronise = false) {
  Fiber& previous = *current;
  if (&next == &previous) return;
  current = &next;
  now.thread = &next.thread;
  ON_TSAN(if (block.traced) __tsan_switch_to_fiber(next.tsan, synchronise ? 0 : __tsan_switch_to_fiber_no_sync);)
  ON_ASAN(__sanitizer_start_switch_fiber(&previous.asan, next.stack, next.stack_bytes);)
  memmod_switch(&previous.stack_pointer, next.stack_pointer);
  ON_ASAN(__sanitizer_finish_switch_fiber(current->asan, nullptr, nullptr);)
}

void order(void* barrier, bool arrives) { ON_TSAN(arrives ? __tsan_release(barrier) : __tsan_acquire(barrier);) }

int warp_of(const Fiber& fiber) { return static_cast<int>(&fiber - fibers) / WARP; }

void set_ready(Fiber& fiber) {
  fiber.state = State::ready;
  block.ready[warp_of(fiber)] |= 1u << fiber.thread.lane;
}

void wait(State state) {
  current->state = state;
  block.ready[warp_of(*current)] &= ~(1u << current->thread.lane);
}

// The next thread: of the first warp in the order that has one.
Fiber& next() {
  for (int i = 0; i < block.warps; ++i) {
    const int warp = block.order[i], by = block.rotation[warp];
    const unsigned ready = block.ready[warp], turned = by ? ready >> by | ready << (WARP - by) : ready;
    if (ready != 0) return fibers[warp * WARP + (__builtin_ctz(turned) + by) % WARP];
  }
  return scheduler;
}

// Unfair: the first warp runs as far as it can before the second one starts. Redrawn at every barrier.
void draw_order() {
  for (int warp = 0; warp < block.warps; ++warp) block.rotation[warp] = static_cast<int>(generator() % WARP);
  std::shuffle(block.order, block.order + block.warps, generator);
}

[[noreturn]] void fail(const std::string& what) {
  const dim3 t = now.thread->index, b = now.block;
  block.error = what + ": thread " + std::to_string(t.x) + " of block " + std::to_string(b.x);
  switch_to(scheduler, true);
  __builtin_unreachable();
}

void open_barrier_if_all_wait() {
  if (block.waiting == 0 || block.waiting < block.alive) return;
  block.waiting = 0;
  ++block.generation;
  for (int i = 0; i < block.threads; ++i)
    if (fibers[i].state == State::at_barrier) set_ready(fibers[i]);
  draw_order();
}

Phase& phase_of(std::uint64_t* barrier) { return *reinterpret_cast<Phase*>(barrier); }

void end_phase_if_complete(Phase& phase) {
  if (phase.pending > 0 || phase.bytes != 0) return;
  phase.parity ^= 1;
  phase.pending = phase.count;
}

// Byte `offset` of a tile that starts at a multiple of 1024.
unsigned char* in_tile(const void* tile, int row, int column) {
  const unsigned offset = static_cast<unsigned>(row * ROW + column) * 2;
  return static_cast<unsigned char*>(const_cast<void*>(tile)) + (offset ^ (offset >> 7 & 7) << 4);
}

// For each number of a tile: its place in shared memory, and in the matrix or null where that ends before.
template <typename Function>
void for_tile(const void* tile, const Matrix& matrix, int column, int row, Function fn) {
  for (int r = 0; r < matrix.height; ++r)
    for (int c = 0; c < ROW; ++c) {
      const bool inside = row + r < matrix.rows && column + c < matrix.columns;
      const std::int64_t at = (static_cast<std::int64_t>(row) + r) * matrix.columns + column + c;
      fn(in_tile(tile, r, c), inside ? static_cast<unsigned char*>(matrix.data) + 2 * at : nullptr);
    }
}

// The loads that were announced to a barrier arrive.
void deliver(std::uint64_t* barrier) {
  for (const Load& load : block.loads) {
    if (load.barrier != barrier) continue;
    for_tile(load.to, load.from, load.column, load.row, [](unsigned char* to, const unsigned char* from) {
      for (int i = 0; i < 2; ++i) to[i] = from == nullptr ? 0 : from[i];
    });
    phase_of(barrier).bytes -= load.from.height * ROW * 2;
  }
  std::erase_if(block.loads, [&](const Load& load) { return load.barrier == barrier; });
  end_phase_if_complete(phase_of(barrier));
}

// Whether a thread that waits at a phase can go on.
bool passes(const Fiber& fiber) {
  if (phase_of(fiber.phase).parity == fiber.parity) deliver(fiber.phase);
  return phase_of(fiber.phase).parity != fiber.parity;
}

// Threads that wait for a phase which is over; none: false.
bool wake() {
  bool any = false;
  for (int i = 0; i < block.threads; ++i)
    if (fibers[i].state == State::at_phase && passes(fibers[i])) set_ready(fibers[i]), any = true;
  return any;
}

void enter() {
  ON_ASAN(__sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);)
  block.call(block.context);
  if (!current->stores.empty() || !current->works.empty()) fail("a thread returns while its stores or products are under way");
  wait(State::done);
  --block.alive;
  open_barrier_if_all_wait();
  // The end of a block is ordered behind its threads.
  switch_to(scheduler, true);
}

unsigned char* map(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no memory for stacks and shared memory");
  return static_cast<unsigned char*>(memory);
}

void start(Fiber& fiber, unsigned i) {
  fiber.thread = {{i % now.size.x, i / now.size.x % now.size.y, i / now.size.x / now.size.y}, static_cast<int>(i % WARP)};
  fiber.exchanges = fiber.groups = 0;
  fiber.copies.clear();
  fiber.stores.clear();
  fiber.works.clear();
  fiber.work_groups = 0;
  if (fiber.stack == nullptr) {
    fiber.stack = map(PAGE + STACK) + PAGE;
    if (mprotect(fiber.stack - PAGE, PAGE, PROT_NONE)) throw std::runtime_error("no guard page below a stack");
    fiber.stack_bytes = STACK;
  }
  ON_ASAN(__asan_unpoison_memory_region(fiber.stack, STACK);)
  ON_TSAN(if (block.traced) fiber.tsan = __tsan_create_fiber(0);)
  // What memmod_switch pops: six registers, the address it returns to, and one for a stack aligned as after a call.
  auto** top = reinterpret_cast<void**>(fiber.stack + STACK) - 8;
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(&enter);
  fiber.stack_pointer = top;
  set_ready(fiber);
}

void* take(std::size_t bytes) {
  void* memory = arena + block.used;
  block.used += (bytes + GAP) / GAP * GAP + GAP;
  ON_ASAN(__asan_unpoison_memory_region(memory, bytes);)
  return memory;
}

void run_block(dim3 index, std::size_t shared_bytes) {
  now.block = index;
  block.alive = block.threads;
  block.waiting = 0;
  block.static_bytes = block.used = block.generation = 0;
  block.arrays.clear();
  block.loads.clear();
  std::fill(block.arrived, block.arrived + NAMED, 0);
  block.warps = (block.threads + WARP - 1) / WARP;
  std::fill(block.ready, block.ready + WARPS, 0u);
  for (int i = 0; i < block.warps; ++i) block.order[i] = i;
  draw_order();
  // NaN in every type that kernels compute in.
  const std::size_t size = shared_bytes + ARENA - SHARED;
  ON_ASAN(__asan_unpoison_memory_region(arena, size);)
  std::memset(arena, 0xff, size);
  ON_ASAN(__asan_poison_memory_region(arena, size);)
  now.dynamic_shared = take(shared_bytes);
  for (int i = 0; i < block.threads; ++i) start(fibers[i], static_cast<unsigned>(i));
  while (block.alive > 0 && block.error.empty()) {
    if (&next() == &scheduler && wake()) continue;
    if (&next() == &scheduler)
      block.error = "deadlock: " + std::to_string(block.waiting) + " threads wait at __syncthreads, others for lanes or barriers";
    else
      switch_to(next());
  }
  ON_TSAN(for (int i = 0; block.traced && i < block.threads; ++i) __tsan_destroy_fiber(fibers[i].tsan);)
  if (!block.error.empty()) throw std::runtime_error(block.error);
}

}  // namespace

void* shared(const void* site, std::size_t bytes) {
  for (const auto& [other, memory] : block.arrays)
    if (other == site) return memory;
  block.static_bytes += bytes;
  if (block.static_bytes > STATIC) fail("more than 48 KiB of static shared memory");
  block.arrays.emplace_back(site, take(bytes));
  return block.arrays.back().second;
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

void exchange(unsigned mask, const void* mine, int bytes, bool orders_memory) {
  Fiber& self = *current;
  const int warp = warp_of(self), first = warp * WARP;
  if (!(mask >> self.thread.lane & 1)) fail("a lane takes part in an operation whose mask leaves it out");
  auto* slot = self.slots[++self.exchanges % 2];
  // No memcpy here and below: the sanitizers would see it.
  for (int i = 0; i < bytes; ++i) slot[i] = static_cast<const volatile unsigned char*>(mine)[i];
  char* gate = &warp_syncs[warp][self.exchanges % 2];
  if (orders_memory) order(gate, true);
  self.mask = mask;
  self.bytes = bytes;
  wait(State::with_warp);
  bool complete = true;
  for (int lane = 0; lane < WARP; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Fiber& other = fibers[first + lane];
    if (first + lane >= block.threads || other.state == State::done) fail("a lane of the mask has returned");
    if (other.state == State::with_warp && (other.mask != mask || other.bytes != bytes))
      fail("lanes of a warp wait for each other in different operations or with different masks");
    complete &= other.state == State::with_warp;
  }
  for (int lane = 0; complete && lane < WARP; ++lane)
    if (mask >> lane & 1) set_ready(fibers[first + lane]);
  switch_to(next());
  if (orders_memory) order(gate, false);
}

void receive(int lane, void* to, int offset, int bytes) {
  const auto* slot = fibers[warp_of(*current) * WARP + lane % WARP].slots[current->exchanges % 2];
  const bool given = current->mask >> (lane % WARP) & 1;
  for (int i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(to)[i] = given ? slot[offset + i] : 0xff;
}

void copy_async(void* dst, const void* src, unsigned bytes) {
  current->copies.push_back({dst, src, bytes, current->groups});
}

void commit_copies() { ++current->groups; }

bool next_copy(int groups, Copy& copy) {
  auto& copies = current->copies;
  if (copies.empty() || copies.front().group >= current->groups - groups) return false;
  copy = copies.front();
  copies.erase(copies.begin());
  return true;
}

void initialise(std::uint64_t* barrier, unsigned count) {
  phase_of(barrier) = {static_cast<std::uint8_t>(count), static_cast<std::uint8_t>(count), 0, 0, 0};
}

void arrive(std::uint64_t* barrier, unsigned bytes) {
  ON_TSAN(__tsan_release(barrier);)
  Phase& phase = phase_of(barrier);
  if (phase.pending == 0) fail("more threads arrive at a barrier than it counts");
  --phase.pending;
  phase.bytes += static_cast<std::int32_t>(bytes);
  end_phase_if_complete(phase);
}

void wait_phase(std::uint64_t* barrier, unsigned parity) {
  current->phase = barrier;
  current->parity = parity;
  if (!passes(*current)) {
    wait(State::at_phase);
    switch_to(next());
  }
  ON_TSAN(__tsan_acquire(barrier);)
}

void named_barrier(int id, int threads) {
  if (id <= 0 || id >= NAMED) fail("there is no such named barrier");
  ON_TSAN(__tsan_release(&named_syncs[id]);)
  if (++block.arrived[id] == threads) {
    block.arrived[id] = 0;
    for (int i = 0; i < block.threads; ++i)
      if (fibers[i].state == State::at_named && fibers[i].named == id) set_ready(fibers[i]);
    draw_order();
  } else {
    current->named = id;
    wait(State::at_named);
    switch_to(next());
  }
  ON_TSAN(__tsan_acquire(&named_syncs[id]);)
}

void load_tile(void* to, const Matrix& from, int column, int row, std::uint64_t* barrier) {
  if (reinterpret_cast<std::uintptr_t>(to) % 1024 != 0) fail("a tile starts at no multiple of 1024 bytes");
  for (int i = 0; i < from.height * ROW * 2; ++i) static_cast<unsigned char*>(to)[i] = 0xff;
  block.loads.push_back({to, from, column, row, barrier});
}

void store_tile(const Matrix& to, const void* from, int column, int row) {
  if (reinterpret_cast<std::uintptr_t>(from) % 1024 != 0) fail("a tile starts at no multiple of 1024 bytes");
  current->stores.push_back({to, from, column, row});
}

void wait_stores() {
  for (const Store& store : current->stores)
    for_tile(store.from, store.to, store.column, store.row, [](const unsigned char* from, unsigned char* to) {
      for (int i = 0; i < 2 && to != nullptr; ++i) to[i] = from[i];
    });
  current->stores.clear();
}

void later(std::function<void()> work) { current->works.push_back({std::move(work), current->work_groups}); }

void commit_products() { ++current->work_groups; }

void wait_products(int groups) {
  auto& works = current->works;
  std::size_t done = 0;
  while (done < works.size() && works[done].group < current->work_groups - groups) works[done++].run();
  works.erase(works.begin(), works.begin() + static_cast<std::ptrdiff_t>(done));
}

void run(dim3 grid, dim3 size, std::size_t shared_bytes, void (*call)(void*), void* context) {
  const std::uint64_t blocks = 1ull * grid.x * grid.y * grid.z, threads = 1ull * size.x * size.y * size.z;
  if (blocks == 0 || threads == 0 || threads > THREADS || grid.y > 65535 || grid.z > 65535 || shared_bytes > SHARED)
    throw std::runtime_error("invalid configuration: a GPU refuses this grid, block or shared memory");
  if (arena == nullptr) arena = map(ARENA);
  ON_TSAN(scheduler.tsan = __tsan_get_current_fiber();)
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, reinterpret_cast<void**>(&scheduler.stack), &scheduler.stack_bytes);
  pthread_attr_destroy(&attributes);
  ++launches;
  now.grid = grid, now.size = size;
  block.threads = static_cast<int>(threads);
  block.call = call, block.context = context, block.error.clear();
  // Blocks in any order: each of them must be able to be the first.
  const std::uint64_t first = generator() % blocks;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t b = (first + i) % blocks;
    const auto x = static_cast<unsigned>(b % grid.x), rest = static_cast<unsigned>(b / grid.x);
    block.traced = i < TRACED;
    run_block({x, rest % grid.y, rest / grid.y}, shared_bytes);
  }
}

}  // namespace host

extern "C" void memmod_host_seed(unsigned seed) { host::generator.seed(seed); }
extern "C" std::uint64_t memmod_host_launches() { return host::launches; }
