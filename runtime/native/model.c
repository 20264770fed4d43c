/* Generated with the network; the placeholders are filled in by the compiler. Needs no library but what the kernels need. */
#include "$header"

#define HEADER $header_bytes /* bytes at the start of an instance, before its arena */
#define MAGIC UINT64_C($magic)

struct $instance {
    uint64_t magic;
};

extern const unsigned char $weights[];
$declarations

static const size_t input_bytes[] = {$input_bytes};
static const size_t output_bytes[] = {$output_bytes};

size_t ${name}_instance_bytes(void) { return (size_t)HEADER + $arena_bytes; }
size_t ${name}_arena_bytes(void) { return $arena_bytes; }
size_t ${name}_input_bytes(int32_t index) { return index >= 0 && index < $inputs ? input_bytes[index] : 0; }
size_t ${name}_output_bytes(int32_t index) { return index >= 0 && index < $outputs ? output_bytes[index] : 0; }

int32_t ${name}_init(void *memory, size_t bytes, $instance **instance) {
    if (!memory || !instance) return ${NAME}_NULL;
    *instance = 0;
    if ((uintptr_t)memory % ${NAME}_ALIGNMENT) return ${NAME}_MISALIGNED;
    if (bytes < (size_t)HEADER + $arena_bytes) return ${NAME}_TOO_SMALL;
    *instance = ($instance *)memory;
    (*instance)->magic = MAGIC;
    return ${NAME}_OK;
}

int32_t ${name}_run($instance *instance, const void *const *inputs, void *const *outputs) {
    if (!instance || !inputs || !outputs) return ${NAME}_NULL;
    if ((uintptr_t)instance % ${NAME}_ALIGNMENT) return ${NAME}_MISALIGNED;
    if (instance->magic != MAGIC) return ${NAME}_NOT_INITIALISED;
    for (int32_t i = 0; i < $inputs; i++)
        if (!inputs[i]) return ${NAME}_NULL;
    for (int32_t i = 0; i < $outputs; i++)
        if (!outputs[i]) return ${NAME}_NULL;
    unsigned char *const arena = (unsigned char *)instance + HEADER;
    const unsigned char *const weights = $weights;
    (void)arena, (void)weights;
$calls
    return ${NAME}_OK;
}
