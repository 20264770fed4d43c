
/* Threads are instances of the module on the same memory, each with a stack of its own, which its loader starts. */
#define ${NAME}_MAX_THREADS 64
/* Bytes that so many threads need beside the instance and their stacks; 0 for a number that cannot be had. */
size_t ${name}_pool_bytes(int32_t threads);
/* Run with so many threads from now on, the caller's among them: the others are to be in `join` before the next run.
 * `may_sleep`: whether the caller's may wait without spinning (a page's main thread may not). */
int32_t ${name}_pool($instance *instance, void *memory, size_t bytes, int32_t threads, int32_t may_sleep);
/* What thread `task` does, until the threads end. */
int32_t ${name}_join($instance *instance, int32_t task);
/* End the threads: also after one of them, or the caller's, has failed in a run. There are no more runs then. */
int32_t ${name}_end($instance *instance);
