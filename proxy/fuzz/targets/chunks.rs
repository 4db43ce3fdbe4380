//! See `sluice_proxy::fuzzing::chunks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sluice_proxy::fuzzing::chunks(bytes));
