/* Starts a program with seven shared libraries (sqlite3), each time at addresses the kernel draws anew. A translator that
   knows code by its virtual address translates all of it again. $BENCH names the folder of the payload. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STARTS = 5 };
const uint64_t expected = STARTS;

uint64_t work(void) {
    static char loader[4096], libraries[8300], program[4096];
    const char *bench = getenv("BENCH");
    uint64_t right = 0;
    if (!bench) bench = "/bench";
    snprintf(loader, sizeof loader, "%s/debian/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", bench);
    snprintf(libraries, sizeof libraries, "%s/debian/lib/x86_64-linux-gnu:%s/debian/usr/lib/x86_64-linux-gnu", bench, bench);
    snprintf(program, sizeof program, "%s/debian/usr/bin/sqlite3", bench);
    for (int i = 0; i < STARTS; i++) {
        int status;
        pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (!pid) {
            execl(loader, loader, "--library-path", libraries, program, "-version", (char *)0);
            _exit(1);
        }
        if (waitpid(pid, &status, 0) != pid) fail("waitpid");
        right += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    return right;
}
