/* Reads an input of raw float32 numbers, runs the network twice in two independent instances, prints the best class.
 *
 *     cc classify.c -I net.spa/host -L net.spa/host -lnet -Wl,-rpath,net.spa/host -o classify
 */
#include "net.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static net_instance *create(void) {
    size_t bytes = net_instance_bytes();
    void *memory = aligned_alloc(NET_ALIGNMENT, (bytes + NET_ALIGNMENT - 1) / NET_ALIGNMENT * NET_ALIGNMENT);
    net_instance *net = NULL;
    int code = net_init(memory, bytes, &net);
    if (code != NET_OK) {
        fprintf(stderr, "net_init: %d\n", code);
        exit(1);
    }
    return net;
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: classify INPUT\n"), 2;
    float *input = malloc(net_input_bytes(0)), *output = malloc(net_output_bytes(0)), *again = malloc(net_output_bytes(0));
    FILE *file = fopen(argv[1], "rb");
    if (!file || fread(input, 1, net_input_bytes(0), file) != net_input_bytes(0))
        return fprintf(stderr, "%s: not %zu bytes\n", argv[1], net_input_bytes(0)), 1;
    fclose(file);

    net_instance *first = create(), *second = create();
    const void *inputs[NET_INPUTS] = {input};
    if (net_run(first, inputs, (void *[]){output}) != NET_OK) return 1;
    if (net_run(second, inputs, (void *[]){again}) != NET_OK) return 1;
    if (memcmp(output, again, net_output_bytes(0))) return fprintf(stderr, "two instances differ\n"), 1;

    size_t best = 0, classes = net_output_bytes(0) / sizeof *output;
    for (size_t i = 1; i < classes; i++)
        if (output[i] > output[best]) best = i;
    printf("%zu %.9g\n", best, output[best]);
    free(first), free(second), free(input), free(output), free(again);
    return 0;
}
