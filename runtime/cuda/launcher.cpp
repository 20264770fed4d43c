/* Generated with the network; the placeholders are filled in by the compiler. The CUDA driver is loaded when the first instance
 * is created, so that a program with this library also starts where there is none. */
#include "$name.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace {

/* What is used of the driver's interface (cuda.h), declared here so that no toolkit is needed. */
typedef int Result;
typedef int Device;
typedef uint64_t Pointer;
typedef struct ContextHandle *Context;
typedef struct ModuleHandle *Module;
typedef struct FunctionHandle *Function;
typedef struct StreamHandle *Stream;
typedef struct GraphHandle *Graph;
typedef struct GraphExecHandle *GraphExec;

enum { OUT_OF_MEMORY = 2, COMPUTE_MAJOR = 75, COMPUTE_MINOR = 76, MAX_DYNAMIC_SHARED = 8, NON_BLOCKING = 1, THREAD_LOCAL = 1 };
enum { DEFAULT_SHARED = 48 << 10 };

#define DRIVER(DO)                                                                                                     \
    DO(init, "cuInit", (unsigned))                                                                                     \
    DO(device, "cuDeviceGet", (Device *, int))                                                                         \
    DO(attribute, "cuDeviceGetAttribute", (int *, int, Device))                                                        \
    DO(retain, "cuDevicePrimaryCtxRetain", (Context *, Device))                                                        \
    DO(release, "cuDevicePrimaryCtxRelease_v2", (Device))                                                              \
    DO(push, "cuCtxPushCurrent_v2", (Context))                                                                         \
    DO(pop, "cuCtxPopCurrent_v2", (Context *))                                                                         \
    DO(load, "cuModuleLoadData", (Module *, const void *))                                                             \
    DO(unload, "cuModuleUnload", (Module))                                                                             \
    DO(find, "cuModuleGetFunction", (Function *, Module, const char *))                                                \
    DO(set, "cuFuncSetAttribute", (Function, int, int))                                                                \
    DO(allocate, "cuMemAlloc_v2", (Pointer *, size_t))                                                                 \
    DO(free, "cuMemFree_v2", (Pointer))                                                                                \
    DO(upload, "cuMemcpyHtoDAsync_v2", (Pointer, const void *, size_t, Stream))                                        \
    DO(download, "cuMemcpyDtoHAsync_v2", (void *, Pointer, size_t, Stream))                                            \
    DO(copy, "cuMemcpyDtoDAsync_v2", (Pointer, Pointer, size_t, Stream))                                               \
    DO(stream, "cuStreamCreate", (Stream *, unsigned))                                                                 \
    DO(synchronize, "cuStreamSynchronize", (Stream))                                                                   \
    DO(destroy_stream, "cuStreamDestroy_v2", (Stream))                                                                 \
    DO(launch, "cuLaunchKernel",                                                                                       \
       (Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void **, void **))     \
    DO(begin_capture, "cuStreamBeginCapture_v2", (Stream, int))                                                        \
    DO(end_capture, "cuStreamEndCapture", (Stream, Graph *))                                                           \
    DO(instantiate, "cuGraphInstantiateWithFlags", (GraphExec *, Graph, unsigned long long))                           \
    DO(replay, "cuGraphLaunch", (GraphExec, Stream))                                                                   \
    DO(destroy_graph, "cuGraphDestroy", (Graph))                                                                       \
    DO(destroy_exec, "cuGraphExecDestroy", (GraphExec))                                                                \
    DO(text, "cuGetErrorString", (Result, const char **))

struct Driver {
#define DECLARE(field, symbol, arguments) Result(*field) arguments;
    DRIVER(DECLARE)
#undef DECLARE
};

void *symbol_of(void *library, const char *name) {
#ifdef _WIN32
    return (void *)GetProcAddress((HMODULE)library, name);
#else
    return dlsym(library, name);
#endif
}

/* Null, or the name of what is missing. */
const char *load_driver(Driver *driver) {
    const char *chosen = getenv("SPA_LIBCUDA"); /* another file than the usual one */
#ifdef _WIN32
    void *library = (void *)LoadLibraryA(chosen ? chosen : "nvcuda.dll");
#else
    void *library = dlopen(chosen ? chosen : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
#endif
    if (!library) return chosen ? chosen : "libcuda.so.1";
#define RESOLVE(field, name, arguments)                                                                                \
    driver->field = (Result(*) arguments)symbol_of(library, name);                                                     \
    if (!driver->field) return name;
    DRIVER(RESOLVE)
#undef RESOLVE
    return 0;
}

/* The network ---------------------------------------------------------------------------------------------------- */

enum Space { INPUT, OUTPUT, WEIGHTS, ARENA };

struct Argument {
    Space space;
    uint64_t at; /* index of an input or output, byte of the weights or the arena */
};

struct Launch {
    const char *symbol;
    unsigned grid[3], block[3], shared; /* shared: bytes of dynamic shared memory */
    unsigned first, count;              /* of its arguments */
};

struct Copy {
    Argument from;
    int output;
    size_t bytes;
};

struct Image {
    int major, minor;
    bool only; /* for this version and no other (sm_90a) */
    const unsigned char *cubin, *ptx;
};

const size_t input_bytes[] = {$input_bytes};
const size_t output_bytes[] = {$output_bytes};
const Argument arguments[] = {
$arguments
};
const Launch launches[] = {
$launches
};
const Copy copies[] = {
$copies
    {{INPUT, 0}, -1, 0}, /* the end */
};
const unsigned LAUNCHES = $launch_count;
const size_t WEIGHT_BYTES = $weight_bytes, ARENA_BYTES = $arena_bytes;

} // namespace

/* Files beside this one, into the library's read-only data; a zero byte ends PTX. */
#define EMBED(symbol, file)                                                                                            \
    __asm__(".section .rodata\n.balign 64\n.hidden " #symbol "\n.globl " #symbol "\n" #symbol ":\n.incbin \"" file      \
            "\"\n.byte 0\n.text\n");                                                                                   \
    extern "C" __attribute__((visibility("hidden"))) const unsigned char symbol[];
$embeds

namespace {

const Image images[] = {
$images
};

} // namespace

struct ${name}_cuda {
    Driver driver;
    Device device;
    Context context;
    Module module;
    Stream stream;
    GraphExec graph;
    Pointer weights, arena;
    Pointer inputs[${NAME}_CUDA_INPUTS + 1], outputs[${NAME}_CUDA_OUTPUTS + 1];
    Function functions[$launch_count + 1];
    char message[256];
};

namespace {

typedef ${name}_cuda Net;

int32_t fail(Net *net, int32_t code, const char *what, const char *why) {
    snprintf(net->message, sizeof net->message, "%s: %s", what, why);
    return code;
}

int32_t check(Net *net, Result result, const char *what) {
    if (!result) return ${NAME}_CUDA_OK;
    const char *text = 0;
    net->driver.text(result, &text);
    return fail(net, result == OUT_OF_MEMORY ? ${NAME}_CUDA_MEMORY : ${NAME}_CUDA_FAILED, what, text ? text : "unknown error");
}

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        const int32_t code_ = check(net, net->driver.call, #call);                                                     \
        if (code_) return code_;                                                                                       \
    } while (0)

/* A cubin runs on the same major version from its minor on, PTX on everything newer. */
int32_t load_image(Net *net) {
    int major = 0, minor = 0;
    TRY(attribute(&major, COMPUTE_MAJOR, net->device));
    TRY(attribute(&minor, COMPUTE_MINOR, net->device));
    const Image *exact = 0, *older = 0;
    for (const Image &image : images) {
        if (image.only && (image.major != major || image.minor != minor)) continue;
        if (image.major == major && image.minor <= minor && (!exact || exact->minor < image.minor)) exact = &image;
        const int version = image.major * 10 + image.minor;
        if (version <= major * 10 + minor && (!older || older->major * 10 + older->minor < version)) older = &image;
    }
    if (exact && net->driver.load(&net->module, exact->cubin) == 0) return ${NAME}_CUDA_OK;
    char card[32];
    snprintf(card, sizeof card, "sm_%d%d", major, minor);
    if (!older) return fail(net, ${NAME}_CUDA_NO_CODE, "no code for this GPU", card);
    TRY(load(&net->module, older->ptx));
    return ${NAME}_CUDA_OK;
}

int32_t prepare(Net *net) {
    if (int32_t code = load_image(net)) return code;
    for (unsigned i = 0; i < LAUNCHES; i++) {
        TRY(find(&net->functions[i], net->module, launches[i].symbol));
        if (launches[i].shared > DEFAULT_SHARED) TRY(set(net->functions[i], MAX_DYNAMIC_SHARED, (int)launches[i].shared));
    }
    TRY(stream(&net->stream, NON_BLOCKING));
    TRY(allocate(&net->weights, WEIGHT_BYTES ? WEIGHT_BYTES : 1));
    TRY(allocate(&net->arena, ARENA_BYTES ? ARENA_BYTES : 1));
    for (int i = 0; i < ${NAME}_CUDA_INPUTS; i++) TRY(allocate(&net->inputs[i], input_bytes[i]));
    for (int i = 0; i < ${NAME}_CUDA_OUTPUTS; i++) TRY(allocate(&net->outputs[i], output_bytes[i]));
    if (WEIGHT_BYTES) TRY(upload(net->weights, ${name}__cuda_weights, WEIGHT_BYTES, net->stream));
    TRY(synchronize(net->stream));
    return ${NAME}_CUDA_OK;
}

Pointer place(const Net *net, const Argument &argument, const Pointer *inputs, const Pointer *outputs) {
    switch (argument.space) {
    case INPUT: return inputs[argument.at];
    case OUTPUT: return outputs[argument.at];
    case WEIGHTS: return net->weights + argument.at;
    default: return net->arena + argument.at;
    }
}

int32_t launch_all(Net *net, const Pointer *inputs, const Pointer *outputs, Stream stream) {
    Pointer values[$most_arguments + 1];
    void *pointers[$most_arguments + 1];
    for (unsigned i = 0; i < LAUNCHES; i++) {
        const Launch &l = launches[i];
        for (unsigned j = 0; j < l.count; j++) {
            values[j] = place(net, arguments[l.first + j], inputs, outputs);
            pointers[j] = &values[j];
        }
        const Result result = net->driver.launch(net->functions[i], l.grid[0], l.grid[1], l.grid[2], l.block[0], l.block[1],
                                                 l.block[2], l.shared, stream, pointers, 0);
        if (int32_t code = check(net, result, l.symbol)) return code;
    }
    for (const Copy *c = copies; c->output >= 0; c++)
        TRY(copy(outputs[c->output], place(net, c->from, inputs, outputs), c->bytes, stream));
    return ${NAME}_CUDA_OK;
}

int32_t capture(Net *net) {
    if (net->graph) return ${NAME}_CUDA_OK;
    Graph graph = 0;
    TRY(begin_capture(net->stream, THREAD_LOCAL));
    const int32_t code = launch_all(net, net->inputs, net->outputs, net->stream);
    const Result ended = net->driver.end_capture(net->stream, &graph);
    if (code) return code;
    if (int32_t bad = check(net, ended, "end_capture")) return bad;
    const Result made = net->driver.instantiate(&net->graph, graph, 0);
    net->driver.destroy_graph(graph);
    return check(net, made, "instantiate");
}

int32_t run(Net *net, const void *const *inputs, void *const *outputs) {
    for (int i = 0; i < ${NAME}_CUDA_INPUTS; i++) TRY(upload(net->inputs[i], inputs[i], input_bytes[i], net->stream));
    if (net->graph)
        TRY(replay(net->graph, net->stream));
    else if (int32_t code = launch_all(net, net->inputs, net->outputs, net->stream))
        return code;
    for (int i = 0; i < ${NAME}_CUDA_OUTPUTS; i++) TRY(download(outputs[i], net->outputs[i], output_bytes[i], net->stream));
    TRY(synchronize(net->stream));
    return ${NAME}_CUDA_OK;
}

/* The device's context is current for the calling thread while this lives. */
struct Current {
    Net *net;
    int32_t code;
    explicit Current(Net *n) : net(n), code(check(n, n->driver.push(n->context), "cuCtxPushCurrent")) {}
    ~Current() {
        Context before;
        if (!code) net->driver.pop(&before);
    }
};

} // namespace

extern "C" {

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

EXPORT size_t ${name}_cuda_input_bytes(int32_t index) {
    return index >= 0 && index < ${NAME}_CUDA_INPUTS ? input_bytes[index] : 0;
}

EXPORT size_t ${name}_cuda_output_bytes(int32_t index) {
    return index >= 0 && index < ${NAME}_CUDA_OUTPUTS ? output_bytes[index] : 0;
}

EXPORT int32_t ${name}_cuda_create(int32_t device, ${name}_cuda **out) {
    if (!out) return ${NAME}_CUDA_NULL;
    Net *net = *out = (Net *)calloc(1, sizeof(Net));
    if (!net) return ${NAME}_CUDA_MEMORY;
    if (const char *missing = load_driver(&net->driver)) {
        memset(&net->driver, 0, sizeof net->driver);
        return fail(net, ${NAME}_CUDA_NO_DRIVER, "no CUDA driver, or one that is too old", missing);
    }
    if (net->driver.init(0) || net->driver.device(&net->device, device))
        return fail(net, ${NAME}_CUDA_NO_DEVICE, "no GPU", "cuInit or cuDeviceGet failed");
    TRY(retain(&net->context, net->device));
    Current current(net);
    return current.code ? current.code : prepare(net);
}

EXPORT int32_t ${name}_cuda_run(${name}_cuda *net, const void *const *inputs, void *const *outputs) {
    if (!net || !net->context || !inputs || !outputs) return ${NAME}_CUDA_NULL;
    for (int i = 0; i < ${NAME}_CUDA_INPUTS; i++)
        if (!inputs[i]) return ${NAME}_CUDA_NULL;
    for (int i = 0; i < ${NAME}_CUDA_OUTPUTS; i++)
        if (!outputs[i]) return ${NAME}_CUDA_NULL;
    Current current(net);
    return current.code ? current.code : run(net, inputs, outputs);
}

EXPORT int32_t ${name}_cuda_enqueue(${name}_cuda *net, const uint64_t *inputs, const uint64_t *outputs, void *stream) {
    if (!net || !net->context || !inputs || !outputs) return ${NAME}_CUDA_NULL;
    Current current(net);
    return current.code ? current.code : launch_all(net, inputs, outputs, (Stream)stream);
}

EXPORT int32_t ${name}_cuda_capture(${name}_cuda *net) {
    if (!net || !net->context) return ${NAME}_CUDA_NULL;
    Current current(net);
    return current.code ? current.code : capture(net);
}

EXPORT const char *${name}_cuda_message(const ${name}_cuda *net) { return net ? net->message : "out of memory"; }

EXPORT void ${name}_cuda_destroy(${name}_cuda *net) {
    if (!net) return;
    if (net->context) {
        {
            Current current(net);
            if (net->graph) net->driver.destroy_exec(net->graph);
            for (int i = 0; i < ${NAME}_CUDA_INPUTS; i++)
                if (net->inputs[i]) net->driver.free(net->inputs[i]);
            for (int i = 0; i < ${NAME}_CUDA_OUTPUTS; i++)
                if (net->outputs[i]) net->driver.free(net->outputs[i]);
            if (net->arena) net->driver.free(net->arena);
            if (net->weights) net->driver.free(net->weights);
            if (net->stream) net->driver.destroy_stream(net->stream);
            if (net->module) net->driver.unload(net->module);
        }
        net->driver.release(net->device);
    }
    free(net);
}

} // extern "C"
