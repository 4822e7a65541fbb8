// An allocator for torch's CPU tensors that fences every one of them: bytes before and behind that must not change, contents
// that are NaN until they are written, and an address that is no multiple of more than 16.
#include <c10/core/CPUAllocator.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace {

constexpr size_t kFence = 4096 + 16;
constexpr unsigned char kPattern = 0xA5;
std::atomic<long> damaged, allocated, released;

struct Header {
  size_t bytes;
};

void release(void* data) {
  if (!data) return;
  unsigned char *bytes = static_cast<unsigned char*>(data), *start = bytes - kFence;
  const size_t size = reinterpret_cast<Header*>(start)->bytes;
  for (size_t i = sizeof(Header); i < kFence; ++i) damaged += start[i] != kPattern;
  for (size_t i = 0; i < kFence; ++i) damaged += bytes[size + i] != kPattern;
  ++released;
  std::free(start);
}

struct Guarded : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    const size_t whole = (size + 2 * kFence + 63) / 64 * 64;
    auto* start = static_cast<unsigned char*>(std::aligned_alloc(64, whole));
    if (!start) throw std::bad_alloc();
    std::memset(start, kPattern, size + 2 * kFence);
    reinterpret_cast<Header*>(start)->bytes = size;
    std::memset(start + kFence, 0xff, size);
    ++allocated;
    return {start + kFence, start + kFence, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
};

Guarded guarded;
c10::Allocator* before;

void start() {
  damaged = allocated = released = 0;
  before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&guarded, 255);
}

void stop() { c10::SetCPUAllocator(before, 255); }

}  // namespace

PYBIND11_MODULE(guarded_allocator, m) {
  m.def("start", &start, "Fence every CPU tensor that is allocated from now on.");
  m.def("stop", &stop);
  m.def("allocated", [] { return allocated.load(); }, "How many tensors got fences since the start.");
  m.def("alive", [] { return allocated - released; }, "How many of them still exist.");
  m.def("damaged", [] { return damaged.load(); }, "Changed bytes outside of those that do not exist any more.");
}
