/* Executes one instruction of user mode per case by the trap flag, in a process of its own.
 *
 * stdin: the image of LOW..HIGH once, then cases; stdout: one result per case. Signal handlers put the
 * registers of a case into the interrupted context and take them out again behind the instruction.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { LOW = 0x100000, CODE = 0x101000, HIGH = 0x10A000, SIZE = HIGH - LOW, CHANGES = 600 };

struct request { uint64_t regs[16], rflags; uint8_t code[16]; };
struct result {
    uint64_t regs[16], rflags, rip, trap, error, address, count;
    struct { uint32_t at; uint32_t byte; } changed[CHANGES];
};

/* hardware's order of registers in the kernel's */
static const int ORDER[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
static uint8_t image[SIZE];
static struct request request;
static struct result result;
static ucontext_t home;
static volatile int inside;

static void begin(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    memcpy(home.uc_mcontext.gregs, regs, sizeof home.uc_mcontext.gregs);
    for (int k = 0; k < 16; k++)
        regs[ORDER[k]] = request.regs[k];
    regs[REG_RIP] = CODE;
    regs[REG_EFL] = request.rflags | 0x100;
    inside = 1;
}

static void end(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (!inside)
        _exit(3);
    inside = 0;
    for (int k = 0; k < 16; k++)
        result.regs[k] = regs[ORDER[k]];
    result.rip = regs[REG_RIP];
    result.rflags = regs[REG_EFL];
    result.trap = regs[REG_TRAPNO];
    result.error = regs[REG_ERR];
    result.address = regs[REG_CR2];
    memcpy(regs, home.uc_mcontext.gregs, sizeof home.uc_mcontext.gregs);
}

static int all(int fd, void *buffer, size_t size, int output)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = output ? write(fd, (char *)buffer + done, size - done)
                           : read(fd, (char *)buffer + done, size - done);
        if (n <= 0)
            return 0;
        done += n;
    }
    return 1;
}

int main(void)
{
    uint8_t *memory = mmap((void *)LOW, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    static uint8_t stack[1 << 16];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    if (memory != (void *)LOW || !all(0, image, SIZE, 0))
        return 2;
    sigaltstack(&alternate, NULL);
    action.sa_sigaction = begin;
    sigaction(SIGUSR1, &action, NULL);
    action.sa_sigaction = end;
    for (int k = 0; k < 5; k++)
        sigaction((int[]){SIGTRAP, SIGSEGV, SIGILL, SIGFPE, SIGBUS}[k], &action, NULL);
    while (all(0, &request, sizeof request, 0)) {
        memcpy(memory, image, SIZE);
        memcpy(memory + (CODE - LOW), request.code, sizeof request.code);
        kill(getpid(), SIGUSR1);
        result.count = 0;
        memcpy(image + (CODE - LOW), request.code, sizeof request.code);
        for (uint32_t k = 0; k < SIZE && result.count < CHANGES; k++)
            if (memory[k] != image[k]) {
                result.changed[result.count].at = LOW + k;
                result.changed[result.count++].byte = memory[k];
            }
        if (!all(1, &result, sizeof result, 1))
            return 0;
    }
    return 0;
}
