"""A target: what LLVM generates for and what zig links with. Its name is that of the entry point."""

from spa.codegen.target import Target

CORTEX_A53 = Target(
    name="cortex_a53",
    triple="aarch64-linux-gnu",
    cpu="cortex-a53",  # in order, two issues: LLVM schedules for it
    features=("+neon",),
    zig="aarch64-linux-gnu.2.17",
    lanes=4,  # float32 per vector register
    library=".so",
)
