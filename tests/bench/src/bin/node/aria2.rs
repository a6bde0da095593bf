//! The comparator: one aria2 seeds the same files, another one gets them, both on the loopback interface.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use longshore_bench::{
    bittorrent::{self, Client, done, tracker},
    memory, trees,
};
use longshore_e2e::{
    Process,
    process::{free_ports, wait_for},
};
use tokio::net::TcpStream;

use crate::{
    BOUND,
    readings::{Passage, Reading, idle},
};

/// Of 256 KiB to 16 MiB, smaller ones cost the receiver more CPU and larger ones more memory.
const PIECE_KIB: u32 = 4 * 1024;
const LISTENS: Duration = Duration::from_secs(30);

/// Gets the content, a folder, into `work`. Ends all that it started.
pub(crate) async fn measure(work: &Path, content: &Path) -> Result<Passage> {
    let folder = work.join("aria2");
    fs::create_dir_all(&folder)?;
    let torrent = work.join("content.torrent");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let announce = format!("http://{}/announce", listener.local_addr()?);
    // It ends with this process.
    std::thread::spawn(move || tracker::serve(&listener));
    bittorrent::make_torrent(&torrent, content, &announce, PIECE_KIB)?;
    let port = free_ports(2)?;
    let parent = content.parent().context("the content lies in a folder")?;
    let seed = Client { torrent: &torrent, folder: parent, port, is_seed: true };
    let sender = start(&seed, &work.join("aria2-seed.log"))?;
    wait_for("aria2 to listen", LISTENS, async || {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok().then_some(()))
    })
    .await?;
    let idle = idle(&sender).await?;
    memory::warm(trees::bytes(content)?);
    let leech = Client { torrent: &torrent, folder: &folder, port: port + 1, is_seed: false };
    let sender_before = Reading::of(&sender)?;
    let receiver = start(&leech, &work.join("aria2-leech.log"))?;
    let begun = Reading::of(&receiver)?;
    let all = done(&folder);
    wait_for("aria2 to have everything", BOUND, async || Ok(all.exists().then_some(()))).await?;
    let bytes = trees::bytes(content)?;
    Ok(Passage {
        received_bytes: bytes,
        sent_bytes: bytes,
        receiver: Reading::of(&receiver)?.since(&begun),
        sender: Reading::of(&sender)?.since(&sender_before),
        idle,
    })
}

fn start(client: &Client<'_>, log: &Path) -> Result<Process> {
    Process::run(bittorrent::aria2(Command::new("aria2c"), client)?, "aria2c", log)
}
