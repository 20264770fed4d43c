/* A CUDA driver for tests, on the host's memory: it allocates, copies and keeps a log, and hands launches to a callback that
 * may compute them. Every pointer a kernel gets must lie in what was allocated. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 4096

typedef struct {
    char symbol[256];
    unsigned grid[3], block[3], shared;
    unsigned count;
    uint64_t pointers[64];
} Launched;

typedef int (*Callback)(const char *symbol, const unsigned *sizes, unsigned shared, void **parameters);

static char log_text[1 << 20];
static Callback callback;
static struct { char *begin; size_t size; } blocks[MOST];
static int capturing, major = 9, minor = 0, failing = -1, contexts;
static struct { void *function; unsigned sizes[6], shared; uint64_t values[64]; unsigned count; } graph[MOST];
static struct { void *to; const void *from; size_t size; } copies[MOST];
static unsigned launches, copied;
static unsigned (*count_of)(const char *symbol);

static void note(const char *text) {
    if (strlen(log_text) + strlen(text) + 2 < sizeof log_text) strcat(strcat(log_text, text), "\n");
}

static int called(const char *name) {
    note(name);
    return failing == 0 ? 719 : (failing > 0 && --failing == 0) ? 719 : 0;
}

/* For the test ---------------------------------------------------------------------------------------------------- */

const char *stub_log(void) { return log_text; }
void stub_reset(void) { log_text[0] = 0, callback = 0, count_of = 0, failing = -1, major = 9, minor = 0; }
void stub_callback(Callback function, unsigned (*counts)(const char *)) { callback = function, count_of = counts; }
void stub_compute(int a, int b) { major = a, minor = b; }
void stub_fail_after(int calls) { failing = calls; }
int stub_contexts(void) { return contexts; }
int stub_allocated(void) {
    int n = 0;
    for (int i = 0; i < MOST; i++) n += blocks[i].begin != 0;
    return n;
}
/* Bytes from a device pointer to the end of its allocation; 0 outside all. */
size_t stub_extent(uint64_t pointer) {
    for (int i = 0; i < MOST; i++)
        if (blocks[i].begin && pointer >= (uint64_t)blocks[i].begin && pointer < (uint64_t)blocks[i].begin + blocks[i].size)
            return (size_t)((uint64_t)blocks[i].begin + blocks[i].size - pointer);
    return 0;
}

/* The driver ------------------------------------------------------------------------------------------------------ */

int cuInit(unsigned flags) { return called("cuInit"); }
int cuDriverGetVersion(int *v) { return *v = 13000, 0; }
int cuDeviceGet(int *d, int n) { return *d = n, n == 0 ? called("cuDeviceGet") : 101; }
int cuDeviceGetName(char *text, int n, int d) { return snprintf(text, n, "stub"), 0; }
int cuDeviceGetAttribute(int *v, int which, int d) { return *v = which == 75 ? major : which == 76 ? minor : 0, 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { return contexts++, *c = (void *)1, called("cuDevicePrimaryCtxRetain"); }
int cuDevicePrimaryCtxRelease_v2(int d) { return contexts--, called("cuDevicePrimaryCtxRelease"); }
int cuCtxSetCurrent(void *c) { return 0; }
int cuCtxPushCurrent_v2(void *c) { return 0; }
int cuCtxPopCurrent_v2(void **c) { return 0; }
int cuModuleLoadData(void **m, const void *image) {
    *m = (void *)image;
    return called(memcmp(image, "\177ELF", 4) ? "cuModuleLoadData ptx" : "cuModuleLoadData cubin");
}
int cuModuleUnload(void *m) { return called("cuModuleUnload"); }
int cuModuleGetFunction(void **f, void *m, const char *name) { return *f = strdup(name), 0; }
int cuFuncSetAttribute(void *f, int which, int value) {
    char text[400];
    snprintf(text, sizeof text, "cuFuncSetAttribute %s %d %d", (char *)f, which, value);
    return called(text);
}
int cuMemAlloc_v2(uint64_t *p, size_t n) {
    for (int i = 0; i < MOST; i++)
        if (!blocks[i].begin) {
            blocks[i].begin = aligned_alloc(256, (n + 255) / 256 * 256);
            blocks[i].size = n;
            memset(blocks[i].begin, 0xCD, n);
            return *p = (uint64_t)blocks[i].begin, called("cuMemAlloc");
        }
    return 2;
}
int cuMemFree_v2(uint64_t p) {
    for (int i = 0; i < MOST; i++)
        if ((uint64_t)blocks[i].begin == p) return free(blocks[i].begin), blocks[i].begin = 0, 0;
    return 1;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *s) {
    if (stub_extent(to) < n) return 1;
    return memcpy((void *)to, from, n), called("cuMemcpyHtoD");
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *s) {
    if (stub_extent(from) < n) return 1;
    return memcpy(to, (void *)from, n), called("cuMemcpyDtoH");
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *s) {
    if (stub_extent(from) < n || stub_extent(to) < n) return 1;
    if (capturing) return copies[copied].to = (void *)to, copies[copied].from = (void *)from, copies[copied++].size = n, 0;
    return memmove((void *)to, (void *)from, n), called("cuMemcpyDtoD");
}
int cuStreamCreate(void **s, unsigned flags) { return *s = (void *)2, 0; }
int cuStreamSynchronize(void *s) { return called("cuStreamSynchronize"); }
int cuStreamDestroy_v2(void *s) { return 0; }
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **parameters, void **extra) {
    unsigned sizes[6] = {gx, gy, gz, bx, by, bz}, count = count_of ? count_of((char *)f) : 0;
    char text[1024];
    int at = snprintf(text, sizeof text, "%s %s %u,%u,%u %u,%u,%u %u", capturing ? "captured" : "cuLaunchKernel", (char *)f, gx,
                      gy, gz, bx, by, bz, shared);
    for (unsigned i = 0; i < count; i++) {
        const uint64_t pointer = *(uint64_t *)parameters[i];
        if (!stub_extent(pointer)) return note("a pointer outside all memory"), 700;
        at += snprintf(text + at, sizeof text - at, " %zu", stub_extent(pointer));
    }
    if (called(text)) return 719;
    if (capturing) {
        graph[launches].function = f, graph[launches].shared = shared, graph[launches].count = count;
        memcpy(graph[launches].sizes, sizes, sizeof sizes);
        for (unsigned i = 0; i < count; i++) graph[launches].values[i] = *(uint64_t *)parameters[i];
        launches++;
        return 0;
    }
    return callback ? callback((char *)f, sizes, shared, parameters) : 0;
}
int cuStreamBeginCapture_v2(void *s, int mode) { return capturing = 1, launches = copied = 0; }
int cuStreamEndCapture(void *s, void **g) { return capturing = 0, *g = (void *)3, 0; }
int cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long flags) { return *e = (void *)4, 0; }
int cuGraphLaunch(void *e, void *s) {
    int code = called("cuGraphLaunch");
    for (unsigned i = 0; i < launches && !code; i++) {
        void *parameters[64];
        for (unsigned j = 0; j < graph[i].count; j++) parameters[j] = &graph[i].values[j];
        code = callback ? callback(graph[i].function, graph[i].sizes, graph[i].shared, parameters) : 0;
    }
    for (unsigned i = 0; i < copied; i++) memmove(copies[i].to, copies[i].from, copies[i].size);
    return code;
}
int cuGraphDestroy(void *g) { return 0; }
int cuGraphExecDestroy(void *e) { return 0; }
int cuEventCreate(void **e, unsigned flags) { return *e = (void *)5, 0; }
int cuEventRecord(void *e, void *s) { return 0; }
int cuEventElapsedTime(float *ms, void *a, void *b) { return *ms = 1.0f, 0; }
int cuGetErrorString(int code, const char **text) { return *text = code == 719 ? "stub failure" : "stub error", 0; }
