/* An interpreter for a small stack machine, as scripting languages have: one indirect jump for each instruction.
   Its program counts the steps of the Collatz sequences of 1 to 19 999. */
#include "harness.h"

const uint64_t expected = 1834604; /* as a plain loop in Python counts them */

enum op { PUSH, LOAD, STORE, ADD, MULTIPLY, HALVE, ODD, LESS, SAME, JUMP, JUMP_IF, JUMP_UNLESS, END };

/* Variables: 0 = n, 1 = x, 2 = steps. */
static const int32_t program[] = {
    /*  0 */ PUSH, 1, STORE, 0, PUSH, 0, STORE, 2,
    /*  8 */ LOAD, 0, STORE, 1,
    /* 12 */ LOAD, 1, PUSH, 1, SAME, JUMP_IF, 45,
    /* 19 */ LOAD, 2, PUSH, 1, ADD, STORE, 2,
    /* 26 */ LOAD, 1, ODD, JUMP_UNLESS, 40,
    /* 31 */ LOAD, 1, PUSH, 3, MULTIPLY, STORE, 1, JUMP, 56,
    /* 40 */ LOAD, 1, HALVE, JUMP, 52,
    /* 45 */ LOAD, 0, PUSH, 1, ADD, JUMP, 66,
    /* 52 */ STORE, 1, JUMP, 12,
    /* 56 */ LOAD, 1, PUSH, 1, ADD, STORE, 1, JUMP, 12, END,
    /* 66 */ STORE, 0, LOAD, 0, PUSH, 20000, LESS, JUMP_IF, 8, END,
};

static uint64_t run(void) {
    static const void *const labels[] = { &&push, &&load, &&store, &&add, &&multiply, &&halve, &&odd, &&less, &&same,
                                          &&jump, &&jump_if, &&jump_unless, &&end };
    uint64_t stack[16], *top = stack, variables[3] = { 0 };
    const int32_t *at = program;
#define NEXT goto *labels[*at++]
    NEXT;
push: *top++ = (uint64_t)*at++; NEXT;
load: *top++ = variables[*at++]; NEXT;
store: variables[*at++] = *--top; NEXT;
add: top--; top[-1] += *top; NEXT;
multiply: top--; top[-1] *= *top; NEXT;
halve: top[-1] >>= 1; NEXT;
odd: top[-1] &= 1; NEXT;
less: top--; top[-1] = top[-1] < *top; NEXT;
same: top--; top[-1] = top[-1] == *top; NEXT;
jump: at = program + *at; NEXT;
jump_if: at = *--top ? program + *at : at + 1; NEXT;
jump_unless: at = *--top ? at + 1 : program + *at; NEXT;
end: return variables[2];
#undef NEXT
}

uint64_t work(void) { return run(); }
