/* Runs a network once: runner INPUTS OUTPUTS [THREADS], both files of dense tensors one behind the other.
 * Built with MODEL(name) giving the model's functions, INPUTS and OUTPUTS their numbers. */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>

#define CALL(name) MODEL(name)

static int fail(const char *what, int code) {
    fprintf(stderr, "%s (%d)\n", what, code);
    return code ? code : 1;
}

int main(int argc, char **argv) {
    static void *inputs[INPUTS + 1], *outputs[OUTPUTS + 1];
    if (argc != 3 && argc != 4) return fail("usage: runner INPUTS OUTPUTS [THREADS]", 2);
    FILE *in = fopen(argv[1], "rb");
    if (!in) return fail("cannot read the inputs", 2);
    for (int i = 0; i < INPUTS; i++) {
        size_t bytes = CALL(input_bytes)(i);
        inputs[i] = malloc(bytes);
        if (!inputs[i] || fread(inputs[i], 1, bytes, in) != bytes) return fail("inputs too short", i);
    }
    fclose(in);
    for (int i = 0; i < OUTPUTS; i++)
        if (!(outputs[i] = malloc(CALL(output_bytes)(i)))) return fail("out of memory", i);
    size_t bytes = CALL(instance_bytes)();
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64), *net = 0;
    int code = CALL(init)(memory, bytes, (void *)&net);
    if (code) return fail("init", code);
    code = CALL(set_threads)(net, argc == 4 ? atoi(argv[3]) : 1);
    if (code) return fail("threads", code);
    code = CALL(run)(net, (const void *const *)inputs, outputs);
    if (code) return fail("run", code);
    CALL(set_threads)(net, 1);
    FILE *out = fopen(argv[2], "wb");
    if (!out) return fail("cannot write the outputs", 2);
    for (int i = 0; i < OUTPUTS; i++) {
        size_t n = CALL(output_bytes)(i);
        if (fwrite(outputs[i], 1, n, out) != n) return fail("cannot write the outputs", i);
    }
    return fclose(out) ? fail("cannot write the outputs", 2) : 0;
}
