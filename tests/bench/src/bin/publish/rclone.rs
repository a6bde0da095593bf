//! The comparator: `rclone copy` of a tarball, in parts, several at once.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use longshore_bench::s3::KEY;

pub(crate) const BUCKET: &str = "rclone";
pub(crate) const OBJECT: &str = "tree.tar";

/// Parts at once, and their size. The best of them counts.
pub(crate) const SETTINGS: [[&str; 2]; 2] = [["8", "16M"], ["4", "64M"]];

/// Nothing that would read or hash more than the upload itself needs.
const FLAGS: [&str; 8] = [
    "--s3-disable-checksum",
    "--ignore-checksum",
    "--s3-no-head",
    "--no-check-dest",
    "--ignore-times",
    "--retries=1",
    "--buffer-size=64M",
    "--config=/dev/null",
];

/// Packs the tree as it is.
pub(crate) fn tar(source: &Path, tarball: &Path) -> Result<()> {
    let status = Command::new("tar").arg("-cf").arg(tarball).arg("-C").arg(source).arg(".").status();
    ensure!(status.context("tar cannot be run")?.success(), "tar failed");
    Ok(())
}

/// How many seconds it took. The object then lies at `stored`.
pub(crate) fn copy(endpoint: &str, tarball: &Path, stored: &Path, [concurrency, part]: [&str; 2]) -> Result<f64> {
    let target = format!("bench:{BUCKET}/{OBJECT}");
    let remote = |command: &str| {
        let mut rclone = Command::new("rclone");
        // Nothing here is encrypted, and its SDK fails at certificates of a machine's own.
        rclone.arg(command).stdin(Stdio::null()).env_remove("AWS_CA_BUNDLE");
        for (name, value) in [
            ("TYPE", "s3"),
            ("PROVIDER", "Other"),
            ("ENDPOINT", endpoint),
            ("REGION", "us-east-1"),
            ("ACCESS_KEY_ID", KEY),
            ("SECRET_ACCESS_KEY", KEY),
            ("FORCE_PATH_STYLE", "true"),
        ] {
            rclone.env(format!("RCLONE_CONFIG_BENCH_{name}"), value);
        }
        rclone.args(FLAGS);
        rclone
    };
    let made = remote("mkdir").arg(format!("bench:{BUCKET}")).status().context("rclone cannot be run")?;
    ensure!(made.success(), "rclone mkdir failed");
    let begun = Instant::now();
    let mut copy = remote("copyto");
    copy.args(["--s3-upload-concurrency", concurrency, "--s3-chunk-size", part]).arg(tarball).arg(&target);
    ensure!(copy.status()?.success(), "rclone copyto failed");
    let seconds = begun.elapsed().as_secs_f64();
    let (size, expected) = (stored.metadata()?.len(), tarball.metadata()?.len());
    ensure!(size == expected, "rclone stored {size} bytes, not {expected}");
    Ok(seconds)
}
