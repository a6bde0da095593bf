//! Many files, and large ones: what they cost in memory. `FULL=1` has a million files instead of 50,000, and 10 GB instead of
//! 300 MB in one file.

mod common;

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use common::{noise, run};
use longshore_artifact::{Bases, DirPacks, Index, Need, PackSink, Published, SinkError, assemble, publish, verify};
use longshore_schemas::PackId;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// One test at a time counts what is allocated.
static TURN: Mutex<()> = Mutex::new(());

const MIB: usize = 1024 * 1024;

/// What the work took at its peak, beyond what was there before.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let done = work();
    (done, ALLOCATED.peak_usage().saturating_sub(before))
}

fn full() -> bool {
    std::env::var_os("FULL").is_some()
}

/// Packs on disk, so that they do not count.
struct Folder(std::path::PathBuf);

#[async_trait::async_trait]
impl PackSink for Folder {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        let path = self.0.join(pack.to_string());
        Ok(tokio::task::spawn_blocking(move || fs::write(path, bytes)).await??)
    }
}

/// Takes packs and forgets them.
struct Nowhere;

#[async_trait::async_trait]
impl PackSink for Nowhere {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        assert_eq!(PackId::of(&bytes), pack);
        Ok(())
    }
}

fn published(source: &Path, bases: Bases, packs: &Path) -> Published {
    run(publish(source, bases, Arc::new(Folder(packs.to_owned())))).expect("published")
}

#[test]
fn very_many_small_files_are_published_again_and_assembled_in_bounded_memory() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let files = if full() { 1_000_000_u32 } else { 50_000 };
    let dir = tempfile::tempdir().expect("a folder");
    let (source, packs) = (dir.path().join("source"), dir.path().join("packs"));
    fs::create_dir(&packs).expect("made");
    for folder in 0..files / 1000 {
        let folder_path = source.join(format!("folder-{folder:04}/of-a-thousand-files"));
        fs::create_dir_all(&folder_path).expect("made");
        for file in 0..1000 {
            fs::write(folder_path.join(format!("file-{file:03}.txt")), format!("{folder} {file}\n")).expect("written");
        }
    }
    let (first, peak) = measured(|| published(&source, Bases::default(), &packs));
    println!("{files} files: {} MiB to publish them", peak / MIB);
    assert_eq!((first.root.files, first.new_chunks), (u64::from(files), u64::from(files)));
    // Segments and packs on their way take some 80 MiB on a machine of many cores; each file some 130 bytes.
    assert!(peak < 80 * MIB + 130 * files as usize, "{} MiB", peak / MIB);

    let (again, peak) = measured(|| {
        let index = |pack: &longshore_artifact::PackRef| {
            let bytes = fs::read(packs.join(pack.pack.to_string())).expect("there");
            (pack.pack, Bytes::from(bytes))
        };
        let mut bases = Bases::default();
        bases.add(&first.root, &Index::packs(&first.root).map(index).collect()).expect("sound");
        published(&source, bases, &packs)
    });
    println!("{files} files: {} MiB to publish them once more", peak / MIB);
    assert_eq!((again.root.artifact, again.new_chunks), (first.root.artifact, 0));
    assert!(peak < 80 * MIB + 200 * files as usize, "{} MiB", peak / MIB);

    let target = dir.path().join("target");
    let (index, peak) = measured(|| {
        let packs = DirPacks::new(&packs);
        let index = Index::load(&first.root, &packs).expect("sound");
        assemble(&index, &Need::compute(&index, &[]), &[], &packs, &target).expect("assembled");
        index
    });
    println!("{files} files: {} MiB to assemble them", peak / MIB);
    assert!(peak < 40 * MIB + 300 * files as usize, "{} MiB", peak / MIB);
    verify(&target, &index.manifest).expect("the same");
}

#[test]
fn one_large_file_takes_no_more_memory_than_a_small_one() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().expect("a folder");
    let publish_one = |bytes: usize| {
        let path = dir.path().join("file");
        let mut file = BufWriter::new(File::create(&path).expect("created"));
        for part in 0..bytes / 10_000_000 {
            file.write_all(&noise(part as u64, 10_000_000)).expect("written");
        }
        file.flush().expect("written");
        let (published, peak) =
            measured(|| run(publish(&path, Bases::default(), Arc::new(Nowhere))).expect("published"));
        println!("a file of {bytes} bytes: {} MiB", peak / MIB);
        assert_eq!(published.root.size_bytes, bytes as u64);
        peak
    };
    let small = publish_one(100_000_000);
    let large = publish_one(if full() { 10_000_000_000 } else { 300_000_000 });
    // A chunk's name and place take some 80 bytes, which is 1.3 MB for each GB.
    assert!(large < small + 32 * MIB && large < 160 * MIB, "{} MiB, and {} MiB", small / MIB, large / MIB);
}
