#![no_main]

#[path = "../../agent/tests/fuzzed/bodies.rs"]
#[allow(dead_code, reason = "each target runs one of them")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::zds(data));
