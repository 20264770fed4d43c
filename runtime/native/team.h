/* $title: between the network and its threads; no part of its interface. */
#ifndef SPA_${NAME}_TEAM_H
#define SPA_${NAME}_TEAM_H

#include "$header"

#define HIDDEN __attribute__((visibility("hidden")))
#define HEADER $header_bytes  /* bytes at the start of an instance, before its arena */
#define OWN_BYTES $own_bytes /* scratch that each thread needs for itself */
#define STEPS $steps

/* One thread of a run: number `task` of `tasks`. `own` is its scratch (the first has its own in the arena), `wait` the
 * barrier of all; null where there is one only. */
struct team {
    int32_t task, tasks;
    unsigned char *own;
    void (*wait)(struct team *);
};

typedef int32_t ${name}__run($instance *, const void *const *, void *const *, int32_t, int32_t);

struct $instance {
    uint64_t magic;
    ${name}__run *run; /* steps first .. last with all threads */
    void *pool;
};

/* What one thread does of the steps first .. last; returns 0, or not if any of its kernels failed. */
HIDDEN int32_t ${name}__steps(
    $instance *instance, const void *const *inputs, void *const *outputs, int32_t first, int32_t last, struct team *team
);
/* With one thread. */
HIDDEN ${name}__run ${name}__alone;
/* Whether this is an instance. */
HIDDEN int32_t ${name}__check(const $instance *instance);

#endif
