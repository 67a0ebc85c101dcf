/* Two processes that hand a number to and fro through two pipes, a thousand times. */
#include "harness.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TURNS = 1000 };
const uint64_t expected = 2 * TURNS;

uint64_t work(void) {
    int there[2], back[2];
    uint64_t number = 0;
    pid_t pid;
    if (pipe(there) || pipe(back)) fail("pipe");
    pid = fork();
    if (pid < 0) fail("fork");
    if (!pid) {
        close(there[1]);
        while (read(there[0], &number, sizeof number) == sizeof number) {
            number++;
            if (write(back[1], &number, sizeof number) != sizeof number) break;
        }
        _exit(0);
    }
    for (int i = 0; i < TURNS; i++) {
        number++;
        if (write(there[1], &number, sizeof number) != sizeof number) fail("write");
        if (read(back[0], &number, sizeof number) != sizeof number) fail("read");
    }
    close(there[1]);
    close(there[0]);
    close(back[0]);
    close(back[1]);
    waitpid(pid, 0, 0);
    return number;
}
