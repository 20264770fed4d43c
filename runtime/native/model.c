/* Generated with the network; the placeholders are filled in by the compiler. Needs no library but what the kernels need. */
#include "team.h"

#define MAGIC UINT64_C($magic)
#define OWN(offset) (team->task ? team->own : arena + (offset))

extern const unsigned char $weights[];
$declarations

static const size_t input_bytes[] = {$input_bytes};
static const size_t output_bytes[] = {$output_bytes};

size_t ${name}_instance_bytes(void) { return (size_t)HEADER + $arena_bytes; }
size_t ${name}_arena_bytes(void) { return $arena_bytes; }
size_t ${name}_input_bytes(int32_t index) { return index >= 0 && index < $inputs ? input_bytes[index] : 0; }
size_t ${name}_output_bytes(int32_t index) { return index >= 0 && index < $outputs ? output_bytes[index] : 0; }

int32_t ${name}__check(const $instance *instance) {
    if (!instance) return ${NAME}_NULL;
    if ((uintptr_t)instance % ${NAME}_ALIGNMENT) return ${NAME}_MISALIGNED;
    return instance->magic == MAGIC ? ${NAME}_OK : ${NAME}_NOT_INITIALISED;
}

int32_t ${name}_init(void *memory, size_t bytes, $instance **instance) {
    if (!memory || !instance) return ${NAME}_NULL;
    *instance = 0;
    if ((uintptr_t)memory % ${NAME}_ALIGNMENT) return ${NAME}_MISALIGNED;
    if (bytes < (size_t)HEADER + $arena_bytes) return ${NAME}_TOO_SMALL;
    *instance = ($instance *)memory;
    (*instance)->magic = MAGIC;
    (*instance)->run = ${name}__alone;
    (*instance)->pool = 0;
    return ${NAME}_OK;
}

/* Called by kernels that threads run together: wait for all of them. */
HIDDEN int32_t ${name}__barrier(struct team *team) {
    if (team->wait) team->wait(team);
    return 0;
}

/* The first of n blocks of share `task` of `tasks`: blocks of sums[b + 1] - sums[b] entries each, as even as they allow. */
HIDDEN int32_t ${name}__split(const int32_t *sums, int32_t n, int32_t task, int32_t tasks) {
    enum { BLOCK = 4 }; /* entries that a block costs besides its own */
    const int64_t target = ((int64_t)(sums[n] - sums[0]) + (int64_t)BLOCK * n) * task / tasks;
    int32_t low = 0, high = n;
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        if (sums[middle] - sums[0] + (int64_t)BLOCK * middle < target) low = middle + 1;
        else high = middle;
    }
    return low;
}

int32_t ${name}__steps(
    $instance *instance, const void *const *inputs, void *const *outputs, int32_t first, int32_t last, struct team *team
) {
    unsigned char *const arena = (unsigned char *)instance + HEADER;
    const unsigned char *const weights = $weights;
    int32_t code = 0;
    (void)arena, (void)weights, (void)inputs, (void)outputs;
    for (int32_t step = first; step <= last; step++)
        switch (step) {
$calls
        }
    return code;
}

int32_t ${name}__alone(
    $instance *instance, const void *const *inputs, void *const *outputs, int32_t first, int32_t last
) {
    struct team team = {0, 1, 0, 0};
    return ${name}__steps(instance, inputs, outputs, first, last, &team) ? ${NAME}_KERNEL : ${NAME}_OK;
}

static int32_t checked(const $instance *instance, const void *const *inputs, void *const *outputs) {
    if (!inputs || !outputs) return ${NAME}_NULL;
    const int32_t code = ${name}__check(instance);
    if (code) return code;
    for (int32_t i = 0; i < $inputs; i++)
        if (!inputs[i]) return ${NAME}_NULL;
    for (int32_t i = 0; i < $outputs; i++)
        if (!outputs[i]) return ${NAME}_NULL;
    return ${NAME}_OK;
}

int32_t ${name}_run($instance *instance, const void *const *inputs, void *const *outputs) {
    const int32_t code = checked(instance, inputs, outputs);
    return code ? code : instance->run(instance, inputs, outputs, 0, STEPS - 1);
}

int32_t ${name}_steps(void) { return STEPS; }

int32_t ${name}_run_step($instance *instance, const void *const *inputs, void *const *outputs, int32_t step) {
    const int32_t code = checked(instance, inputs, outputs);
    return code ? code : instance->run(instance, inputs, outputs, step, step);
}
