// What headers of new compilers ask of newer glibc and libstdc++ than torch itself needs, answered here, so that one build also
// loads on older Linux systems: from glibc 2.28 and GCC 8's libstdc++ on (manylinux_2_28). tests/wheel_check.py looks at it.
#pragma once

#include <new>
#include <sstream>

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#if defined(__x86_64__)
#define CLS2DET_GLIBC "GLIBC_2.2.5"
#else
#define CLS2DET_GLIBC "GLIBC_2.17"
#endif
__asm__(".symver exp, exp@" CLS2DET_GLIBC);  // the newer ones differ in errno alone
__asm__(".symver log, log@" CLS2DET_GLIBC);
__asm__(".symver dlsym, dlsym@" CLS2DET_GLIBC);  // moved from libdl to libc
#undef CLS2DET_GLIBC

// 2.32: whether shared_ptr may count without atomic instructions. No.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif

#if defined(__GLIBCXX__)
// GCC 9's and GCC 11's libstdc++
template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();
namespace std {
__attribute__((weak, noreturn)) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
#endif
