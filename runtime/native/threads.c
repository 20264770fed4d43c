/* $title: threads that run the network together. All of them go through the same steps with a barrier between, at which
 * a thread spins for a moment and then sleeps; between runs they wait at a barrier too. Nothing is allocated in a run. */
#include "team.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { SPINS = 4000 }; /* some tens of microseconds: about as long as waking a thread takes */

struct pool;

struct worker {
    struct team team; /* first: a team is its worker */
    struct pool *pool;
    pthread_t thread;
    int32_t code;
    char apart[64];
};

struct pool {
    $instance *instance;
    const void *const *inputs; /* of the run: written by the first thread while all others wait for it */
    void *const *outputs;
    int32_t first, last, stop, tasks;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    char apart[64];
    atomic_int arrived;
    char also_apart[64];
    atomic_uint round;
    atomic_int asleep;
    struct worker workers[];
};

static void pause_a_moment(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void await_all(struct team *team) {
    struct pool *const pool = ((struct worker *)team)->pool;
    const unsigned round = atomic_load(&pool->round);
    if (atomic_fetch_add(&pool->arrived, 1) == team->tasks - 1) {
        atomic_store(&pool->arrived, 0);
        atomic_fetch_add(&pool->round, 1);
        if (atomic_load(&pool->asleep)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_broadcast(&pool->wake);
            pthread_mutex_unlock(&pool->lock);
        }
        return;
    }
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->round, memory_order_acquire) != round) return;
        pause_a_moment();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->asleep, 1); /* before the look: whoever ends the round after it sees a sleeper */
    while (atomic_load(&pool->round) == round) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->asleep, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *work(void *argument) {
    struct worker *const worker = argument;
    struct pool *const pool = worker->pool;
    pthread_mutex_lock(&pool->lock); /* until all are started, or one could not be */
    const int32_t stop = pool->stop;
    pthread_mutex_unlock(&pool->lock);
    while (!stop) {
        await_all(&worker->team); /* a run begins */
        if (pool->stop) return 0;
        worker->code = ${name}__steps(pool->instance, pool->inputs, pool->outputs, pool->first, pool->last, &worker->team);
        await_all(&worker->team); /* and has ended */
    }
    return 0;
}

static int32_t run(
    $instance *instance, const void *const *inputs, void *const *outputs, int32_t first, int32_t last
) {
    struct pool *const pool = instance->pool;
    struct worker *const me = pool->workers;
    pool->inputs = inputs, pool->outputs = outputs, pool->first = first, pool->last = last;
    await_all(&me->team);
    int32_t code = ${name}__steps(instance, inputs, outputs, first, last, &me->team);
    await_all(&me->team);
    for (int32_t i = 1; i < pool->tasks; i++) code |= pool->workers[i].code;
    return code ? ${NAME}_KERNEL : ${NAME}_OK;
}

static void release(struct pool *pool) {
    for (int32_t i = 1; i < pool->tasks; i++) free(pool->workers[i].team.own);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* The first `count` threads, all that there are, end. */
static void join(struct pool *pool, int32_t count) {
    for (int32_t i = 1; i < count; i++) pthread_join(pool->workers[i].thread, 0);
    release(pool);
}

int32_t ${name}_set_threads($instance *instance, int32_t threads) {
    const int32_t code = ${name}__check(instance);
    if (code) return code;
    if (threads < 1 || threads > ${NAME}_MAX_THREADS) return ${NAME}_THREADS;
    struct pool *pool = instance->pool;
    if (pool && pool->tasks == threads) return ${NAME}_OK;
    instance->pool = 0, instance->run = ${name}__alone;
    if (pool) {
        pool->stop = 1;
        await_all(&pool->workers[0].team);
        join(pool, pool->tasks);
    }
    if (threads == 1) return ${NAME}_OK;
    pool = calloc(1, sizeof *pool + (size_t)threads * sizeof *pool->workers);
    if (!pool) return ${NAME}_THREADS;
    pool->instance = instance, pool->tasks = threads;
    pthread_mutex_init(&pool->lock, 0);
    pthread_cond_init(&pool->wake, 0);
    for (int32_t i = 0; i < threads; i++) {
        void *own = 0;
        if (i && posix_memalign(&own, ${NAME}_ALIGNMENT, OWN_BYTES)) {
            release(pool);
            return ${NAME}_THREADS;
        }
        pool->workers[i].team = (struct team){i, threads, own, await_all};
        pool->workers[i].pool = pool;
    }
    int32_t count = 1;
    pthread_mutex_lock(&pool->lock);
    while (count < threads && !pthread_create(&pool->workers[count].thread, 0, work, &pool->workers[count])) count++;
    pool->stop = count < threads; /* known before any of them begins */
    pthread_mutex_unlock(&pool->lock);
    if (pool->stop) {
        join(pool, count);
        return ${NAME}_THREADS;
    }
    instance->pool = pool, instance->run = run;
    return ${NAME}_OK;
}
