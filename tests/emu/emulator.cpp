// Runs CUDA kernels on the CPU: one fiber per thread of a block, one block after another.
//
// Scheduling is greedy: a warp runs until every lane of it waits, which shows a missing __syncthreads that taking turns
// would hide; CLS2DET_EMULATOR_ORDER=reverse starts from the last warp and lane. A launch fails, naming threads and lines,
// when lanes of a warp meet at different collectives, when a mask is not full, when a thread ends while others wait for it,
// and when shared memory exceeds what every GPU has. Shared memory starts as NaN.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

EmulatedIndex threadIdx, blockIdx, gridDim, blockDim;

namespace {

constexpr unsigned kWarpLanes = 32;
constexpr size_t kStack = 256 * 1024, kMostShared = 48 * 1024;

// ---- fibers ----

#if defined(__x86_64__)
// Saves the registers that a call must keep on the current stack, its top in *from, and continues on the stack `to`.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

struct Context {
  void* top = nullptr;
  void start(char* stack, void (*entry)()) {
    void** slots = reinterpret_cast<void**>(stack + kStack);  // aligned to 16
    slots[-1] = nullptr;                                      // so that entry starts as if it had been called
    slots[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) slots[-i] = nullptr;
    top = slots - 8;
  }
  void switch_to(Context& other) { emulator_switch(&top, other.top); }
};
#else
struct Context {
  ucontext_t state;
  void start(char* stack, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = kStack;
    state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&state, &other.state); }
};
#endif

enum class Waits { runs, at_warp, at_block, ended };

struct Thread {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Waits waits = Waits::ended;
  emulator::Site site{};
  uint64_t brought = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

struct SharedArray {
  const void* site;
  size_t bytes;
  std::unique_ptr<char[]> memory;
};

std::vector<std::unique_ptr<Thread>> threads;  // of the block that runs
unsigned current, alive_threads;
Context scheduler;
const std::function<void()>* body;
std::vector<SharedArray> shared;
uint64_t received[1024 / kWarpLanes][kWarpLanes];
std::string failure;  // found inside a fiber, thrown by the scheduler
#if defined(__SANITIZE_ADDRESS__)
const void* main_stack;
size_t main_stack_size;
#endif

void leave_fiber([[maybe_unused]] bool for_good) {
  Thread& thread = *threads[current];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &thread.fake_stack, main_stack, main_stack_size);
#endif
  thread.context.switch_to(scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(thread.fake_stack, nullptr, nullptr);
#endif
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size);
#endif
  (*body)();
  threads[current]->waits = Waits::ended;
  leave_fiber(true);
  std::abort();  // an ended fiber is not resumed
}

void resume(unsigned index) {
  Thread& thread = *threads[index];
  current = threadIdx.x = index;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, thread.stack.get(), kStack);
#endif
  scheduler.switch_to(thread.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  if (!failure.empty()) throw std::runtime_error("emulated kernel, block " + std::to_string(blockIdx.x) + ": " + failure);
}

// ---- scheduling ----

std::string describe(unsigned index) {
  const Thread& thread = *threads[index];
  const std::string name = "thread " + std::to_string(index);
  if (thread.waits == Waits::ended) return name + " has ended";
  return name + (thread.waits == Waits::at_warp ? " waits for its warp at " : " waits for its block at ") + thread.site.file + ":" +
         std::to_string(thread.site.line);
}

[[noreturn]] void fail_apart(unsigned a, unsigned b) {
  throw std::runtime_error("emulated kernel, block " + std::to_string(blockIdx.x) + ": " + describe(a) + ", " + describe(b));
}

bool together(const Thread& a, const Thread& b) {
  return a.waits == b.waits && a.site.line == b.site.line && std::strcmp(a.site.file, b.site.file) == 0;
}

// Runs a warp until it has ended or waits for the block.
void run_warp(unsigned warp, bool reverse) {
  const unsigned begin = warp * kWarpLanes;
  while (true) {
    for (unsigned i = 0; i < kWarpLanes; ++i) {
      const unsigned index = begin + (reverse ? kWarpLanes - 1 - i : i);
      if (threads[index]->waits == Waits::runs) resume(index);
    }
    for (unsigned i = begin + 1; i < begin + kWarpLanes; ++i) {
      const Thread &a = *threads[begin], &b = *threads[i];
      if (a.waits == Waits::ended ? b.waits != Waits::ended : !together(a, b)) fail_apart(begin, i);
    }
    if (threads[begin]->waits != Waits::at_warp) return;
    for (unsigned i = 0; i < kWarpLanes; ++i) {
      received[warp][i] = threads[begin + i]->brought;
      threads[begin + i]->waits = Waits::runs;
    }
  }
}

void run_block(bool reverse) {
  const unsigned warps = alive_threads / kWarpLanes;
  for (SharedArray& array : shared) std::memset(array.memory.get(), 0xff, array.bytes);
  for (unsigned i = 0; i < alive_threads; ++i) {
    threads[i]->context.start(threads[i]->stack.get(), fiber_main);
    threads[i]->waits = Waits::runs;
  }
  while (true) {
    for (unsigned w = 0; w < warps; ++w) run_warp(reverse ? warps - 1 - w : w, reverse);
    for (unsigned i = 1; i < alive_threads; ++i) {
      if (threads[0]->waits == Waits::ended ? threads[i]->waits != Waits::ended : !together(*threads[0], *threads[i])) {
        fail_apart(0, i);
      }
    }
    if (threads[0]->waits == Waits::ended) return;
    for (unsigned i = 0; i < alive_threads; ++i) threads[i]->waits = Waits::runs;
  }
}

}  // namespace

namespace emulator {

void launch(unsigned blocks, unsigned count, const std::function<void()>& thread) {
  if (blocks == 0 || blocks > INT32_MAX || count == 0 || count > 1024 || count % kWarpLanes != 0) {
    throw std::runtime_error("emulated launch of " + std::to_string(blocks) + " blocks of " + std::to_string(count) + " threads");
  }
  const char* order = std::getenv("CLS2DET_EMULATOR_ORDER");
  const bool reverse = order && std::strcmp(order, "reverse") == 0;
  while (threads.size() < count) threads.push_back(std::make_unique<Thread>());
  failure.clear();
  shared.clear();
  body = &thread;
  alive_threads = blockDim.x = count;
  gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) run_block(reverse);
}

void* shared_memory(const void* site, size_t bytes) {
  size_t used = bytes;
  for (SharedArray& array : shared) {
    if (array.site == site) return array.memory.get();
    used += array.bytes;
  }
  if (used > kMostShared) {
    failure = std::to_string(used) + " bytes of shared memory";
    leave_fiber(false);
  }
  shared.push_back({site, bytes, std::unique_ptr<char[]>(new char[bytes])});
  std::memset(shared.back().memory.get(), 0xff, bytes);
  return shared.back().memory.get();
}

void block_barrier(Site site) {
  threads[current]->waits = Waits::at_block;
  threads[current]->site = site;
  leave_fiber(false);
}

const uint64_t* exchange(unsigned mask, uint64_t brought, Site site) {
  Thread& thread = *threads[current];
  if (mask != ~0u) failure = std::string("a mask that is not full at ") + site.file + ":" + std::to_string(site.line);
  thread.waits = Waits::at_warp;
  thread.site = site;
  thread.brought = brought;
  leave_fiber(false);
  return received[current / kWarpLanes];
}

unsigned lane() { return current % kWarpLanes; }

}  // namespace emulator
