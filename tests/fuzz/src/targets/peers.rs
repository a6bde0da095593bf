//! The peers' protocol: strangers ask the server, and a stranger answers the client.

use std::{io, time::Duration};

use longshore_schemas::PackId;
use longshore_swarm::{PackStore, hooks};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    runtime::Runtime,
};

use crate::{Random, Subject, kind_of};

const MAGIC: &[u8; 8] = b"LSSWARM3";
const PACK: &[u8] = b"the bytes of a pack that is there";
const FOUND: u8 = 0;
const MISSING: u8 = 1;
const COMING: u8 = 3;
/// In the place of a count of blocks.
const NOTHING_YET: u8 = 0;
/// What the connection holds in each direction.
const WIRE_BYTES: usize = 64 * 1024;
/// Longer than anything waits here: nobody keeps the other waiting, but hangs up.
const PATIENCE: Duration = Duration::from_secs(4);

struct World {
    runtime: Runtime,
    store: PackStore,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = PackStore::open(folder.path()).expect("an empty folder opens");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime, store, _folder: folder }
    }
}

struct Server(World);

pub(super) fn server() -> Box<dyn Subject> {
    let world = World::new();
    world.runtime.block_on(async {
        let mut incoming = world.store.incoming(PackId::of(PACK)).expect("space");
        incoming.write(PACK).await.expect("space");
        assert!(incoming.admit().await.expect("space"), "these are its bytes");
    });
    Box::new(Server(world))
}

impl Subject for Server {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let World { runtime, store, .. } = &self.0;
        let (ours, theirs) = tokio::io::duplex(WIRE_BYTES);
        let (served, answer) = runtime.block_on(async {
            let serving = async {
                let mut theirs = theirs;
                tokio::time::timeout(PATIENCE, hooks::serve(&mut theirs, store)).await
            };
            tokio::join!(serving, converse(ours, input))
        });
        let served = served.map_err(|_| "the server goes on after its peer hung up".to_owned())?;
        let answer = answer.map_err(|error| format!("the answer breaks off: {error}"))?;
        let expected = expected(input);
        if answer != expected {
            return Err(format!("the answer has {} bytes, not {}: {answer:?}", answer.len(), expected.len()));
        }
        let ended = served.map_or_else(|error| kind_of(&error), |()| "well".to_owned());
        Ok(format!("{ended} after {} bytes", answer.len()))
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for _ in 0..random.below(5) {
            let pack = if random.one_in(2) { PackId::of(PACK) } else { PackId::of(b"other") };
            bytes.extend_from_slice(pack.as_bytes());
            bytes.extend_from_slice(&random.pick(&[0, 0, 0, 1, u32::MAX]).to_be_bytes());
        }
        bytes
    }
}

/// Sends everything, hangs up, and reads to the end.
async fn converse(stream: DuplexStream, input: &[u8]) -> io::Result<Vec<u8>> {
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async {
        // The server may have hung up first.
        let _ = write.write_all(input).await;
        let _ = write.shutdown().await;
    };
    let mut answer = Vec::new();
    let (_, read) = tokio::join!(sending, read.read_to_end(&mut answer));
    read.map(|_| answer)
}

/// What the protocol says, in words of its own.
fn expected(input: &[u8]) -> Vec<u8> {
    let Some(requests) = input.strip_prefix(MAGIC) else { return Vec::new() };
    let mut answer = MAGIC.to_vec();
    for request in requests.chunks_exact(36) {
        // It has one block, the first.
        let found = request == [PackId::of(PACK).as_bytes(), &[0; 4][..]].concat();
        answer.push(if found { FOUND } else { MISSING });
        answer.extend_from_slice(&(if found { PACK.len() as u64 } else { 0 }).to_be_bytes());
        if found {
            answer.push(1);
            answer.extend_from_slice(PACK);
        }
    }
    answer
}

/// Whether that is the pack, however often it was said before that it comes.
fn is_right(mut answer: &[u8]) -> bool {
    while let [COMING, rest @ ..] = answer {
        answer = rest.get(8..).unwrap_or_default();
    }
    let found = [&[FOUND][..], &(PACK.len() as u64).to_be_bytes()].concat();
    let Some(mut blocks) = answer.strip_prefix(&found[..]) else { return false };
    while let [NOTHING_YET, rest @ ..] = blocks {
        blocks = rest;
    }
    blocks.strip_prefix(&[1]).is_some_and(|block| block.starts_with(PACK))
}

struct Client(World);

pub(super) fn client() -> Box<dyn Subject> {
    Box::new(Client(World::new()))
}

impl Subject for Client {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let World { runtime, store, .. } = &self.0;
        let pack = PackId::of(PACK);
        let (ours, mut theirs) = tokio::io::duplex(WIRE_BYTES);
        let asked = runtime.block_on(async {
            let answering = async {
                let mut ours = ours;
                let _ = ours.write_all(input).await;
                let _ = ours.shutdown().await;
                ours
            };
            let asking = hooks::transfer(&mut theirs, store, pack, PACK.len() as u64);
            tokio::time::timeout(PATIENCE, async { tokio::join!(answering, asking).1 }).await
        });
        let asked = asked.map_err(|_| "the client waits for a peer that hung up".to_owned())?;
        let good = is_right(input);
        if asked.is_ok() != good || store.contains(&pack) != good {
            return Err(format!(
                "the answer is {}, and the client says {asked:?}",
                if good { "right" } else { "wrong" }
            ));
        }
        store.forget(&pack).map_err(|error| error.to_string())?;
        let left = std::fs::read_dir(store.folder()).map_err(|error| error.to_string())?.count();
        if left > 0 {
            return Err(format!("{left} files are left behind"));
        }
        Ok(asked.map_or_else(|reason| kind_of(&reason), |_| "came".to_owned()))
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..*random.pick(&[0, 0, 1, 3]) {
            bytes.extend_from_slice(&[COMING, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        bytes.push(*random.pick(&[FOUND, FOUND, FOUND, MISSING, 2, COMING, 255]));
        let length = *random.pick(&[PACK.len() as u64, PACK.len() as u64, 0, 1, 1 << 23, u64::MAX]);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(random.pick::<&[u8]>(&[&[1], &[1], &[NOTHING_YET, NOTHING_YET, 1], &[2], &[255], &[]]));
        bytes.extend_from_slice(if random.one_in(4) { b"something else" } else { PACK });
        bytes
    }
}
