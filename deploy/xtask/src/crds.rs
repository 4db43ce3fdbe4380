//! Writes deploy/crds from the types of sluice-crd, or says that it is stale.
//!
//! The test of sluice-crd that compares is what writes, too, so that the two cannot differ. Knows nothing of
//! schemas. Called by `crds`.

use crate::place::Place;
use crate::step;

/// Makes the test write instead of comparing.
const WRITE: &str = "SLUICE_WRITE_CRDS";

/// Writes, or only compares.
pub(crate) fn run(place: &Place, check: bool) -> anyhow::Result<()> {
    let mut test = place.cargo(&["test", "--locked", "--package", "sluice-crd", "--test", "crds"]);
    if check {
        test.env_remove(WRITE);
        return step::command("deploy/crds is what the types give", &mut test);
    }
    step::command("writing deploy/crds", test.env(WRITE, "1"))
}
