//! See `sluice_proxy::fuzzing::hello`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice_proxy::fuzzing::hello(bytes));
