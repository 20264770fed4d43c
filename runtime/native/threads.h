
#define ${NAME}_MAX_THREADS 256
/* Run with so many threads from now on, the caller's among them: the others are started here, and ended by another
 * number. 1 before the memory of an instance is released. Results do not depend on the number. Allocates; not during a run. */
int32_t ${name}_set_threads($instance *instance, int32_t threads);
