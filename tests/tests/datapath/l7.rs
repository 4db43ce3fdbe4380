//! What L7 rules govern: through the proxy, at A and at B.
use libtest_mimic::Trial;
pub(crate) fn tests() -> Vec<Trial> {
    vec![]
}
