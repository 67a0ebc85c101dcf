/* Everyday integer code in the mix of embedded benchmarks: a linked list that is sorted and reversed, small matrices,
   a state machine that reads numbers, and a CRC over all of it. */
#include "harness.h"

const uint64_t expected = 0xc148281469566d81;

static uint16_t crc16(uint16_t crc, uint16_t value) {
    for (int bit = 0; bit < 16; bit++) {
        uint16_t low = (crc ^ value) & 1;
        crc >>= 1;
        value >>= 1;
        if (low) crc ^= 0xa001;
    }
    return crc;
}

struct item { struct item *next; int16_t key; uint16_t place; };
enum { ITEMS = 400 };

static struct item *merge(struct item *a, struct item *b) {
    struct item *first = 0, **end = &first;
    while (a && b) {
        struct item **smaller = a->key <= b->key ? &a : &b;
        *end = *smaller;
        end = &(*smaller)->next;
        *smaller = *end;
    }
    *end = a ? a : b;
    return first;
}

static struct item *sort(struct item *list) {
    struct item *slow = list, *fast, *rest;
    if (!list || !list->next) return list;
    for (fast = list->next; fast && fast->next; fast = fast->next->next) slow = slow->next;
    rest = slow->next;
    slow->next = 0;
    return merge(sort(list), sort(rest));
}

static uint16_t lists(uint64_t *random) {
    static struct item items[ITEMS];
    struct item *list = 0, *reversed = 0;
    uint16_t crc = 0;
    for (int i = 0; i < ITEMS; i++) {
        items[i] = (struct item){ list, (int16_t)next_random(random), (uint16_t)i };
        list = &items[i];
    }
    for (list = sort(list); list;) {
        struct item *next = list->next;
        list->next = reversed;
        reversed = list;
        list = next;
    }
    for (; reversed; reversed = reversed->next) crc = crc16(crc, reversed->place ^ (uint16_t)reversed->key);
    return crc;
}

enum { SIDE = 20 };

static uint16_t matrices(uint64_t *random) {
    int16_t a[SIDE][SIDE], b[SIDE][SIDE];
    uint16_t crc = 0;
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            a[i][j] = (int16_t)next_random(random);
            b[i][j] = (int16_t)next_random(random);
        }
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            int32_t sum = 0;
            for (int k = 0; k < SIDE; k++) sum += (a[i][k] >> 4) * (b[k][j] >> 4) & 0xfffff;
            crc = crc16(crc, (uint16_t)(sum >> 3));
        }
    return crc;
}

enum state { START, SIGN, DIGITS, POINT, FRACTION, EXPONENT, BAD, STATES };

static enum state step(enum state state, char c) {
    int is_digit = c >= '0' && c <= '9';
    switch (state) {
    case START: return is_digit ? DIGITS : c == '+' || c == '-' ? SIGN : c == '.' ? POINT : BAD;
    case SIGN: return is_digit ? DIGITS : c == '.' ? POINT : BAD;
    case DIGITS: return is_digit ? DIGITS : c == '.' ? POINT : c == 'e' ? EXPONENT : BAD;
    case POINT: return is_digit ? FRACTION : BAD;
    case FRACTION: return is_digit ? FRACTION : c == 'e' ? EXPONENT : BAD;
    case EXPONENT: return is_digit ? EXPONENT : BAD;
    default: return BAD;
    }
}

static uint16_t numbers(uint64_t *random) {
    static const char alphabet[16] = "0123456789.+-e,,";
    uint32_t seen[STATES] = { 0 };
    enum state state = START;
    uint16_t crc = 0;
    for (int i = 0; i < 4000; i++) {
        char c = alphabet[next_random(random) & 15];
        state = c == ',' ? START : step(state, c);
        seen[state]++;
    }
    for (int i = 0; i < STATES; i++) crc = crc16(crc, (uint16_t)seen[i]);
    return crc;
}

uint64_t work(void) {
    uint64_t random = 1, sum = 0;
    for (int i = 0; i < 100; i++) {
        sum = digest(sum, lists(&random));
        sum = digest(sum, matrices(&random));
        sum = digest(sum, numbers(&random));
    }
    return sum;
}
