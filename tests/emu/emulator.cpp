// Runs CUDA kernels on the CPU: one fiber per thread of a block, one block after another.
//
// Scheduling is greedy: a warp runs until every lane of it waits, which shows a missing __syncthreads that taking turns
// would hide. Shared memory starts as NaN. A launch fails, naming kernel, threads and source lines, when
//   - a lane calls a collective with a mask that leaves it out, or reads a lane that the mask leaves out,
//   - lanes wait for others that have ended, wait elsewhere, or came with another mask (so none can continue),
//   - the threads of a block stand at different __syncthreads, or some have ended before one,
//   - shared memory exceeds what every GPU has.
// CLS2DET_EMULATOR_ORDER  forward (default), reverse, or random:SEED: the order of blocks, warps and lanes
// CLS2DET_EMULATOR_BLOCKS a number: the most blocks of a grid, so that kernels must stride over their work; or ends: run the
//                         first and the last two blocks of each grid only, for sizes that would take too long
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "race_detector.h"

EmulatedIndex threadIdx, blockIdx, gridDim, blockDim;

namespace {

constexpr unsigned kWarpLanes = 32;
constexpr size_t kMostShared = 48 * 1024;

enum class Waits { runs, at_warp, at_block, ended };

struct Thread {
  Fiber fiber;
  Waits waits = Waits::ended;
  emulator::Site site{};
  unsigned mask = 0;
  uint64_t value = 0;
};

struct SharedArray {
  const void* site;
  size_t bytes;
  std::unique_ptr<char, decltype(&std::free)> memory;
  char* data;  // aligned as its type needs and no better, as it may be on a GPU
};

std::vector<std::unique_ptr<Thread>> threads;
unsigned current, count;  // the thread that runs; threads of the block
const std::function<void()>* body;
std::string kernel, failure;  // failure: found inside a fiber, thrown by the scheduler
std::vector<SharedArray> shared;
uint64_t lane_values[1024 / kWarpLanes][kWarpLanes];
std::map<std::string, int> launches;  // by kernel

// ---- errors ----

std::string place(const emulator::Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(site.name) + " (" + (slash ? slash + 1 : site.file) + ":" + std::to_string(site.line) + ")";
}

std::string describe(unsigned index) {
  const Thread& thread = *threads[index];
  const std::string name = "thread " + std::to_string(index);
  if (thread.waits == Waits::ended) return name + " has ended";
  if (thread.waits == Waits::at_block) return name + " waits at " + place(thread.site);
  char mask[16];
  std::snprintf(mask, sizeof mask, "0x%08x", thread.mask);
  return name + " waits at " + place(thread.site) + " with mask " + mask;
}

[[noreturn]] void give_up(const std::string& message) {
  threads.clear();  // abandoned fibers are not resumed
  races::stop_thread();
  throw std::runtime_error("emulated " + kernel + ", block " + std::to_string(blockIdx.x) + ": " + message);
}

// ---- scheduling ----

unsigned number(const char* variable, const char* text) {
  char* end = nullptr;
  const unsigned long value = std::strtoul(text, &end, 10);
  if (end == text || *end || value == 0 || value > INT32_MAX) {
    throw std::runtime_error(std::string(variable) + ": a positive number was expected, found " + text);
  }
  return unsigned(value);
}

struct Order {
  bool reverse = false, random = false;
  std::minstd_rand engine;

  Order() {
    const char* wish = std::getenv("CLS2DET_EMULATOR_ORDER");
    reverse = wish && std::strcmp(wish, "reverse") == 0;
    random = wish && std::strncmp(wish, "random:", 7) == 0;
    if (random) engine.seed(number("CLS2DET_EMULATOR_ORDER", wish + 7));
    if (wish && !reverse && !random && std::strcmp(wish, "forward") != 0) {
      throw std::runtime_error(std::string("CLS2DET_EMULATOR_ORDER must be forward, reverse or random:SEED, found ") + wish);
    }
  }

  void arrange(unsigned* items, unsigned n) {
    for (unsigned i = 0; i < n; ++i) items[i] = reverse ? n - 1 - i : i;
    if (random) std::shuffle(items, items + n, engine);
  }
};

void thread_main() {
  (*body)();
  threads[current]->waits = Waits::ended;
  threads[current]->fiber.leave(true);
}

void wait(Waits what, emulator::Site site) {
  threads[current]->waits = what;
  threads[current]->site = site;
  threads[current]->fiber.leave(false);
}

void resume(unsigned index) {
  Fiber& fiber = threads[index]->fiber;
  current = threadIdx.x = index;
  races::start_thread(index, fiber.stack(), Fiber::kStack);
  fiber.enter();
  races::stop_thread();
  if (!failure.empty()) give_up(failure);
}

bool together(const Thread& a, const Thread& b) {  // both have ended, or both wait in the same call
  if (a.waits != b.waits || a.waits == Waits::ended) return a.waits == b.waits;
  return a.site.line == b.site.line && std::strcmp(a.site.file, b.site.file) == 0 &&
         std::strcmp(a.site.name, b.site.name) == 0 && (a.waits == Waits::at_block || a.mask == b.mask);
}

// The lane of `first`'s mask that keeps it waiting, or kWarpLanes.
unsigned absent_lane(unsigned warp, const Thread& first) {
  for (unsigned i = 0; i < kWarpLanes; ++i) {
    if ((first.mask >> i & 1) && !together(first, *threads[warp * kWarpLanes + i])) return i;
  }
  return kWarpLanes;
}

// Runs a warp until each of its lanes has ended or waits for the block.
void run_warp(unsigned warp, Order& order) {
  const unsigned begin = warp * kWarpLanes;
  unsigned lanes[kWarpLanes];
  for (bool moved = true; moved;) {
    order.arrange(lanes, kWarpLanes);
    for (unsigned lane : lanes) {
      if (threads[begin + lane]->waits == Waits::runs) resume(begin + lane);
    }
    moved = false;  // every lane waits or has ended: complete the collectives that can be
    for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
      const Thread& thread = *threads[begin + lane];
      if (thread.waits != Waits::at_warp || absent_lane(warp, thread) != kWarpLanes) continue;
      if (std::strcmp(thread.site.name, "__syncwarp") == 0) races::warp_barrier(warp, thread.mask);  // others order nothing
      const unsigned mask = thread.mask;
      for (unsigned i = 0; i < kWarpLanes; ++i) {
        if (!(mask >> i & 1)) continue;
        lane_values[warp][i] = threads[begin + i]->value;
        threads[begin + i]->waits = Waits::runs;
      }
      moved = true;
    }
  }
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    const Thread& thread = *threads[begin + lane];
    if (thread.waits == Waits::at_warp) {
      give_up(describe(begin + lane) + ", but " + describe(begin + absent_lane(warp, thread)));
    }
  }
}

void run_block(Order& order) {
  for (SharedArray& array : shared) {
    std::memset(array.data, 0xff, array.bytes);
    races::new_shared(array.data, array.bytes);
  }
  races::start_block(blockIdx.x);
  for (unsigned i = 0; i < count; ++i) {
    threads[i]->fiber.start(thread_main);
    threads[i]->waits = Waits::runs;
  }
  unsigned warps[1024 / kWarpLanes];
  while (true) {
    order.arrange(warps, count / kWarpLanes);
    for (unsigned i = 0; i < count / kWarpLanes; ++i) run_warp(warps[i], order);
    for (unsigned i = 1; i < count; ++i) {
      if (!together(*threads[0], *threads[i])) give_up(describe(0) + ", but " + describe(i));
    }
    if (threads[0]->waits == Waits::ended) return;
    races::block_barrier();
    for (unsigned i = 0; i < count; ++i) threads[i]->waits = Waits::runs;
  }
}

}  // namespace

namespace emulator {

void launch(const char* name, unsigned blocks, unsigned block_threads, const std::function<void()>& thread) {
  kernel = name;  // such as (pool_kernel<S, T>)
  kernel.erase(0, kernel.find_first_not_of('('));
  kernel.resize(std::min({kernel.find('<'), kernel.find(')'), kernel.size()}));
  ++launches[kernel];
  if (blocks == 0 || blocks > INT32_MAX || block_threads == 0 || block_threads > 1024 || block_threads % kWarpLanes != 0) {
    throw std::runtime_error(
        "emulated " + kernel + ": launched with " + std::to_string(blocks) + " blocks of " + std::to_string(block_threads) +
        " threads");
  }
  Order order;
  const char* which = std::getenv("CLS2DET_EMULATOR_BLOCKS");
  const bool ends = which && std::strcmp(which, "ends") == 0;
  if (which && !ends) blocks = std::min(blocks, number("CLS2DET_EMULATOR_BLOCKS", which));
  while (threads.size() < block_threads) threads.push_back(std::make_unique<Thread>());
  failure.clear();
  shared.clear();
  body = &thread;
  count = blockDim.x = block_threads;
  gridDim.x = blocks;
  races::start_launch();
  const unsigned start = order.random && !ends ? order.engine() % blocks : 0;
  for (unsigned i = 0; i < blocks; ++i) {
    if (ends && i >= 2 && i + 2 < blocks) i = blocks - 2;
    blockIdx.x = order.reverse ? blocks - 1 - i : (i + start) % blocks;
    run_block(order);
  }
}

void* shared_memory(const void* site, size_t bytes, size_t alignment) {
  size_t used = bytes;
  for (SharedArray& array : shared) {
    if (array.site == site) return array.data;
    used += array.bytes;
  }
  if (used > kMostShared) fail(std::to_string(used) + " bytes of shared memory, a GPU has " + std::to_string(kMostShared));
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(2 * alignment, size_t(16)), alignment + bytes)) fail("out of memory");
  char* data = static_cast<char*>(memory) + alignment;  // ends where the memory ends
  shared.push_back({site, bytes, {static_cast<char*>(memory), &std::free}, data});
  std::memset(data, 0xff, bytes);
  races::new_shared(data, bytes);
  return data;
}

void block_barrier(Site site) { wait(Waits::at_block, site); }

const uint64_t* exchange(unsigned mask, uint64_t value, Site site) {
  threads[current]->mask = mask;
  threads[current]->value = value;
  if (!(mask >> lane() & 1)) {
    threads[current]->waits = Waits::at_warp;
    threads[current]->site = site;
    fail(describe(current) + ", which leaves it out");
  }
  wait(Waits::at_warp, site);
  return lane_values[current / kWarpLanes];
}

void check_source(unsigned mask, unsigned source, Site site) {
  if (source < kWarpLanes && (mask >> source & 1)) return;
  fail(
      "thread " + std::to_string(current) + " reads lane " + std::to_string(source) + ", which its mask leaves out, at " +
      place(site));
}

void begin_atomic(const volatile void* address, size_t bytes) { races::begin_atomic(address, bytes); }
void end_atomic() { races::end_atomic(); }

unsigned lane() { return current % kWarpLanes; }

const std::map<std::string, int>& launched_kernels() { return launches; }

void fail(const std::string& message) {
  failure = message;
  threads[current]->fiber.leave(false);
  std::abort();  // a failed launch does not go on
}

}  // namespace emulator
