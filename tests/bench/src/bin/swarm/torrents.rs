//! The others: real BitTorrent clients, each with what is known to be best for it on a network of its own. One is the bucket, which
//! has the file; the rest are the nodes, which wait for it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use longshore_bench::bittorrent::{self, Client, done, hook};

use crate::{
    Round,
    lab::{BUCKET, Guarded, Lab},
};

const PIECE_KIB: u32 = 512;
const TRACKER_PORT: u16 = 6_969;
const PEER_PORT: u16 = 6_881;
/// Until every client runs and has told the tracker so.
const READY: Duration = Duration::from_secs(4);
const BOUND: Duration = Duration::from_secs(120);
/// What the bucket has sent then is content.
const BEGUN_BYTES: u64 = 256 * 1024;
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    Aria2,
    Libtorrent,
    Transmission,
}

impl Tool {
    pub(crate) const ALL: [Self; 3] = [Self::Aria2, Self::Libtorrent, Self::Transmission];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Aria2 => "aria2",
            Self::Libtorrent => "libtorrent",
            Self::Transmission => "transmission",
        }
    }
}

const LIBTORRENT: &str = r"
import libtorrent, sys, time
torrent, folder, role, address = sys.argv[1:]
session = libtorrent.session({
    'listen_interfaces': address, 'enable_dht': False, 'enable_lsd': False, 'enable_upnp': False, 'enable_natpmp': False,
    'enable_incoming_utp': False, 'enable_outgoing_utp': False, 'out_enc_policy': 2, 'in_enc_policy': 2,
    'connections_limit': 100, 'allow_multiple_connections_per_ip': True, 'alert_mask': 0,
}, 0)
parameters = libtorrent.add_torrent_params()
parameters.ti = libtorrent.torrent_info(torrent)
parameters.save_path = folder
if role == 'seed':
    parameters.flags |= libtorrent.torrent_flags.seed_mode
handle = session.add_torrent(parameters)
while not handle.status().is_seeding:
    time.sleep(0.01)
open(folder + '/done', 'w').close()
while True:
    time.sleep(60)
";

/// One file to all nodes. Ends all that it started.
pub(crate) fn round(lab: &Lab, tool: Tool, folder: &Path, file: &Path) -> Result<Round> {
    let work = folder.join(tool.name());
    fs::create_dir_all(&work)?;
    let played = play(lab, tool, &work, file);
    fs::remove_dir_all(&work)?;
    played.with_context(|| tool.name().to_owned())
}

fn play(lab: &Lab, tool: Tool, work: &Path, file: &Path) -> Result<Round> {
    let torrent = work.join("file.torrent");
    let announce = format!("http://{BUCKET}:{TRACKER_PORT}/announce");
    bittorrent::make_torrent(&torrent, file, &announce, PIECE_KIB)?;
    let _tracker = start_tracker(lab, work)?;
    let mut leeches = Vec::new();
    for node in 0..lab.layout.nodes() {
        let home = work.join(format!("n{node}"));
        fs::create_dir_all(&home)?;
        leeches.push(client(lab, tool, Some(node), &home, &torrent)?);
    }
    std::thread::sleep(READY);
    let home = work.join("seed");
    fs::create_dir_all(&home)?;
    let name = file.file_name().context("a name")?;
    fs::copy(file, home.join(name))?;
    let (before, busy) = (lab.counted()?, crate::Busy::begin()?);
    let _seed = client(lab, tool, None, &home, &torrent)?;
    let deadline = Instant::now() + BOUND;
    while lab.counted()?.bucket < before.bucket + BEGUN_BYTES {
        ensure!(Instant::now() < deadline, "the seed never began; it said: {}", said(&home));
        std::thread::sleep(POLL);
    }
    let begun = SystemTime::now();
    let mut seconds = Vec::new();
    for node in 0..lab.layout.nodes() {
        let done = done(&work.join(format!("n{node}")));
        while !done.exists() {
            if Instant::now() > deadline {
                bail!(
                    "node {node} was not done within {} s; it said: {}",
                    BOUND.as_secs(),
                    said(&work.join(format!("n{node}")))
                );
            }
            std::thread::sleep(POLL);
        }
        let at = fs::metadata(&done)?.modified()?;
        seconds.push(at.duration_since(begun).unwrap_or_default().as_secs_f64());
    }
    Ok(Round { seconds, busy: busy.share()?, before, after: lab.counted()? })
}

fn said(home: &Path) -> String {
    let text = fs::read_to_string(home.join("log")).unwrap_or_default();
    let from = text.char_indices().rev().nth(600).map_or(0, |(at, _)| at);
    text[from..].to_owned()
}

fn start_tracker(lab: &Lab, work: &Path) -> Result<Guarded> {
    let mut tracker = lab.command(None, std::env::current_exe()?);
    tracker.args(["play", "tracker", &TRACKER_PORT.to_string()]);
    log_to(&mut tracker, work)?;
    Ok(Guarded(tracker.spawn()?))
}

fn log_to(command: &mut Command, home: &Path) -> Result<()> {
    let log = fs::File::options().create(true).append(true).open(home.join("log"))?;
    command.stdout(Stdio::from(log.try_clone()?)).stderr(log);
    Ok(())
}

/// A client on a node, which has nothing; or on the bucket's machine, which has the file.
fn client(lab: &Lab, tool: Tool, node: Option<usize>, home: &Path, torrent: &Path) -> Result<Guarded> {
    let address = node.map_or_else(|| BUCKET.to_owned(), |node| lab.address(node));
    let mut command = match tool {
        Tool::Aria2 => {
            let client = Client { torrent, folder: home, port: PEER_PORT, is_seed: node.is_none() };
            bittorrent::aria2(lab.command(node, "aria2c"), &client)?
        }
        Tool::Libtorrent => {
            let mut command = lab.command(node, "/usr/bin/python3");
            let role = if node.is_some() { "leech" } else { "seed" };
            command.args(["-c", LIBTORRENT]).arg(torrent).arg(home).args([role, &format!("{address}:{PEER_PORT}")]);
            command
        }
        Tool::Transmission => transmission(lab, node, home, torrent, &address)?,
    };
    log_to(&mut command, home)?;
    Ok(Guarded(command.spawn().with_context(|| tool.name().to_owned())?))
}

fn transmission(lab: &Lab, node: Option<usize>, home: &Path, torrent: &Path, address: &str) -> Result<Command> {
    let (config, watched) = (home.join("config"), home.join("watched"));
    fs::create_dir_all(&config)?;
    fs::create_dir_all(&watched)?;
    fs::copy(torrent, watched.join("file.torrent"))?;
    let settings = serde_json::json!({
        "dht-enabled": false, "pex-enabled": false, "lpd-enabled": false, "utp-enabled": false, "encryption": 0,
        "port-forwarding-enabled": false, "rpc-enabled": false, "peer-port": PEER_PORT, "bind-address-ipv4": address,
        "peer-limit-per-torrent": 60, "upload-slots-per-torrent": 14, "cache-size-mb": 64, "preallocation": 0,
        "download-dir": home, "watch-dir": watched, "watch-dir-enabled": true, "start-added-torrents": true,
        "script-torrent-done-enabled": node.is_some(), "script-torrent-done-filename": hook(home)?,
    });
    fs::write(config.join("settings.json"), settings.to_string())?;
    let mut command = lab.command(node, "transmission-daemon");
    command.args(["--foreground", "--config-dir"]).arg(&config);
    Ok(command)
}
