/* Runs $title once on zeros and says how long a run takes, launch by launch and as a graph. */
#include "$name.h"

#include <chrono>
#include <cstdio>
#include <vector>

static double milliseconds(${name}_cuda *net, const void *const *inputs, void *const *outputs, int runs) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < runs; i++)
        if (${name}_cuda_run(net, inputs, outputs)) return -1;
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count() / runs;
}

int main() {
    ${name}_cuda *net = nullptr;
    if (${name}_cuda_create(0, &net)) {
        std::fprintf(stderr, "%s\n", ${name}_cuda_message(net));
        ${name}_cuda_destroy(net);
        return 1;
    }
    std::vector<std::vector<char>> memory;
    const void *inputs[${NAME}_CUDA_INPUTS + 1];
    void *outputs[${NAME}_CUDA_OUTPUTS + 1];
    memory.reserve(${NAME}_CUDA_INPUTS + ${NAME}_CUDA_OUTPUTS);
    for (int i = 0; i < ${NAME}_CUDA_INPUTS; i++) {
        memory.emplace_back(${name}_cuda_input_bytes(i));
        inputs[i] = memory.back().data();
    }
    for (int i = 0; i < ${NAME}_CUDA_OUTPUTS; i++) {
        memory.emplace_back(${name}_cuda_output_bytes(i));
        outputs[i] = memory.back().data();
    }
    std::printf("launches: %.3f ms\n", milliseconds(net, inputs, outputs, 20));
    if (${name}_cuda_capture(net)) std::fprintf(stderr, "%s\n", ${name}_cuda_message(net));
    std::printf("graph:    %.3f ms\n", milliseconds(net, inputs, outputs, 20));
    ${name}_cuda_destroy(net);
    return 0;
}
