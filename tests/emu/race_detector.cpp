// Finds races in kernels that are compiled with -fsanitize=thread: every access to memory calls one of the hooks below, which
// take the place of the sanitizer's own library and apply CUDA's rules:
//   - threads of different blocks are never ordered within a launch; launches are,
//   - __syncthreads orders everything in a block, __syncwarp the lanes of its mask (a vector clock per lane),
//   - shuffles and votes order nothing: they are no fences,
//   - two accesses of one byte race when they are not ordered, one of them writes, and not both are atomic,
//   - shared memory must be written in a block before it is read there.
// Exact while every __syncwarp names all lanes; after one of some lanes, a third reader in a warp may be forgotten.
#include "race_detector.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

struct Access {
  uint32_t launch, block, interval, clock;  // interval: __syncthreads passed; clock: the lane's own
  uint16_t thread;
  bool write, atomic;
  const void* code;
};

struct Cell {                   // of one byte
  Access written;               // the last plain write
  Access reads[2], atomics[2];  // after it; of two warps if there are, which is enough to catch any later write
};

constexpr uintptr_t kPage = 1024;  // bytes
constexpr unsigned kLanes = 32, kThreads = 1024;
struct Page {
  Cell cells[kPage];
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_number = ~uintptr_t(0);
Page* last_page;
uint32_t launch, block, interval;
uint16_t thread;
uint32_t clocks[kThreads][kLanes];  // of each thread: the clocks of its warp's lanes that it knows of
const char *stack_begin, *stack_end;
bool listening, in_atomic;
std::vector<std::pair<const char*, const char*>> shared;  // begin and end of each array of this block

Page* page_of(uintptr_t at) {
  if (at / kPage != last_number) {
    std::unique_ptr<Page>& page = pages[at / kPage];
    if (!page) page = std::make_unique<Page>();
    last_number = at / kPage;
    last_page = page.get();
  }
  return last_page;
}

bool same_warp(const Access& a, const Access& b) { return a.block == b.block && a.thread / kLanes == b.thread / kLanes; }

bool ordered(const Access& before) {
  if (before.launch != launch || (before.block == block && before.thread == thread)) return true;
  if (before.block != block) return false;
  if (before.interval < interval) return true;
  return before.thread / kLanes == thread / kLanes && clocks[thread][before.thread % kLanes] >= before.clock;
}

std::string place(const void* code) {
  Dl_info info;
  if (!dladdr(code, &info) || !info.dli_fname) return "?";
  char command[1024], line[512] = "?";
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1;
  std::snprintf(command, sizeof command, "addr2line -s -e '%s' %#tx", info.dli_fname, offset);
  if (FILE* pipe = popen(command, "r")) {
    if (std::fgets(line, sizeof line, pipe)) line[std::strcspn(line, "\n ")] = 0;
    pclose(pipe);
  }
  return line;
}

std::string describe(const Access& a) {
  return "thread " + std::to_string(a.thread) + " of block " + std::to_string(a.block) +
         (a.atomic  ? " adds at "
          : a.write ? " writes at "
                    : " reads at ") +
         place(a.code);
}

void check(const Access& before, const Access& now) {
  if ((before.write || now.write) && !(before.atomic && now.atomic) && !ordered(before)) {
    emulator::fail("race: " + describe(before) + ", and " + describe(now) + ", with no barrier between them");
  }
}

bool is_shared(const char* p) {
  for (const auto& [begin, end] : shared) {
    if (p >= begin && p < end) return true;
  }
  return false;
}

void remember(Access* two, const Access& now) {
  if (ordered(two[0])) {
    two[0] = now;
  } else if (ordered(two[1]) || (same_warp(two[0], two[1]) && !same_warp(two[0], now))) {
    two[1] = now;
  }
}

void access(const void* address, size_t bytes, bool write, bool atomic, const void* code) {
  const char* p = static_cast<const char*>(address);
  if (!listening || in_atomic || (p >= stack_begin && p < stack_end)) return;
  listening = false;  // the accesses below are not the kernel's
  const Access now{launch, block, interval, clocks[thread][thread % kLanes], thread, write, atomic, code};
  for (uintptr_t at = uintptr_t(p), end = at + bytes; at < end; ++at) {
    Cell& cell = page_of(at)->cells[at % kPage];
    check(cell.written, now);
    for (const Access& before : cell.atomics) check(before, now);
    for (const Access& before : cell.reads) check(before, now);
    if (write && !atomic) {
      cell = {now, {}, {}};
    } else {
      const bool written = cell.written.launch == launch && cell.written.block == block;
      if (!written && is_shared(p)) {
        emulator::fail("shared memory that nothing has written: " + describe(now));
      }
      remember(atomic ? cell.atomics : cell.reads, now);
    }
  }
  listening = true;
}

void clear_clocks() {
  for (unsigned t = 0; t < kThreads; ++t) {
    for (unsigned lane = 0; lane < kLanes; ++lane) clocks[t][lane] = lane == t % kLanes;
  }
}

}  // namespace

namespace races {

void start_launch() {
  ++launch;
  shared.clear();
  if (pages.size() < 4000) return;  // about 400 MB
  pages.clear();
  last_number = ~uintptr_t(0);
}

void start_block(unsigned index) {
  block = index;
  interval = 0;
  clear_clocks();
}

void start_thread(unsigned index, const char* stack, size_t bytes) {
  thread = uint16_t(index);
  stack_begin = stack;
  stack_end = stack + bytes;
  listening = true;
}

void stop_thread() { listening = in_atomic = false; }

void block_barrier() {
  ++interval;
  clear_clocks();
}

void warp_barrier(unsigned warp, unsigned mask) {
  uint32_t known[kLanes] = {};
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    for (unsigned i = 0; (mask >> lane & 1) && i < kLanes; ++i) {
      const uint32_t clock = clocks[warp * kLanes + lane][i];
      known[i] = clock > known[i] ? clock : known[i];
    }
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    std::memcpy(clocks[warp * kLanes + lane], known, sizeof known);
    ++clocks[warp * kLanes + lane][lane];
  }
}

void new_shared(const void* memory, size_t bytes) {
  const char* begin = static_cast<const char*>(memory);
  if (!is_shared(begin)) shared.emplace_back(begin, begin + bytes);
  for (uintptr_t at = uintptr_t(memory), end = at + bytes; at < end; ++at) {
    const auto page = pages.find(at / kPage);
    if (page != pages.end()) page->second->cells[at % kPage] = {};
  }
}

void begin_atomic(const volatile void* address, size_t bytes) {
  access(const_cast<const void*>(address), bytes, true, true, __builtin_return_address(0));
  in_atomic = true;
}

void end_atomic() { in_atomic = false; }

}  // namespace races

// ---- what the compiler calls ----

#define HOOK(name, bytes, write) \
  void __tsan_##name(void* address) { access(address, bytes, write, false, __builtin_return_address(0)); }
#define HOOKS(bytes)                        \
  HOOK(read##bytes, bytes, false)           \
  HOOK(write##bytes, bytes, true)           \
  HOOK(unaligned_read##bytes, bytes, false) \
  HOOK(unaligned_write##bytes, bytes, true)

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) { access(address, bytes, false, false, __builtin_return_address(0)); }
void __tsan_write_range(void* address, size_t bytes) { access(address, bytes, true, false, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}

// copies of structs: linked with --wrap, since the compilers leave them to the sanitizer's library
void* __real_memcpy(void*, const void*, size_t);
void* __real_memmove(void*, const void*, size_t);
void* __real_memset(void*, int, size_t);

void* __wrap_memcpy(void* to, const void* from, size_t bytes) {
  access(from, bytes, false, false, __builtin_return_address(0));
  access(to, bytes, true, false, __builtin_return_address(0));
  return __real_memcpy(to, from, bytes);
}
void* __wrap_memmove(void* to, const void* from, size_t bytes) {
  access(from, bytes, false, false, __builtin_return_address(0));
  access(to, bytes, true, false, __builtin_return_address(0));
  return __real_memmove(to, from, bytes);
}
void* __wrap_memset(void* to, int value, size_t bytes) {
  access(to, bytes, true, false, __builtin_return_address(0));
  return __real_memset(to, value, bytes);
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) { return __wrap_memcpy(to, from, bytes); }
void* __tsan_memmove(void* to, const void* from, size_t bytes) { return __wrap_memmove(to, from, bytes); }
void* __tsan_memset(void* to, int value, size_t bytes) { return __wrap_memset(to, value, bytes); }
}
