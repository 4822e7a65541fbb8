// The fibers behind include/cuda_runtime.h.
#include <cuda_runtime.h>

#include <algorithm>

Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

Block current_block;

void run_thread() {
  Block& b = current_block;
  try {
    b.body();
  } catch (const std::exception& error) {
    b.error = error.what();
  }
  b.threads[b.current].done = true;
  swapcontext(&b.threads[b.current].context, &b.scheduler);
}

void resume(int thread) {
  Block& b = current_block;
  b.current = thread;
  threadIdx.x = unsigned(thread);
  b.threads[thread].wait = Wait::nothing;
  swapcontext(&b.scheduler, &b.threads[thread].context);
}

[[noreturn]] void fail(const std::string& what, const Thread& thread) {
  throw std::runtime_error(
      "emulated kernel " + std::string(current_block.kernel) + ", block " + std::to_string(blockIdx.x) + ": " + what + " (" +
      thread.at + ")");
}

// Releases the threads [first, last) if all of them wait for the same collective.
bool release(int first, int last, Wait kind) {
  auto& threads = current_block.threads;
  const bool all = std::all_of(
      threads.begin() + first, threads.begin() + last, [&](const Thread& t) { return !t.done && t.wait == kind; });
  if (!all) return false;
  for (int i = first; i < last; ++i) {
    if (std::strcmp(threads[i].at, threads[first].at) != 0) fail("threads meet at different collectives", threads[i]);
  }
  for (int i = first; i < last; ++i) threads[i].wait = Wait::nothing;
  return true;
}

void run_block(int threads) {
  Block& b = current_block;
  std::memset(b.shared.data(), 0xff, b.shared.size());
  for (int i = 0; i < threads; ++i) {
    Thread& t = b.threads[i];
    t.done = false;
    t.wait = Wait::nothing;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.data();
    t.context.uc_stack.ss_size = t.stack.size();
    t.context.uc_link = &b.scheduler;
    makecontext(&t.context, run_thread, 0);
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (int i = 0; i < threads; ++i) {
      if (b.threads[i].done || b.threads[i].wait != Wait::nothing) continue;
      resume(i);
      if (!b.error.empty()) fail(b.error, b.threads[i]);
      progress = true;
    }
    for (int warp = 0; warp < threads; warp += 32) progress |= release(warp, std::min(warp + 32, threads), Wait::warp);
    progress |= release(0, threads, Wait::block);
  }
  for (const Thread& t : b.threads) {
    if (!t.done) fail("a thread waits for others that will never come", t);
  }
}

}  // namespace

Block& block() { return current_block; }

unsigned char* shared_memory() { return current_block.shared.data(); }

void wait(Wait kind, const char* at) {
  Thread& t = current_block.threads[current_block.current];
  t.wait = kind;
  t.at = at;
  swapcontext(&t.context, &current_block.scheduler);
}

void launch(const char* kernel, int64_t blocks, int threads, size_t shared_bytes, const std::function<void()>& body) {
  Block& b = current_block;
  if (blocks < 1 || blocks > INT32_MAX || threads < 1 || threads > 1024 || threads % 32 != 0 || shared_bytes > 48 * 1024) {
    throw std::runtime_error(std::string("emulated kernel ") + kernel + ": a launch that a GPU would refuse");
  }
  b.kernel = kernel;
  b.body = body;
  b.error.clear();
  b.threads.resize(threads);
  b.shared.resize(shared_bytes);
  b.exchange.assign(threads, 0);
  for (Thread& t : b.threads) t.stack.resize(kStackBytes);
  blockDim.x = unsigned(threads);
  gridDim.x = unsigned(blocks);
  for (int64_t i = 0; i < blocks; ++i) {
    blockIdx.x = unsigned(i);
    run_block(threads);
  }
}

}  // namespace emulated
