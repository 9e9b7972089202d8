// Copyright 2026 tinychat_ros developers
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

#include "emu/cuda_emu.h"

#include <link.h>
#include <sys/mman.h>

#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

#if defined(__x86_64__) && !defined(TINYCHAT_EMU_UCONTEXT)

// tinychat_emu_switch(where to keep this stack pointer, the stack pointer to go on with)
asm(R"(
.text
.hidden tinychat_emu_switch
.globl tinychat_emu_switch
.type tinychat_emu_switch, @function
tinychat_emu_switch:
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
.size tinychat_emu_switch, . - tinychat_emu_switch
)");
extern "C" void tinychat_emu_switch(void** from, void* to);

namespace {

using Context = void*;

void switch_context(Context& from, Context& to) { tinychat_emu_switch(&from, to); }

void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  // Six registers, the address to return to, and what keeps the stack aligned as after a call.
  void** top = reinterpret_cast<void**>(stack + bytes) - 8;
  std::fill_n(top, 8, nullptr);
  top[6] = reinterpret_cast<void*>(entry);
  context = top;
}

}  // namespace

#else

#include <ucontext.h>

namespace {

using Context = ucontext_t;

void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  makecontext(&context, entry, 0);
}

}  // namespace

#endif

namespace tinychat {
namespace emu {
namespace {

constexpr size_t kMaxThreads = 1024;
constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 256;
constexpr int kGuard = 0xa5;

struct Barrier {
  int arrived = 0;
  int expected = 0;
  int site = 0;
  int64_t generation = 0;
};

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  Context context;
  bool done = false;
  const Barrier* barrier = nullptr;  // With the generation that it had when the thread came.
  int64_t generation = 0;
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> committed;

  bool waits() const { return barrier != nullptr && barrier->generation == generation; }
};

struct Warp {
  Barrier barrier;
  // By turns: a lane can be one exchange ahead of another, not two.
  alignas(16) unsigned char slots[2][32][kSlotBytes];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barriers[16];
};

struct Range {
  unsigned char* begin = nullptr;
  size_t bytes = 0;
};

uint32_t seed = 0;
const char* kernel;
const std::function<void()>* thread_body;
std::string error;
Context scheduler;
Block block;
size_t current;
size_t shared_bytes;
alignas(128) unsigned char arena[kGuardBytes + kMaxSharedBytes + kGuardBytes];
thread_local char in_static_shared;

std::string triple(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

void take_thread(size_t index) {
  current = index;
  const unsigned i = static_cast<unsigned>(index);
  threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
}

std::string report(const std::string& reason) {
  return std::string("kernel ") + kernel + ", block " +
         triple(blockIdx.x, blockIdx.y, blockIdx.z) + ", thread " +
         triple(threadIdx.x, threadIdx.y, threadIdx.z) + ": " + reason;
}

int find_module(dl_phdr_info* module, size_t, void* range) {
  const auto* begin = static_cast<unsigned char*>(module->dlpi_tls_data);
  for (int i = 0; begin != nullptr && i < module->dlpi_phnum; ++i) {
    const auto& header = module->dlpi_phdr[i];
    const auto* mine = reinterpret_cast<unsigned char*>(&in_static_shared);
    if (header.p_type != PT_TLS || mine < begin || mine >= begin + header.p_memsz) continue;
    *static_cast<Range*>(range) = {const_cast<unsigned char*>(begin), header.p_memsz};
    return 1;
  }
  return 0;
}

// Where this module's thread-local variables lie. Some may be those of other code, a binding's.
class StaticShared {
 public:
  StaticShared() {
    in_static_shared = 0;  // They are allocated when one is first touched.
    dl_iterate_phdr(find_module, &range_);
    kept_.assign(range_.begin, range_.begin + range_.bytes);
  }
  ~StaticShared() { std::copy(kept_.begin(), kept_.end(), range_.begin); }
  void poison() const { std::memset(range_.begin, kPoison, range_.bytes); }

 private:
  Range range_;
  std::vector<unsigned char> kept_;
};

void poison_dynamic_shared() {
  unsigned char* end = arena + kGuardBytes + shared_bytes;
  ASAN_UNPOISON_MEMORY_REGION(arena, sizeof(arena));
  std::memset(arena, kGuard, kGuardBytes);
  std::memset(arena + kGuardBytes, kPoison, shared_bytes);
  std::memset(end, kGuard, kGuardBytes);
  ASAN_POISON_MEMORY_REGION(arena, kGuardBytes);
  ASAN_POISON_MEMORY_REGION(end, kGuardBytes);
}

bool is_guard(const unsigned char* bytes) {
  return bytes[0] == kGuard && std::memcmp(bytes, bytes + 1, kGuardBytes - 1) == 0;
}

bool guards_hold() {
#if defined(__SANITIZE_ADDRESS__)
  return true;  // It watches them itself, and would complain about this look at them.
#else
  return is_guard(arena) && is_guard(arena + kGuardBytes + shared_bytes);
#endif
}

char* stack_of(size_t thread) {
  static char* const stacks = [] {
    void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(memory);
  }();
  return stacks + thread * kStackBytes;
}

void leave() { switch_context(block.fibers[current].context, scheduler); }

void run_thread() {
  (*thread_body)();
  block.fibers[current].done = true;
  leave();
}

// Lets a thread run until it waits or ends.
void resume(size_t thread) {
  take_thread(thread);
  switch_context(scheduler, block.fibers[thread].context);
  if (error.empty() && !guards_hold()) {
    error = report("wrote beside its " + std::to_string(shared_bytes) +
                   " bytes of dynamic shared memory");
  }
  if (!error.empty()) throw std::runtime_error(error);
}

void throw_stuck(const std::vector<size_t>& order) {
  for (size_t thread : order) {
    if (block.fibers[thread].done) continue;
    take_thread(thread);
    const Barrier& barrier = *block.fibers[thread].barrier;
    throw std::runtime_error(report("waits at line " + std::to_string(barrier.site) +
                                    " for ever: " + std::to_string(barrier.arrived) + " of " +
                                    std::to_string(barrier.expected) + " threads came"));
  }
}

void prepare_block(size_t threads) {
  block = Block();
  block.fibers.resize(threads);
  block.warps.resize(threads / 32);
  for (size_t i = 0; i < threads; ++i) {
    ASAN_UNPOISON_MEMORY_REGION(stack_of(i), kStackBytes);
    make_context(block.fibers[i].context, stack_of(i), kStackBytes, run_thread);
  }
}

void run_block(const std::vector<size_t>& order) {
  prepare_block(order.size());
  for (size_t left = order.size(); left > 0;) {
    bool moved = false;
    for (size_t thread : order) {
      const Fiber& fiber = block.fibers[thread];
      if (fiber.done || fiber.waits()) continue;
      resume(thread);
      moved = true;
      left -= fiber.done;
    }
    if (!moved) throw_stuck(order);
  }
}

void require(bool holds, const std::string& expected, const std::string& got) {
  if (holds) return;
  throw std::runtime_error(std::string("kernel ") + kernel + ": expected " + expected + ", got " +
                           got);
}

void check_launch(dim3 grid, dim3 threads) {
  const size_t count = size_t{threads.x} * threads.y * threads.z;
  require(count > 0 && count <= kMaxThreads && count % 32 == 0,
          "a block of a multiple of 32 up to 1024 threads",
          triple(threads.x, threads.y, threads.z));
  require(grid.x > 0 && grid.y - 1 < 65535 && grid.z - 1 < 65535,
          "a grid of at least 1 block, y and z up to 65535", triple(grid.x, grid.y, grid.z));
  require(shared_bytes <= kMaxSharedBytes,
          "at most " + std::to_string(kMaxSharedBytes) + " bytes of dynamic shared memory",
          std::to_string(shared_bytes));
}

}  // namespace

void set_seed(uint32_t value) { seed = value; }

void run_grid(const char* name, dim3 grid, dim3 threads, size_t bytes,
              const std::function<void()>& body) {
  kernel = name;
  thread_body = &body;
  gridDim = grid;
  blockDim = threads;
  shared_bytes = bytes;
  error.clear();
  check_launch(grid, threads);
  std::vector<size_t> blocks(size_t{grid.x} * grid.y * grid.z);
  std::vector<size_t> order(size_t{threads.x} * threads.y * threads.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(seed);
  std::shuffle(blocks.begin(), blocks.end(), random);
  const StaticShared static_shared;
  for (size_t index : blocks) {
    const unsigned i = static_cast<unsigned>(index);
    blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    std::shuffle(order.begin(), order.end(), random);
    static_shared.poison();
    poison_dynamic_shared();
    run_block(order);
  }
}

// An exception cannot leave a fiber. This one is not taken up again; resume() throws.
void fail(const std::string& reason) {
  error = report(reason);
  leave();
}

void* shared() { return arena + kGuardBytes; }

int lane() { return static_cast<int>(current % 32); }

static void arrive_at(Barrier& barrier, int expected, int site, bool wait) {
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.site = site;
  } else if (barrier.expected != expected || barrier.site != site) {
    fail("came to line " + std::to_string(site) + ", where " + std::to_string(expected) +
         " threads meet, while others wait at line " + std::to_string(barrier.site) + " for " +
         std::to_string(barrier.expected));
  }
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  if (!wait) return;
  Fiber& fiber = block.fibers[current];
  fiber.barrier = &barrier;
  fiber.generation = barrier.generation;
  leave();
}

void arrive(int barrier, int threads, int site, bool wait) {
  arrive_at(block.barriers[barrier], threads, site, wait);
}

const unsigned char* exchange_bytes(const void* value, size_t bytes, uint32_t mask, int site) {
  if (mask != ~0u) fail("line " + std::to_string(site) + ": the mask does not name all 32 lanes");
  Warp& warp = block.warps[current / 32];
  auto& slots = warp.slots[warp.barrier.generation % 2];
  std::memcpy(slots[lane()], value, bytes);
  arrive_at(warp.barrier, 32, site, true);
  return slots[0];
}

void copy_later(void* to, const void* from) {
  check_aligned(to, 16);
  check_aligned(from, 16);
  std::memset(to, kPoison, 16);
  block.fibers[current].open.push_back({to, from});
}

void commit_copies() {
  Fiber& fiber = block.fibers[current];
  fiber.committed.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void wait_for_copies(size_t groups_left) {
  auto& committed = block.fibers[current].committed;
  while (committed.size() > groups_left) {
    for (const Copy& copy : committed.front()) std::memcpy(copy.to, copy.from, 16);
    committed.erase(committed.begin());
  }
}

void check_aligned(const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment == 0) return;
  fail("expected an address that is a multiple of " + std::to_string(alignment));
}

}  // namespace emu
}  // namespace tinychat
