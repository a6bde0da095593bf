//! BitTorrent, which benchmarks compare with: a torrent, its [`tracker`], and aria2 with what is known to be best for it where there are
//! only peers that the tracker tells of.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

pub mod tracker;

/// One client.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    pub torrent: &'a Path,
    /// Where the content lies, or is to lie.
    pub folder: &'a Path,
    /// Where it takes peers.
    pub port: u16,
    /// It begins with the whole content, and does not look at it first.
    pub is_seed: bool,
}

/// Makes a torrent of a file or a folder. An error if transmission-create is missing or fails.
pub fn make_torrent(torrent: &Path, content: &Path, announce: &str, piece_kib: u32) -> Result<()> {
    let mut make = Command::new("transmission-create");
    make.arg("--outfile")
        .arg(torrent)
        .args(["--tracker", announce, "--piecesize", &piece_kib.to_string()])
        .arg(content);
    let output = make.output().context("transmission-create")?;
    ensure!(output.status.success(), "transmission-create: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What is there once the client of this folder has everything, if its [`hook`] is called then.
pub fn done(folder: &Path) -> PathBuf {
    folder.join("done")
}

/// Writes a script that says when the download was complete.
pub fn hook(folder: &Path) -> Result<PathBuf> {
    let script = folder.join("complete.sh");
    fs::write(&script, format!("#!/bin/sh\ntouch {}\n", done(folder).display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// The flags of aria2, which is `command` wherever that runs. It goes on seeding until it is ended.
pub fn aria2(mut command: Command, client: &Client<'_>) -> Result<Command> {
    let Client { torrent, folder, port, is_seed } = *client;
    command.args([
        "--enable-dht=false",
        "--enable-dht6=false",
        "--bt-enable-lpd=false",
        "--enable-peer-exchange=false",
    ]);
    command.args(["--bt-max-peers=0", "--seed-ratio=0.0", "--file-allocation=none", "--disk-cache=64M"]);
    command.args(["--bt-tracker-interval=2", "--summary-interval=0", "--console-log-level=warn", "--no-conf=true"]);
    command.arg(format!("--listen-port={port}")).arg(format!("--dir={}", folder.display()));
    match is_seed {
        true => command.args(["--check-integrity=false", "--bt-seed-unverified=true"]),
        false => command.arg(format!("--on-bt-download-complete={}", hook(folder)?.display())),
    };
    command.arg(torrent);
    Ok(command)
}
