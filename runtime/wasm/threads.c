/* $title: threads that run the network together, as native/threads.c has it: all go through the same steps with a barrier
 * between, at which a thread spins for a moment and then sleeps in memory.atomic.wait32; between runs they wait at a
 * barrier too. A kernel may trap (an index out of range): whoever notices ends the threads, so that none waits for ever. */
#include "team.h"

#include <stdatomic.h>

enum { SPINS = 200000 }; /* some 0.2 ms: engines take long to wake a thread; with a tenth of it whole networks took up to a tenth longer */

struct pool;

struct worker {
    struct team team; /* first: a team is its worker */
    struct pool *pool;
    int32_t code, may_sleep;
    char apart[64];
};

struct pool {
    $instance *instance;
    const void *const *inputs; /* of the run: written by the first thread while all others wait for it */
    void *const *outputs;
    int32_t first, last, tasks;
    char apart[64];
    atomic_int arrived;
    char also_apart[64];
    atomic_int round, ended, asleep;
    struct worker workers[];
};

static size_t aligned(size_t bytes) { return (bytes + ${NAME}_ALIGNMENT - 1) / ${NAME}_ALIGNMENT * ${NAME}_ALIGNMENT; }

static void await_all(struct team *team) {
    const struct worker *const me = (struct worker *)team;
    struct pool *const pool = me->pool;
    const int32_t round = atomic_load(&pool->round);
    if (atomic_load(&pool->ended)) return; /* it is set before the round ends: who reads it too early sees another round */
    if (atomic_fetch_add(&pool->arrived, 1) == team->tasks - 1) {
        atomic_store(&pool->arrived, 0);
        atomic_fetch_add(&pool->round, 1);
        if (atomic_load(&pool->asleep)) __builtin_wasm_memory_atomic_notify((int *)&pool->round, UINT32_MAX);
        return;
    }
    for (int32_t i = 0; i < SPINS || !me->may_sleep; i += i < SPINS)
        if (atomic_load(&pool->round) != round) return;
    atomic_fetch_add(&pool->asleep, 1); /* before the look: whoever ends the round after it sees a sleeper */
    while (atomic_load(&pool->round) == round)
        __builtin_wasm_memory_atomic_wait32((int *)&pool->round, round, -1);
    atomic_fetch_sub(&pool->asleep, 1);
}

static int32_t run(
    $instance *instance, const void *const *inputs, void *const *outputs, int32_t first, int32_t last
) {
    struct pool *const pool = instance->pool;
    struct team *const me = &pool->workers[0].team;
    pool->inputs = inputs, pool->outputs = outputs, pool->first = first, pool->last = last;
    await_all(me);
    if (pool->ended) return ${NAME}_THREADS;
    int32_t code = ${name}__steps(instance, inputs, outputs, first, last, me);
    await_all(me);
    if (pool->ended) return ${NAME}_THREADS;
    for (int32_t i = 1; i < pool->tasks; i++) code |= pool->workers[i].code;
    return code ? ${NAME}_KERNEL : ${NAME}_OK;
}

size_t ${name}_pool_bytes(int32_t threads) {
    if (threads < 1 || threads > ${NAME}_MAX_THREADS) return 0;
    return aligned(sizeof(struct pool) + (size_t)threads * sizeof(struct worker)) + (size_t)(threads - 1) * OWN_BYTES;
}

int32_t ${name}_pool($instance *instance, void *memory, size_t bytes, int32_t threads, int32_t may_sleep) {
    const int32_t code = ${name}__check(instance);
    if (code) return code;
    if (!memory) return ${NAME}_NULL;
    if ((uintptr_t)memory % ${NAME}_ALIGNMENT) return ${NAME}_MISALIGNED;
    if (threads < 1 || threads > ${NAME}_MAX_THREADS) return ${NAME}_THREADS;
    if (bytes < ${name}_pool_bytes(threads)) return ${NAME}_TOO_SMALL;
    struct pool *const pool = memory;
    __builtin_memset(pool, 0, sizeof *pool);
    pool->instance = instance, pool->tasks = threads;
    unsigned char *own = (unsigned char *)memory + aligned(sizeof *pool + (size_t)threads * sizeof *pool->workers);
    for (int32_t i = 0; i < threads; i++) {
        struct worker *const worker = &pool->workers[i];
        *worker = (struct worker){{i, threads, i ? own : 0, await_all}, pool, 0, i || may_sleep, {0}};
        own += i ? OWN_BYTES : 0;
    }
    instance->pool = pool, instance->run = threads > 1 ? run : ${name}__alone;
    return ${NAME}_OK;
}

int32_t ${name}_join($instance *instance, int32_t task) {
    struct pool *const pool = instance->pool;
    if (!pool || task < 1 || task >= pool->tasks) return ${NAME}_THREADS;
    struct worker *const me = &pool->workers[task];
    for (;;) {
        await_all(&me->team); /* a run begins */
        if (pool->ended) return ${NAME}_OK;
        me->code = ${name}__steps(instance, pool->inputs, pool->outputs, pool->first, pool->last, &me->team);
        await_all(&me->team); /* and has ended */
    }
}

int32_t ${name}_end($instance *instance) {
    struct pool *const pool = instance->pool;
    if (!pool) return ${NAME}_OK;
    atomic_store(&pool->ended, 1);
    atomic_fetch_add(&pool->round, 1);
    __builtin_wasm_memory_atomic_notify((int *)&pool->round, UINT32_MAX);
    return ${NAME}_OK;
}
