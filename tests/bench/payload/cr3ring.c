/* Six processes in a ring of pipes. Each turn goes to another address space and there touches 48 pages: what is lost or
   kept of the translations at every switch is what this measures. */
#define _GNU_SOURCE
#include "harness.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PROCESSES = 6, ROUNDS = 100, PAGES = 48, PAGE = 4096 };
const uint64_t expected = (uint64_t)PAGES * PROCESSES * (ROUNDS * (ROUNDS + 1) / 2);

/* Adds to the token what stands in each of the pages, which is one more than the last time round. */
static uint64_t turn(uint64_t token, uint8_t *pages) {
    for (uint64_t i = 0; i < PAGES; i++) token += ++*(uint32_t *)(pages + i * PAGE + i * 64);
    return token;
}

uint64_t work(void) {
    int pipes[PROCESSES][2];
    uint64_t token = 0;
    uint8_t *pages = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) fail("mmap");
    for (int i = 0; i < PROCESSES; i++)
        if (pipe(pipes[i])) fail("pipe");
    for (int process = 1; process < PROCESSES; process++) {
        pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (pid) continue;
        for (int i = 0; i < ROUNDS; i++) {
            if (read(pipes[process - 1][0], &token, sizeof token) != sizeof token) _exit(1);
            token = turn(token, pages);
            if (write(pipes[process][1], &token, sizeof token) != sizeof token) _exit(1);
        }
        _exit(0);
    }
    for (int i = 0; i < ROUNDS; i++) {
        token = turn(token, pages);
        if (write(pipes[0][1], &token, sizeof token) != sizeof token) fail("write");
        if (read(pipes[PROCESSES - 1][0], &token, sizeof token) != sizeof token) fail("read");
    }
    for (int process = 1; process < PROCESSES; process++) wait(0);
    for (int i = 0; i < PROCESSES; i++) close(pipes[i][0]), close(pipes[i][1]);
    munmap(pages, PAGES * PAGE);
    return token;
}
