//! See `sluice_proxy::fuzzing::relay`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice_proxy::fuzzing::relay(bytes));
