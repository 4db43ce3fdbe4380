//! The table of malformed HTTP/2 frames, sent by Python's hyperframe, on both ways of HTTP/2.

use crate::parts::{python, test};
use crate::stage::Stage;
use anyhow::Result;
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("frames of hyperframe, passed on as they are", &[], |stage| table(stage, 0, &[])),
        test("frames of hyperframe, built anew", &[], |stage| table(stage, 2, &["--by-library"])),
    ]
}

fn table(stage: &Stage, which: usize, more: &[&str]) -> Result<()> {
    let at = stage.http();
    let arguments: Vec<&str> = [&*at[which]].iter().chain(more).copied().collect();
    python(stage, "shop/frontend", "frames.py", &arguments).map(drop)
}
