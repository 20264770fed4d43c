// Reads an input of raw float32 numbers, runs the network in two instances at once, prints the best class.
//
//	CGO_CFLAGS="-I$PWD/net.spa/host" CGO_LDFLAGS="-L$PWD/net.spa/host -lnet -Wl,-rpath,$PWD/net.spa/host" go build -o classify go/classify.go
//	./classify picture.f32
package main

/*
#include <stdlib.h>
#include "net.h"

// Go must not hand C a table of pointers into its own memory: what a call needs lies in C's.
typedef struct { void *memory; net_instance *net; void *input, *output; } held;

static void net_close(held *h) { free(h->memory); free(h->input); free(h->output); }

static int net_open(held *h) {
    size_t bytes = (net_instance_bytes() + NET_ALIGNMENT - 1) / NET_ALIGNMENT * NET_ALIGNMENT;
    h->memory = aligned_alloc(NET_ALIGNMENT, bytes);
    h->input = malloc(net_input_bytes(0));
    h->output = malloc(net_output_bytes(0));
    if (!h->memory || !h->input || !h->output) return NET_NULL;
    return net_init(h->memory, bytes, &h->net);
}

static int net_step(held *h) {
    const void *inputs[NET_INPUTS] = {h->input};
    void *outputs[NET_OUTPUTS] = {h->output};
    return net_run(h->net, inputs, outputs);
}
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"unsafe"
)

// Net is one instance of the network. Each may run in a goroutine of its own; Close gives its memory back.
type Net struct{ held C.held }

func Open() (*Net, error) {
	net := &Net{}
	if code := C.net_open(&net.held); code != C.NET_OK {
		net.Close()
		return nil, fmt.Errorf("net_init: error %d", code)
	}
	return net, nil
}

func (net *Net) Close() { C.net_close(&net.held) }

// Run gives the first output for the bytes of the first input, both dense.
func (net *Net) Run(input []byte) ([]float32, error) {
	if wanted := int(C.net_input_bytes(0)); len(input) != wanted {
		return nil, fmt.Errorf("the input has %d bytes, not %d", wanted, len(input))
	}
	copy(unsafe.Slice((*byte)(net.held.input), len(input)), input)
	if code := C.net_step(&net.held); code != C.NET_OK {
		return nil, fmt.Errorf("net_run: error %d", code)
	}
	bytes := C.GoBytes(net.held.output, C.int(C.net_output_bytes(0)))
	output := make([]float32, len(bytes)/4)
	for i := range output {
		output[i] = math.Float32frombits(binary.LittleEndian.Uint32(bytes[4*i:]))
	}
	return output, nil
}

func once(input []byte) ([]float32, error) {
	net, err := Open()
	if err != nil {
		return nil, err
	}
	defer net.Close()
	return net.Run(input)
}

func classify(path string) (int, float32, error) {
	input, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	again := make(chan []float32, 1)
	go func() {
		found, _ := once(input)
		again <- found
	}()
	output, err := once(input)
	other := <-again
	if err != nil {
		return 0, 0, err
	}
	best := 0
	for i, v := range output {
		if i >= len(other) || other[i] != v {
			return 0, 0, fmt.Errorf("two instances differ")
		}
		if v > output[best] {
			best = i
		}
	}
	return best, output[best], nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: classify INPUT")
		os.Exit(2)
	}
	class, score, err := classify(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(class, score)
}
