/* The sun and four planets under gravity, in doubles: dependent additions, products, divisions and square roots.
   Positions and velocities are those of J2000 in astronomical units and days, masses in suns times 4 pi^2. */
#include "harness.h"

#include <math.h>

enum { BODIES = 5, STEPS = 50000 };
const uint64_t expected = 0x633d9248aea157b8;

static const double pi = 3.141592653589793, year = 365.24;
static struct { double x[3], v[3], mass; } body[BODIES];

static void start(void) {
    static const double known[BODIES][7] = {
        { 0, 0, 0, 0, 0, 0, 1 },
        { 4.84143144246472090, -1.16032004402742839, -0.103622044471123109, 0.00166007664274403694, 0.00769901118419740425,
          -0.0000690460016972063023, 0.000954791938424326609 },
        { 8.34336671824457987, 4.12479856412430479, -0.403523417114321381, -0.00276742510726411899, 0.00499852801234917238,
          0.0000230417297573763929, 0.000285885980666130812 },
        { 12.8943695621391310, -15.1111514016986312, -0.223307578892655734, 0.00296460137564761618, 0.00237847173959480950,
          -0.0000296589568540237556, 0.0000436624404335156298 },
        { 15.3796971148509165, -25.9193146099879641, 0.179258772950371181, 0.00268067772490389322, 0.00162824170038242295,
          -0.0000951592254519715870, 0.0000515138902046611451 },
    };
    double momentum[3] = { 0 };
    for (int i = 0; i < BODIES; i++) {
        body[i].mass = known[i][6] * 4 * pi * pi;
        for (int k = 0; k < 3; k++) {
            body[i].x[k] = known[i][k];
            body[i].v[k] = known[i][3 + k] * year;
            momentum[k] += body[i].v[k] * body[i].mass;
        }
    }
    for (int k = 0; k < 3; k++) body[0].v[k] = -momentum[k] / body[0].mass;
}

static void advance(double time) {
    for (int i = 0; i < BODIES; i++)
        for (int j = i + 1; j < BODIES; j++) {
            double dx = body[i].x[0] - body[j].x[0], dy = body[i].x[1] - body[j].x[1], dz = body[i].x[2] - body[j].x[2];
            double square = dx * dx + dy * dy + dz * dz, pull = time / (square * sqrt(square));
            double a = body[j].mass * pull, b = body[i].mass * pull;
            body[i].v[0] -= dx * a, body[i].v[1] -= dy * a, body[i].v[2] -= dz * a;
            body[j].v[0] += dx * b, body[j].v[1] += dy * b, body[j].v[2] += dz * b;
        }
    for (int i = 0; i < BODIES; i++)
        for (int k = 0; k < 3; k++) body[i].x[k] += time * body[i].v[k];
}

static double energy(void) {
    double sum = 0;
    for (int i = 0; i < BODIES; i++) {
        sum += 0.5 * body[i].mass * (body[i].v[0] * body[i].v[0] + body[i].v[1] * body[i].v[1] + body[i].v[2] * body[i].v[2]);
        for (int j = i + 1; j < BODIES; j++) {
            double dx = body[i].x[0] - body[j].x[0], dy = body[i].x[1] - body[j].x[1], dz = body[i].x[2] - body[j].x[2];
            sum -= body[i].mass * body[j].mass / sqrt(dx * dx + dy * dy + dz * dz);
        }
    }
    return sum;
}

uint64_t work(void) {
    uint64_t sum;
    start();
    sum = bits_of(energy());
    for (int i = 0; i < STEPS; i++) advance(0.01);
    return digest(sum, bits_of(energy()));
}
