//! Manifests, layouts, roots, and whole releases: what a lying region, bucket or peer could send.
//!
//! Whatever comes, it is refused or it is right: no path leaves the tree, no range its pack, no byte is installed that its
//! hash does not name, and nothing is left behind.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use longshore_artifact::{
    ArtifactRoot, CHUNK_BYTES_MAX, Entry, Index, Layout, Manifest, Need, PACK_BYTES_MAX, PackRead, PackRef, ReadError,
    assemble, verify,
};
use longshore_schemas::{ArtifactId, ChunkId, PackId};
use serde_json::json;

use super::files::scratch;
use crate::{Random, Subject, kind_of, mutate::varint};

const PATHS: [&str; 8] = ["a", "a-b", "b/c", "b/d/e", "b/d/f", "bin/run", "zz", "z\u{e4} \u{1f980}"];

/// A tree as the format writes it, by a writer of this test's own.
#[derive(Default)]
struct Made {
    manifest: Vec<u8>,
    layout: Vec<u8>,
    data: Vec<u8>,
}

fn make(random: &mut Random) -> Made {
    let mut made = Made { manifest: b"LSMANIF\x01".to_vec(), ..Made::default() };
    let mut places = BTreeMap::new();
    let mut order = Vec::new();
    for path in PATHS {
        match random.below(6) {
            0..=2 => {
                let contents: Vec<Vec<u8>> = (0..random.below(4)).map(|_| content(random)).collect();
                begin(&mut made.manifest, 1, path);
                made.manifest.extend_from_slice(&(if random.one_in(2) { 0o755_u16 } else { 0o644 }).to_le_bytes());
                made.manifest.extend(varint(contents.iter().map(|content| content.len() as u64).sum()));
                made.manifest.extend(varint(contents.len() as u64));
                for content in contents {
                    let chunk = ChunkId::of(&content);
                    made.manifest.extend_from_slice(chunk.as_bytes());
                    made.manifest.extend_from_slice(&(content.len() as u32).to_le_bytes());
                    places.entry(chunk).or_insert_with(|| {
                        order.push(chunk);
                        store(&mut made.data, &content)
                    });
                }
            }
            3 => {
                begin(&mut made.manifest, 2, path);
                let ups = "../".repeat(path.matches('/').count());
                text(&mut made.manifest, &format!("{ups}{}", random.pick(&PATHS)));
            }
            4 => begin(&mut made.manifest, 3, path),
            _ => {}
        }
    }
    made.manifest.push(0);
    made.layout = b"LSLAYOU\x01".to_vec();
    made.layout.push(u8::from(!made.data.is_empty()));
    if !made.data.is_empty() {
        made.layout.extend_from_slice(PackId::of(&made.data).as_bytes());
        made.layout.extend(varint(made.data.len() as u64));
    }
    made.layout.extend(varint(order.len() as u64));
    for chunk in &order {
        let (offset, stored, codec) = places[chunk];
        made.layout.extend([varint(0), varint(offset), varint(stored), vec![codec]].concat());
    }
    made
}

fn content(random: &mut Random) -> Vec<u8> {
    let length = 1 + random.below(40);
    if random.one_in(2) { vec![b'x'; length * 10] } else { random.bytes(length) }
}

/// Appends a chunk to the pack: where, how long, and how it is stored.
fn store(data: &mut Vec<u8>, content: &[u8]) -> (u64, u64, u8) {
    let offset = data.len() as u64;
    let packed = zstd::bulk::compress(content, 1).expect("memory");
    let (stored, codec) = if packed.len() < content.len() { (&packed[..], 1) } else { (content, 0) };
    data.extend_from_slice(stored);
    (offset, stored.len() as u64, codec)
}

fn begin(out: &mut Vec<u8>, tag: u8, path: &str) {
    out.push(tag);
    text(out, path);
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(varint(text.len() as u64));
    out.extend_from_slice(text.as_bytes());
}

const TOKENS: [&str; 8] = ["../", "..", "/", "\u{0}", "LSMANIF\u{1}", "a/../", "a/b", "\u{1}\u{1}a"];

struct Manifests;

pub(super) fn manifest() -> Box<dyn Subject> {
    Box::new(Manifests)
}

impl Subject for Manifests {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let manifest = match Manifest::read(input) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(kind_of(&error)),
        };
        check_manifest(&manifest)?;
        let mut again = Vec::new();
        manifest.write(&mut again).map_err(|error| format!("what was read cannot be written: {error}"))?;
        if again != input || manifest.id() != ArtifactId::of(input) {
            return Err("a manifest has two spellings, or another name than its bytes".to_owned());
        }
        Ok(format!("{} entries, {} chunks", manifest.entries().len(), manifest.chunks().len()))
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        make(random).manifest
    }

    fn tokens(&self) -> &'static [&'static str] {
        &TOKENS
    }
}

/// What must hold of every manifest that was accepted, told without the code that accepted it.
fn check_manifest(manifest: &Manifest) -> Result<(), String> {
    let mut before: Option<&str> = None;
    let mut not_folders = Vec::new();
    for entry in manifest.entries() {
        let path = entry.path();
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') || path.len() > 4096 {
            return Err(format!("the path {path:?} was accepted"));
        }
        if before.is_some_and(|before| before.as_bytes() >= path.as_bytes()) {
            return Err(format!("{path:?} comes after {before:?}"));
        }
        let above = Path::new(path).ancestors().skip(1);
        if above.into_iter().any(|above| not_folders.contains(&above)) {
            return Err(format!("{path:?} lies below what is no folder"));
        }
        match entry {
            Entry::Link { target, .. } => {
                if !stays_inside(path, target) {
                    return Err(format!("the link {path:?} leads out: {target:?}"));
                }
                not_folders.push(Path::new(path));
            }
            Entry::File(file) => {
                let chunks = manifest.chunks_of(file).iter().map(|at| manifest.chunks()[*at as usize]);
                let sum: u64 = chunks.clone().map(|chunk| u64::from(chunk.bytes)).sum();
                let too_large = chunks.clone().any(|chunk| chunk.bytes == 0 || chunk.bytes as usize > CHUNK_BYTES_MAX);
                if sum != file.bytes || file.mode > 0o777 || too_large {
                    return Err(format!("{path:?} contradicts itself"));
                }
                not_folders.push(Path::new(path));
            }
            Entry::Directory { .. } => {}
        }
        before = Some(path);
    }
    Ok(())
}

fn stays_inside(path: &str, target: &str) -> bool {
    let mut at: Vec<&str> = path.split('/').collect();
    at.pop();
    !target.starts_with('/')
        && target.split('/').all(|part| match part {
            "" | "." => true,
            ".." => at.pop().is_some(),
            part => {
                at.push(part);
                true
            }
        })
}

struct Layouts {
    manifest: Manifest,
    made: Made,
}

pub(super) fn layout() -> Box<dyn Subject> {
    let made = make(&mut Random::new(7));
    Box::new(Layouts { manifest: Manifest::read(&made.manifest[..]).expect("it is valid"), made })
}

impl Subject for Layouts {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        match Layout::read(input, &self.manifest) {
            Ok(layout) => check_layout(&layout, &self.manifest).map(|()| format!("{} packs", layout.packs().len())),
            Err(error) => Ok(kind_of(&error)),
        }
    }

    fn generate(&mut self, _: &mut Random) -> Vec<u8> {
        self.made.layout.clone()
    }
}

fn check_layout(layout: &Layout, manifest: &Manifest) -> Result<(), String> {
    if layout.places().len() != manifest.chunks().len() {
        return Err("not every chunk has a place".to_owned());
    }
    for (place, chunk) in layout.places().iter().zip(manifest.chunks()) {
        let pack = layout.packs().get(place.pack as usize).ok_or("a chunk lies in a pack that is not there")?;
        let end = u64::from(place.offset) + u64::from(place.stored);
        if end > pack.bytes || pack.bytes > PACK_BYTES_MAX as u64 || place.stored == 0 || place.stored > chunk.bytes {
            return Err(format!("a chunk lies outside its pack, or is longer than itself: {place:?}"));
        }
    }
    Ok(())
}

struct Roots;

pub(super) fn root() -> Box<dyn Subject> {
    Box::new(Roots)
}

impl Subject for Roots {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let id = ArtifactId::of(b"artifact");
        let root = match ArtifactRoot::from_json(&id, input) {
            Ok(root) => root,
            Err(error) => return Ok(kind_of(&error)),
        };
        let again = ArtifactRoot::from_json(&id, &root.to_json()).map_err(|error| error.to_string())?;
        let packs = root.all_packs();
        if again != root || packs.iter().any(|pack| pack.bytes == 0 || pack.bytes > PACK_BYTES_MAX as u64) {
            return Err("a root is read as another, or names an impossible pack".to_owned());
        }
        Ok(format!("{} packs", packs.len()))
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let packs = |random: &mut Random| {
            let count = random.below(4);
            let pack = |n| json!({ "pack": PackId::of(&[n as u8]), "bytes": 1 << n });
            (0..count).map(pack).collect::<Vec<_>>()
        };
        let mut root = json!({
            "artifact": ArtifactId::of(b"artifact"), "size_bytes": 7, "files": 1, "chunks": 1,
            "manifest": packs(random), "layout": packs(random), "packs": packs(random),
        });
        if random.one_in(2) {
            super::frames::break_value(&mut root, random);
        }
        root.to_string().into_bytes()
    }

    fn tokens(&self) -> &'static [&'static str] {
        &["null", "18446744073709551616", "-1", "0", "[[[[", "\"bytes\":8388609", "1e9"]
    }
}

/// Root, manifest, layout and pack at once, up to the tree on disk. The input:
///
/// ```text
/// how u8 · length of the manifest varint · manifest · length of the layout varint · layout · the pack's bytes
/// ```
///
/// Bits of `how`: 1 and 2, manifest and layout are compressed already; otherwise this does it. The root names what it
/// must, so that the lies get through to those who read what is behind it.
struct Releases {
    folder: tempfile::TempDir,
}

pub(super) fn release() -> Box<dyn Subject> {
    Box::new(Releases { folder: scratch() })
}

/// Serves the same bytes for every pack.
struct OnePack<'a>(&'a [u8]);

impl PackRead for OnePack<'_> {
    fn read_at(&self, _: &PackRef, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..));
        let bytes = from.and_then(|bytes| bytes.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }
}

impl Subject for Releases {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let Some((how, manifest, layout, data)) = parts(input) else { return Ok("no parts".to_owned()) };
        let (manifest, layout) = (packed(how & 1, manifest), packed(how & 2, layout));
        let mut packs = HashMap::new();
        let mut named = |bytes: Vec<u8>| {
            let of = PackRef { pack: PackId::of(&bytes), bytes: bytes.len() as u64 };
            packs.insert(of.pack, Bytes::from(bytes));
            vec![of]
        };
        let plain = |bytes: &[u8]| {
            let mut decoder = zstd::Decoder::new(bytes).ok()?;
            // A window as large as readers allow, and not more than a test wants to hold.
            decoder.window_log_max(23).ok()?;
            let mut plain = Vec::new();
            std::io::copy(&mut std::io::Read::take(&mut decoder, 1 << 20), &mut plain).ok()?;
            Some(plain)
        };
        let read = plain(&manifest).and_then(|plain| Manifest::read(&plain[..]).ok());
        let placed = read.as_ref().zip(plain(&layout)).and_then(|(read, plain)| Layout::read(&plain[..], read).ok());
        let root = ArtifactRoot {
            artifact: read.as_ref().map_or(ArtifactId::of(b""), Manifest::id),
            size_bytes: read.as_ref().map_or(0, Manifest::size_bytes),
            files: read.as_ref().map_or(0, |read| read.entries().len() as u64),
            chunks: read.as_ref().map_or(0, |read| read.chunks().len() as u64),
            manifest: named(manifest),
            manifest_key: 0,
            layout: named(layout),
            packs: placed.map_or_else(Vec::new, |placed| placed.packs().to_vec()),
            provenance: None,
        };
        match Index::decode(&root, &packs) {
            Ok(index) => self.install(&index, data),
            Err(error) => Ok(kind_of(&error)),
        }
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let made = make(random);
        let how = random.below(4) as u8;
        let part = |raw: u8, bytes: Vec<u8>| if raw > 0 { packed(0, &bytes) } else { bytes };
        let (manifest, layout) = (part(how & 1, made.manifest), part(how & 2, made.layout));
        let lengths = [varint(manifest.len() as u64), varint(layout.len() as u64)];
        [&[how][..], &lengths[0], &manifest, &lengths[1], &layout, &made.data].concat()
    }

    fn tokens(&self) -> &'static [&'static str] {
        &TOKENS
    }
}

impl Releases {
    fn install(&self, index: &Index, data: &[u8]) -> Result<String, String> {
        let target: PathBuf = self.folder.path().join("release");
        let need = Need::compute(index, &[]);
        let result = assemble(index, &need, &[], &OnePack(data), &target);
        let left: Vec<_> = fs::read_dir(self.folder.path()).map_err(|error| error.to_string())?.collect();
        match result {
            Ok(_) => {
                check_manifest(&index.manifest)?;
                verify(&target, &index.manifest).map_err(|error| format!("what was installed is wrong: {error}"))?;
                if left.len() != 1 {
                    return Err(format!("something lies beside the release: {left:?}"));
                }
                fs::remove_dir_all(&target).map_err(|error| error.to_string())?;
                Ok(format!("installed {} entries", index.manifest.entries().len()))
            }
            Err(_) if !left.is_empty() => Err(format!("it failed and left something behind: {left:?}")),
            Err(error) => Ok(kind_of(&error)),
        }
    }
}

fn packed(already: u8, bytes: &[u8]) -> Vec<u8> {
    if already > 0 { bytes.to_vec() } else { zstd::encode_all(bytes, 1).expect("memory") }
}

/// How, manifest, layout, and the pack's bytes.
type Parts<'a> = (u8, &'a [u8], &'a [u8], &'a [u8]);

fn parts(input: &[u8]) -> Option<Parts<'_>> {
    let (how, rest) = input.split_first()?;
    let (manifest, rest) = part(rest)?;
    let (layout, data) = part(rest)?;
    Some((*how, manifest, layout, data))
}

fn part(from: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut length, mut shift) = (0_usize, 0);
    for (at, byte) in from.iter().enumerate().take(3) {
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return from[at + 1..].split_at_checked(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_installed() {
        let mut random = Random::new(3);
        let mut subject = Releases { folder: scratch() };
        for _ in 0..50 {
            let input = subject.generate(&mut random);
            let kind = subject.run(&input).expect("right");
            assert!(kind.starts_with("installed"), "{kind}");
        }
    }
}
