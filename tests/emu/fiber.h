// A function that runs on a stack of its own. enter() runs it until it calls leave(), and the next enter() continues there.
// One fiber runs at a time; leave() returns to the caller of enter().
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

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
  void start(char* stack, size_t size, void (*entry)()) {
    void** slots = reinterpret_cast<void**>(stack + size);  // aligned to 16
    slots[-1] = nullptr;                                    // so that entry starts as if it had been called
    slots[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) slots[-i] = nullptr;
    top = slots - 8;
  }
  void switch_to(Context& other) { emulator_switch(&top, other.top); }
};
#else
struct Context {
  ucontext_t state;
  void start(char* stack, size_t size, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = size;
    state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&state, &other.state); }
};
#endif

class Fiber {
 public:
  static constexpr size_t kStack = 256 * 1024;

  const char* stack() const { return stack_.get(); }

  void start(void (*body)()) {
    body_ = body;
    context_.start(stack_.get(), kStack, first);
  }

  void enter() {
    entered_ = this;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_.get(), kStack);
#endif
    caller_.switch_to(context_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  void leave([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, caller_stack_, caller_stack_size_);
#endif
    context_.switch_to(caller_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
  }

 private:
  static void first() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &caller_stack_, &caller_stack_size_);
#endif
    entered_->body_();
    std::abort();  // a body ends by leaving for good
  }

  static inline Context caller_;
  static inline Fiber* entered_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  static inline const void* caller_stack_ = nullptr;
  static inline size_t caller_stack_size_ = 0;
  void* fake_stack_ = nullptr;
#endif

  Context context_;
  void (*body_)() = nullptr;
  std::unique_ptr<char[]> stack_{new char[kStack]};
};
