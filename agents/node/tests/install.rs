//! What `longshore-node install` writes, as systemd reads it.

use std::{
    path::Path,
    process::{Command, Output},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_longshore-node");

fn install(root: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(["install", "--region-address", "region.example:7000,region-2.example:7000", "--node", "n-1"]);
    command.args(["--goal-keys", "/etc/longshore/goals.pub", "--provenance-keys", "/etc/longshore/provenance.pub"]);
    command.args(["--host", "10.0.0.7", "--data", "/var/lib/longshore-node", "--token-file", "/etc/longshore/token"]);
    command.args(["--region-authority", "/etc/longshore/eu.pem"]);
    command.arg("--root").arg(root).args(more);
    command.output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_is_installed_is_what_systemd_understands() {
    let root = tempfile::tempdir().expect("a folder");
    let budget = ["--disk-budget", "21474836480"];
    let printed = install(root.path(), &[&budget[..], &["--print"]].concat());
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    assert_eq!(std::fs::read_dir(root.path()).expect("there").count(), 0, "a dry run writes nothing");
    let printed = text(&printed.stdout);

    let installed = install(root.path(), &budget);
    assert!(installed.status.success(), "{}", text(&installed.stderr));
    assert!(text(&installed.stdout).contains("systemctl enable --now longshore-node"));
    assert!(root.path().join("var/lib/longshore-node").is_dir());
    let unit = root.path().join("etc/systemd/system/longshore-node.service");
    let settings = root.path().join("etc/longshore/node.env");
    for file in [&unit, &settings] {
        let content = std::fs::read_to_string(file).expect("it was written");
        assert!(printed.contains(&content), "{} was shown", file.display());
    }
    let settings = std::fs::read_to_string(settings).expect("it was written");
    for line in [
        "LONGSHORE_REGION_ADDRESS=\"region.example:7000,region-2.example:7000\"",
        "LONGSHORE_NODE_NAME=\"n-1\"",
        "LONGSHORE_NODE_DATA=\"/var/lib/longshore-node\"",
        "LONGSHORE_NODE_TOKEN_FILE=\"/etc/longshore/token\"",
        "LONGSHORE_NODE_HOST=\"10.0.0.7\"",
        "LONGSHORE_NODE_PORT_BASE=\"28000\"",
        "LONGSHORE_NODE_DISK_BUDGET=\"21474836480\"",
    ] {
        assert!(settings.lines().any(|other| other == line), "no {line} in:\n{settings}");
    }

    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output();
    let verified = verified.unwrap_or_else(|error| {
        panic!("systemd-analyze cannot be run ({error}): `infra/setup.sh systemd` installs it (Debian package systemd)")
    });
    let said = format!("{}{}", text(&verified.stdout), text(&verified.stderr));
    assert!(verified.status.success() && !said.contains("longshore-node.service"), "{said}");
}

#[test]
fn what_cannot_work_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    for (flag, value, says) in [
        ("--program", "/opt/my programs/longshore-node", "/opt/my programs"),
        ("--disk-budget", "20G", "21474836480 for 20 GiB"),
        ("--disk-budget", "0", "--disk-budget"),
    ] {
        let refused = install(root.path(), &[flag, value]);
        assert!(!refused.status.success());
        assert!(text(&refused.stderr).contains(says), "{}", text(&refused.stderr));
    }
    assert_eq!(std::fs::read_dir(root.path()).expect("there").count(), 0, "nothing is written");
}
