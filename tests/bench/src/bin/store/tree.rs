//! The tree that is published: made from a seed, half of it compressible, half not; and what is changed in it.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use longshore_bench::trees;

/// Sizes of the files, in KiB, over and over until the tree is full: a few large ones hold most of it.
const SIZES_KIB: [u64; 8] = [65_536, 4, 16_384, 900, 1, 200, 8_192, 33_000];
const BLOCK_BYTES: usize = 64 * 1024;
const WORDS: [&str; 16] = [
    "fn ",
    "let ",
    "match ",
    "self.",
    "return ",
    "Result<",
    "Vec<u8>",
    "\n    ",
    "partition",
    "offset",
    " => ",
    "(&mut ",
    "); ",
    "0x",
    ".rodata",
    "\0\0\0\0",
];

/// An endless stream of bytes that never repeats.
struct Noise(blake3::OutputReader);

impl Noise {
    fn new(seed: u64, what: &str) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).update(what.as_bytes()).finalize_xof())
    }

    fn number(&mut self, below: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % below.max(1)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.fill(&mut bytes);
        bytes
    }

    /// Words in random order with a little noise between: about as compressible as machine code.
    fn words(&mut self, length: usize) -> Vec<u8> {
        let dice = self.bytes(length);
        let mut bytes = Vec::with_capacity(length + 32);
        for die in dice {
            if bytes.len() >= length {
                break;
            }
            bytes.extend_from_slice(WORDS[usize::from(die & 15)].as_bytes());
            if die & 0x30 == 0 {
                bytes.push(die);
            }
        }
        bytes.truncate(length);
        bytes
    }
}

/// Makes files until they have this many bytes together.
pub(crate) fn make(dir: &Path, size_bytes: u64, seed: u64) -> Result<u64> {
    let mut made = 0;
    for (number, size_kib) in SIZES_KIB.iter().cycle().enumerate() {
        if made == size_bytes {
            break;
        }
        let bytes = (size_kib * 1024).min(size_bytes - made);
        let folder = dir.join(format!("part-{}", number % 7));
        fs::create_dir_all(&folder)?;
        make_file(&folder.join(format!("file-{number:05}")), bytes, Noise::new(seed, &format!("file {number}")))?;
        made += bytes;
    }
    Ok(made)
}

fn make_file(path: &Path, bytes: u64, mut noise: Noise) -> Result<()> {
    let mut file = BufWriter::new(File::create(path).with_context(|| format!("cannot create {path:?}"))?);
    let mut left = usize::try_from(bytes)?;
    let mut block = 0;
    while left > 0 {
        let length = left.min(BLOCK_BYTES);
        // Stretches of one kind, each longer than a chunk, as in a program with its assets.
        let bytes = if (block / 16) % 2 == 0 { noise.bytes(length) } else { noise.words(length) };
        file.write_all(&bytes)?;
        left -= length;
        block += 1;
    }
    Ok(file.flush()?)
}

/// Changes about this many bytes in so many runs of 0.2 to 1 MiB at random places; each fourth run is inserted. The new bytes do
/// not compress. Says how many bytes were written.
pub(crate) fn change(dir: &Path, runs: u64, bytes: u64, seed: u64) -> Result<u64> {
    let mut noise = Noise::new(seed, "changes");
    let (shortest, longest) = (200 * 1024, 1024 * 1024);
    let mean = (bytes / runs).clamp(shortest, longest);
    // Around the mean, as far on both sides as the limits allow.
    let spread = (mean - shortest).min(longest - mean);
    let files: Vec<PathBuf> =
        trees::files(dir)?.into_iter().filter(|file| fs::metadata(file).is_ok_and(|m| m.len() > 4 * longest)).collect();
    ensure!(!files.is_empty(), "the tree is too small to change runs in it");
    let mut changed = 0;
    for run in 0..runs {
        let length = mean - spread + noise.number(2 * spread + 1);
        let pick = noise.number(files.len() as u64);
        let path = &files[usize::try_from(pick)?];
        let mut old = fs::read(path)?;
        let at = usize::try_from(noise.number(old.len() as u64 - length))?;
        let fresh = noise.bytes(usize::try_from(length)?);
        let replaced = if run % 4 == 3 { at..at } else { at..at + fresh.len() };
        old.splice(replaced, fresh);
        fs::write(path, old)?;
        changed += length;
    }
    Ok(changed)
}
