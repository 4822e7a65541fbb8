// What the emulator tells the race detector. Without CLS2DET_EMULATE_RACES none of it exists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace races {

#if defined(CLS2DET_EMULATE_RACES)
void start_launch();
void start_block(unsigned block);
void start_thread(unsigned thread, const char* stack, size_t bytes);  // it runs from now on, `stack` is its private memory
void stop_thread();                                                   // the emulator itself runs
void block_barrier();
void warp_barrier(unsigned warp, unsigned mask);
void new_shared(const void* memory, size_t bytes);  // an array of the block that starts, or goes on
void begin_atomic(const volatile void* address, size_t bytes);
void end_atomic();
#else
inline void start_launch() {}
inline void start_block(unsigned) {}
inline void start_thread(unsigned, const char*, size_t) {}
inline void stop_thread() {}
inline void block_barrier() {}
inline void warp_barrier(unsigned, unsigned) {}
inline void new_shared(const void*, size_t) {}
inline void begin_atomic(const volatile void*, size_t) {}
inline void end_atomic() {}
#endif

}  // namespace races

namespace emulator {
[[noreturn]] void fail(const std::string& message);  // from inside a kernel: the launch throws
}
