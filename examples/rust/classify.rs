//! Reads an input of raw float32 numbers, runs the network in two instances at once, one per thread, prints the best class.
//!
//!     rustc -O --edition 2021 rust/classify.rs -L net.spa/host -l net -C link-arg=-Wl,-rpath,net.spa/host -o classify
//!     ./classify picture.f32

use std::alloc::{alloc, dealloc, handle_alloc_error, Layout};
use std::ffi::c_void;
use std::{env, fs, process, ptr, thread};

/// What net.h declares; bindgen would write the same.
mod ffi {
    use std::ffi::c_void;

    pub const ALIGNMENT: usize = 64; // NET_ALIGNMENT
    pub const OK: i32 = 0;

    #[repr(C)]
    pub struct Instance {
        _private: [u8; 0],
    }

    extern "C" {
        pub fn net_instance_bytes() -> usize;
        pub fn net_input_bytes(index: i32) -> usize;
        pub fn net_output_bytes(index: i32) -> usize;
        pub fn net_init(memory: *mut c_void, bytes: usize, instance: *mut *mut Instance) -> i32;
        pub fn net_run(instance: *mut Instance, inputs: *const *const c_void, outputs: *const *mut c_void) -> i32;
    }
}

/// One instance of the network and the memory it lives in.
struct Net {
    memory: *mut u8,
    layout: Layout,
    instance: *mut ffi::Instance,
}

// SAFETY: an instance is memory of its own; the library has no global state. `run` takes it exclusively.
unsafe impl Send for Net {}

impl Net {
    fn new() -> Result<Net, String> {
        // SAFETY: the size is that of an instance, the alignment the one net.h asks for; `drop` frees with the same layout.
        unsafe {
            let layout = Layout::from_size_align(ffi::net_instance_bytes(), ffi::ALIGNMENT).map_err(|e| e.to_string())?;
            let memory = alloc(layout);
            if memory.is_null() {
                handle_alloc_error(layout);
            }
            let mut net = Net { memory, layout, instance: ptr::null_mut() };
            checked(ffi::net_init(memory.cast(), layout.size(), &mut net.instance), "net_init")?;
            Ok(net)
        }
    }

    /// The first output for the first input, both dense.
    fn run(&mut self, input: &[f32]) -> Result<Vec<f32>, String> {
        // SAFETY: both buffers have the bytes that the network says, and live until the call returns.
        unsafe {
            let (wanted, given) = (ffi::net_input_bytes(0), std::mem::size_of_val(input));
            if wanted != given {
                return Err(format!("the input has {wanted} bytes, not {given}"));
            }
            let mut output = vec![0f32; ffi::net_output_bytes(0) / std::mem::size_of::<f32>()];
            let inputs = [input.as_ptr().cast::<c_void>()];
            let outputs = [output.as_mut_ptr().cast::<c_void>()];
            checked(ffi::net_run(self.instance, inputs.as_ptr(), outputs.as_ptr()), "net_run")?;
            Ok(output)
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and nobody else has it.
        unsafe { dealloc(self.memory, self.layout) }
    }
}

fn checked(code: i32, what: &str) -> Result<(), String> {
    if code == ffi::OK {
        Ok(())
    } else {
        Err(format!("{what}: error {code}"))
    }
}

fn classify(path: &str) -> Result<(usize, f32), String> {
    let bytes = fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    let input: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut second = Net::new()?;
    let output = Net::new()?.run(&input)?;
    let again = thread::scope(|scope| scope.spawn(|| second.run(&input)).join()).map_err(|_| "a thread panicked")??;
    if again != output {
        return Err("two instances differ".into());
    }
    let best = (0..output.len()).max_by(|&a, &b| output[a].total_cmp(&output[b])).ok_or("no classes")?;
    Ok((best, output[best]))
}

fn main() {
    let Some(path) = env::args().nth(1) else {
        eprintln!("usage: classify INPUT");
        process::exit(2);
    };
    match classify(&path) {
        Ok((class, score)) => println!("{class} {score}"),
        Err(error) => {
            eprintln!("{error}");
            process::exit(1);
        }
    }
}
