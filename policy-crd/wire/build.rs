//! Compiles the protocol without protoc. Called by cargo alone.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/sluice.wire.v1.proto");
    let files = protox::compile(["sluice.wire.v1.proto"], ["proto"])?;
    tonic_prost_build::configure().codec_path("crate::codec::Bounded").compile_fds(files)?;
    Ok(())
}
