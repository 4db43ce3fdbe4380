//! Compiles the peers' protocol buffers without protoc. Called by cargo alone.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/cart.proto");
    let files = protox::compile(["cart.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
