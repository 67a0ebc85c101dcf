/* Dictionary compression and decompression of generated text: hash chains, byte compares, unpredictable branches. */
#include "harness.h"

#include <string.h>

enum { SIZE = 256 * 1024, WINDOW = 32768, HASHES = 32768, LONGEST = 258, SHORTEST = 4, TRIES = 8 };
const uint64_t expected = 0x378a3749e3d56c82;

static uint8_t text[SIZE], packed[SIZE * 2], again[SIZE];
static int32_t head[HASHES], previous[SIZE];

/* Words drawn from a small vocabulary, the short ones more often. */
static void write_text(void) {
    uint64_t random = 7;
    for (size_t at = 0; at < SIZE;) {
        uint64_t choice = next_random(&random), word = (choice & 255) * (choice >> 8 & 255) >> 8;
        uint64_t letters = word * 0x9e3779b97f4a7c15 + 1;
        for (uint64_t length = 2 + (word >> 4) % 9; length && at < SIZE; length--) {
            text[at++] = (uint8_t)('a' + letters % 26);
            letters = letters / 26 + letters * 31;
        }
        if (at < SIZE) text[at++] = choice >> 60 ? ' ' : '\n';
    }
}

static uint32_t hash(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, 4);
    return word * 2654435761u >> 17;
}

static void enter(int32_t at) {
    uint32_t h = hash(text + at);
    previous[at] = head[h];
    head[h] = at;
}

/* Tokens: a length byte below 128 and as many literals, or 128 + (length - 4 up to 127) and a 16-bit distance. */
static size_t compress(void) {
    size_t out = 0, literals = 0;
    memset(head, -1, sizeof head);
    for (int32_t at = 0; at < SIZE;) {
        int32_t best = 0, distance = 0;
        if (at + LONGEST < SIZE) {
            int32_t candidate = head[hash(text + at)];
            for (int tries = TRIES; candidate >= 0 && at - candidate < WINDOW && tries; tries--, candidate = previous[candidate]) {
                int32_t length = 0;
                while (length < 127 + SHORTEST && text[candidate + length] == text[at + length]) length++;
                if (length > best) best = length, distance = at - candidate;
            }
        }
        if (best >= SHORTEST) {
            literals = 0;
            packed[out++] = (uint8_t)(128 + best - SHORTEST);
            packed[out++] = (uint8_t)distance;
            packed[out++] = (uint8_t)(distance >> 8);
            for (int32_t end = at + best; at < end; at++) enter(at);
        } else {
            if (literals == 0 || literals == 127) packed[out++] = 0, literals = 0;
            literals++;
            packed[out - literals] = (uint8_t)literals;
            packed[out++] = text[at];
            if (at + 4 < SIZE) enter(at);
            at++;
        }
    }
    return out;
}

static size_t decompress(size_t length) {
    size_t out = 0;
    for (size_t at = 0; at < length;) {
        size_t token = packed[at++];
        if (token < 128) {
            while (token--) again[out++] = packed[at++];
        } else {
            size_t distance = packed[at] | (size_t)packed[at + 1] << 8;
            at += 2;
            for (token = token - 128 + SHORTEST; token--; out++) again[out] = again[out - distance];
        }
    }
    return out;
}

uint64_t work(void) {
    uint64_t sum;
    size_t length;
    write_text();
    length = compress();
    memset(again, 0, sizeof again);
    if (decompress(length) != SIZE || memcmp(text, again, SIZE)) return 0;
    sum = length;
    for (size_t i = 0; i < length; i++) sum = digest(sum, packed[i]);
    return sum;
}
