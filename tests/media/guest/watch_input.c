/* watch-input: prints every key and pointer event that the small guest receives, one line each, and paints a cross
 * where an absolute pointer stands, so that a test can compare what was pointed at with what arrived.
 *
 *   watch-input [SECONDS]      ends after so many seconds (default: never; Ctrl+C)
 *
 *   INPUT WATCH 1280x800 devices=4      once, first
 *   POINTER 640 400 raw 16384 16384     absolute position in pixels of the screen, then as the device gave it
 *   MOTION 5 -3                         relative motion
 *   BUTTON left down | WHEEL -1 | KEY 30 down      (key: Linux's key number; down, up, repeat)
 *
 * Freestanding, so that one source makes a 10 KB static program for x86-64 and (gcc -m32) for i386 without that C library. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int s32;

#ifdef __x86_64__
enum { SYS_READ = 0, SYS_WRITE = 1, SYS_OPEN = 2, SYS_POLL = 7, SYS_LSEEK = 8, SYS_IOCTL = 16, SYS_EXIT = 60, SYS_TIME = 201 };
static long sys(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call run\n");
#else
enum { SYS_EXIT = 1, SYS_READ = 3, SYS_WRITE = 4, SYS_OPEN = 5, SYS_TIME = 13, SYS_LSEEK = 19, SYS_IOCTL = 54, SYS_POLL = 168 };
static long sys(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}
__asm__(".globl _start\n_start: mov %esp, %eax\n and $-16, %esp\n sub $12, %esp\n push %eax\n call run\n");
#endif

/* linux/input.h: the time is two machine words on both architectures. */
struct event { unsigned long seconds, microseconds; u16 type, code; s32 value; };
enum { EV_SYN = 0, EV_KEY = 1, EV_REL = 2, EV_ABS = 3 };
struct abs_info { s32 value, minimum, maximum, fuzz, flat, resolution; };
#define EVIOCGABS(axis) (0x80184540u + (axis))

/* linux/fb.h */
struct screen_fixed {
    char id[16]; unsigned long memory_start; u32 memory_length, type, type_aux, visual;
    u16 pan_x, pan_y, wrap_y; u32 line_length; unsigned long mmio_start; u32 mmio_length, accel; u16 capabilities, reserved[2];
};
static u32 screen_variable[40];
static struct screen_fixed screen_fixed;
enum { FBIOGET_VSCREENINFO = 0x4600, FBIOGET_FSCREENINFO = 0x4602, O_RDONLY = 0, O_RDWR = 2, O_NONBLOCK = 2048 };

struct poll_entry { int fd; short events, got; };

#define MOST 32
static struct poll_entry devices[MOST];
static struct { struct abs_info x, y; s32 at_x, at_y, by_x, by_y; u8 absolute, moved; } state[MOST];
static int count, screen = -1, drawn, drawn_x, drawn_y;
static s32 width, height;

static char line[160];
static int used;
static void text(const char *s) { while (*s && used < 158) line[used++] = *s++; }
static void number(long value) {
    char digits[24]; int n = 0; unsigned long v = value < 0 ? -(unsigned long)value : (unsigned long)value;
    if (value < 0) text("-");
    do digits[n++] = '0' + v % 10; while (v /= 10);
    while (n) line[used++] = digits[--n];
}
static void pair(const char *name, long a, long b) { text(name); number(a); text(" "); number(b); }
static void end_line(void) { line[used++] = '\n'; sys(SYS_WRITE, 1, (long)line, used); used = 0; }

static void paint(int x, int y, u32 colour) {
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    sys(SYS_LSEEK, screen, (long)y * screen_fixed.line_length + x * 4, 0);
    sys(SYS_WRITE, screen, (long)&colour, 4);
}
/* Arms of 6 pixels in one colour; the pixel pointed at in another. */
static void cross(int x, int y, u32 arms, u32 centre) {
    for (int i = 1; i <= 6; i++) { paint(x - i, y, arms); paint(x + i, y, arms); paint(x, y - i, arms); paint(x, y + i, arms); }
    paint(x, y, centre);
}

static s32 scaled(s32 value, const struct abs_info *axis, s32 pixels) {
    u32 span = (u32)axis->maximum - axis->minimum + 1, from = (u32)value - axis->minimum;
    if (!span || span > 65536 || from >= span) return value; /* 65536 * 65535 still fits 32 bits */
    return from * (u32)pixels / span;
}

static void report_motion(int i) {
    if (state[i].absolute && state[i].moved) {
        s32 x = scaled(state[i].at_x, &state[i].x, width), y = scaled(state[i].at_y, &state[i].y, height);
        pair("POINTER ", x, y); pair(" raw ", state[i].at_x, state[i].at_y); end_line();
        if (screen >= 0) {
            if (drawn) cross(drawn_x, drawn_y, 0, 0);
            cross(x, y, 0xff2020, 0xffffff);
            drawn = 1; drawn_x = x; drawn_y = y;
        }
    }
    if (state[i].by_x || state[i].by_y) { pair("MOTION ", state[i].by_x, state[i].by_y); end_line(); }
    state[i].moved = 0; state[i].by_x = state[i].by_y = 0;
}

static void report_key(const struct event *e) {
    static const char *const buttons[] = { "left", "right", "middle", "side", "extra" };
    if (e->code >= 0x110 && e->code <= 0x114) { text("BUTTON "); text(buttons[e->code - 0x110]); }
    else { text("KEY "); number(e->code); }
    text(e->value == 0 ? " up" : e->value == 1 ? " down" : " repeat");
    end_line();
}

static void take(int i, const struct event *e) {
    if (e->type == EV_SYN) report_motion(i);
    else if (e->type == EV_KEY) report_key(e);
    else if (e->type == EV_ABS && e->code == 0) { state[i].at_x = e->value; state[i].moved = 1; }
    else if (e->type == EV_ABS && e->code == 1) { state[i].at_y = e->value; state[i].moved = 1; }
    else if (e->type == EV_REL && e->code == 0) state[i].by_x += e->value;
    else if (e->type == EV_REL && e->code == 1) state[i].by_y += e->value;
    else if (e->type == EV_REL && e->code == 8) { text("WHEEL "); number(e->value); end_line(); }
}

__attribute__((noreturn)) void run(long *stack) {
    long seconds = 0, start = sys(SYS_TIME, 0, 0, 0);
    if (stack[0] > 1) for (const char *s = (const char *)stack[2]; *s >= '0' && *s <= '9' && seconds < 100000; s++) seconds = seconds * 10 + *s - '0';

    screen = sys(SYS_OPEN, (long)"/dev/fb0", O_RDWR, 0);
    if (screen >= 0 && sys(SYS_IOCTL, screen, FBIOGET_VSCREENINFO, (long)screen_variable) == 0) {
        width = screen_variable[0]; height = screen_variable[1];
        /* Word 6 is the depth. Painting is for 32 bits a pixel only; positions are printed at any depth. */
        if (sys(SYS_IOCTL, screen, FBIOGET_FSCREENINFO, (long)&screen_fixed) != 0 || screen_variable[6] != 32) screen = -1;
    }
    for (int i = 0; i < MOST && count < MOST; i++) {
        char path[] = "/dev/input/event\0\0\0";
        int n = 16;
        if (i >= 10) path[n++] = '0' + i / 10;
        path[n] = '0' + i % 10;
        int fd = sys(SYS_OPEN, (long)path, O_RDONLY | O_NONBLOCK, 0);
        if (fd < 0) continue;
        devices[count].fd = fd; devices[count].events = 1;
        if (sys(SYS_IOCTL, fd, EVIOCGABS(0), (long)&state[count].x) >= 0 && sys(SYS_IOCTL, fd, EVIOCGABS(1), (long)&state[count].y) >= 0
            && state[count].x.maximum > 0) {
            state[count].absolute = 1;
            state[count].at_x = state[count].x.value; state[count].at_y = state[count].y.value;
        }
        count++;
    }
    text("INPUT WATCH "); number(width); text("x"); number(height); text(" devices="); number(count); end_line();

    while (!seconds || sys(SYS_TIME, 0, 0, 0) - start < seconds) {
        if (sys(SYS_POLL, (long)devices, count, 500) <= 0) continue;
        for (int i = 0; i < count; i++) {
            struct event events[32];
            if (!devices[i].got) continue;
            long got = sys(SYS_READ, devices[i].fd, (long)events, sizeof events);
            for (long n = 0; n < got / (long)sizeof events[0]; n++) take(i, &events[n]);
        }
    }
    text("INPUT WATCH END"); end_line();
    sys(SYS_EXIT, 0, 0, 0);
    __builtin_unreachable();
}
