/* Fork, execute this program again, end, wait: what a shell does all day, with a static program. */
#include "harness.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILDREN = 20, STATUS = 7 };
const uint64_t expected = CHILDREN;

/* The executed child's whole life. glibc hands main's arguments to constructors. */
__attribute__((constructor)) static void child(int count, char **arguments) {
    if (count > 1 && !strcmp(arguments[1], "child")) _exit(STATUS);
}

uint64_t work(void) {
    uint64_t right = 0;
    for (int i = 0; i < CHILDREN; i++) {
        int status;
        pid_t pid = fork();
        if (pid < 0) fail("fork");
        if (!pid) {
            execl("/proc/self/exe", "forkexec", "child", (char *)0);
            _exit(1);
        }
        if (waitpid(pid, &status, 0) != pid) fail("waitpid");
        right += WIFEXITED(status) && WEXITSTATUS(status) == STATUS;
    }
    return right;
}
