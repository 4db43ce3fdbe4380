//! How many BPF objects the kernel has: what a leak shows in.
//!
//! Counts those of the whole machine; the kernel does not say whose they are. Called by the tests.

use crate::error::SetupError;
use aya::maps::loaded_maps;
use aya::programs::loaded_programs;

/// The number of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    /// Maps, the inner ones as well.
    pub maps: u64,
    /// Programs.
    pub programs: u64,
}

/// Counts them.
///
/// # Errors
/// Without `CAP_SYS_ADMIN`, which listing them needs.
pub fn census() -> Result<Census, SetupError> {
    let failed = |error: &dyn std::fmt::Display| SetupError::Load(format!("list BPF objects: {error}"));
    let (mut maps, mut programs) = (0, 0);
    for map in loaded_maps() {
        map.map_err(|error| failed(&error))?;
        maps += 1;
    }
    for program in loaded_programs() {
        program.map_err(|error| failed(&error))?;
        programs += 1;
    }
    Ok(Census { maps, programs })
}
