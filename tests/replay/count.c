// A plugin of qemu: how often each run of instructions without a jump was executed. At the end it writes a line per run to the file
// named by the argument out=: address of its first instruction, number of its instructions, executions. Debian's qemu has no header
// for plugins, so what is used of its interface is declared here.
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t Id;
struct qemu_plugin_tb;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb*);
extern void qemu_plugin_register_vcpu_tb_trans_cb(Id, void (*)(Id, struct qemu_plugin_tb*));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb*, void (*)(unsigned, void*), int flags, void*);
extern void qemu_plugin_register_atexit_cb(Id, void (*)(Id, void*), void*);

int qemu_plugin_version = 1;

struct Run {
  uint64_t address, length, executions;
  struct Run* next;
};
static struct Run* runs;
static const char* path;

static void executed(unsigned cpu, void* run) {
  (void)cpu;
  ++((struct Run*)run)->executions;
}

static void translated(Id id, struct qemu_plugin_tb* block) {
  (void)id;
  struct Run* run = malloc(sizeof *run);
  *run = (struct Run){qemu_plugin_tb_vaddr(block), qemu_plugin_tb_n_insns(block), 0, runs};
  runs = run;
  qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, run);
}

static void finish(Id id, void* nothing) {
  (void)id, (void)nothing;
  FILE* file = fopen(path, "w");
  for (struct Run* run = runs; file && run; run = run->next) {
    if (run->executions) fprintf(file, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", run->address, run->length, run->executions);
  }
  if (file) fclose(file);
}

int qemu_plugin_install(Id id, const void* about, int count, char** arguments) {
  (void)about;
  if (count != 1 || strncmp(arguments[0], "out=", 4)) return 1;
  path = strdup(arguments[0] + 4);
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finish, NULL);
  return 0;
}
