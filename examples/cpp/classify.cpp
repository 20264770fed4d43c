// Reads an input of raw float32 numbers, runs the network in two instances at once, one per thread, prints the best class.
//
//     c++ -std=c++17 cpp/classify.cpp -I net.spa/host -L net.spa/host -lnet -Wl,-rpath,net.spa/host -pthread -o classify
//     ./classify picture.f32
#include "net.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <future>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

/// One instance of the network and the memory it lives in; movable, not copyable. Each may run in a thread of its own.
class Net {
  public:
    Net() : memory_(static_cast<unsigned char *>(::operator new(net_instance_bytes(), std::align_val_t{NET_ALIGNMENT}))) {
        check(net_init(memory_.get(), net_instance_bytes(), &instance_), "net_init");
    }

    /// The first output for the first input, both dense. Throws where the size is wrong or a kernel fails.
    std::vector<float> run(const std::vector<float> &input) {
        if (input.size() * sizeof(float) != net_input_bytes(0))
            throw std::invalid_argument("the input has " + std::to_string(net_input_bytes(0)) + " bytes, not " +
                                        std::to_string(input.size() * sizeof(float)));
        std::vector<float> output(net_output_bytes(0) / sizeof(float));
        const void *inputs[NET_INPUTS] = {input.data()};
        void *outputs[NET_OUTPUTS] = {output.data()};
        check(net_run(instance_, inputs, outputs), "net_run");
        return output;
    }

  private:
    static void check(int code, const char *what) {
        if (code != NET_OK) throw std::runtime_error(std::string(what) + ": error " + std::to_string(code));
    }

    struct Free {
        void operator()(unsigned char *p) const { ::operator delete(p, std::align_val_t{NET_ALIGNMENT}); }
    };
    std::unique_ptr<unsigned char, Free> memory_;
    net_instance *instance_ = nullptr;
};

static std::vector<float> read(const char *path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw std::runtime_error(std::string(path) + ": cannot be read");
    std::vector<float> values(static_cast<std::size_t>(file.tellg()) / sizeof(float));
    file.seekg(0).read(reinterpret_cast<char *>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
    return values;
}

int main(int argc, char **argv) try {
    if (argc != 2) return std::fprintf(stderr, "usage: classify INPUT\n"), 2;
    const std::vector<float> input = read(argv[1]);
    const auto once = [&input] { return Net().run(input); };
    auto other = std::async(std::launch::async, once);
    const std::vector<float> output = once();
    if (other.get() != output) throw std::runtime_error("two instances differ");
    const auto best = std::max_element(output.begin(), output.end());
    std::printf("%td %.9g\n", best - output.begin(), static_cast<double>(*best));
    return 0;
} catch (const std::exception &error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
}
