#![no_main]

#[path = "../../cni-plugin/tests/fuzzed/bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::plugin(data));
