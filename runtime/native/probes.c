/* Times every kernel of probes.h: the best of ROUNDS, in nanoseconds. Statically linked, so that it runs on a board on which
 * nothing is installed. PROBE(kernel) for each; X, W, Y: floats that they read and write at most. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/utsname.h>
#include <time.h>

#define PROBE(name) extern int32_t name(const float *x, const float *w, float *y, void *scratch);
#include "probes.h"
#undef PROBE

static const struct {
    const char *name;
    int32_t (*run)(const float *, const float *, float *, void *);
} probes[] = {
#define PROBE(name) {#name, name},
#include "probes.h"
};

enum { COUNT = sizeof probes / sizeof *probes, ALIGNMENT = 64 };

static float *zeros(size_t floats) {
    float *const block = aligned_alloc(ALIGNMENT, (floats * sizeof(float) / ALIGNMENT + 1) * ALIGNMENT);
    for (size_t i = 0; block && i < floats; i++) block[i] = 0;
    return block;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* What the machine calls itself: a board its model, others their processor. */
static void name_machine(void) {
    struct utsname system;
    char model[128] = "";
    FILE *const file = fopen("/proc/device-tree/model", "r");
    if (file) {
        model[fread(model, 1, sizeof model - 1, file)] = 0;
        fclose(file);
    }
    for (char *c = model; *c; c++)
        if (*c < ' ' || *c > '~') *c = ' ';
    if (!uname(&system)) printf("machine %s %s %s\n", system.sysname, system.machine, model);
}

int main(void) {
    float *const x = zeros(X), *const w = zeros(W), *const y = zeros(Y);
    if (!x || !w || !y) return fprintf(stderr, "out of memory\n"), 1;
    static int64_t best[COUNT];
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < COUNT; i++) {
            const int64_t begin = now();
            probes[i].run(x, w, y, 0);
            const int64_t took = now() - begin;
            if (!round || took < best[i]) best[i] = took;
        }
    name_machine();
    for (int i = 0; i < COUNT; i++) printf("%s %lld\n", probes[i].name, (long long)best[i]);
    return 0;
}
