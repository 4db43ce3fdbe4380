//! `sluice demo` and `sluice check` start their neighbours, or say that there is none.
//!
//! Alone in its binary: a program that was just written cannot be started while another test forks.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use std::process::Command;

#[test]
fn a_missing_neighbour_is_told() {
    // Away from its neighbours and with an empty PATH, the program finds no demo.
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("sluice");
    std::fs::copy(env!("CARGO_BIN_EXE_sluice"), &alone).unwrap();
    let output = Command::new(&alone).arg("demo").env("PATH", "").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cargo xtask demo"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = Command::new(&alone).arg("check").env("PATH", "").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("kubectl -n NAMESPACE exec POD -- sluice-proxy check"), "{errors}");
    // Beside it, it is started with every argument.
    let demo = dir.path().join("sluice-demo");
    std::fs::write(&demo, "#!/bin/sh\necho \"$@\"; exit 7\n").unwrap();
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(&demo, mode).unwrap();
    let output = Command::new(&alone).args(["demo", "--keep", "--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "--keep --help\n");
    let proxy = dir.path().join("sluice-proxy");
    std::fs::write(&proxy, "#!/bin/sh\necho \"$@\"; exit 1\n").unwrap();
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(&proxy, mode).unwrap();
    let output = Command::new(&alone).args(["check", "-o", "json", "--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "check -o json --help\n");
}
