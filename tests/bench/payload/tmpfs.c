/* Files in memory: made, written, renamed, read, measured and removed, under /dev/shm. */
#define _GNU_SOURCE
#include "harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES = 40, SIZE = 65536 };
const uint64_t expected = 0xda5811d2da5f9f9e;

uint64_t work(void) {
    static uint64_t block[SIZE / 8];
    char folder[64], path[96], renamed[112];
    uint64_t random = 29, sum = 0;
    snprintf(folder, sizeof folder, "/dev/shm/bellglass-bench-%d", (int)getpid());
    if (mkdir(folder, 0700)) fail("mkdir");
    for (int i = 0; i < FILES; i++) {
        struct stat status;
        int file;
        for (size_t k = 0; k < SIZE / 8; k += 64) block[k] = next_random(&random);
        snprintf(path, sizeof path, "%s/%d", folder, i);
        snprintf(renamed, sizeof renamed, "%s.done", path);
        file = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
        if (file < 0) fail("open");
        if (write(file, block, SIZE) != SIZE) fail("write");
        if (rename(path, renamed)) fail("rename");
        memset(block, 0, sizeof block);
        for (off_t at = 0; at < SIZE; at += 4096)
            if (pread(file, (char *)block + at, 4096, at) != 4096) fail("pread");
        if (fstat(file, &status)) fail("fstat");
        sum = digest(sum, (uint64_t)status.st_size);
        for (size_t k = 0; k < SIZE / 8; k += 64) sum = digest(sum, block[k]);
        close(file);
    }
    for (int i = 0; i < FILES; i++) {
        snprintf(renamed, sizeof renamed, "%s/%d.done", folder, i);
        if (unlink(renamed)) fail("unlink");
    }
    if (rmdir(folder)) fail("rmdir");
    return sum;
}
